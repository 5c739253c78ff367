// Shapes and scale of a convolution.

#pragma once

#include "kernel.h"

struct Shape {
    int64_t images, channels, height, width;
    int64_t plane() const { return height * width; }
    bool read(int rank, const int64_t *sizes) {
        if (rank != 4) return false;
        images = sizes[0], channels = sizes[1], height = sizes[2], width = sizes[3];
        return images > 0 && channels > 0 && height > 0 && width > 0;
    }
};

struct Scale {
    const float *values;
    bool by_channel;
    float operator[](int64_t channel) const { return values[by_channel ? channel : 0]; }
};
