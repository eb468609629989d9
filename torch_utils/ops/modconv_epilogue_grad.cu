// First derivatives of modconv_epilogue.cu, in one pass: dx for each element and, for each image and channel, the sums
// over pixels from which the derivatives of bias, scale and strength follow. With g = dy * gain * act'(y), or g = 0
// where y is clamped,
//     dx = g * scale,    sums = (sum of g, sum of g * x, sum of g * noise).
// A block sums a part of the pixels. The parts are added up afterwards, always in the same order.
//
// Macros: as in modconv_epilogue.cu, and TC = threads of a block along channels (1 without CHANNELS_LAST). The other
// threads of the block are along pixels.
#include "device.h"

namespace KERNEL_NAMESPACE {

using namespace glead;
typedef Compute<T>::type C;

struct Params {
    T* dx;
    C* sums;                // [3, N, parts, C]
    const T* dy;
    const T* y;
    const T* x;
    const C* scale;         // [N, C]
    const C* noise;         // [N or 1, H * W]
    int64 images, channels, pixels, parts;
    int64 noise_stride;
    double slope, gain, clamp;
};
CHECK_PARAMS;

constexpr int SUMS = 3;                             // Sums for each channel.
constexpr int LANES = CHANNELS_LAST ? VEC : 1;      // Channels for each thread.
constexpr int ROWS = BLOCK / TC;                    // Threads that share a channel.
constexpr int STEP = CHANNELS_LAST ? 1 : VEC;       // Pixels in a vector.

}  // namespace

KERNEL(KERNEL_NAMESPACE::Params p) {
    using namespace KERNEL_NAMESPACE;
    int64 tiles = (p.channels / LANES + TC - 1) / TC, block = blockIdx.x;
    int64 c = (block % tiles * TC + threadIdx.x % TC) * LANES;
    block /= tiles;
    int64 part = block % p.parts, n = block / p.parts;
    int row = threadIdx.x / TC;
    bool inside = c < p.channels;
    C limit = p.clamp < 0 ? C(-1) : rounded<T>(C(p.clamp)), gain = C(p.gain), slope = C(p.slope);
    C sign = gain < 0 ? C(-1) : C(1);  // sign of the result where the activation's input is positive
    C sums[SUMS][LANES] = {}, scale[LANES];
#pragma unroll
    for (int k = 0; k < LANES; ++k) scale[k] = 1;
    if (SCALE && inside) load_array(p.scale + n * p.channels + c, scale);

    int64 pixel = (part * ROUNDS * ROWS + row) * STEP, step = CHANNELS_LAST ? ROWS * p.channels : ROWS * STEP;
    int64 at = CHANNELS_LAST ? (n * p.pixels + pixel) * p.channels + c : (n * p.channels + c) * p.pixels + pixel;
    Vector<T, VEC> dy[ROUNDS], y[ROUNDS], x[ROUNDS];
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        if (!inside || pixel + round * ROWS * STEP >= p.pixels) continue;
        dy[round] = load<VEC>(p.dy + at + round * step);
        y[round] = load<VEC>(p.y + at + round * step);
        x[round] = load<VEC>(p.x + at + round * step);
    }
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        if (!inside || pixel + round * ROWS * STEP >= p.pixels) continue;
        C noise[STEP];
        if (NOISE) load_array(p.noise + n * p.noise_stride + pixel + round * ROWS * STEP, noise);
        Vector<T, VEC> dx;
#pragma unroll
        for (int k = 0; k < VEC; ++k) {
            int lane = CHANNELS_LAST ? k : 0;
            C result = widen(y[round].at[k]), g = widen(dy[round].at[k]) * gain * (result * sign > 0 ? C(1) : slope);
            if (limit >= 0 && fabs(result) >= limit) g = 0;
            narrow(g * scale[lane], dx.at[k]);
            sums[0][lane] += g;
            sums[1][lane] += g * widen(x[round].at[k]);
            if (NOISE) sums[2][lane] += g * noise[CHANNELS_LAST ? 0 : k];
        }
        store(p.dx + at + round * step, dx);
    }

    __shared__ C shared[LANES][BLOCK];
#pragma unroll
    for (int s = 0; s < SUMS; ++s) {
        __syncthreads();
#pragma unroll
        for (int k = 0; k < LANES; ++k) shared[k][threadIdx.x] = sums[s][k];
        for (int half = ROWS / 2; half > 0; half /= 2) {
            __syncthreads();
            if (row < half)
#pragma unroll
                for (int k = 0; k < LANES; ++k) shared[k][threadIdx.x] += shared[k][threadIdx.x + half * TC];
        }
        if (row == 0 && inside)
#pragma unroll
            for (int k = 0; k < LANES; ++k)
                p.sums[((s * p.images + n) * p.parts + part) * p.channels + c + k] = shared[k][threadIdx.x];
    }
}
