// Shared code of the kernels. NVRTC and nvcc compile the same source; tests also compile it for the CPU.
//
// Macros specialise a kernel's file, which defines one `KERNEL(Params p)` on a one-dimensional grid. Every kernel has
// the macros GLEAD_KERNEL (its symbol), T (element type), BLOCK (threads of a block), PARAMS_BYTES. A file's own code
// is in KERNEL_NAMESPACE, so that one translation unit may hold several kernels of a file.
#pragma once

#ifdef GLEAD_EMULATE
#include "emulation.h"
#endif

#define KERNEL(PARAMS) extern "C" __global__ void __launch_bounds__(BLOCK) GLEAD_KERNEL(PARAMS)

#define GLEAD_JOIN_(a, b) a##b
#define GLEAD_JOIN(a, b) GLEAD_JOIN_(a, b)
#define KERNEL_NAMESPACE GLEAD_JOIN(of_, GLEAD_KERNEL)

// PARAMS_BYTES is the size of the caller's copy of a kernel's `struct Params`.
#define CHECK_PARAMS static_assert(sizeof(Params) == PARAMS_BYTES, "the caller has another struct Params")

namespace glead {

typedef long long int64;

struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };
typedef float float32;
typedef double float64;

// float16 and bfloat16 are widened to float32 for arithmetic. This needs no CUDA headers.
template <class T> struct Compute { typedef float type; };
template <> struct Compute<double> { typedef double type; };

__device__ inline double widen(double v) { return v; }
__device__ inline float widen(float v) { return v; }
__device__ inline float widen(bfloat16 v) { return __uint_as_float((unsigned)v.bits << 16); }
__device__ inline void narrow(double v, double& out) { out = v; }
__device__ inline void narrow(float v, float& out) { out = v; }

__device__ inline void narrow(float v, bfloat16& out) {  // rounds to the nearest, ties to even
    unsigned u = __float_as_uint(v);
    out.bits = v != v ? 0x7fff : (unsigned short)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

#ifdef GLEAD_EMULATE
__device__ inline float widen(float16 v) { return half_to_float(v.bits); }
__device__ inline void narrow(float v, float16& out) { out.bits = float_to_half(v); }
__device__ inline unsigned pair(unsigned short low, unsigned short high) { return low | (unsigned)high << 16; }
#else
__device__ inline float widen(float16 v) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v.bits));
    return r;
}
__device__ inline void narrow(float v, float16& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v)); }
__device__ inline unsigned pair(unsigned short low, unsigned short high) {  // the compiler can't split asm
    unsigned r;
    asm("mov.b32 %0, {%1, %2};" : "=r"(r) : "h"(low), "h"(high));
    return r;
}
#endif

template <class T, class C> __device__ inline C rounded(C v) {  // v, rounded to T
    T t;
    narrow(v, t);
    return widen(t);
}

// V elements that one instruction reads or writes. They are accessed as words: a compiler might split other types.
template <class T, int V> struct alignas(sizeof(T) * V) Vector { T at[V]; };

template <int BYTES> struct Words;
template <> struct Words<2> { typedef unsigned short type; };
template <> struct Words<4> { typedef unsigned type; };
template <> struct Words<8> { typedef uint2 type; };
template <> struct Words<16> { typedef uint4 type; };

template <class W> __device__ inline void store_words(W* p, const W& words) { *p = words; }
#ifndef GLEAD_EMULATE
// Without a memory clobber, loads may be moved past the store. No load reads what it writes.
template <> __device__ inline void store_words(uint4* p, const uint4& words) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :: "l"(p), "r"(words.x), "r"(words.y), "r"(words.z), "r"(words.w));
}
#endif

template <int V, class T> __device__ inline Vector<T, V> load(const T* p) {
    typename Words<sizeof(T) * V>::type words = *(const decltype(words)*)p;
    Vector<T, V> v;
    memcpy(&v, &words, sizeof v);
    return v;
}

template <class T, int V> __device__ inline void store(T* p, const Vector<T, V>& v) {
    typename Words<sizeof(T) * V>::type words;
    if constexpr (sizeof(T) == 2 && V > 1) {
        unsigned pairs[V / 2];
#pragma unroll
        for (int k = 0; k < V / 2; ++k) pairs[k] = pair(v.at[2 * k].bits, v.at[2 * k + 1].bits);
        memcpy(&words, pairs, sizeof words);
    } else {
        memcpy(&words, &v, sizeof words);
    }
    store_words((decltype(words)*)p, words);
}

// Read V consecutive numbers, at most 16 bytes at a time. They must be aligned to the size of an access.
template <int V, class C> __device__ inline void load_array(const C* p, C (&out)[V]) {
    constexpr int PART = V * sizeof(C) < 16 ? V : 16 / sizeof(C);
#pragma unroll
    for (int i = 0; i < V; i += PART) {
        Vector<C, PART> v = load<PART>(p + i);
#pragma unroll
        for (int k = 0; k < PART; ++k) out[i + k] = v.at[k];
    }
}

// Like PyTorch's clamp, keeps NaN. fmin and fmax would drop it.
template <class C> __device__ inline C clamped(C v, C limit) { return v < -limit ? -limit : v > limit ? limit : v; }

__device__ constexpr int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
__device__ constexpr int ceil_div(int a, int b) { return -floor_div(-a, b); }

}  // namespace glead
