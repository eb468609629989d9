"""How the source of a CUDA kernel becomes something to launch.

| module       | holds                                                                     |
|--------------|---------------------------------------------------------------------------|
| `source`     | kernels, their translation units and what identifies them                 |
| `disk_cache` | compiled kernels on disk: checked when read, locked while they are built  |
| `nvrtc`      | route 1: one kernel at a time, by NVIDIA's run-time compiler              |
| `nvcc`       | route 2: a library of launchers, by nvcc and a C++ compiler               |
| `driver`     | loads what NVRTC made into a device, and launches it                      |

A route is a module with `version`, `architectures`, `build` and `launcher`; `custom_ops` chooses one.
"""
