"""Compiles, loads and launches CUDA kernels.

| module       | purpose                                                             |
|--------------|---------------------------------------------------------------------|
| `source`     | kernels as source files and macros                                  |
| `disk_cache` | compiled kernels on disk                                            |
| `nvrtc`      | compiles a kernel with NVIDIA's run-time compiler                   |
| `driver`     | loads a compiled kernel into a device, and launches it              |
| `custom_ops` | gives operations a launcher for a kernel on a device, or None       |
| `report`     | the commands of `python -m torch_utils.ops`                         |
"""
