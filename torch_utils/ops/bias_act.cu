// y = clamp(gain * act(x + b)), and its first and second derivatives.
//
// Macros: ORDER  0 = y, 1 = its derivative times dy, 2 = what multiplies dy in order 1, differentiated with respect to
//                `ref`, times dy times ddx
//         ACT    number of the activation, in the order of `activation_funcs`
//         BIAS   0 = none, 1 = one value for a whole vector, 2 = one for each of its elements
//         VEC    elements of a vector
//         INDEX  unsigned type that can count the elements
#include "device.h"

namespace KERNEL_NAMESPACE {

using namespace glead;
typedef Compute<T>::type C;

struct Params {
    T* out;
    const T* x;     // ORDER 0: the input; 1 and 2: the derivative dy that comes in.
    const T* ref;   // ORDER 1 and 2: the result y, or the input x for activations that are not told from y.
    const T* ddx;   // ORDER 2: what multiplies the second derivative.
    const T* b;
    int64 size;     // Of all elements.
    int64 step;     // Elements between one bias and the next.
    int64 num_b;
    double alpha, gain, clamp;  // clamp < 0: no limit.
};
CHECK_PARAMS;

enum { LINEAR, RELU, LRELU, TANH, SIGMOID, ELU, SELU, SOFTPLUS, SWISH };
constexpr double SELU_SCALE = 1.0507009873554804934193349852946, SELU_ALPHA = 1.6732632423543772848170429916717;

__device__ inline C activate(C x, C alpha) {
    switch (ACT) {
        case RELU:      return x < 0 ? C(0) : x;
        case LRELU:     return x > 0 ? x : x * alpha;
        case TANH:      return tanh(x);
        case SIGMOID:   return 1 / (1 + exp(-x));
        case ELU:       return x > 0 ? x : expm1(x);
        case SELU:      return x > 0 ? C(SELU_SCALE) * x : C(SELU_SCALE * SELU_ALPHA) * expm1(x);
        case SOFTPLUS:  return x > 20 ? x : log1p(exp(x));
        case SWISH:     return x / (1 + exp(-x));
        default:        return x;
    }
}

// With respect to the input, from r = the activation's result before gain and clamp; for SWISH r is its input.
__device__ inline C first(C r, C alpha) {
    C s = ACT == SWISH ? 1 / (1 + exp(-r)) : C(0);
    switch (ACT) {
        case RELU:      return r > 0 ? C(1) : C(0);
        case LRELU:     return r > 0 ? C(1) : alpha;
        case TANH:      return 1 - r * r;
        case SIGMOID:   return r * (1 - r);
        case ELU:       return r > 0 ? C(1) : r + 1;
        case SELU:      return r > 0 ? C(SELU_SCALE) : r + C(SELU_SCALE * SELU_ALPHA);
        case SOFTPLUS:  return -expm1(-r);
        case SWISH:     return s * (1 + r * (1 - s));
        default:        return 1;
    }
}

// Of first(), with respect to r.
__device__ inline C second(C r) {
    C s = ACT == SWISH ? 1 / (1 + exp(-r)) : C(0);
    switch (ACT) {
        case TANH:      return -2 * r;
        case SIGMOID:   return 1 - 2 * r;
        case ELU:       return r > 0 ? C(0) : C(1);
        case SELU:      return r > 0 ? C(0) : C(1);
        case SOFTPLUS:  return exp(-r);
        case SWISH:     return s * (1 - s) * (2 + r * (1 - 2 * s));
        default:        return 0;
    }
}

struct Scalars { C alpha, gain, clamp, inverse_gain; };

__device__ inline C element(C x, C ref, C ddx, C b, const Scalars& s) {
    if (ORDER == 0) {
        C y = activate(x + b, s.alpha) * s.gain;
        return s.clamp < 0 ? y : clamped(y, s.clamp);
    }
    C r = ACT == SWISH ? ref + b : ref * s.inverse_gain;
    C y = ACT == SWISH ? activate(r, s.alpha) * s.gain : ref;
    C slope = ORDER == 1 ? s.gain * first(r, s.alpha) : (ACT == SWISH ? s.gain : C(1)) * second(r) * ddx;
    return s.clamp >= 0 && fabs(y) >= s.clamp ? C(0) : x * slope;
}

}  // namespace

KERNEL(KERNEL_NAMESPACE::Params p) {
    using namespace KERNEL_NAMESPACE;
    constexpr int UNROLL = 2;  // Vectors of a thread, all read before the first is worked on.
    Scalars s = {C(p.alpha), C(p.gain), p.clamp < 0 ? C(-1) : rounded<T>(C(p.clamp)), C(1 / p.gain)};
    INDEX begin = (INDEX)blockIdx.x * (BLOCK * UNROLL) + threadIdx.x, vectors = p.size / VEC;
    Vector<T, VEC> x[UNROLL], ref[UNROLL], ddx[UNROLL];
#pragma unroll
    for (int u = 0; u < UNROLL; ++u) {
        INDEX i = begin + u * BLOCK;
        if (i >= vectors) continue;
        x[u] = load<VEC>(p.x + (int64)i * VEC);
        if (ORDER > 0) ref[u] = load<VEC>(p.ref + (int64)i * VEC);
        if (ORDER > 1) ddx[u] = load<VEC>(p.ddx + (int64)i * VEC);
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
            C r = ORDER > 0 ? widen(ref[u].at[k]) : C(0), d = ORDER > 1 ? widen(ddx[u].at[k]) : C(0);
            narrow(element(widen(x[u].at[k]), r, d, bias, s), y.at[k]);
        }
        store(p.out + (int64)i * VEC, y);
    }
}
