"""What compiles, keeps, loads and launches CUDA kernels: all but the GPU itself, whose part a fake driver plays."""

import ctypes
import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dnnlib import util
from dnnlib.util import UserError
from paths import ROOT
from torch_utils.ops.__main__ import main
from torch_utils.ops.build import custom_ops, driver, nvcc, nvrtc, source
from torch_utils.ops.build import report as kernel_report
from torch_utils.ops.build.disk_cache import DiskCache
from torch_utils.ops.build.source import CompileError, Kernel, Unavailable

SCALE = Kernel("scale", (("T", "float32"), ("BLOCK", 128)))
HALF = Kernel("scale", (("T", "float16"), ("BLOCK", 256)))
ARCHS = (80, 90, 100)
STREAM = 0x7F4234560000


class Params(ctypes.Structure):
    _fields_ = [("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("size", ctypes.c_int64), ("factor", ctypes.c_double)]


def why_not(route):
    """None where the route works."""
    try:
        route.version()
    except Unavailable as e:
        return str(e)


needs_nvrtc = pytest.mark.skipif(why_not(nvrtc) is not None, reason=f"NVRTC: {why_not(nvrtc)}")
needs_nvcc = pytest.mark.skipif(why_not(nvcc) is not None, reason=f"nvcc: {why_not(nvcc)}")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """Nothing compiled, loaded or said before; `scale.cu` is among the sources."""
    for module, name in [(custom_ops, "_launchers"), (nvrtc, "_images"), (nvcc, "_libraries")]:
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


@pytest.fixture
def cache(tmp_path):
    return DiskCache(tmp_path / "cache" / "kernels")


def build(*kernels, arch=90, cache):
    return list(nvrtc.build(kernels, arch=arch, cache=cache))


# ----------------------------------------------------------------------------------------------------------------------
# Compiling.

@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHS)
def test_nvrtc_makes_cubin(arch):
    image = nvrtc.compile_kernel(SCALE, arch=arch)
    assert image.startswith(b"\x7fELF") and SCALE.symbol.encode() in image


@needs_nvrtc
def test_a_device_that_nvrtc_does_not_know_gets_ptx(monkeypatch, cache):
    monkeypatch.setattr(nvrtc, "architectures", lambda: (75, 80))
    image = nvrtc.compile_kernel(SCALE, arch=90)
    assert b".target sm_80" in image and image.endswith(b"\0")
    with pytest.raises(Unavailable, match="begins with sm_75"):
        nvrtc.compile_kernel(SCALE, arch=70)


@needs_nvrtc
def test_an_error_in_the_source_is_one_line(cache):
    path = source.SOURCES / "scale.cu"
    path.write_text(path.read_text().replace("p.size", "p.sizes"))
    (built,) = build(SCALE, cache=cache)
    assert "scale(T=float32, BLOCK=128)" in str(built.error) and "sizes" in str(built.error)
    assert "\n" not in str(built.error) and "error detected" in built.error.log
    assert cache.usage() == (0, 0)
    with pytest.raises(CompileError):
        nvrtc.launcher(SCALE, arch=90, index=0, cache=cache)


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


@needs_nvcc
def test_nvcc_makes_a_library(cache, monkeypatch):
    """12 s, most of which PyTorch's extension builder takes."""
    if not torch.cuda.is_available():
        monkeypatch.setattr(nvcc, "raw_stream", lambda: lambda index: STREAM)
    (built,) = nvcc.build([SCALE, HALF], arch=90, cache=cache)
    assert built.error is None and built.num_bytes > 1000 and built.seconds > 0
    library = nvcc._libraries[(SCALE, HALF), 90]
    launchers = [nvcc._launcher(library, kernel, 0) for kernel in (SCALE, HALF)]
    library.error_name.restype = ctypes.c_char_p
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError,
                           match=r"cudaError\w+: launching scale\(T=float32, BLOCK=128\) on a grid of 3 "):
            launchers[0](3, Params())
        with pytest.raises(Unavailable, match="loading scale.*cudaError"):
            nvcc.launcher(SCALE, arch=90, index=0, cache=cache, standard=[SCALE, HALF])
    nvcc._libraries.clear()
    monkeypatch.setattr(nvcc, "_compile", None)  # not called again
    assert [b.seconds for b in nvcc.build([SCALE, HALF], arch=90, cache=cache)] == [0]
    assert cache.usage().entries == 1 and not list(cache.folder.glob("build-*"))


def test_a_program_is_ended_with_its_children_when_its_time_is_over(tmp_path):
    start = time.monotonic()
    code, _ = nvcc.run_limited(["sh", "-c", "sleep 60 & echo $! > pid; wait"], seconds=1, cwd=tmp_path,
                               env=dict(os.environ))
    assert code is None and time.monotonic() - start < 30
    state = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    while state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z":  # a busy system ends it when it can
        assert time.monotonic() - start < 30
        time.sleep(0.05)


def test_a_build_ends_with_a_parent_that_is_killed(tmp_path):
    code = (nvcc._END_WITH_PARENT
            + "open('pid', 'w').write(str(os.getpid())); os.rename('pid', 'its-pid'); time.sleep(60)")
    parent = os.fork()
    if not parent:
        nvcc.run_limited([sys.executable, "-c", code], seconds=60, cwd=tmp_path, env=dict(os.environ))
        os._exit(0)
    start = time.monotonic()
    while not (tmp_path / "its-pid").exists():
        time.sleep(0.05)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    state = Path(f"/proc/{(tmp_path / 'its-pid').read_text()}/stat")
    while state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] != "Z":
        assert time.monotonic() - start < 30
        time.sleep(0.05)


def test_the_time_limit_of_nvcc_is_a_reason(cache, monkeypatch):
    for name, value in dict(_home=lambda: Path("/"), version=lambda: "nvcc 0", architectures=lambda: ARCHS,
                            _WORKER="import time; time.sleep(60)").items():
        monkeypatch.setattr(nvcc, name, value)
    with pytest.raises(Unavailable, match="took more than 1 s"):
        list(nvcc.build([SCALE], arch=90, cache=cache, seconds=1))
    monkeypatch.setattr(nvcc, "_WORKER", "print('scale.cu(3): error: no'); raise SystemExit(1)")
    (built,) = nvcc.build([SCALE], arch=90, cache=cache)
    assert str(built.error) == "nvcc: scale.cu(3): error: no"


# ----------------------------------------------------------------------------------------------------------------------
# Cache.

@needs_nvrtc
def test_cache(cache, monkeypatch, capsys):
    (first,) = build(SCALE, cache=cache)
    (entry,) = cache.folder.glob("*.cubin")
    image = nvrtc._images.pop((SCALE, 90))
    with monkeypatch.context() as m:
        m.setattr(nvrtc, "compile_kernel", None)  # not called
        (again,) = build(SCALE, cache=cache)
    assert again.seconds == 0 < first.seconds and nvrtc._images[SCALE, 90] == image

    for damaged in (entry.read_bytes()[:-1], b"", bytes(len(image))):
        entry.write_bytes(damaged)
        nvrtc._images.clear()
        assert build(SCALE, cache=cache)[0].seconds > 0 and nvrtc._images[SCALE, 90] == image
    assert "is damaged: building it anew" in capsys.readouterr().err

    path = source.SOURCES / "device.h"
    path.write_text(path.read_text() + "// changed\n")
    nvrtc._images.clear()
    assert build(SCALE, cache=cache)[0].seconds > 0
    assert cache.usage().entries == 2


@needs_nvrtc
def test_a_cache_that_takes_no_files_is_done_without(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    cache = DiskCache(tmp_path / "file" / "kernels")  # where even root can't write
    assert [b.error for b in build(SCALE, HALF, cache=cache)] == [None, None]
    assert nvrtc._images[HALF, 90].startswith(b"\x7fELF")
    assert capsys.readouterr().err.count("can't be ") == 1
    with cache.build_folder(locked=False) as folder:
        assert folder.is_dir()


OTHER = """
import sys
from pathlib import Path
from torch_utils.ops.build import nvrtc, source
from torch_utils.ops.build.disk_cache import DiskCache
source.SOURCES = Path(sys.argv[1])
kernels = [source.Kernel("scale", (("T", "float32"), ("BLOCK", block))) for block in (32, 64, 96)]
print("ready", flush=True)
print(sum(one.seconds > 0 for one in nvrtc.build(kernels, arch=90, cache=DiskCache(Path(sys.argv[2])))))
"""


@needs_nvrtc
def test_two_processes_build_once(cache):
    kernels = [Kernel("scale", (("T", "float32"), ("BLOCK", block))) for block in (32, 64, 96)]
    with ThreadPoolExecutor(1) as pool:
        with cache.lock(1) as locked:
            assert locked
            other = subprocess.Popen([sys.executable, "-c", OTHER, source.SOURCES, cache.folder], cwd=ROOT,
                                     stdout=subprocess.PIPE, text=True)
            assert other.stdout.readline() == "ready\n"
            ours = pool.submit(build, *kernels, cache=cache)
            time.sleep(0.5)  # both see that nothing is there, and wait
            assert not ours.done() and not list(cache.folder.glob("*.cubin"))
        count = sum(one.seconds > 0 for one in ours.result(60))
        assert int(other.communicate(timeout=60)[0]) + count == 3
    assert cache.usage().entries == 3


HOLDER = """
import sys, time
from pathlib import Path
from torch_utils.ops.build.disk_cache import DiskCache
cache = DiskCache(Path(sys.argv[1]))
with cache.lock(1) as locked, cache.build_folder(locked=locked) as folder:
    (folder / "lock").touch()
    print(folder, flush=True)
    time.sleep(60)
"""


def test_what_an_interrupted_build_leaves_is_removed(cache, capsys):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, cache.folder], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    left = Path(holder.stdout.readline().strip())
    with cache.lock(0.3) as locked:
        assert not locked
    assert "compiling CUDA kernels without waiting" in capsys.readouterr().err
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert (left / "lock").exists()
    with cache.lock(1) as locked, cache.build_folder(locked=locked) as folder:
        assert locked and folder.is_dir() and folder.parent == cache.folder
    assert capsys.readouterr().err == f"Removing {left}, which an interrupted build left.\n"
    assert [p.name for p in cache.folder.iterdir()] == ["lock"]


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
    monkeypatch.setattr(nvcc, "launcher", lambda *args, **kwargs: (_ for _ in ()).throw(Unavailable("no nvcc")))
    assert custom_ops.load(SCALE, torch.device("cuda", 0)) is None
    fake.fail(0)
    assert custom_ops.load(SCALE, torch.device("cuda", 0)) is None, "the answer stays"
    source.SOURCES.joinpath("scale.cu").write_text("nonsense")
    nvrtc._images.clear()
    assert custom_ops.load(HALF, torch.device("cuda", 0)) is None
    assert capsys.readouterr().err == (
        "CUDA kernels can't be used (nvrtc: cuModuleLoadData: CUDA_ERROR_NO_BINARY_FOR_GPU; nvcc: no nvcc): "
        "PyTorch's own operations take their place.\n")


@needs_nvrtc
def test_prepare_loads_all_standard_kernels(fake, monkeypatch):
    monkeypatch.setattr(custom_ops, "standard_kernels", lambda: [SCALE, HALF])
    custom_ops.prepare(torch.device("cuda"))
    monkeypatch.setattr(nvrtc, "launcher", None)  # not called again
    assert all(custom_ops.load(kernel, torch.device("cuda", 1)) for kernel in (SCALE, HALF))


def test_choice_by_environment(monkeypatch, capsys):
    called = []
    for name in ("nvrtc", "nvcc"):
        def launcher(kernel, name=name, **kwargs):
            called.append(name)
            raise Unavailable("not today")
        monkeypatch.setattr(custom_ops.ROUTES[name], "launcher", launcher)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    routes = dict(auto=["nvrtc", "nvcc"], nvrtc=["nvrtc"], nvcc=["nvcc"], native=[])
    for i, (value, expected) in enumerate(routes.items()):
        monkeypatch.setenv("GLEAD_OPS", value)
        assert custom_ops.load(SCALE, torch.device("cuda", i)) is None
        assert called == expected
        called.clear()
    util._said.clear()
    assert custom_ops.load(HALF, torch.device("cuda", 3)) is None
    assert "(GLEAD_OPS=native)" in capsys.readouterr().err
    monkeypatch.setenv("GLEAD_OPS", "fast")
    for device in ("cpu", "cuda:0"):
        with pytest.raises(UserError, match="^GLEAD_OPS=fast: expected one of auto, native, nvrtc, nvcc$"):
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
def test_build_command(cache, monkeypatch, capsys):
    kernels = [SCALE, SCALE._replace(macros=(("T", "float64"), ("BLOCK", 128)))]
    code = f"""
from pathlib import Path
from torch_utils.ops.build import custom_ops
from torch_utils.ops.build import source
source.SOURCES = Path({str(source.SOURCES)!r})
custom_ops.standard_kernels = lambda: [source.Kernel(*kernel) for kernel in {[tuple(kernel) for kernel in kernels]}]
"""
    done = command("build", "--arch=80,9.0", code=code)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.count("T=float64 BLOCK=128") == 2 and "4 kernels in" in done.stdout
    assert len(list(cache.folder.glob("*-sm_80-*.cubin"))) == len(list(cache.folder.glob("*-sm_90-*.cubin"))) == 2

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


def test_status_command(cache, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["status"]) == 0
    out = capsys.readouterr().out
    assert f"{cache.folder}: 0 entries" in out and "PyTorch's own operations: no " in out


def test_mistakes(monkeypatch, capsys, tmp_path):
    done = command("compile")
    assert (done.returncode, done.stdout) == (2, "") and "invalid choice: 'compile'" in done.stderr
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    mistakes = [(["build", "--arch=90", "--route=g++"], "--route=g++: expected one of auto, native, nvrtc, nvcc"),
                (["build", "--arch=90", "--time-limit=0"], "--time-limit=0: expected")]
    if why_not(nvrtc) is None:
        mistakes += [(["build"], "no GPU here"), (["build", "--arch=80,77"], "the compiler knows 75, 80"),
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
    assert main(["build", "--arch=90", "--route=nvrtc"]) == 1 and "is not a folder" in capsys.readouterr().err


@pytest.mark.parametrize("error,loaded,passes", [(1e-7, True, True), (float("nan"), True, False), (1e-7, False, False)])
def test_self_tests_of_status(monkeypatch, capsys, error, loaded, passes):
    class Op:
        @staticmethod
        def self_test(device):
            return [("good", 0.0, 1e-6), ("other", error, 1e-6)]

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(custom_ops, "standard_kernels", lambda: [SCALE])
    monkeypatch.setattr(custom_ops, "prepare", lambda device: None)
    monkeypatch.setitem(custom_ops._launchers, (SCALE, torch.device("cuda", 0)), print if loaded else None)
    monkeypatch.setattr(custom_ops, "op_modules", lambda: [Op, source])  # the latter has none
    assert kernel_report._self_tests() == (0 if passes else 1)
    out = capsys.readouterr().out
    assert f"cuda:0: {int(loaded)} of 1 kernels loaded" in out
    assert out.count("ok") + out.count("FAILED") == 2 and out.count("FAILED") == (error != error)


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


@pytest.fixture(params=["nvrtc", "nvcc"])
def route(request, monkeypatch):
    reason = why_not(custom_ops.ROUTES[request.param])
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setenv("GLEAD_OPS", request.param)


@pytest.mark.gpu
def test_gpu(route):
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
def test_gpu_threads_that_did_nothing_before(route):
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
def test_gpu_kernels_can_be_loaded_during_capture(route):
    x = torch.randn(1000, device="cuda")
    custom_ops.load(SCALE, x.device)
    custom_ops._launchers.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = scaled(x)
    graph.replay()
    torch.testing.assert_close(y, x * 2, rtol=0, atol=0)


@pytest.mark.gpu
def test_gpu_errors_name_the_kernel(route):
    launch = custom_ops.load(SCALE, torch.device("cuda", 0))
    torch.zeros(1, device="cuda")
    with pytest.raises(RuntimeError, match=r"(CUDA_ERROR_INVALID_VALUE|cudaErrorInvalid\w+): launching scale"):
        launch(-1, Params())
    torch.zeros(1, device="cuda").item()  # nothing of the error is left
