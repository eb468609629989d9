// Up-sampling by zeros, FIR and down-sampling for any factors, filters and strides: one output a thread, loops over the
// taps that meet a pixel. For what `upfirdn2d.cu` is not specialised for.
//
// Macros: CHANNELS_LAST  are neighbouring threads on neighbouring channels, or on neighbouring pixels of a row?
#include "device.h"

namespace KERNEL_NAMESPACE {

using namespace glead;
typedef Compute<T>::type C;

struct Params {
    T* y;
    const T* x;
    const float* f;
    int64 f_stride_x, f_stride_y;
    int64 images, channels;                     // N, C.
    int64 in_w, in_h, out_w, out_h;
    int64 in_stride_n, in_stride_c, in_stride_y, in_stride_x;
    int64 out_stride_n, out_stride_c, out_stride_y, out_stride_x;
    int64 up_x, up_y, down_x, down_y, pad_x, pad_y, fw, fh, flip;
    double gain;
};
CHECK_PARAMS;

__device__ inline int64 ceil_div_(int64 a, int64 b) { return a > 0 ? (a + b - 1) / b : -(-a / b); }

}  // namespace

KERNEL(KERNEL_NAMESPACE::Params p) {
    using namespace KERNEL_NAMESPACE;
    int64 i = (int64)blockIdx.x * BLOCK + threadIdx.x, x, y, c, n;
    if (CHANNELS_LAST) {
        c = i % p.channels, i /= p.channels;
        x = i % p.out_w, i /= p.out_w;
        y = i % p.out_h, n = i / p.out_h;
    } else {
        x = i % p.out_w, i /= p.out_w;
        y = i % p.out_h, i /= p.out_h;
        c = i % p.channels, n = i / p.channels;
    }
    if (n >= p.images) return;

    // Pixel j of the input lies at j * up of what the filter moves over, from `begin` on.
    int64 begin_x = x * p.down_x - p.pad_x, begin_y = y * p.down_y - p.pad_y;
    int64 first_x = ceil_div_(begin_x, p.up_x), first_y = ceil_div_(begin_y, p.up_y);
    first_x = first_x < 0 ? 0 : first_x, first_y = first_y < 0 ? 0 : first_y;
    const T* image = p.x + n * p.in_stride_n + c * p.in_stride_c;
    C sum = 0;
    for (int64 j = first_y; j < p.in_h && j * p.up_y - begin_y < p.fh; ++j)
        for (int64 k = first_x; k < p.in_w && k * p.up_x - begin_x < p.fw; ++k) {
            int64 ty = j * p.up_y - begin_y, tx = k * p.up_x - begin_x;
            if (!p.flip) ty = p.fh - 1 - ty, tx = p.fw - 1 - tx;
            sum += C(p.f[ty * p.f_stride_y + tx * p.f_stride_x])
                   * widen(image[j * p.in_stride_y + k * p.in_stride_x]);
        }
    narrow(sum * C(p.gain), p.y[n * p.out_stride_n + c * p.out_stride_c + y * p.out_stride_y + x * p.out_stride_x]);
}
