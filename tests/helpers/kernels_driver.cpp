// Calls every kernel at odd sizes on arrays of exactly the needed length, for the sanitizers.

#include <cstdint>
#include <cstdio>
#include <vector>

using Kernel = int(int, void **, int *, int64_t **, const char **, void *, void *);
extern "C" Kernel conv3x3, conv3x3_stride2, conv3x3_data_gradient, conv3x3_weight_gradient, fourier_gradient, noise,
    noise_gradient, sign, slope_norm, slope_norm_evaluation, slope_norm_gradient;

using Sizes = std::vector<int64_t>;

// Allocate arrays of these sizes, the last of them the output, and call the kernel. If `kind` is given, it is the second
// value of array 4, as the kernels of noise read it.
int call(Kernel *kernel, std::vector<Sizes> sizes, const char *type = "float32", float value = 0.5f, int kind = -1) {
    std::vector<std::vector<float>> arrays;
    std::vector<void *> pointers;
    std::vector<int> ranks;
    std::vector<int64_t *> shapes;
    std::vector<const char *> types(sizes.size(), type);
    for (Sizes &size : sizes) {
        int64_t count = 1;
        for (int64_t one : size) count *= one;
        arrays.emplace_back(count, value);
    }
    if (kind >= 0) arrays[4][1] = static_cast<float>(kind);
    for (size_t i = 0; i < sizes.size(); ++i) {
        pointers.push_back(arrays[i].data());
        ranks.push_back(static_cast<int>(sizes[i].size()));
        shapes.push_back(sizes[i].data());
    }
    return kernel(static_cast<int>(sizes.size()), pointers.data(), ranks.data(), shapes.data(), types.data(), nullptr,
                  nullptr);
}

// Call a kernel of noise with every kind of eta: none, linear, sine. The number of calls that failed.
int call_noise(Kernel *kernel, const std::vector<Sizes> &sizes) {
    int failed = 0;
    for (int kind : {0, 1, 2}) failed += call(kernel, sizes, "float32", 0.5f, kind) != 0;
    return failed;
}

int main() {
    int failed = 0, done = 0;
    for (int64_t images : {1, 3})
        // With signs a filter is 3, 6, 9 or 12 words from 1, 22, 43 and 65 channels on; 64 need no shift of bits.
        for (int64_t channels : {1, 5, 16, 22, 42, 43, 64, 70})
            for (int64_t outputs : {1, 4, 7})
                for (int64_t height : {1, 2, 7})
                    for (int64_t width : {1, 8, 9, 17})
                        for (int64_t stride : {1, 2}) {
                            const Sizes x = {images, channels, height, width}, z = {outputs, channels, 3, 3}, one = {1};
                            const Sizes y = {images, outputs, (height - 1) / stride + 1, (width - 1) / stride + 1};
                            failed += call(stride == 1 ? conv3x3 : conv3x3_stride2, {x, z, one, y}) != 0;
                            failed += call(conv3x3, {x, z, one, y}, "float32", 1) != 0;  // signs
                            failed += call(conv3x3_data_gradient, {x, z, {outputs, 1, 1}, y, x}) != 0;
                            failed += call(conv3x3_weight_gradient, {x, z, one, y, z}) != 0;
                            const Sizes w1 = {channels, outputs}, w2 = {outputs, channels};
                            failed += call_noise(noise, {x, w1, w2, {}, {2}, x});
                            const Sizes rows = {height, channels};
                            failed += call_noise(noise, {rows, w1, w2, {}, {2}, rows});
                            failed += call_noise(noise_gradient, {rows, w1, w2, {}, {2}, rows, rows, w1, w2});
                            failed += call_noise(noise_gradient, {x, w1, w2, {}, {2}, x, x, w1, w2});
                            const Sizes c = {channels};
                            failed += call(slope_norm, {x, one, c, c, one, x, c, c}) != 0;
                            failed += call(slope_norm_evaluation, {x, one, c, c, c, c, one, x}) != 0;
                            failed += call(slope_norm_gradient, {x, one, c, c, c, one, x, x, one, c, c}) != 0;
                            ++done;
                        }
    for (int64_t count : {1, 7, 1000}) failed += call(sign, {{count}, {count}}) != 0;
    for (int64_t count : {1, 7, 1000}) failed += call(fourier_gradient, {{count}, {count}, {}, {5}, {count}}) != 0;
    failed += call(conv3x3, {{1, 2, 3, 3}, {4, 5, 3, 3}, {1}, {1, 4, 3, 3}}) == 0;  // channels that do not fit
    failed += call(conv3x3, {{1, 2, 3, 3}, {4, 2, 3, 3}, {1}, {1, 4, 3, 3}}, "float16") == 0;
    failed += call(noise, {{2, 3, 4, 4}, {3, 1}, {2, 3}, {}, {2}, {2, 3, 4, 4}}) == 0;  // two hidden widths
    failed += call(slope_norm, {{2, 3, 1, 1}, {1}, {3}, {4}, {1}, {2, 3, 1, 1}, {3}, {3}}) == 0;
    failed += call(slope_norm_evaluation, {{2, 3, 1, 1}, {2}, {3}, {3}, {3}, {3}, {1}, {2, 3, 1, 1}}) == 0;
    failed += call(fourier_gradient, {{3}, {4}, {}, {5}, {3}}) == 0;
    std::printf("%d sizes passed, %d calls failed\n", done, failed);
    return failed != 0;
}
