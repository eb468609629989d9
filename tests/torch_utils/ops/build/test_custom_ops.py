"""What compiles, keeps, loads and launches CUDA kernels: all but the GPU itself, whose part a fake driver plays."""

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from dnnlib import util
from dnnlib.util import UserError
from paths import ROOT
from torch_utils.ops import self_test
from torch_utils.ops.__main__ import main
from torch_utils.ops.build import custom_ops, disk_cache, driver, nvrtc, report, source
from torch_utils.ops.build.source import CompileError, Kernel, Unavailable

SCALE = Kernel("scale", (("T", "float32"), ("BLOCK", 128)))
HALF = Kernel("scale", (("T", "float16"), ("BLOCK", 256)))
ARCHS = (80, 100)     # the oldest and the newest that standard kernels are built for
STREAM = 0x7F4234560000


class Params(ctypes.Structure):
    _fields_ = [("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("size", ctypes.c_int64), ("factor", ctypes.c_double)]


def why_not():
    """None where NVRTC works."""
    try:
        nvrtc.version()
    except Unavailable as e:
        return str(e)


needs_nvrtc = pytest.mark.skipif(why_not() is not None, reason=f"NVRTC: {why_not()}")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Nothing compiled, loaded or said before; `scale.cu` is among the sources."""
    for module, name in [(custom_ops, "_launchers"), (nvrtc, "_images")]:
        monkeypatch.setattr(module, name, {})
    monkeypatch.setattr(util, "_said", set())
    monkeypatch.setattr(source, "SOURCES", sources(tmp_path / "sources"))
    monkeypatch.setenv("GLEAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("GLEAD_OPS", raising=False)


def sources(folder):
    folder.mkdir()
    shutil.copy(ROOT / "torch_utils/ops/device.h", folder)
    shutil.copy(Path(__file__).with_name("scale.cu"), folder)
    return folder


def build(*kernels):
    return list(nvrtc.build(kernels, arch=90))


# ----------------------------------------------------------------------------------------------------------------------
# Compiling.

@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHS)
def test_nvrtc_makes_cubin(arch):
    image = nvrtc.compile_kernel(SCALE, arch=arch)
    assert image.startswith(b"\x7fELF") and SCALE.symbol.encode() in image


@needs_nvrtc
def test_a_device_that_nvrtc_does_not_know_gets_ptx(monkeypatch):
    monkeypatch.setattr(nvrtc, "architectures", lambda: (75, 80))
    image = nvrtc.compile_kernel(SCALE, arch=90)
    assert b".target sm_80" in image and image.endswith(b"\0")
    with pytest.raises(Unavailable, match="begins with sm_75"):
        nvrtc.compile_kernel(SCALE, arch=70)


@needs_nvrtc
def test_an_error_in_the_source_is_one_line():
    path = source.SOURCES / "scale.cu"
    path.write_text(path.read_text().replace("p.size", "p.sizes"))
    (built,) = build(SCALE)
    assert "scale(T=float32, BLOCK=128)" in str(built.error) and "sizes" in str(built.error)
    assert "\n" not in str(built.error) and "error detected" in built.error.log
    assert disk_cache.usage() == (0, 0)
    with pytest.raises(CompileError):
        nvrtc.image(SCALE, arch=90)


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHS)
def test_all_standard_kernels_compile(arch, monkeypatch):
    """The kernels of an operation in one unit, which takes less time than one at a time."""
    monkeypatch.setattr(source, "SOURCES", ROOT / "torch_utils/ops")
    kernels = custom_ops.standard_kernels()
    assert kernels and len({kernel.symbol for kernel in kernels}) == len(kernels)
    for name in {kernel.name for kernel in kernels}:
        some = [kernel for kernel in kernels if kernel.name == name]
        cubin = nvrtc._compile(source.unit(some), source.included(some), f"sm_{arch}", name)
        assert all(kernel.symbol.encode() in cubin for kernel in some)


# ----------------------------------------------------------------------------------------------------------------------
# Cache.

@needs_nvrtc
def test_cache(monkeypatch):
    (first,) = build(SCALE)
    image = nvrtc._images.pop((SCALE, 90))
    with monkeypatch.context() as m:
        m.setattr(nvrtc, "compile_kernel", None)  # not called
        (again,) = build(SCALE)
    assert again.seconds == 0 < first.seconds and nvrtc._images[SCALE, 90] == image

    path = source.SOURCES / "device.h"
    path.write_text(path.read_text() + "// changed\n")
    nvrtc._images.clear()
    assert build(SCALE)[0].seconds > 0
    assert disk_cache.usage().entries == 2


@needs_nvrtc
def test_a_cache_that_takes_no_files_is_done_without(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GLEAD_CACHE_DIR", str(tmp_path / "file"))  # where even root can't write
    assert [b.error for b in build(SCALE, HALF)] == [None, None]
    assert nvrtc._images[HALF, 90].startswith(b"\x7fELF")
    assert capsys.readouterr().err.count("can't be ") == 1


# ----------------------------------------------------------------------------------------------------------------------
# Launching.

@functools.lru_cache(maxsize=None)
def fake_library(folder):
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler for the fake driver")
    path = folder / "fake_driver.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-w", Path(__file__).with_name("fake_driver.c"), "-o", path],
                   check=True)
    return path


class Launched(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in ("function", "context", "stream", "extra")),
                ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared", ctypes.c_uint),
                ("params", ctypes.c_ubyte * 32)]


class Fake:
    """The driver's memory."""

    def __init__(self, library):
        self.library = library

    def __getattr__(self, name):
        return ctypes.c_int.in_dll(self.library, name).value

    def text(self, name):
        return (ctypes.c_char * 64).in_dll(self.library, name).value.decode()

    @property
    def launched(self):
        return Launched.in_dll(self.library, "launched")

    def fail(self, code):
        ctypes.c_int.in_dll(self.library, "fail").value = code


@pytest.fixture
def fake(monkeypatch, tmp_path, tmp_path_factory):
    """Two devices of capability 9.0."""
    fake_library_copy = shutil.copy(fake_library(tmp_path_factory.getbasetemp()), tmp_path)  # with a memory of its own
    library = ctypes.CDLL(fake_library_copy)
    monkeypatch.setattr(driver, "_library", lambda: library)
    driver._context.cache_clear()
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: STREAM + index, raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    yield Fake(library)
    driver._context.cache_clear()


@needs_nvrtc
def test_launch(fake):
    launch = custom_ops.load(SCALE, torch.device("cuda", 0))
    assert fake.text("symbol") == SCALE.symbol and fake.text("image").startswith("\x7fELF")
    assert fake.loaded_function and fake.mode_while_loading == 2 and fake.capture_mode == 0
    params = Params(0x7F5234560000, 2**63 + 5, 2**40, 0.5)
    launch(7, params)
    call = fake.launched
    assert (call.context, call.function, call.stream) == (0x7F1234560000, 0x7F3234560000, STREAM)
    assert list(call.grid) == [7, 1, 1] and list(call.block) == [128, 1, 1] and call.shared == 0 and call.extra is None
    assert bytes(call.params) == bytes(params)
    launch(2**31 - 1, params)
    assert fake.launched.grid[0] == 2**31 - 1
    launch(0, params)
    assert fake.launches == 2


@needs_nvrtc
def test_launches_go_to_their_device_whatever_is_current(fake):
    zero, one = (custom_ops.load(HALF, torch.device("cuda", i)) for i in (0, 1))
    assert custom_ops.load(HALF, torch.device("cuda")) is one and zero is not one
    contexts, current = [], ctypes.c_void_p()
    fake.library.cuCtxPushCurrent_v2(ctypes.c_void_p(0x7F1234560000))

    def both():
        for launch in (zero, one):
            launch(1, Params())
            fake.library.cuCtxGetCurrent(ctypes.byref(current))
            contexts.append((fake.launched.context, fake.launched.stream, current.value))

    both()
    thread = threading.Thread(target=both)  # as those of backward passes: without a context at first
    thread.start()
    thread.join()
    assert contexts == [(0x7F1234560000 + i, STREAM + i, current) for current in (0x7F1234560000, None) for i in (0, 1)]


@needs_nvrtc
def test_errors_of_launch(fake):
    launch = custom_ops.load(SCALE, torch.device("cuda", 1))
    for code, name in [(1, "CUDA_ERROR_INVALID_VALUE"), (77, "CUDA error 77")]:
        fake.fail(code)
        with pytest.raises(RuntimeError,
                           match=rf"^{name}: launching scale\(T=float32, BLOCK=128\) on a grid of 5 .*cuda:1$"):
            launch(5, Params())


@needs_nvrtc
def test_a_kernel_that_cannot_be_had_is_none_and_said_once(fake, monkeypatch, capsys):
    fake.fail(209)
    assert custom_ops.load(SCALE, torch.device("cuda", 0)) is None
    fake.fail(0)
    assert custom_ops.load(SCALE, torch.device("cuda", 0)) is None, "the answer stays"
    source.SOURCES.joinpath("scale.cu").write_text("nonsense")
    nvrtc._images.clear()
    assert custom_ops.load(HALF, torch.device("cuda", 0)) is None
    assert capsys.readouterr().err == (
        "CUDA kernels can't be used (cuModuleLoadData: CUDA_ERROR_NO_BINARY_FOR_GPU): "
        "PyTorch's own operations take their place.\n")


@needs_nvrtc
def test_prepare_loads_all_standard_kernels(fake, monkeypatch):
    monkeypatch.setattr(custom_ops, "standard_kernels", lambda: [SCALE, HALF])
    custom_ops.prepare(torch.device("cuda"))
    monkeypatch.setattr(nvrtc, "image", None)  # not called again
    assert all(custom_ops.load(kernel, torch.device("cuda", 1)) for kernel in (SCALE, HALF))


def test_choice_by_environment(monkeypatch, capsys):
    called = []

    def image(kernel, **kwargs):
        called.append(kernel)
        raise Unavailable("not today")

    monkeypatch.setattr(nvrtc, "image", image)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    for i, (value, reason) in enumerate([("auto", "not today"), ("", "not today"), ("native", "GLEAD_OPS=native")]):
        monkeypatch.setenv("GLEAD_OPS", value)
        assert custom_ops.load(SCALE, torch.device("cuda", i)) is None
        assert f"({reason})" in capsys.readouterr().err
        util._said.clear()
    assert called == [SCALE, SCALE]
    monkeypatch.setenv("GLEAD_OPS", "fast")
    for device in ("cpu", "cuda:0"):
        with pytest.raises(UserError, match="^GLEAD_OPS=fast: expected one of auto, native$"):
            custom_ops.prepare(torch.device(device))


def test_the_cpu_has_no_kernels_and_nothing_is_said(capsys):
    custom_ops.prepare(torch.device("cpu"))
    assert custom_ops.load(SCALE, torch.device("cpu")) is None
    assert capsys.readouterr().err == ""


# ----------------------------------------------------------------------------------------------------------------------
# Command line.

def command(*args, code="", **env):
    run = ["-c", f"{code}\nimport runpy, sys; runpy.run_module('torch_utils.ops', run_name='__main__', alter_sys=True)"]
    return subprocess.run([sys.executable, *(run if code else ["-m", "torch_utils.ops"]), *args], cwd=ROOT,
                          env=dict(os.environ, **env), capture_output=True, text=True)


@needs_nvrtc
def test_build_command(monkeypatch, capsys):
    kernels = [SCALE, SCALE._replace(macros=(("T", "float64"), ("BLOCK", 128)))]
    code = f"""
from pathlib import Path
from torch_utils.ops.build import custom_ops
from torch_utils.ops.build import source
source.SOURCES = Path({str(source.SOURCES)!r})
custom_ops.standard_kernels = lambda: [source.Kernel(*kernel) for kernel in {[tuple(kernel) for kernel in kernels]}]
"""
    done = command("build", "--arch=80,9.0", code=code)
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr     # a slow machine shows a bar
    assert done.stdout.count("T=float64 BLOCK=128") == 2 and "4 kernels in" in done.stdout
    assert [len(list(disk_cache.folder().glob(f"*-sm_{arch}-*.cubin"))) for arch in (80, 90)] == [2, 2]

    monkeypatch.setattr(custom_ops, "standard_kernels", lambda: kernels)
    assert main(["build", "--arch=90"]) == 0
    assert capsys.readouterr().out.count("cached") == 2
    nvrtc._images.clear()
    path = source.SOURCES / "scale.cu"
    path.write_text(path.read_text().replace("p.size", "p.sizes"))
    assert main(["build", "--arch=90"]) == 1
    printed = capsys.readouterr()
    assert printed.out.count("failed") == 2
    assert "Error: scale(T=float64, BLOCK=128): scale.cu(" in printed.err


def test_status_command(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert f"{disk_cache.folder()}: 0 entries" in out and "PyTorch's own operations: no " in out


def test_mistakes(monkeypatch, capsys, tmp_path):
    done = command("compile")
    assert (done.returncode, done.stdout) == (2, "") and "invalid choice: 'compile'" in done.stderr
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    mistakes = [] if why_not() else [
        (["build"], "no GPU here"), (["build", "--arch=80,77"], "the compiler knows 75, 80"),
        (["build", "--arch=ninety"], "--arch=ninety: expected numbers")]
    for args, message in mistakes:
        assert main(args) == 1
        printed = capsys.readouterr()
        assert printed.out == "" and printed.err.startswith("Error: ") and printed.err.count("\n") == 1
        assert message in printed.err
    monkeypatch.setenv("GLEAD_OPS", "quick")
    assert main(["status"]) == 1 and "GLEAD_OPS=quick: expected one of" in capsys.readouterr().err
    (tmp_path / "file").touch()
    monkeypatch.setenv("GLEAD_CACHE_DIR", str(tmp_path / "file"))
    assert main(["build", "--arch=90"]) == 1 and "is not a folder" in capsys.readouterr().err


@needs_nvrtc
@pytest.mark.parametrize("error, passes", [(1e-7, True), (float("nan"), False)])
def test_self_tests_of_status(fake, monkeypatch, capsys, error, passes):
    """Kernels that are compiled are loaded; those that aren't stay so."""
    def checks(device):
        return [("good", 0.0, 1e-6), ("other", error, 1e-6)]

    monkeypatch.setattr(self_test, "self_test", checks)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(custom_ops, "standard_kernels", lambda: [SCALE, HALF])
    build(SCALE)
    assert report._self_tests() == (0 if passes else 1)
    out = capsys.readouterr().out
    assert "cuda:0: 1 of 2 kernels compiled, 1 loaded" in out
    assert out.count("ok") + out.count("FAILED") == 2 and out.count("FAILED") == (error != error)
    custom_ops._launchers.clear()
    fake.fail(209)
    assert report._self_tests() == 1 and "1 of 2 kernels compiled, 0 loaded" in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# On a GPU.

def scaled(x, factor=2.0):
    launch = custom_ops.load(SCALE, x.device)
    assert launch is not None
    y = torch.empty_like(x)
    launch(-(-x.numel() // SCALE.block), Params(x.data_ptr(), y.data_ptr(), x.numel(), factor))
    return y


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return scaled(x)

    @staticmethod
    def backward(ctx, dy):
        return scaled(dy.contiguous())


@pytest.mark.gpu
def test_gpu():
    """On a side stream, in graph capture, from a backward pass and on another device than the current one."""
    x = torch.randn(1000, device="cuda:0")
    torch.testing.assert_close(scaled(x), x * 2, rtol=0, atol=0)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # so that a launch on another stream would read what isn't there yet
        y = scaled(x + 1)
    stream.synchronize()
    torch.testing.assert_close(y, (x + 1) * 2, rtol=0, atol=0)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = scaled(scaled(x))
    for _ in range(2):
        x.normal_()
        graph.replay()
        torch.testing.assert_close(y, x * 4, rtol=0, atol=0)

    v = x.clone().requires_grad_()
    Scale.apply(v).square().sum().backward()
    torch.testing.assert_close(v.grad, v.detach() * 8, rtol=0, atol=0)

    for i in range(torch.cuda.device_count()):  # cuda:0 stays the current device
        z = torch.randn(1000, device=f"cuda:{i}")
        torch.testing.assert_close(scaled(z), z * 2, rtol=0, atol=0)
    assert torch.cuda.current_device() == 0


@pytest.mark.gpu
def test_gpu_threads_that_did_nothing_before():
    x, results = torch.randn(1000, device="cuda"), []
    y = torch.empty_like(x)
    torch.cuda.synchronize()
    launch, params = custom_ops.load(SCALE, x.device), Params(x.data_ptr(), y.data_ptr(), 1000, 3.0)
    thread = threading.Thread(target=lambda: results.append(launch(8, params)))
    thread.start()
    thread.join()
    torch.cuda.synchronize()
    assert results == [None]
    torch.testing.assert_close(y, x * 3, rtol=0, atol=0)


@pytest.mark.gpu
def test_gpu_kernels_can_be_loaded_during_capture():
    x = torch.randn(1000, device="cuda")
    custom_ops.load(SCALE, x.device)
    custom_ops._launchers.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = scaled(x)
    graph.replay()
    torch.testing.assert_close(y, x * 2, rtol=0, atol=0)


@pytest.mark.gpu
def test_gpu_errors_name_the_kernel():
    launch = custom_ops.load(SCALE, torch.device("cuda", 0))
    torch.zeros(1, device="cuda")
    with pytest.raises(RuntimeError, match="CUDA_ERROR_INVALID_VALUE: launching scale"):
        launch(-1, Params())
    torch.zeros(1, device="cuda").item()  # nothing of the error is left
