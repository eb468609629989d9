// What the kernels share. The same source is compiled by NVRTC and by nvcc; tests compile it for the CPU, too.
//
// A kernel's file is specialised by macros and defines one `KERNEL(Params p)`, on a one-dimensional grid.
// Macros that every kernel has: GLEAD_KERNEL (its symbol), T (element type), BLOCK (threads of a block), PARAMS_BYTES. What is not
// shared stands in KERNEL_NAMESPACE, so that one translation unit may hold several kernels of a file.
#pragma once

#ifdef GLEAD_EMULATE
#include "emulation.h"
#endif

#define KERNEL(PARAMS) extern "C" __global__ void __launch_bounds__(BLOCK) GLEAD_KERNEL(PARAMS)

#define GLEAD_JOIN_(a, b) a##b
#define GLEAD_JOIN(a, b) GLEAD_JOIN_(a, b)
#define KERNEL_NAMESPACE GLEAD_JOIN(of_, GLEAD_KERNEL)

// PARAMS_BYTES is what the caller takes the size of a kernel's `struct Params` to be.
#define CHECK_PARAMS static_assert(sizeof(Params) == PARAMS_BYTES, "the caller has another struct Params")

namespace glead {

typedef long long int64;

struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };
typedef float float32;
typedef double float64;

// Half types are widened to float32 for arithmetic, which needs no header of CUDA.
template <class T> struct Compute { typedef float type; };
template <> struct Compute<double> { typedef double type; };

__device__ inline double widen(double v) { return v; }
__device__ inline float widen(float v) { return v; }
__device__ inline float widen(bfloat16 v) { return __uint_as_float((unsigned)v.bits << 16); }
__device__ inline void narrow(double v, double& out) { out = v; }
__device__ inline void narrow(float v, float& out) { out = v; }

__device__ inline void narrow(float v, bfloat16& out) {  // to the nearest, ties to even
    unsigned u = __float_as_uint(v);
    out.bits = v != v ? 0x7fff : (unsigned short)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}

#ifdef GLEAD_EMULATE
__device__ inline float widen(float16 v) { return half_to_float(v.bits); }
__device__ inline void narrow(float v, float16& out) { out.bits = float_to_half(v); }
#else
__device__ inline float widen(float16 v) {
    float r;
    asm("cvt.f32.f16 %0, %1;" : "=f"(r) : "h"(v.bits));
    return r;
}
__device__ inline void narrow(float v, float16& out) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v)); }
#endif

template <class T, class C> __device__ inline C rounded(C v) {  // as T would hold it
    T t;
    narrow(v, t);
    return widen(t);
}

// V elements that are read and written by one instruction.
template <class T, int V> struct alignas(sizeof(T) * V) Vector { T at[V]; };

template <int V, class T> __device__ inline Vector<T, V> load(const T* p) { return *(const Vector<T, V>*)p; }
template <int V, class T> __device__ inline void store(T* p, const Vector<T, V>& v) { *(Vector<T, V>*)p = v; }

__device__ constexpr int floor_div(int a, int b) { return a >= 0 ? a / b : -((-a + b - 1) / b); }
__device__ constexpr int ceil_div(int a, int b) { return -floor_div(-a, b); }

}  // namespace glead
