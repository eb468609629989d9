"""How the source of a CUDA kernel becomes something to launch.

| module       | holds                                                              |
|--------------|--------------------------------------------------------------------|
| `source`     | kernels, their translation units and what identifies them          |
| `disk_cache` | compiled kernels on disk                                           |
| `nvrtc`      | compiles a kernel with NVIDIA's run-time compiler                  |
| `driver`     | loads a compiled kernel into a device, and launches it             |
| `custom_ops` | what operations call: a launcher for a kernel on a device, or None |
| `report`     | `python -m torch_utils.ops`                                        |
"""
