/* CUDA's driver as far as kernels are loaded and launched: two devices, contexts by thread; notes what it was told. */
#include <string.h>

#define CONTEXT(device) ((char*)0x7f1234560000 + (device)) /* handles need more than 32 bits */
#define MODULE ((char*)0x7f2234560000)
#define FUNCTION ((char*)0x7f3234560000)

struct {
    void *function, *context, *stream, **extra;
    unsigned grid[3], block[3], shared;
    unsigned char params[32];
} launched;
char image[64], symbol[64];
int launches, loaded_function, capture_mode, mode_while_loading = -1, fail;
static __thread void* stack[8];
static __thread int depth;

static void* current(void) { return depth ? stack[depth - 1] : 0; }

int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int* device, int index) { *device = index; return index < 2 ? 0 : 101; }
int cuDevicePrimaryCtxRetain(void** context, int device) { *context = CONTEXT(device); return 0; }
int cuCtxGetCurrent(void** context) { *context = current(); return 0; }
int cuCtxPushCurrent_v2(void* context) { stack[depth++] = context; return 0; }
int cuCtxPopCurrent_v2(void** context) { *context = stack[--depth]; return 0; }

int cuThreadExchangeStreamCaptureMode(int* mode) {
    int before = capture_mode;
    capture_mode = *mode;
    *mode = before;
    return 0;
}

int cuModuleLoadData(void** module, const void* data) {
    mode_while_loading = capture_mode;
    memcpy(image, data, sizeof image);
    *module = MODULE;
    return current() ? fail : 201;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
    strncpy(symbol, name, sizeof symbol - 1);
    *function = FUNCTION;
    return module == MODULE ? 0 : 400;
}

int cuFuncLoad(void* function) {
    loaded_function = function == FUNCTION;
    return loaded_function ? 0 : 400;
}

int cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared, void* stream, void** params, void** extra) {
    ++launches;
    launched.function = function, launched.context = current(), launched.stream = stream, launched.extra = extra;
    launched.grid[0] = gx, launched.grid[1] = gy, launched.grid[2] = gz;
    launched.block[0] = bx, launched.block[1] = by, launched.block[2] = bz, launched.shared = shared;
    memcpy(launched.params, params[0], sizeof launched.params);
    return fail;
}

int cuGetErrorName(int code, const char** name) {
    *name = code == 1 ? "CUDA_ERROR_INVALID_VALUE" : code == 209 ? "CUDA_ERROR_NO_BINARY_FOR_GPU" : 0;
    return *name ? 0 : 1;
}
