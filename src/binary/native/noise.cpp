// The noise adaptation module on positions, Eq. 13 and 14: sign(t) + alpha e(t), e(t) = ReLU(t W1) W2 + a eta(t), and
// the gradients of alpha e(t). t is (N, C, H, W); a row of the products is the C channels of a position.
//
// A piece of an image's positions at a time. Its channels pass by once for the hidden values ReLU(t W1), of which
// there are few (C / 64), and once for the result. Loops run along the positions: from channel to channel the
// distance may be a power of two, and then all channels of a position fall on the same few places of the cache. The
// gradients of W1 and W2 are summed over parts of the images, which are added in their order: so a result does not
// depend on the threads.

#include <algorithm>
#include <vector>

#include "kernel.h"

namespace {

constexpr int64_t PIECE = 1024;  // positions; their hidden values stay in the first level cache
enum Eta { NONE = 0, LINEAR = 1, SINE = 2 };

// sin(t + quarters pi/2), quarters 0 or 1: t is split into k half-turns and a rest f in [-1/2, 1/2]. Not finite where t
// is not.
inline float sine(float t, int quarters) {
    constexpr float pi_high = 3.140625f, pi_low = 9.67653589793e-4f, inverse_pi = 0.318309886f;
    const float shift = 0.5f * quarters;
    const float k = std::trunc(t * inverse_pi + shift + std::copysign(0.5f, t + shift));
    const float f = ((t - (k - shift) * pi_high) - (k - shift) * pi_low) * inverse_pi;
    const float half = k * 0.5f;
    return sine_of_half_turns(f) * (1.0f - 4.0f * std::fabs(half - std::trunc(half)));
}

struct Arguments {
    int64_t images, channels, plane, hidden;
    const float *t, *w1, *w2;  // (N, C, H, W) or (rows, C), (C, hidden), (hidden, C)
    float alpha, amplitude;
    Eta kind;
    bool rows;  // t is (rows, C): as the positions of one image

    // Inputs 0 to 4: t, W1, W2, alpha (1 value), and 2 values: a and the kind of eta.
    bool read(void **arrays, const int *ranks, int64_t *const *shapes) {
        if ((ranks[0] != 4 && ranks[0] != 2) || ranks[1] != 2 || ranks[2] != 2) return false;
        const int64_t *size = shapes[0];
        rows = ranks[0] == 2, channels = size[1], hidden = shapes[1][1];
        images = rows ? 1 : size[0], plane = rows ? size[0] : size[2] * size[3];
        if (shapes[1][0] != channels || shapes[2][0] != hidden || shapes[2][1] != channels) return false;
        if (elements(ranks[3], shapes[3]) != 1 || elements(ranks[4], shapes[4]) != 2) return false;
        const auto array = [&](int number) { return static_cast<const float *>(arrays[number]); };
        t = array(0), w1 = array(1), w2 = array(2), alpha = *array(3), amplitude = array(4)[0];
        kind = static_cast<Eta>(static_cast<int>(array(4)[1]));
        return true;
    }
};

// Rows and columns change places.
void transpose(const float *from, int64_t rows, int64_t columns, float *to) {
    for (int64_t row = 0; row < rows; ++row)
        for (int64_t column = 0; column < columns; ++column) to[column * rows + row] = *from++;
}

// Values in the shape of t, as (N, C, positions): a copy if they are rows.
const float *by_channel(const Arguments &a, const float *values, std::vector<float> &copy) {
    if (!a.rows) return values;
    copy.resize(a.channels * a.plane);
    transpose(values, a.plane, a.channels, copy.data());
    return copy.data();
}

// Where a result in the shape of t is written as (N, C, positions): a buffer if it will be rows.
float *by_channel(const Arguments &a, float *result, std::vector<float> &buffer) {
    if (!a.rows) return result;
    buffer.resize(a.channels * a.plane);
    return buffer.data();
}

// to[k] = sum_c x_c matrix[c, k] at `count` positions, `to` with PIECE values for each k. `x`: the first position of
// the first channel. The matrix has a step from channel to channel, and one from k to k.
void project(const Arguments &a, const float *x, int64_t count, const float *matrix, int64_t by_channel, int64_t by_k,
             float *to) {
    std::fill(to, to + a.hidden * PIECE, 0.0f);
    for (int64_t c = 0; c < a.channels; ++c)
        for (int64_t k = 0; k < a.hidden; ++k) {
            const float weight = matrix[c * by_channel + k * by_k], *line = x + c * a.plane;
            float *sum = to + k * PIECE;
#pragma omp simd
            for (int64_t i = 0; i < count; ++i) sum[i] += line[i] * weight;
        }
}

// to = amplitude eta(t) or, with quarters 1, its derivative.
void eta(const Arguments &a, const float *t, int64_t count, int quarters, float *to) {
    const float amplitude = a.amplitude;
    if (a.kind == SINE && quarters == 0) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) to[i] = amplitude * sine(t[i], 0);
    } else if (a.kind == SINE) {
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) to[i] = amplitude * sine(t[i], 1);
    } else if (a.kind == LINEAR && quarters == 0) {
        for (int64_t i = 0; i < count; ++i) to[i] = amplitude * t[i];
    } else {
        std::fill(to, to + count, a.kind == LINEAR ? amplitude : 0.0f);
    }
}

}  // namespace

// Inputs: t, W1, W2, alpha, options. Output: sign(t) + alpha e(t).
extern "C" int noise(int count, void **arrays, int *ranks, int64_t **shapes, const char **types, void *, void *) {
    Arguments a;
    if (count != 6 || !all_float32(count, types) || !a.read(arrays, ranks, shapes)) return BAD_ARGUMENTS;
    if (!same_shape(ranks, shapes, 0, 5)) return BAD_ARGUMENTS;
    std::vector<float> t_copy, buffer;
    a.t = by_channel(a, a.t, t_copy);
    float *result = by_channel(a, static_cast<float *>(arrays[5]), buffer);
#pragma omp parallel
    {
        std::vector<float> hidden(a.hidden * PIECE), e(PIECE);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < a.images; ++n)
            for (int64_t p = 0; p < a.plane; p += PIECE) {
                const int64_t first = n * a.channels * a.plane + p, positions = std::min(PIECE, a.plane - p);
                project(a, a.t + first, positions, a.w1, a.hidden, 1, hidden.data());
                for (float &value : hidden) value = value > 0 ? value : 0;
                for (int64_t c = 0; c < a.channels; ++c) {
                    const int64_t line = first + c * a.plane;
                    eta(a, a.t + line, positions, 0, e.data());
                    for (int64_t k = 0; k < a.hidden; ++k) {
                        const float weight = a.w2[k * a.channels + c], *from = &hidden[k * PIECE];
#pragma omp simd
                        for (int64_t i = 0; i < positions; ++i) e[i] += from[i] * weight;
                    }
                    const float alpha = a.alpha, *t = a.t + line, *noise = e.data();
                    float *to = result + line;
#pragma omp simd
                    for (int64_t i = 0; i < positions; ++i) to[i] = (t[i] > 0 ? 1.0f : -1.0f) + alpha * noise[i];
                }
            }
    }
    if (a.rows) transpose(result, a.channels, a.plane, static_cast<float *>(arrays[5]));
    return 0;
}

// Inputs: t, W1, W2, alpha, options, the gradient of the result. Outputs: the gradients of t, W1 and W2.
extern "C" int noise_gradient(int count, void **arrays, int *ranks, int64_t **shapes, const char **types, void *,
                              void *) {
    Arguments a;
    if (count != 9 || !all_float32(count, types) || !a.read(arrays, ranks, shapes)) return BAD_ARGUMENTS;
    if (!same_shape(ranks, shapes, 0, 5) || !same_shape(ranks, shapes, 0, 6) || !same_shape(ranks, shapes, 1, 7) ||
        !same_shape(ranks, shapes, 2, 8))
        return BAD_ARGUMENTS;
    std::vector<float> t_copy, dout_copy, buffer;
    a.t = by_channel(a, a.t, t_copy);
    const float *dout = by_channel(a, static_cast<const float *>(arrays[5]), dout_copy);
    float *by_t = by_channel(a, static_cast<float *>(arrays[6]), buffer);
    const int64_t size = a.channels * a.plane, matrix = a.channels * a.hidden;
    const int64_t parts = std::min(MAX_PARTS, a.images);
    std::vector<double> total(parts * 2 * matrix);  // for each part W1 (C, hidden), then W2 (hidden, C)
#pragma omp parallel
    {
        std::vector<float> hidden(a.hidden * PIECE), by_hidden(a.hidden * PIECE);
#pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; ++part)
            for (int64_t n = a.images * part / parts; n < a.images * (part + 1) / parts; ++n)
                for (int64_t p = 0; p < a.plane; p += PIECE) {
                    const int64_t first = n * size + p, positions = std::min(PIECE, a.plane - p);
                    project(a, a.t + first, positions, a.w1, a.hidden, 1, hidden.data());
                    project(a, dout + first, positions, a.w2, 1, a.channels, by_hidden.data());
                    for (int64_t i = 0; i < a.hidden * PIECE; ++i) {
                        by_hidden[i] = hidden[i] > 0 ? a.alpha * by_hidden[i] : 0;
                        hidden[i] = hidden[i] > 0 ? a.alpha * hidden[i] : 0;
                    }
                    for (int64_t c = 0; c < a.channels; ++c) {
                        const float *t = a.t + first + c * a.plane, *g = dout + first + c * a.plane, alpha = a.alpha;
                        float *to = by_t + first + c * a.plane;
                        eta(a, t, positions, 1, to);
#pragma omp simd
                        for (int64_t i = 0; i < positions; ++i) to[i] *= alpha * g[i];
                        for (int64_t k = 0; k < a.hidden; ++k) {
                            const float weight = a.w1[c * a.hidden + k], *by = &by_hidden[k * PIECE];
                            const float *from = &hidden[k * PIECE];
                            float by_w1 = 0, by_w2 = 0;
#pragma omp simd reduction(+ : by_w1, by_w2)
                            for (int64_t i = 0; i < positions; ++i)
                                to[i] += by[i] * weight, by_w1 += by[i] * t[i], by_w2 += from[i] * g[i];
                            total[part * 2 * matrix + c * a.hidden + k] += by_w1;
                            total[part * 2 * matrix + matrix + k * a.channels + c] += by_w2;
                        }
                    }
                }
    }
    if (a.rows) transpose(by_t, a.channels, a.plane, static_cast<float *>(arrays[6]));
    for (int64_t i = 0; i < 2 * matrix; ++i) {
        double sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += total[part * 2 * matrix + i];
        float *to = static_cast<float *>(arrays[i < matrix ? 7 : 8]);
        to[i < matrix ? i : i - matrix] = static_cast<float>(sum);
    }
    return 0;
}
