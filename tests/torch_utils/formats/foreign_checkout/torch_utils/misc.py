import contextlib
import os
import warnings

import numpy as np
import torch


def constant(value, shape=None, dtype=None, device=None, memory_format=None):
    dtype = torch.get_default_dtype() if dtype is None else dtype
    tensor = torch.as_tensor(np.asarray(value).copy(), dtype=dtype, device=device)
    return tensor if shape is None else tensor.expand(shape).contiguous()


def assert_shape(tensor, ref_shape):
    assert tensor.ndim == len(ref_shape)
    assert all(ref is None or size == ref for size, ref in zip(tensor.shape, ref_shape))


def profiled_function(fn):
    def decorator(*args, **kwargs):
        with torch.autograd.profiler.record_function(fn.__name__):
            return fn(*args, **kwargs)

    return decorator


class _Suppressed(warnings.catch_warnings):
    def __enter__(self):
        super().__enter__()
        warnings.simplefilter("ignore", category=torch.jit.TracerWarning)
        return self


@contextlib.contextmanager
def _suppressed():
    with _Suppressed():
        yield


suppress_tracer_warnings = _Suppressed if os.environ["CHECKOUT"] == "stylegan2-ada" else _suppressed
