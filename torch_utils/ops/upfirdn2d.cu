// Up-sampling by zeros, FIR filter and down-sampling of every channel, for fixed factors and filter sizes.
//
// A thread computes RX x RY neighbouring outputs (of VEC channels if CHANNELS_LAST). It reads each of their inputs only
// once. Inserted zeros are skipped, because all conditions on taps are decided at compile time. Threads share data only
// through the caches.
//
// Macros: CHANNELS_LAST          0 = [N, C, H, W], 1 = [N, H, W, C] in memory
//         UPX UPY DOWNX DOWNY    factors
//         FW FH FLIP             numbers of taps; FLIP = 1 uses the taps as they are (correlation)
//         PX PY                  padding before the image, modulo the up-sampling factor
//         RX RY                  outputs for each thread; RX * DOWNX is a multiple of UPX, and RY * DOWNY one of UPY
//         VEC VOUT               elements in a vector of inputs and of outputs
//         SHIFT                  number of unneeded elements in the first vector of a row (without CHANNELS_LAST)
//         TC TX                  threads of a block along channels and along x (CHANNELS_LAST); the others are along y
//         INDEX                  unsigned type that can count the threads
#include "device.h"

namespace KERNEL_NAMESPACE {

using namespace glead;
typedef Compute<T>::type C;

struct Params {
    T* y;
    const T* x;
    const float* f;
    int64 f_stride_x, f_stride_y;
    int64 images;                           // N * C, or N if CHANNELS_LAST.
    int64 channels;                         // 1, or C if CHANNELS_LAST.
    int64 in_w, in_h, out_w, out_h;
    int64 first_x, first_y;                 // First input (vector) for output 0; may lie outside.
    double gain;
};
CHECK_PARAMS;

// Output r of a thread uses input j of its window with tap j * UP + P - r * DOWN, if that tap exists. The result is the
// number of inputs that outputs 0 to r - 1 need.
__device__ constexpr int window(int r, int up, int down, int taps, int phase) {
    int last = floor_div((r - 1) * down + taps - 1 - phase, up);
    return last < 0 ? 1 : last + 1;
}
constexpr int WX = window(RX, UPX, DOWNX, FW, PX), WY = window(RY, UPY, DOWNY, FH, PY);
constexpr int STEP_X = RX * DOWNX / UPX, STEP_Y = RY * DOWNY / UPY;

struct Filter {
    C at[FH][FW];

    __device__ inline Filter(const Params& p) {
#pragma unroll
        for (int y = 0; y < FH; ++y)
#pragma unroll
            for (int x = 0; x < FW; ++x)
                at[y][x] = C(p.f[(FLIP ? y : FH - 1 - y) * p.f_stride_y + (FLIP ? x : FW - 1 - x) * p.f_stride_x])
                           * C(p.gain);
    }
};

#if CHANNELS_LAST

__device__ inline void work(const Params& p) {
    constexpr int TY = BLOCK / (TC * TX);
    int64 groups_x = (p.out_w + RX - 1) / RX, groups_y = (p.out_h + RY - 1) / RY;
    INDEX tiles_c = (p.channels / VEC + TC - 1) / TC, tiles_x = (groups_x + TX - 1) / TX, tiles_y = (groups_y + TY - 1) / TY;
    INDEX tile = blockIdx.x;
    int64 c = (tile % tiles_c * TC + threadIdx.x % TC) * VEC;
    tile /= tiles_c;
    int64 gx = tile % tiles_x * TX + threadIdx.x / TC % TX;
    tile /= tiles_x;
    int64 gy = tile % tiles_y * TY + threadIdx.x / (TC * TX), n = tile / tiles_y;
    if (c >= p.channels || gx >= groups_x || gy >= groups_y) return;

    Filter f(p);
    C sum[RY][RX][VEC] = {};
    int64 y0 = gy * STEP_Y + p.first_y, x0 = gx * STEP_X + p.first_x;
    int64 row = p.in_w * p.channels, begin = ((n * p.in_h + y0) * p.in_w + x0) * p.channels + c;
#pragma unroll
    for (int j = 0; j < WY; ++j) {
#pragma unroll
        for (int i = 0; i < WX; ++i) {
            if (y0 + j < 0 || y0 + j >= p.in_h || x0 + i < 0 || x0 + i >= p.in_w) continue;
            Vector<T, VEC> v = load<VEC>(p.x + (begin + j * row + i * p.channels));
#pragma unroll
            for (int ry = 0; ry < RY; ++ry)
#pragma unroll
                for (int rx = 0; rx < RX; ++rx) {
                    int ky = j * UPY + PY - ry * DOWNY, kx = i * UPX + PX - rx * DOWNX;
                    if (ky < 0 || ky >= FH || kx < 0 || kx >= FW) continue;
#pragma unroll
                    for (int k = 0; k < VEC; ++k) sum[ry][rx][k] += f.at[ky][kx] * widen(v.at[k]);
                }
        }
    }
    int64 out_row = p.out_w * p.channels, out = ((n * p.out_h + gy * RY) * p.out_w + gx * RX) * p.channels + c;
#pragma unroll
    for (int ry = 0; ry < RY; ++ry)
#pragma unroll
        for (int rx = 0; rx < RX; ++rx) {
            if (gy * RY + ry >= p.out_h || gx * RX + rx >= p.out_w) continue;
            Vector<T, VEC> v;
#pragma unroll
            for (int k = 0; k < VEC; ++k) narrow(sum[ry][rx][k], v.at[k]);
            store(p.y + (out + ry * out_row + rx * p.channels), v);
        }
}

#else

__device__ inline void work(const Params& p) {
    constexpr int VECTORS = (SHIFT + WX + VEC - 1) / VEC;
    INDEX groups_x = (p.out_w + RX - 1) / RX, groups_y = (p.out_h + RY - 1) / RY;
    INDEX group = (INDEX)blockIdx.x * BLOCK + threadIdx.x;
    int64 gx = group % groups_x;
    group /= groups_x;
    int64 gy = group % groups_y, image = group / groups_y;
    if (image >= p.images) return;

    Filter f(p);
    C sum[RY][RX] = {};
    int64 y0 = gy * STEP_Y + p.first_y, x0 = gx * STEP_X + p.first_x, begin = (image * p.in_h + y0) * p.in_w + x0;
#pragma unroll
    for (int j = 0; j < WY; ++j) {
        C row[VECTORS * VEC];
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) {
            Vector<T, VEC> in;
            bool inside = y0 + j >= 0 && y0 + j < p.in_h && x0 + v * VEC >= 0 && x0 + v * VEC < p.in_w;
            if (inside) in = load<VEC>(p.x + (begin + j * p.in_w + v * VEC));
#pragma unroll
            for (int k = 0; k < VEC; ++k) row[v * VEC + k] = inside ? widen(in.at[k]) : C(0);
        }
#pragma unroll
        for (int ry = 0; ry < RY; ++ry)
#pragma unroll
            for (int rx = 0; rx < RX; ++rx)
#pragma unroll
                for (int i = 0; i < WX; ++i) {
                    int ky = j * UPY + PY - ry * DOWNY, kx = i * UPX + PX - rx * DOWNX;
                    if (ky < 0 || ky >= FH || kx < 0 || kx >= FW) continue;
                    sum[ry][rx] += f.at[ky][kx] * row[SHIFT + i];
                }
    }
    int64 out = (image * p.out_h + gy * RY) * p.out_w + gx * RX;
#pragma unroll
    for (int ry = 0; ry < RY; ++ry)
#pragma unroll
        for (int rx = 0; rx < RX; rx += VOUT) {
            if (gy * RY + ry >= p.out_h || gx * RX + rx >= p.out_w) continue;
            Vector<T, VOUT> v;
#pragma unroll
            for (int k = 0; k < VOUT; ++k) narrow(sum[ry][rx + k], v.at[k]);
            store(p.y + (out + ry * p.out_w + rx), v);
        }
}

#endif

}  // namespace

KERNEL(KERNEL_NAMESPACE::Params p) { KERNEL_NAMESPACE::work(p); }
