// y = clamp(gain * act(x * scale + noise * strength + b)) of [N, C, H, W]: the steps after a convolution in G.
//
// A thread processes several vectors, to reuse what it reads: with CHANNELS_LAST, several pixels of the same channels;
// otherwise, several channels of the same pixels.
//
// Macros: CHANNELS_LAST      0 = [N, C, H, W], 1 = [N, H, W, C] in memory
//         SCALE NOISE BIAS   whether there is one: 0 or 1
//         VEC                elements in a vector: channels if CHANNELS_LAST, otherwise pixels
//         ROUNDS             vectors for each thread
//         INDEX              unsigned type that can count the threads
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
    int64 images, channels, pixels;
    int64 noise_stride;     // From one image to the next; 0 = the same noise for all.
    double slope, gain, clamp;  // Slope of the negative side; clamp < 0 = no limit.
};
CHECK_PARAMS;

}  // namespace

KERNEL(KERNEL_NAMESPACE::Params p) {
    using namespace KERNEL_NAMESPACE;
    // Threads count vectors along `inner`, which is consecutive in memory, and groups of ROUNDS along `outer`.
    INDEX inner = CHANNELS_LAST ? p.channels : p.pixels, outer = CHANNELS_LAST ? p.pixels : p.channels;
    INDEX vectors = inner / VEC, groups = (outer + ROUNDS - 1) / ROUNDS;
    INDEX thread = (INDEX)blockIdx.x * BLOCK + threadIdx.x;
    INDEX i = thread % vectors * VEC;
    thread /= vectors;
    INDEX first = thread % groups * ROUNDS, n = thread / groups;
    if (n >= p.images) return;

    int64 at = ((int64)n * outer + first) * inner + i;
    Vector<T, VEC> x[ROUNDS];
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round)
        if (first + round < outer) x[round] = load<VEC>(p.x + at + (int64)round * inner);

    C strength = NOISE ? *p.strength : C(0), limit = p.clamp < 0 ? C(-1) : rounded<T>(C(p.clamp));
    C gain = C(p.gain), slope = C(p.slope);
    const C* of_scale = p.scale + (int64)n * p.channels;
    const C* of_noise = p.noise + n * p.noise_stride;
    C scale[VEC], shift[VEC];   // Of the thread's channels; without CHANNELS_LAST, `shift` is noise of its pixels.
    if (CHANNELS_LAST && SCALE) load_array(of_scale + i, scale);
    if (CHANNELS_LAST && BIAS) load_array(p.b + i, shift);
    if (!CHANNELS_LAST && NOISE) load_array(of_noise + i, shift);
#pragma unroll
    for (int k = 0; k < VEC; ++k) {
        if (!CHANNELS_LAST || !SCALE) scale[k] = 1;
        if (CHANNELS_LAST ? !BIAS : !NOISE) shift[k] = 0;
        if (!CHANNELS_LAST) shift[k] *= strength;
    }

#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        INDEX o = first + round;
        if (o >= outer) continue;
        C factor = !CHANNELS_LAST && SCALE ? of_scale[o] : C(1);
        C offset = CHANNELS_LAST ? (NOISE ? of_noise[o] * strength : C(0)) : (BIAS ? p.b[o] : C(0));
        Vector<T, VEC> y;
#pragma unroll
        for (int k = 0; k < VEC; ++k) {
            C v = widen(x[round].at[k]) * (CHANNELS_LAST ? scale[k] : factor) + (shift[k] + offset);
            v = (v > 0 ? v : v * slope) * gain;
            narrow(limit < 0 ? v : clamped(v, limit), y.at[k]);
        }
        store(p.y + at + (int64)round * inner, y);
    }
}
