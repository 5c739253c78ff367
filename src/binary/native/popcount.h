// scale * conv(x, z) where all values of x and z are +1 or -1: 3x3, a padding of 1, stride 1 or 2, by bits.
//
// With +1 as bit 1, a product is +1 where bits are equal: a sum of m products is m - 2 popcount(x xor z), exactly.
// The bits of the three taps of a filter's row are one run of 3 C bits, in K words. For an output position three such
// rows follow each other, so 3 K words are compared. A tap in the border has bits 0 in x; the sum starts with what
// corrects that.
//
// The same word of neighbouring positions is next to each other: where vectors have a popcount, that loop becomes one
// of vectors. The words of an output channel's filter stay in registers.

#pragma once

#include <algorithm>
#include <memory>
#include <vector>

#include "shapes.h"

// Add to `counts` the differing bits of WORDS lines, each `count` words long.
template <int WORDS>
inline void add_differences(const uint64_t *lines, const uint64_t *weights, int64_t count, int32_t *counts) {
    for (int64_t w = 0; w < count; ++w) {
        int32_t sum = 0;
        for (int k = 0; k < WORDS; ++k) sum += __builtin_popcountll(lines[k * count + w] ^ weights[k]);
        counts[w] += sum;
    }
}

// The weights z as bits, and what a sum starts with.
class SignWeights {
public:
    const int64_t words;  // K
    bool are_signs = true;

    SignWeights(const float *z, int64_t outputs, int64_t channels)
        : words((3 * channels + 63) / 64), outputs(outputs), bits(outputs * 3 * words), starts(16 * outputs) {
        std::vector<int32_t> ones(9);
        for (int64_t o = 0; o < outputs && are_signs; ++o) {
            std::fill(ones.begin(), ones.end(), 0);
            for (int64_t c = 0; c < channels; ++c)
                for (int tap = 0; tap < 9; ++tap, ++z) {
                    are_signs = are_signs && std::fabs(*z) == 1.0f;
                    if (!(*z > 0)) continue;
                    const int64_t bit = tap % 3 * channels + c;
                    bits[(o * 3 + tap / 3) * words + bit / 64] |= uint64_t(1) << bit % 64;
                    ++ones[tap];
                }
            for (int border = 0; border < 16; ++border)
                for (int tap = 0; tap < 9; ++tap)
                    starts[border * outputs + o] += outside(border, tap) ? 2 * ones[tap] : channels;
        }
    }

    const uint64_t *of(int64_t output) const { return bits.data() + output * 3 * words; }

    // Of a position at the borders: 1 above + 2 below + 4 on the left + 8 on the right.
    int32_t start(int border, int64_t output) const { return starts[border * outputs + output]; }

private:
    static bool outside(int border, int tap) {
        const int row = tap / 3, column = tap % 3;
        return (border & 1 && row == 0) || (border & 2 && row == 2) || (border & 4 && column == 0) ||
               (border & 8 && column == 2);
    }

    const int64_t outputs;
    std::vector<uint64_t> bits;  // (outputs, 3, words)
    std::vector<int32_t> starts;  // (16, outputs)
};

// The bits of one image for every row (with a row of zeros above and below), word and output column.
class SignPlanes {
public:
    SignPlanes(const Shape &x, const Shape &y, int64_t stride, int64_t words)
        : x(x), y(y), stride(stride), words(words), bits((x.channels + 63) / 64 * (x.width + 2)),
          lines((x.height + 2) * words * y.width), counts(y.width) {}

    // Whether all values of the image are +1 or -1; else the planes are of no use.
    bool fill(const float *image) {
        std::fill(lines.begin(), lines.end(), 0);
        for (int64_t h = 0; h < x.height; ++h) {
            std::fill(bits.begin(), bits.end(), 0);
            uint32_t others = 0;
            for (int64_t c = 0; c < x.channels; ++c) {
                const float *line = image + (c * x.height + h) * x.width;
                uint64_t *to = bits.data() + c / 64 * (x.width + 2) + 1;
                for (int64_t w = 0; w < x.width; ++w) {
                    others |= std::fabs(line[w]) != 1.0f;
                    to[w] |= uint64_t(line[w] > 0) << c % 64;
                }
            }
            if (others) return false;
            for (int tap = 0; tap < 3; ++tap)
                for (int64_t c = 0; c < x.channels; c += 64)
                    add(&bits[c / 64 * (x.width + 2) + tap], tap * x.channels + c, &lines[(h + 1) * words * y.width]);
        }
        return true;
    }

    void convolve(const SignWeights &weights, const Scale &scale, float *image) {
        for (int64_t h = 0; h < y.height; ++h) {
            const uint64_t *from = lines.data() + h * stride * words * y.width;
            const int border = (h == 0) + 2 * (h * stride + 1 == x.height);
            for (int64_t o = 0; o < y.channels; ++o) {
                std::fill(counts.begin(), counts.end(), 0);
                const uint64_t *filter = weights.of(o), *end = filter + 3 * words, *line = from;
                for (; end - filter >= 9; filter += 9, line += 9 * y.width)
                    add_differences<9>(line, filter, y.width, counts.data());
                if (end - filter == 6) add_differences<6>(line, filter, y.width, counts.data());
                if (end - filter == 3) add_differences<3>(line, filter, y.width, counts.data());
                float *to = image + (o * y.height + h) * y.width;
                const int32_t start = weights.start(border, o);
                for (int64_t w = 0; w < y.width; ++w) to[w] = scale[o] * static_cast<float>(start - 2 * counts[w]);
                for (int64_t w : {int64_t(0), y.width - 1}) {
                    const int sides = border + 4 * (w == 0) + 8 * (w * stride + 1 == x.width);
                    to[w] = scale[o] * static_cast<float>(weights.start(sides, o) - 2 * counts[w]);
                }
            }
        }
    }

private:
    // Put the bits of up to 64 channels of each `stride`-th position at bit `place` of a row's words.
    void add(const uint64_t *from, int64_t place, uint64_t *to) const {
        const int64_t word = place / 64, shift = place % 64;
        for (int64_t w = 0; w < y.width; ++w) to[word * y.width + w] |= from[w * stride] << shift;
        if (shift && word + 1 < words)
            for (int64_t w = 0; w < y.width; ++w) to[(word + 1) * y.width + w] |= from[w * stride] >> (64 - shift);
    }

    const Shape x, y;
    const int64_t stride, words;
    std::vector<uint64_t> bits;   // of a row: (64 channels a word, width and borders)
    std::vector<uint64_t> lines;  // (rows, words, output width)
    std::vector<int32_t> counts;
};
