// Calls every kernel at odd sizes on arrays of exactly the needed length, for the sanitizers.

#include <cstdint>
#include <cstdio>
#include <vector>

using Kernel = int(int, void **, int *, int64_t **, const char **, void *, void *);
extern "C" Kernel conv3x3, conv3x3_stride2, conv3x3_data_gradient, conv3x3_weight_gradient, fourier_gradient, noise,
    noise_gradient, sign, slope_norm, slope_norm_evaluation, slope_norm_gradient;

using Sizes = std::vector<int64_t>;

// Allocate arrays of these sizes, the last of them the output, and call the kernel.
int call(Kernel *kernel, std::vector<Sizes> sizes, const char *type = "float32", float value = 0.5f) {
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
    for (size_t i = 0; i < sizes.size(); ++i) {
        pointers.push_back(arrays[i].data());
        ranks.push_back(static_cast<int>(sizes[i].size()));
        shapes.push_back(sizes[i].data());
    }
    return kernel(static_cast<int>(sizes.size()), pointers.data(), ranks.data(), shapes.data(), types.data(), nullptr,
                  nullptr);
}

int main() {
    int failed = 0, done = 0;
    for (int64_t images : {1, 3})
        for (int64_t channels : {1, 5, 16, 70})
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
                            failed += call(noise, {x, w1, w2, {}, {2}, x}) != 0;
                            const Sizes rows = {height, channels};
                            failed += call(noise, {rows, w1, w2, {}, {2}, rows}) != 0;
                            failed += call(noise_gradient, {rows, w1, w2, {}, {2}, rows, rows, w1, w2}) != 0;
                            failed += call(noise_gradient, {x, w1, w2, {}, {2}, x, x, w1, w2}) != 0;
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
    failed += call(slope_norm, {{2, 3, 1, 1}, {1}, {3}, {4}, {1}, {2, 3, 1, 1}, {3}, {3}}) == 0;
    failed += call(slope_norm_evaluation, {{2, 3, 1, 1}, {2}, {3}, {3}, {3}, {3}, {1}, {2, 3, 1, 1}}) == 0;
    failed += call(fourier_gradient, {{3}, {4}, {}, {5}, {3}}) == 0;
    std::printf("%d sizes passed, %d calls failed\n", done, failed);
    return failed != 0;
}
