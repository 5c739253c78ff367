// y = scale * conv(x, z), 3x3 with a padding of 1 and stride 1 or 2, of float32 in the layout N, C, H, W: forward,
// data gradient and weight gradient. The scale is one number or one for each output channel; the stride follows from
// shapes.
//
// Forward, an image whose values are all +1 or -1 is convolved by bits if the filters are so too: popcount.h.
// Everything else reads an input that was copied into planes with a border of zeros. With stride 2 the even and the
// odd columns are planes of their own, so that the positions of a vector are always next to each other.
//
// Forward (and data gradient: the same with turned weights): 8 positions of a row are a vector. The sums of 8 output
// channels stay in registers while channels and taps pass by: one load of x for 8 multiply-adds. With two vectors GCC
// loads both again for each use, which was slower.
//
// Weight gradient: 8 output channels are a vector. The sums of 2 such vectors, 2 input channels and the 3 taps of a row
// stay in registers while positions pass by: 8 loads for 12 multiply-adds. The images are divided into parts, whose
// sums are added in their order: so a result does not depend on the threads.

#include <algorithm>
#include <memory>
#include <vector>

#include "kernel.h"
#include "popcount.h"
#include "shapes.h"

namespace {

constexpr int LANES = 8;
typedef float Vector __attribute__((vector_size(4 * LANES)));
typedef float Unaligned __attribute__((vector_size(4 * LANES), aligned(4)));

inline Vector load(const float *from) { return *reinterpret_cast<const Unaligned *>(from); }

constexpr int OUTPUTS = 8;  // output channels at a time

// Planes with a border for one image. Output position (h, w) and tap (i, j) read row h * stride + i, and there
// `offset(j) + w`.
struct Planes {
    int64_t channels, stride, row, rows, half;
    std::unique_ptr<float[]> values;

    // `width`, `height`: of the output.
    Planes(int64_t channels, int64_t height, int64_t width, int64_t stride) : channels(channels), stride(stride) {
        half = (width + LANES - 1) / LANES * LANES + LANES;  // a last vector may read beyond the border
        row = half * stride;
        rows = height * stride + 2;
        values.reset(new float[channels * rows * row]());
    }

    int64_t offset(int tap) const { return stride == 1 ? tap : (tap & 1) * half + (tap >> 1); }
    float *at(int64_t channel, int64_t line) { return values.get() + (channel * rows + line) * row; }
    const float *at(int64_t channel, int64_t line) const { return values.get() + (channel * rows + line) * row; }

    // Fill in an image of height x width.
    void fill(const float *image, int64_t height, int64_t width) {
        for (int64_t c = 0; c < channels; ++c)
            for (int64_t h = 0; h < height; ++h, image += width) {
                float *line = at(c, h + 1);
                if (stride == 1)
                    std::copy(image, image + width, line + 1);
                else
                    for (int64_t w = 0; w < width; ++w) line[((w + 1) & 1) * half + ((w + 1) >> 1)] = image[w];
            }
    }
};

// Where results go: to the positions (first_row + step u, first_column + step v) of an image. And where their taps are:
// in the planes, from (u + row, v + column) on.
struct Target {
    Shape y;
    int64_t step, first_row, first_column, row, column;
    int64_t height() const { return (y.height - first_row + step - 1) / step; }
    int64_t width() const { return (y.width - first_column + step - 1) / step; }
};

// scale * conv(planes, weights) for the positions of the target in one image.
// `weights`: (blocks of OUTPUTS, channels, ROWS, COLUMNS, OUTPUTS).
template <int ROWS, int COLUMNS>
void convolve(const Planes &planes, const std::vector<float> &weights, const Target &target, const Scale &scale,
              float *image) {
    const Shape &y = target.y;
    const int64_t width = target.width(), height = target.height(), by_channel = planes.rows * planes.row;
    int64_t offsets[COLUMNS];
    for (int j = 0; j < COLUMNS; ++j) offsets[j] = planes.offset(target.column + j);
    const float *block = weights.data();
    for (int64_t o = 0; o < y.channels; o += OUTPUTS, block += planes.channels * ROWS * COLUMNS * OUTPUTS)
        for (int64_t u = 0; u < height; ++u)
            for (int64_t v = 0; v < width; v += LANES) {
                Vector total[OUTPUTS] = {};
                const float *from = planes.at(0, u * planes.stride + target.row) + v, *weight = block;
                for (int64_t c = 0; c < planes.channels; ++c, from += by_channel)
                    for (int i = 0; i < ROWS; ++i)
                        for (int j = 0; j < COLUMNS; ++j, weight += OUTPUTS) {
                            const Vector x = load(from + i * planes.row + offsets[j]);
                            for (int k = 0; k < OUTPUTS; ++k) total[k] += weight[k] * x;
                        }
                const int64_t row = target.first_row + target.step * u, column = target.first_column + target.step * v;
                for (int k = 0; k < OUTPUTS && o + k < y.channels; ++k) {
                    const Vector found = total[k] * scale[o + k];
                    float *to = image + (o + k) * y.plane() + row * y.width + column;
                    if (target.step == 1 && v + LANES <= width)
                        *reinterpret_cast<Unaligned *>(to) = found;
                    else
                        for (int64_t lane = 0; lane < std::min<int64_t>(LANES, width - v); ++lane)
                            to[lane * target.step] = found[lane];
                }
            }
}

// Weights in the order in which `convolve` reads them: of `to` results from `from` channels at rows x columns taps.
// `value(result, channel, row, column)` is one of them.
template <class Value>
std::vector<float> in_blocks(int64_t to, int64_t from, int rows, int columns, const Value &value) {
    std::vector<float> result((to + OUTPUTS - 1) / OUTPUTS * from * rows * columns * OUTPUTS);
    for (int64_t o = 0; o < to; ++o)
        for (int64_t c = 0; c < from; ++c)
            for (int i = 0; i < rows; ++i)
                for (int j = 0; j < columns; ++j) {
                    const int64_t place = ((o / OUTPUTS * from + c) * rows + i) * columns + j;
                    result[place * OUTPUTS + o % OUTPUTS] = value(o, c, i, j);
                }
    return result;
}

// The arguments that all three kernels have: x (N, C, H, W), z (O, C, 3, 3), scale (1 or O values) and y (N, O, H', W')
// or its gradient.
struct Arguments {
    Shape x, z, y;
    Scale scale;
    int64_t stride = 0;

    bool read(int count, void **arrays, int *ranks, int64_t **shapes, const char **types, int expected) {
        if (count != expected || !all_float32(count, types)) return false;
        if (!x.read(ranks[0], shapes[0]) || !z.read(ranks[1], shapes[1]) || !y.read(ranks[3], shapes[3])) return false;
        const int64_t scales = elements(ranks[2], shapes[2]);
        scale = {static_cast<float *>(arrays[2]), scales > 1};
        if (y.height == x.height && y.width == x.width)
            stride = 1;
        else if (y.height == (x.height + 1) / 2 && y.width == (x.width + 1) / 2)
            stride = 2;
        return stride && z.channels == x.channels && z.images == y.channels && z.height == 3 && z.width == 3 &&
               x.images == y.images && (scales == 1 || scales == y.channels);
    }
};

// What a sum of the weight gradient runs over: planes and gradients of some images. `by_y`: in blocks of LANES output
// channels, (images, blocks, H', W', LANES).
struct Images {
    const Planes *planes;
    const float *by_y;
    int64_t count;
    Shape y;
    int64_t blocks() const { return (y.channels + LANES - 1) / LANES; }
};

// Add to `result` (outputs, channels, 9) the sums of some blocks, from `block` on, and input channels, from `c` on.
template <int BLOCKS, int CHANNELS>
void add_sums(const Images &images, int64_t block, int64_t c, float *result) {
    const Shape &y = images.y;
    const int64_t channels = images.planes->channels, by_channel = images.planes->rows * images.planes->row;
    const int64_t by_block = y.plane() * LANES;
    const int64_t offsets[3] = {images.planes->offset(0), images.planes->offset(1), images.planes->offset(2)};
    for (int i = 0; i < 3; ++i) {
        Vector total[BLOCKS][CHANNELS][3] = {};
        for (int64_t n = 0; n < images.count; ++n)
            for (int64_t h = 0; h < y.height; ++h) {
                const float *line = images.planes[n].at(c, h * images.planes->stride + i);
                const float *by = images.by_y + (n * images.blocks() + block) * by_block + h * y.width * LANES;
                for (int64_t w = 0; w < y.width; ++w, ++line, by += LANES) {
                    Vector g[BLOCKS];
                    for (int b = 0; b < BLOCKS; ++b) g[b] = load(by + b * by_block);
                    for (int d = 0; d < CHANNELS; ++d)
                        for (int j = 0; j < 3; ++j) {
                            const float x = line[d * by_channel + offsets[j]];
                            for (int b = 0; b < BLOCKS; ++b) total[b][d][j] += x * g[b];
                        }
                }
            }
        for (int b = 0; b < BLOCKS; ++b)
            for (int64_t k = 0; k < std::min<int64_t>(LANES, y.channels - (block + b) * LANES); ++k)
                for (int d = 0; d < CHANNELS; ++d)
                    for (int j = 0; j < 3; ++j)
                        result[(((block + b) * LANES + k) * channels + c + d) * 9 + i * 3 + j] += total[b][d][j][k];
    }
}

template <int BLOCKS>
void add_blocks(const Images &images, int64_t block, float *result) {
    int64_t c = 0;
    for (; c + 2 <= images.planes->channels; c += 2) add_sums<BLOCKS, 2>(images, block, c, result);
    if (c < images.planes->channels) add_sums<BLOCKS, 1>(images, block, c, result);
}

// Add to `result` (outputs, channels, 9) the weight gradient of the images.
void add_weight_gradient(const Images &images, float *result) {
    int64_t block = 0;
    for (; block + 2 <= images.blocks(); block += 2) add_blocks<2>(images, block, result);
    if (block < images.blocks()) add_blocks<1>(images, block, result);
}

}  // namespace

// Inputs: x, z, scale. Output: y.
extern "C" int conv3x3(int count, void **arrays, int *ranks, int64_t **shapes, const char **types, void *, void *) {
    Arguments a;
    if (!a.read(count, arrays, ranks, shapes, types, 4)) return BAD_ARGUMENTS;
    const float *z = static_cast<float *>(arrays[1]);
    const auto weight = [&](int64_t o, int64_t c, int i, int j) { return z[(o * a.x.channels + c) * 9 + i * 3 + j]; };
    const std::vector<float> weights = in_blocks(a.y.channels, a.x.channels, 3, 3, weight);
    const SignWeights signs(z, a.y.channels, a.x.channels);
    const float *x = static_cast<float *>(arrays[0]);
    float *y = static_cast<float *>(arrays[3]);
#pragma omp parallel
    {
        Planes planes(a.x.channels, a.y.height, a.y.width, a.stride);
        SignPlanes bits(a.x, a.y, a.stride, signs.words);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < a.x.images; ++n) {
            const float *from = x + n * a.x.channels * a.x.plane();
            float *to = y + n * a.y.channels * a.y.plane();
            if (signs.are_signs && bits.fill(from)) {
                bits.convolve(signs, a.scale, to);
                continue;
            }
            planes.fill(from, a.x.height, a.x.width);
            convolve<3, 3>(planes, weights, {a.y, 1, 0, 0, 0, 0}, a.scale, to);
        }
    }
    return 0;
}

// The same: MindSpore knows one rule for the output's shape by the name of a kernel, and with stride 2 it is another.
extern "C" int conv3x3_stride2(int count, void **arrays, int *ranks, int64_t **shapes, const char **types, void *stream,
                               void *extra) {
    return conv3x3(count, arrays, ranks, shapes, types, stream, extra);
}

// Inputs: x, of which only the shape counts; z, scale, the gradient of y. Output: the gradient of x.
extern "C" int conv3x3_data_gradient(int count, void **arrays, int *ranks, int64_t **shapes, const char **types, void *,
                                     void *) {
    Arguments a;
    if (!a.read(count, arrays, ranks, shapes, types, 5) || !same_shape(ranks, shapes, 0, 4)) return BAD_ARGUMENTS;
    const float one = 1, *z = static_cast<float *>(arrays[1]), *by_y = static_cast<float *>(arrays[3]);
    float *by_x = static_cast<float *>(arrays[4]);
    // Taps turned by half a circle; the scale of an output channel is part of its weights.
    const auto weight = [&](int64_t o, int64_t c, int i, int j) {
        return z[(o * a.x.channels + c) * 9 + i * 3 + j] * a.scale[o];
    };
    std::vector<float> weights[2][2];  // stride 1: the first; stride 2: of even and odd rows and columns of x
    for (int row = 0; row < a.stride; ++row)
        for (int column = 0; column < a.stride; ++column)
            weights[row][column] = in_blocks(
                a.x.channels, a.y.channels, a.stride == 1 ? 3 : 1 + row, a.stride == 1 ? 3 : 1 + column,
                [&](int64_t c, int64_t o, int i, int j) {
                    if (a.stride == 1) return weight(o, c, 2 - i, 2 - j);
                    return weight(o, c, row ? 2 - 2 * i : 1, column ? 2 - 2 * j : 1);
                });
#pragma omp parallel
    {
        Planes planes(a.y.channels, a.y.height, a.y.width, 1);
#pragma omp for schedule(static)
        for (int64_t n = 0; n < a.x.images; ++n) {
            planes.fill(by_y + n * a.y.channels * a.y.plane(), a.y.height, a.y.width);
            float *to = by_x + n * a.x.channels * a.x.plane();
            const Scale unit = {&one, false};
            if (a.stride == 1) {
                convolve<3, 3>(planes, weights[0][0], {a.x, 1, 0, 0, 0, 0}, unit, to);
                continue;
            }
            // An even row of x was read by the middle tap only, an odd one by the last and the first of two rows of y.
            convolve<1, 1>(planes, weights[0][0], {a.x, 2, 0, 0, 1, 1}, unit, to);
            convolve<1, 2>(planes, weights[0][1], {a.x, 2, 0, 1, 1, 1}, unit, to);
            convolve<2, 1>(planes, weights[1][0], {a.x, 2, 1, 0, 1, 1}, unit, to);
            convolve<2, 2>(planes, weights[1][1], {a.x, 2, 1, 1, 1, 1}, unit, to);
        }
    }
    return 0;
}

// Inputs: x; z, of which only the shape counts; scale, the gradient of y. Output: the gradient of z, with the scale.
extern "C" int conv3x3_weight_gradient(int count, void **arrays, int *ranks, int64_t **shapes, const char **types,
                                       void *, void *) {
    Arguments a;
    if (!a.read(count, arrays, ranks, shapes, types, 5) || !same_shape(ranks, shapes, 1, 4)) return BAD_ARGUMENTS;
    const Shape &x = a.x, &y = a.y;
    const float *from = static_cast<float *>(arrays[0]), *by_y = static_cast<float *>(arrays[3]);
    float *to = static_cast<float *>(arrays[4]);
    const int64_t filter = x.channels * 9, size = y.channels * filter;
    const int64_t group = std::max<int64_t>(1, 512 / y.plane());  // images at a time: their planes stay in the cache
    const int64_t parts = std::min(MAX_PARTS, x.images), blocked = (y.channels + LANES - 1) / LANES * LANES * y.plane();
    std::vector<float> partial(parts * size);
#pragma omp parallel
    {
        std::vector<Planes> planes;
        for (int64_t k = 0; k < group; ++k) planes.emplace_back(x.channels, y.height, y.width, a.stride);
        std::vector<float> by(group * blocked);
#pragma omp for schedule(static)
        for (int64_t part = 0; part < parts; ++part) {
            const int64_t end = x.images * (part + 1) / parts;
            for (int64_t n = x.images * part / parts; n < end; n += group) {
                const int64_t now = std::min(group, end - n);
                for (int64_t k = 0; k < now; ++k) {
                    planes[k].fill(from + (n + k) * x.channels * x.plane(), x.height, x.width);
                    const float *image = by_y + (n + k) * y.channels * y.plane();
                    for (int64_t o = 0; o < y.channels; ++o) {
                        float *to = &by[k * blocked + o / LANES * LANES * y.plane() + o % LANES];
                        for (int64_t i = 0; i < y.plane(); ++i) to[i * LANES] = *image++;
                    }
                }
                add_weight_gradient({planes.data(), by.data(), now, y}, partial.data() + part * size);
            }
        }
    }
    for (int64_t i = 0; i < size; ++i) {
        float sum = 0;
        for (int64_t part = 0; part < parts; ++part) sum += partial[part * size + i];
        to[i] = sum * a.scale[i / filter];
    }
    return 0;
}
