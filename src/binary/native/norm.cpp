// A shared slope, then batch norm, of x (N, C, H, W): y = gamma (r - mean) / sqrt(variance + eps) + beta for each
// channel with r = x > 0 ? x : a x. Training and its gradients, and evaluation with given statistics. float32.
//
// Speed is that of memory, so each kernel reads its inputs as rarely as it can: x twice forward, x and the gradient
// twice backward; r is never stored. Sums are over pieces of a plane in float, then in double in the order of the
// images, so they do not depend on the threads.

#include <algorithm>
#include <vector>

#include "kernel.h"

namespace {

constexpr int64_t PIECE = 1024;  // values of a plane that are summed in float, and stay in the first level cache

inline float sloped(float x, float a) { return x > 0 ? x : a * x; }

struct Input {
    int64_t images, channels, plane;
    const float *x;
    float slope, eps;

    // Arrays 0 and 1 are x and the slope, number `eps_at` is eps. Those in between have a value for each channel.
    bool read(void **arrays, const int *ranks, int64_t *const *shapes, int eps_at) {
        if (ranks[0] != 4) return false;
        for (int one : {1, eps_at})
            if (elements(ranks[one], shapes[one]) != 1) return false;
        images = shapes[0][0], channels = shapes[0][1], plane = shapes[0][2] * shapes[0][3];
        for (int i = 2; i < eps_at; ++i)
            if (elements(ranks[i], shapes[i]) != channels) return false;
        x = static_cast<float *>(arrays[0]);
        slope = *static_cast<float *>(arrays[1]), eps = *static_cast<float *>(arrays[eps_at]);
        return images > 0 && channels > 0 && plane > 0;
    }

    // Call work(plane number, channel, first value, values) for the pieces of every plane, on all threads.
    template <class Work>
    void pieces(const Work &work) const {
#pragma omp parallel for schedule(static)
        for (int64_t n = 0; n < images; ++n)
            for (int64_t c = 0; c < channels; ++c)
                for (int64_t p = 0; p < plane; p += PIECE)
                    work(n * channels + c, c, (n * channels + c) * plane + p, std::min(PIECE, plane - p));
    }

    // The sum of a channel from those of its planes.
    double total(const std::vector<double> &planes, int64_t channel) const {
        double sum = 0;
        for (int64_t n = 0; n < images; ++n) sum += planes[n * channels + channel];
        return sum;
    }
};

// y of every value.
void normalize(const Input &in, const float *gamma, const float *beta, const float *mean, const float *variance,
               float *y) {
    in.pieces([&](int64_t, int64_t c, int64_t first, int64_t count) {
        const float factor = gamma[c] / std::sqrt(variance[c] + in.eps);
        const float middle = mean[c], shift = beta[c], a = in.slope;
        const float *x = in.x + first;
        float *to = y + first;
#pragma omp simd
        for (int64_t i = 0; i < count; ++i) to[i] = (sloped(x[i], a) - middle) * factor + shift;
    });
}

}  // namespace

// Inputs: x, a, gamma, beta, eps. Outputs: y; mean and variance (biased) of the batch.
extern "C" int slope_norm(int count, void **arrays, int *ranks, int64_t **shapes, const char **types, void *, void *) {
    Input in;
    if (count != 8 || !all_float32(count, types) || !in.read(arrays, ranks, shapes, 4)) return BAD_ARGUMENTS;
    if (!same_shape(ranks, shapes, 0, 5) || !same_shape(ranks, shapes, 2, 6) || !same_shape(ranks, shapes, 2, 7))
        return BAD_ARGUMENTS;
    std::vector<double> sums(in.images * in.channels), squares(in.images * in.channels);
    in.pieces([&](int64_t plane, int64_t, int64_t first, int64_t values) {
        const float *x = in.x + first;
        const float a = in.slope;
        float sum = 0, square = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = 0; i < values; ++i) sum += sloped(x[i], a);
        const float middle = sum / values;  // squares of differences from it: nothing cancels
#pragma omp simd reduction(+ : square)
        for (int64_t i = 0; i < values; ++i) square += (sloped(x[i], a) - middle) * (sloped(x[i], a) - middle);
        sums[plane] += sum;
        squares[plane] += square + 2.0 * middle * sum - static_cast<double>(middle) * middle * values;
    });
    float *mean = static_cast<float *>(arrays[6]), *variance = static_cast<float *>(arrays[7]);
    const double values = static_cast<double>(in.images * in.plane);
    for (int64_t c = 0; c < in.channels; ++c) {
        const double middle = in.total(sums, c) / values;
        mean[c] = static_cast<float>(middle);
        variance[c] = static_cast<float>(std::fmax(in.total(squares, c) / values - middle * middle, 0.0));
    }
    normalize(in, static_cast<float *>(arrays[2]), static_cast<float *>(arrays[3]), mean, variance,
              static_cast<float *>(arrays[5]));
    return 0;
}

// Inputs: x, a, gamma, beta, the moving mean and variance, eps. Output: y.
extern "C" int slope_norm_evaluation(int count, void **arrays, int *ranks, int64_t **shapes, const char **types, void *,
                                     void *) {
    Input in;
    if (count != 8 || !all_float32(count, types) || !in.read(arrays, ranks, shapes, 6)) return BAD_ARGUMENTS;
    if (!same_shape(ranks, shapes, 0, 7)) return BAD_ARGUMENTS;
    const auto array = [&](int number) { return static_cast<float *>(arrays[number]); };
    normalize(in, array(2), array(3), array(4), array(5), array(7));
    return 0;
}

// Inputs: x, a, gamma, mean and variance of the batch, eps, the gradient g of y. Outputs: the gradients of x, a, gamma
// and beta. With h = (r - mean) / sqrt(variance + eps) and averages over the m values of a channel,
//     by_r = gamma / sqrt(variance + eps) * (g - average(g) - h average(g h)).
extern "C" int slope_norm_gradient(int count, void **arrays, int *ranks, int64_t **shapes, const char **types, void *,
                                   void *) {
    Input in;
    if (count != 11 || !all_float32(count, types) || !in.read(arrays, ranks, shapes, 5)) return BAD_ARGUMENTS;
    if (!same_shape(ranks, shapes, 0, 6) || !same_shape(ranks, shapes, 0, 7) || elements(ranks[8], shapes[8]) != 1 ||
        !same_shape(ranks, shapes, 2, 9) || !same_shape(ranks, shapes, 2, 10))
        return BAD_ARGUMENTS;
    const auto array = [&](int number) { return static_cast<float *>(arrays[number]); };
    const float *gamma = array(2), *mean = array(3), *variance = array(4), *dout = array(6);
    float *by_x = array(7), *by_slope = array(8), *by_gamma = array(9), *by_beta = array(10);

    const int64_t planes = in.images * in.channels;
    std::vector<double> sums(planes), products(planes), slopes(planes);
    in.pieces([&](int64_t plane, int64_t c, int64_t first, int64_t values) {
        const float *x = in.x + first, *g = dout + first, middle = mean[c], a = in.slope;
        float sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
        for (int64_t i = 0; i < values; ++i) sum += g[i], product += g[i] * (sloped(x[i], a) - middle);
        sums[plane] += sum, products[plane] += product;
    });
    const double values = static_cast<double>(in.images * in.plane);
    std::vector<float> factors(in.channels), averages(in.channels), corrections(in.channels);
    for (int64_t c = 0; c < in.channels; ++c) {
        const double inverse = 1 / std::sqrt(static_cast<double>(variance[c]) + in.eps);
        const double sum = in.total(sums, c), product = in.total(products, c) * inverse;
        by_beta[c] = static_cast<float>(sum), by_gamma[c] = static_cast<float>(product);
        factors[c] = static_cast<float>(gamma[c] * inverse), averages[c] = static_cast<float>(sum / values);
        corrections[c] = static_cast<float>(product * inverse / values);
    }
    in.pieces([&](int64_t plane, int64_t c, int64_t first, int64_t values) {
        const float *x = in.x + first, *g = dout + first;
        const float middle = mean[c], a = in.slope;
        const float factor = factors[c], average = averages[c], correction = corrections[c];
        float *by = by_x + first, slope = 0;
#pragma omp simd reduction(+ : slope)
        for (int64_t i = 0; i < values; ++i) {
            const float by_r = factor * (g[i] - average - (sloped(x[i], a) - middle) * correction);
            by[i] = x[i] > 0 ? by_r : a * by_r;
            slope += x[i] > 0 ? 0.0f : x[i] * by_r;
        }
        slopes[plane] += slope;
    });
    double slope = 0;
    for (double one : slopes) slope += one;
    *by_slope = static_cast<float>(slope);
    return 0;
}
