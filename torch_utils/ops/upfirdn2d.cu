// Up-sampling by zeros, FIR and down-sampling of every channel, for factors and filter sizes that are known in advance.
//
// A thread makes RX x RY neighbouring outputs (of VEC channels if CHANNELS_LAST), so that each input is read once for
// all of them and zeros are never touched: all conditions on taps are decided at compile time. Nothing is shared by
// threads but what caches hold.
//
// Macros: CHANNELS_LAST          0 = [N, C, H, W], 1 = [N, H, W, C] in memory
//         UPX UPY DOWNX DOWNY    factors
//         FW FH FLIP             taps, and whether they are used as they stand (correlation)
//         PX PY                  padding before the image, modulo the up-sampling factor
//         RX RY                  outputs of a thread; RX * DOWNX is a multiple of UPX, likewise RY
//         VEC VOUT               elements of an input and of an output vector
//         SHIFT                  elements of the first vector of a row that are not needed (not CHANNELS_LAST)
//         TC TX                  threads of a block along channels and along x (CHANNELS_LAST); the rest is along y
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
    int64 first_x, first_y;                 // Input (vector) that the outputs 0 begin with; may lie outside.
    double gain;
};
CHECK_PARAMS;

// Output r of a thread takes input j of its window with tap j * UP + P - r * DOWN, if there is such a tap.
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
#pragma unroll
    for (int j = 0; j < WY; ++j) {
        int64 y = gy * STEP_Y + p.first_y + j;
#pragma unroll
        for (int i = 0; i < WX; ++i) {
            int64 x = gx * STEP_X + p.first_x + i;
            if (y < 0 || y >= p.in_h || x < 0 || x >= p.in_w) continue;
            Vector<T, VEC> v = load<VEC>(p.x + ((n * p.in_h + y) * p.in_w + x) * p.channels + c);
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
#pragma unroll
    for (int ry = 0; ry < RY; ++ry)
#pragma unroll
        for (int rx = 0; rx < RX; ++rx) {
            int64 y = gy * RY + ry, x = gx * RX + rx;
            if (y >= p.out_h || x >= p.out_w) continue;
            Vector<T, VEC> v;
#pragma unroll
            for (int k = 0; k < VEC; ++k) narrow(sum[ry][rx][k], v.at[k]);
            store(p.y + ((n * p.out_h + y) * p.out_w + x) * p.channels + c, v);
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
#pragma unroll
    for (int j = 0; j < WY; ++j) {
        int64 y = gy * STEP_Y + p.first_y + j;
        C row[VECTORS * VEC];
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) {
            int64 x = gx * STEP_X + p.first_x + v * VEC;
            Vector<T, VEC> in;
            bool inside = y >= 0 && y < p.in_h && x >= 0 && x < p.in_w;
            if (inside) in = load<VEC>(p.x + (image * p.in_h + y) * p.in_w + x);
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
#pragma unroll
    for (int ry = 0; ry < RY; ++ry)
#pragma unroll
        for (int rx = 0; rx < RX; rx += VOUT) {
            int64 y = gy * RY + ry, x = gx * RX + rx;
            if (y >= p.out_h || x >= p.out_w) continue;
            Vector<T, VOUT> v;
#pragma unroll
            for (int k = 0; k < VOUT; ++k) narrow(sum[ry][rx + k], v.at[k]);
            store(p.y + (image * p.out_h + y) * p.out_w + x, v);
        }
}

#endif

}  // namespace

KERNEL(KERNEL_NAMESPACE::Params p) { KERNEL_NAMESPACE::work(p); }
