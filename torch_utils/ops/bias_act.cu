// y = clamp(gain * act(x + b)) for a piecewise linear activation, and its derivative.
//
// Macros: ORDER  0 = y; 1 = dy times the derivative of y
//         ACT    number of the activation, in the order of `activation_funcs` in bias_act.py
//         BIAS   0 = none; 1 = one value for all elements of a vector; 2 = one value for each element
//         VEC    elements in a vector
//         INDEX  unsigned type that can count the elements
#include "device.h"

namespace KERNEL_NAMESPACE {

using namespace glead;
typedef Compute<T>::type C;

struct Params {
    T* out;
    const T* x;     // ORDER 0: the input; 1: the gradient dy of the result.
    const T* ref;   // ORDER 1: the result y.
    const T* b;
    int64 size;     // Number of elements.
    int64 step;     // Number of consecutive elements with the same bias.
    int64 num_b;    // Number of biases.
    double alpha, gain, clamp;  // clamp < 0 = no limit.
};
CHECK_PARAMS;

enum { LINEAR, RELU, LRELU };

__device__ inline C activate(C x, C alpha) {
    switch (ACT) {
        case RELU:      return x < 0 ? C(0) : x;
        case LRELU:     return x > 0 ? x : x * alpha;
        default:        return x;
    }
}

// The derivative with respect to the input, computed from r, the activation's result before gain and clamp.
__device__ inline C derivative(C r, C alpha) {
    switch (ACT) {
        case RELU:      return r > 0 ? C(1) : C(0);
        case LRELU:     return r > 0 ? C(1) : alpha;
        default:        return 1;
    }
}

struct Scalars { C alpha, gain, clamp, inverse_gain; };

__device__ inline C element(C x, C ref, C b, const Scalars& s) {
    if (ORDER == 0) {
        C y = activate(x + b, s.alpha) * s.gain;
        return s.clamp < 0 ? y : clamped(y, s.clamp);
    }
    C slope = s.gain * derivative(ref * s.inverse_gain, s.alpha);
    return s.clamp >= 0 && fabs(ref) >= s.clamp ? C(0) : x * slope;
}

}  // namespace

KERNEL(KERNEL_NAMESPACE::Params p) {
    using namespace KERNEL_NAMESPACE;
    constexpr int UNROLL = 2;  // Vectors for each thread. All are read before the first is processed.
    Scalars s = {C(p.alpha), C(p.gain), p.clamp < 0 ? C(-1) : rounded<T>(C(p.clamp)), C(1 / p.gain)};
    INDEX begin = (INDEX)blockIdx.x * (BLOCK * UNROLL) + threadIdx.x, vectors = p.size / VEC;
    Vector<T, VEC> x[UNROLL], ref[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        INDEX i = begin + u * BLOCK;
        if (i >= vectors) continue;
        x[u] = load<VEC>(p.x + (int64)i * VEC);
        if (ORDER > 0) ref[u] = load<VEC>(p.ref + (int64)i * VEC);
    }
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        INDEX i = begin + u * BLOCK;
        if (i >= vectors) continue;
        Vector<T, BIAS == 2 ? VEC : 1> b;
        if (BIAS == 1) b.at[0] = p.b[i * VEC / (INDEX)p.step % (INDEX)p.num_b];
        if (BIAS == 2) b = load<BIAS == 2 ? VEC : 1>(p.b + i * VEC % (INDEX)p.num_b);
        Vector<T, VEC> y;
#pragma unroll
        for (int k = 0; k < VEC; ++k) {
            C bias = BIAS ? widen(b.at[BIAS == 2 ? k : 0]) : C(0);
            C r = ORDER > 0 ? widen(ref[u].at[k]) : C(0);
            narrow(element(widen(x[u].at[k]), r, bias, s), y.at[k]);
        }
        store(p.out + (int64)i * VEC, y);
    }
}
