// CUDA's vocabulary for a C++ compiler: a kernel runs on the CPU, one block after another, each thread a fibre.
#pragma once
#include <math.h>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ucontext.h>
#include <vector>

#define __global__
#define __device__
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static  // blocks run one by one

namespace emulation {

struct Index { unsigned x = 0, y = 0, z = 0; };
inline Index thread_index, block_index, block_size, grid_size;

struct Fibre {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    bool done = false;
};
inline std::vector<Fibre> fibres;
inline ucontext_t scheduler;
inline void (*body)();
inline unsigned current;

inline void barrier() { swapcontext(&fibres[current].context, &scheduler); }

inline void enter() {
    body();
    fibres[current].done = true;
}

// Runs until the next barrier, again and again; threads of a block must meet at the same barriers.
inline void run_block() {
    for (Fibre& fibre : fibres) {
        getcontext(&fibre.context);
        fibre.context.uc_stack.ss_sp = fibre.stack.data();
        fibre.context.uc_stack.ss_size = fibre.stack.size();
        fibre.context.uc_link = &scheduler;
        fibre.done = false;
        makecontext(&fibre.context, enter, 0);
    }
    for (size_t done = 0; done < fibres.size();) {
        done = 0;
        for (current = 0; current < fibres.size(); ++current) {
            thread_index.x = current;
            if (!fibres[current].done) swapcontext(&scheduler, &fibres[current].context);
            done += fibres[current].done;
        }
        if (done != 0 && done != fibres.size()) {
            fprintf(stderr, "threads of a block parted at a barrier\n");
            abort();
        }
    }
}

template <class P> struct Call {
    inline static void (*kernel)(P);
    inline static const P* params;
    static void run() { kernel(*params); }
};

template <class P> void run(void (*kernel)(P), unsigned grid, unsigned block, const void* params) {
    Call<P>::kernel = kernel;
    Call<P>::params = (const P*)params;
    body = Call<P>::run;
    fibres.resize(block);
    block_size.x = block;
    grid_size.x = grid;
    for (block_index.x = 0; block_index.x < grid; ++block_index.x) run_block();
}

}  // namespace emulation

#define threadIdx emulation::thread_index
#define blockIdx emulation::block_index
#define blockDim emulation::block_size
#define gridDim emulation::grid_size
#define __syncthreads emulation::barrier

inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
inline float half_to_float(unsigned short bits) { _Float16 h; memcpy(&h, &bits, 2); return (float)h; }
inline unsigned short float_to_half(float f) { _Float16 h = (_Float16)f; unsigned short u; memcpy(&u, &h, 2); return u; }
