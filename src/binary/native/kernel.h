// What all kernels share: MindSpore's calling convention for `ops.Custom(func_type="aot")` and checks of its arguments.
//
//     int kernel(int count, void **arrays, int *ranks, int64_t **shapes, const char **types, void *stream, void *extra)
//
// Inputs come first, then outputs. A result other than 0 becomes a Python error.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

constexpr int BAD_ARGUMENTS = 1;
constexpr int64_t MAX_PARTS = 16;  // into which a batch is divided for sums over its images

inline bool all_float32(int count, const char **types) {
    for (int i = 0; i < count; ++i)
        if (std::strcmp(types[i], "float32") != 0) return false;
    return true;
}

inline bool same_shape(const int *ranks, int64_t *const *shapes, int one, int other) {
    if (ranks[one] != ranks[other]) return false;
    for (int i = 0; i < ranks[one]; ++i)
        if (shapes[one][i] != shapes[other][i]) return false;
    return true;
}

inline int64_t elements(int rank, const int64_t *shape) {
    int64_t product = 1;
    for (int i = 0; i < rank; ++i) product *= shape[i];
    return product;
}

// sin(pi f) for |f| <= 0.51, by the polynomial of src/binary/fourier.py.
inline float sine_of_half_turns(float f) {
    const float square = f * f;
    float series = 0.07737569145773054f;
    series = series * square - 0.5981570228903997f;
    series = series * square + 2.550057595860456f;
    series = series * square - 5.1677091378265345f;
    series = series * square + 3.1415926330851685f;
    return series * f;
}
