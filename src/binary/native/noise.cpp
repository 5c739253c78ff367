// The noise adaptation module on positions, Eq. 13 and 14: binary + alpha e(t), e(t) = ReLU(t W1) W2 + a eta(t), and
// its gradients. t is (N, C, H, W); a row of the products is the C channels of a position.
//
// 8 positions of an image at a time. Their channels pass by once for the hidden values ReLU(t W1), of which there are
// few (C / 64), and once for the result, when they are still in the first level cache. The gradients of W1 and W2 are
// summed over parts of the images, which are added in their order: so a result does not depend on the threads.

#include <algorithm>
#include <vector>

#include "kernel.h"

namespace {

constexpr int LANES = 8;
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

// 8 positions: channel c is at `values + c * step`. The last few of an image are copied to whole vectors.
struct Block {
    const float *values;
    int64_t step;
    const float *operator[](int64_t channel) const { return values + channel * step; }
};

struct Arguments {
    int64_t images, channels, plane, hidden;
    const float *t, *w1, *w2;  // (N, C, H, W), (C, hidden), (hidden, C)
    float alpha, amplitude;
    Eta eta;

    // Inputs 0 to 4: t, W1, W2, alpha (1 value), and 2 values: a and the kind of eta.
    bool read(void **arrays, const int *ranks, int64_t *const *shapes) {
        if (ranks[0] != 4 || ranks[1] != 2 || ranks[2] != 2) return false;
        images = shapes[0][0], channels = shapes[0][1], plane = shapes[0][2] * shapes[0][3], hidden = shapes[1][1];
        if (shapes[1][0] != channels || shapes[2][0] != hidden || shapes[2][1] != channels) return false;
        if (elements(ranks[3], shapes[3]) != 1 || elements(ranks[4], shapes[4]) != 2) return false;
        const auto array = [&](int number) { return static_cast<const float *>(arrays[number]); };
        t = array(0), w1 = array(1), w2 = array(2), alpha = *array(3), amplitude = array(4)[0];
        eta = static_cast<Eta>(static_cast<int>(array(4)[1]));
        return true;
    }

    // sum_c x_c matrix[c, k] for the 8 positions and every k; the matrix has a step from channel to channel, and one
    // from k to k.
    void project(const Block &x, const float *matrix, int64_t by_channel, int64_t by_k, float *result) const {
        for (int64_t k = 0; k < hidden; ++k) {
            float sum[LANES] = {};
            for (int64_t c = 0; c < channels; ++c)
                for (int i = 0; i < LANES; ++i) sum[i] += x[c][i] * matrix[c * by_channel + k * by_k];
            for (int i = 0; i < LANES; ++i) result[k * LANES + i] = sum[i];
        }
    }
};

// The 8 positions from p on of an image; those beyond the end are 0 and in `copy`.
inline Block block(const Arguments &a, const float *image, int64_t p, std::vector<float> &copy) {
    if (p + LANES <= a.plane) return {image + p, a.plane};
    std::fill(copy.begin(), copy.end(), 0.0f);
    for (int64_t c = 0; c < a.channels; ++c)
        std::copy(image + c * a.plane + p, image + (c + 1) * a.plane, copy.begin() + c * LANES);
    return {copy.data(), LANES};
}

inline void store(const Arguments &a, const float *values, int64_t p, float *line) {
    std::copy(values, values + std::min<int64_t>(LANES, a.plane - p), line + p);
}

}  // namespace

// Inputs: t, W1, W2, alpha, options, binary. Output: binary + alpha e(t).
extern "C" int noise(int count, void **arrays, int *ranks, int64_t **shapes, const char **types, void *, void *) {
    Arguments a;
    if (count != 7 || !all_float32(count, types) || !a.read(arrays, ranks, shapes)) return BAD_ARGUMENTS;
    if (!same_shape(ranks, shapes, 0, 5) || !same_shape(ranks, shapes, 0, 6)) return BAD_ARGUMENTS;
    const float *binary = static_cast<float *>(arrays[5]);
    float *result = static_cast<float *>(arrays[6]);
    const int64_t size = a.channels * a.plane;
#pragma omp parallel
    {
        std::vector<float> hidden(a.hidden * LANES), t_copy(a.channels * LANES), binary_copy(a.channels * LANES);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < a.images; ++n)
            for (int64_t p = 0; p < a.plane; p += LANES) {
                const Block t = block(a, a.t + n * size, p, t_copy), z = block(a, binary + n * size, p, binary_copy);
                a.project(t, a.w1, a.hidden, 1, hidden.data());
                for (float &value : hidden) value = value > 0 ? value : 0;
                for (int64_t c = 0; c < a.channels; ++c) {
                    float e[LANES] = {};
                    if (a.eta == SINE)
                        for (int i = 0; i < LANES; ++i) e[i] = a.amplitude * sine(t[c][i], 0);
                    else if (a.eta == LINEAR)
                        for (int i = 0; i < LANES; ++i) e[i] = a.amplitude * t[c][i];
                    for (int64_t k = 0; k < a.hidden; ++k)
                        for (int i = 0; i < LANES; ++i) e[i] += hidden[k * LANES + i] * a.w2[k * a.channels + c];
                    for (int i = 0; i < LANES; ++i) e[i] = z[c][i] + a.alpha * e[i];
                    store(a, e, p, result + n * size + c * a.plane);
                }
            }
    }
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
    const float *dout = static_cast<float *>(arrays[5]);
    float *by_t = static_cast<float *>(arrays[6]);
    const int64_t size = a.channels * a.plane, matrix = a.channels * a.hidden;
    const int64_t parts = std::min(MAX_PARTS, a.images);
    std::vector<double> total(parts * 2 * matrix);  // for each part W1 (C, hidden), then W2 (hidden, C)
#pragma omp parallel
    {
        std::vector<float> hidden(a.hidden * LANES), by_hidden(a.hidden * LANES), sums(2 * matrix * LANES);
        std::vector<float> t_copy(a.channels * LANES), dout_copy(a.channels * LANES);
#pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; ++part)
            for (int64_t n = a.images * part / parts; n < a.images * (part + 1) / parts; ++n) {
                std::fill(sums.begin(), sums.end(), 0.0f);
                for (int64_t p = 0; p < a.plane; p += LANES) {
                    const Block t = block(a, a.t + n * size, p, t_copy), g = block(a, dout + n * size, p, dout_copy);
                    a.project(t, a.w1, a.hidden, 1, hidden.data());
                    a.project(g, a.w2, 1, a.channels, by_hidden.data());
                    for (int64_t i = 0; i < a.hidden * LANES; ++i) {
                        by_hidden[i] = hidden[i] > 0 ? a.alpha * by_hidden[i] : 0;
                        hidden[i] = hidden[i] > 0 ? a.alpha * hidden[i] : 0;
                    }
                    for (int64_t c = 0; c < a.channels; ++c) {
                        float by[LANES] = {};
                        if (a.eta == SINE)
                            for (int i = 0; i < LANES; ++i) by[i] = a.alpha * a.amplitude * sine(t[c][i], 1) * g[c][i];
                        else if (a.eta == LINEAR)
                            for (int i = 0; i < LANES; ++i) by[i] = a.alpha * a.amplitude * g[c][i];
                        for (int64_t k = 0; k < a.hidden; ++k) {
                            float *by_w1 = &sums[(c * a.hidden + k) * LANES];
                            float *by_w2 = &sums[(matrix + k * a.channels + c) * LANES];
                            for (int i = 0; i < LANES; ++i) {
                                by[i] += by_hidden[k * LANES + i] * a.w1[c * a.hidden + k];
                                by_w1[i] += by_hidden[k * LANES + i] * t[c][i];
                                by_w2[i] += hidden[k * LANES + i] * g[c][i];
                            }
                        }
                        store(a, by, p, by_t + n * size + c * a.plane);
                    }
                }
                for (int64_t i = 0; i < 2 * matrix; ++i)
                    for (int lane = 0; lane < LANES; ++lane) total[part * 2 * matrix + i] += sums[i * LANES + lane];
            }
    }
    for (int64_t i = 0; i < 2 * matrix; ++i) {
        double sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += total[part * 2 * matrix + i];
        float *to = static_cast<float *>(arrays[i < matrix ? 7 : 8]);
        to[i < matrix ? i : i - matrix] = static_cast<float>(sum);
    }
    return 0;
}
