// y = x * factor, for tests of what compiles and launches kernels.
#include "device.h"

namespace KERNEL_NAMESPACE {

using namespace glead;

struct Params {
    const T* x;
    T* y;
    int64 size;
    double factor;
};

}  // namespace

KERNEL(KERNEL_NAMESPACE::Params p) {
    using namespace glead;
    int64 i = (int64)blockIdx.x * BLOCK + threadIdx.x;
    if (i < p.size) narrow(widen(p.x[i]) * Compute<T>::type(p.factor), p.y[i]);
}
