// y = clamp(gain * act(x * scale + noise * strength + b)) of [N, C, H, W]: what follows the convolution of a layer of G.
//
// Macros: CHANNELS_LAST      0 = [N, C, H, W], 1 = [N, H, W, C] in memory
//         SCALE NOISE BIAS   0 or 1: is there one?
//         VEC                elements of a vector: pixels, or channels if CHANNELS_LAST
//         INDEX              unsigned type that can count the elements
#include "device.h"

namespace KERNEL_NAMESPACE {

using namespace glead;
typedef Compute<T>::type C;

struct Params {
    T* y;
    const T* x;
    const C* scale;         // [N, C]
    const C* noise;         // [N or 1, H * W]
    const C* strength;      // [1]
    const C* b;             // [C]
    int64 size, channels, pixels;
    int64 noise_stride;     // Between images; 0 = the same for all.
    double slope, gain, clamp;  // Slope of the negative side; clamp < 0: no limit.
};
CHECK_PARAMS;

}  // namespace

KERNEL(KERNEL_NAMESPACE::Params p) {
    using namespace KERNEL_NAMESPACE;
    constexpr int UNROLL = 2;
    INDEX begin = (INDEX)blockIdx.x * (BLOCK * UNROLL) + threadIdx.x, vectors = p.size / VEC;
    Vector<T, VEC> x[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        INDEX i = begin + u * BLOCK;
        if (i < vectors) x[u] = load<VEC>(p.x + (int64)i * VEC);
    }
    C strength = NOISE ? *p.strength : C(0), limit = p.clamp < 0 ? C(-1) : rounded<T>(C(p.clamp));
    C gain = C(p.gain), slope = C(p.slope);
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        INDEX i = begin + u * BLOCK;
        if (i >= vectors) continue;
        INDEX element = i * VEC, n, c, pixel;
        if (CHANNELS_LAST) {
            c = element % (INDEX)p.channels;
            pixel = element / (INDEX)p.channels % (INDEX)p.pixels;
            n = element / (INDEX)p.channels / (INDEX)p.pixels;
        } else {
            pixel = element % (INDEX)p.pixels;
            c = element / (INDEX)p.pixels % (INDEX)p.channels;
            n = element / (INDEX)p.pixels / (INDEX)p.channels;
        }
        const C* scale = p.scale + (int64)n * p.channels + c;
        const C* noise = p.noise + n * p.noise_stride + pixel;
        Vector<T, VEC> y;
#pragma unroll
        for (int k = 0; k < VEC; ++k) {
            C v = widen(x[u].at[k]);
            if (SCALE) v *= scale[CHANNELS_LAST ? k : 0];
            if (NOISE) v += noise[CHANNELS_LAST ? 0 : k] * strength;
            if (BIAS) v += p.b[c + (CHANNELS_LAST ? k : 0)];
            v = (v > 0 ? v : v * slope) * gain;
            narrow(limit < 0 ? v : fmin(fmax(v, -limit), limit), y.at[k]);
        }
        store(p.y + (int64)i * VEC, y);
    }
}
