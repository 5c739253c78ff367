// The sign, and its Fourier gradient dout * s_n'(t), in one pass each. The formula and the range reduction are those of
// src/binary/fourier.py. One loop over all elements: its speed is that of memory, so nothing is blocked or tiled.

#include "kernel.h"

namespace {

struct Constants {
    float half_period_high, half_period_low, inverse_half_period, scale;
};

inline float gradient(float t, float terms, float clip, const Constants &c) {
    const float distance = std::fabs(t);
    const float k = std::trunc(distance * c.inverse_half_period + 0.5f);
    float u = std::fabs(((distance - k * c.half_period_high) - k * c.half_period_low) * c.inverse_half_period) + 1e-12f;
    u = u > 0.51f ? 0.51f : u;  // NaN stays NaN
    const float turns = u * (2.0f * terms);
    const float q = std::trunc(turns + 0.5f);
    const float half = (k + q) * 0.5f;
    const float parity = half - std::trunc(half);
    const float value = sine_of_half_turns(turns - q) / sine_of_half_turns(u) * (c.scale - parity * (4.0f * c.scale));
    return distance > clip ? 0.0f : value;
}

}  // namespace

// Input: t. Output: +1 where t > 0, else -1, also at NaN. Both float32.
extern "C" int sign(int count, void **arrays, int *ranks, int64_t **shapes, const char **types, void *, void *) {
    if (count != 2 || !all_float32(count, types) || !same_shape(ranks, shapes, 0, 1)) return BAD_ARGUMENTS;
    const int64_t size = elements(ranks[0], shapes[0]);
    const float *t = static_cast<float *>(arrays[0]);
    float *result = static_cast<float *>(arrays[1]);
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < size; ++i) result[i] = t[i] > 0 ? 1.0f : -1.0f;
    return 0;
}

// Inputs: t, dout of one size; n (); constants (5): the four of `closed_form_constants`, and the bound beyond which the
// gradient is 0 (infinity: none). Output: of t's size. All float32.
extern "C" int fourier_gradient(int count, void **arrays, int *ranks, int64_t **shapes, const char **types, void *,
                                void *) {
    if (count != 5 || !all_float32(count, types)) return BAD_ARGUMENTS;
    const int64_t size = elements(ranks[0], shapes[0]);
    if (elements(ranks[1], shapes[1]) != size || elements(ranks[4], shapes[4]) != size) return BAD_ARGUMENTS;
    if (elements(ranks[2], shapes[2]) != 1 || elements(ranks[3], shapes[3]) != 5) return BAD_ARGUMENTS;
    const float *t = static_cast<float *>(arrays[0]);
    const float *dout = static_cast<float *>(arrays[1]);
    const float terms = *static_cast<float *>(arrays[2]) + 1.0f;
    const float *values = static_cast<float *>(arrays[3]);
    const Constants constants = {values[0], values[1], values[2], values[3]};
    const float clip = values[4];
    float *result = static_cast<float *>(arrays[4]);
#pragma omp parallel for simd schedule(static)
    for (int64_t i = 0; i < size; ++i) result[i] = gradient(t[i], terms, clip, constants) * dout[i];
    return 0;
}
