"""Time training steps: each phase and the amortised iteration, all methods and paths in turns, on random images.

    python benchmarks/step.py --size=small --half=float16,bfloat16 --baseline=zero-insertion [--out=FILE.json]
    python benchmarks/step.py --size=paper256 --device=cuda --perceptual=random-vgg --format=nchw,nhwc \
        --baseline=native-convolutions,cudnn-heuristics,straightforward

An iteration is Gmain + Greg / 4 + Dmain + Dreg / 16 with optimisers, gradient clean-up and the moving average.
A path is a type of half precision and a memory format. Baselines take turns with the paths. Ratios are the median over
turns of a path's time by the baseline's: below 1, ours is faster.

    native-convolutions  The first path with PyTorch's own double backward of convolutions in R1 and path length.
    cudnn-heuristics     The first path without cuDNN's benchmark (GPUs only): what --nobench costs in the long run.
    cuda-graphs          The first path with Gmain and Dmain replayed as CUDA graphs (GPUs only): what the host costs.
    zero-insertion       float32 on CPUs, the ordinary memory format, no fused operations, FIR filters that run over
                         inserted zeros, PyTorch's double backward.
    straightforward      The same, and work is thrown away: G and the perceptual features of targets record a graph in
                         Dmain, and D's decoder always runs.
"""

import contextlib
import copy
import dataclasses
import functools
import itertools
import sys
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, Sequence
from unittest import mock

import click
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import cli
from benchmarks.measuring import medians, print_table, ratio, save_results, take_turns
from torch_utils import distributed, training_stats
from torch_utils.formats.feature_nets import trust_net
from torch_utils.ops import bias_act, conv2d_gradfix, conv2d_resample, upfirdn2d
from training import networks
from training.build import build_networks
from training.config.options import Options
from training.config.presets import METHODS as TRAINED_METHODS
from training.config.resolve import resolve
from training.config.schema import DatasetConfig, TrainingConfig
from training.ema import ema_beta, update_ema
from training.loss import Batch, StyleGAN2Loss
from training.networks import DiscriminatorOutput
from training.perceptual import PerceptualLoss
from training.phases import GradientGuard, Phase, build_phases
from training.rivals import build_extras
from training.tasks import Shown

networks_precision = networks.precision    # while `computing` puts another in its place

METHODS = tuple(TRAINED_METHODS)
SIZES = {  # Resolution, options, images at once on one device.
    "small": (32, dict(cfg="auto", cmax=128), 16),
    "cifar": (32, dict(cfg="cifar"), 32),
    "paper256": (256, dict(cfg="paper256"), 8),
}
HALF = ("float16", "bfloat16", "float32")
FORMATS = ("nchw", "nhwc")
PLAIN = ("straightforward", "zero-insertion")   # These compute without anything of ours.
GRAPHS = "cuda-graphs"
BASELINES = (*PLAIN, "native-convolutions", "cudnn-heuristics", GRAPHS)
MATMUL_SIDE = {"cpu": 1536, "cuda": 8192}
UPDATE = "average"      # What an iteration does besides its phases.


class Straightforward(StyleGAN2Loss):
    """Computes the same, and throws a part of it away."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.D.forward = lambda img, c: self.D.run(img, c).logits

    def _generate(self, batch: Batch) -> Shown:
        self.G.requires_grad_(True)
        with torch.enable_grad():
            shown = StyleGAN2Loss._generate.__wrapped__(self, batch)
        self.G.requires_grad_(False)
        states = {res: state._replace(x=state.x.detach()) for res, state in shown.states.items()}
        return shown._replace(img=shown.img.detach(), clean=shown.clean.detach(), states=states)

    def _judge(self, kind: str, shown: Shown, tasks: Sequence[Any]) -> DiscriminatorOutput:
        out = self.D.run(shown.img, shown.c)
        self._report_scores(kind, out.logits)
        return out


def _embed_with_graph(self: PerceptualLoss, img: torch.Tensor) -> tuple[torch.Tensor, ...]:
    with torch.enable_grad():
        return tuple(part.detach() for part in self.embed(img.detach().requires_grad_()))


def _by_reference(fn: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return functools.wraps(fn)(lambda *args, **kwargs: fn(*args, **{**kwargs, "impl": "ref"}))


def _plain_precision(block: Any, device: torch.device, force_fp32: bool) -> tuple[torch.dtype, torch.memory_format]:
    dtype, _ = networks_precision(block, device, force_fp32)
    return torch.float32 if device.type == "cpu" else dtype, torch.contiguous_format


@contextlib.contextmanager
def computing(path: str) -> Iterator[None]:
    """Compute as `path` says, one of BASELINES; anything else = as training does."""
    torch.backends.cudnn.benchmark = path != "cudnn-heuristics"
    with contextlib.ExitStack() as stack:
        patch = lambda *args: stack.enter_context(mock.patch.object(*args))
        if path == "native-convolutions":
            patch(conv2d_gradfix, "enabled", False)
        if path in PLAIN:
            fir = _by_reference(upfirdn2d.upfirdn2d)
            patch(upfirdn2d, "upfirdn2d", fir)
            patch(conv2d_resample, "upfirdn2d", fir)
            patch(bias_act, "bias_act", _by_reference(bias_act.bias_act))
            patch(conv2d_gradfix, "enabled", False)
            patch(networks, "modconv_epilogue", None)
            patch(networks, "precision", _plain_precision)
        if path == "straightforward":
            patch(PerceptualLoss, "embed_target", _embed_with_graph)
        yield


class Step:
    """Networks, losses and optimisers of one method, and a batch of random images."""

    def __init__(self, config: TrainingConfig, path: str):
        c, device = config, torch.device(config.device)
        self.config, self.path = config, path
        torch.manual_seed(0)
        self.G, self.D = (net.train().requires_grad_(False).to(device) for net in build_networks(c))
        self.G_ema = copy.deepcopy(self.G).eval()
        float32_net = dataclasses.replace(c, D=dataclasses.replace(c.D, num_fp16_res=0))  # tasks look at nothing else
        extras = build_extras(float32_net if path in PLAIN else c, self.G, self.D)
        loss = Straightforward if path == "straightforward" else StyleGAN2Loss
        self.phases = build_phases(c, loss(self.G, self.D, config=c.loss, **extras))
        self.guard = GradientGuard(device)
        self.replays = {p.name: Replay(self, p) for p in self.phases if p.interval == 1} if path == GRAPHS else {}
        n, res, no_labels = c.batch_gpu, c.dataset.resolution, torch.zeros([c.batch_gpu, 0], device=device)
        img = torch.rand([n, 3, res, res], device=device) * 2 - 1
        self.batch = Batch(img, no_labels, torch.randn([n, c.G.z_dim], device=device), no_labels)

    def parts(self) -> dict[str, tuple[Callable[[], None], float]]:
        """What an iteration consists of, and the share of iterations in which it does."""
        parts = {p.name: (functools.partial(self.run, p), 1 / p.interval) for p in self.phases}
        return {**parts, UPDATE: (self.update, 1.0)}

    def iterations(self, sec: Mapping[str, Sequence[float]]) -> list[float]:
        """Seconds of an iteration by turn, of those of its parts."""
        return [sum(share * sec[name][turn] for name, (_, share) in self.parts().items())
                for turn in range(len(sec[UPDATE]))]

    def run(self, phase: Phase) -> None:
        """One phase, as the training loop runs it."""
        with computing(self.path):
            self.replays.get(phase.name, self.backward)(phase)
            phase.finish()
            self.guard.process(phase.module)
            phase.opt.step()

    def backward(self, phase: Phase) -> None:
        """Gradients of the phase."""
        phase.module.requires_grad_(True)
        phase.backward([self.batch], num=1)
        phase.module.requires_grad_(False)

    def update(self) -> None:
        c = self.config
        distributed.all_reduce_mean_(self.G.mapping.w_avg)
        beta = ema_beta(batch_size=c.batch_size, cur_nimg=100_000, ema_kimg=c.ema_kimg, ema_rampup=c.ema_rampup)
        update_ema(self.G_ema, self.G, beta)
        self.guard.end_iteration()


class Replay:
    """Gradients of a phase by a CUDA graph, which holds the style mixing of the call in which it was captured."""

    WARM_UP = 3     # Calls before capturing: cuDNN chooses algorithms, constants are uploaded.

    def __init__(self, step: Step, phase: Phase):
        self.step, self.params = step, list(phase.module.parameters())
        self.graph: torch.cuda.CUDAGraph | None = None
        self.grads: list[torch.Tensor | None] = []      # Where the graph writes them.
        self.difference = 0.0       # Of replayed gradients from others with the same seed, relative to their norm.

    def __call__(self, phase: Phase) -> None:
        if self.graph is None:
            self.graph = self.capture(phase)
            self.difference = self.compare(phase)
        self.graph.replay()
        for param, grad in zip(self.params, self.grads):
            param.grad = grad

    def capture(self, phase: Phase) -> torch.cuda.CUDAGraph:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(self.WARM_UP):
                self.step.backward(phase)
        torch.cuda.current_stream().wait_stream(stream)
        phase.opt.zero_grad(set_to_none=True)   # the graph allocates them
        torch.manual_seed(0)
        graph = torch.cuda.CUDAGraph()
        with training_stats.unrecorded(), torch.cuda.graph(graph):
            self.step.backward(phase)
        self.grads = [param.grad for param in self.params]
        return graph

    def compare(self, phase: Phase) -> float:
        found = []
        for compute in self.graph.replay, lambda: self.step.backward(phase):
            torch.manual_seed(0)
            compute()
            grads = self.grads if not found else [param.grad for param in self.params]
            found.append(torch.cat([grad.flatten().clone() for grad in grads if grad is not None]))
        return float((found[0] - found[1]).norm() / found[1].norm())


def configure(method: str, half: str, memory_format: str, **said: Any) -> TrainingConfig:
    resolution, options, default_batch = SIZES[said["size"]]
    batch = said["batch"] or default_batch
    net = said["perceptual"] if method.startswith("glead") else None
    chosen = Options(
        method=method, aug="noaug", batch=batch, batch_gpu=batch, perceptual=net, fp32=half == "float32",
        half=None if half == "float32" else half, nhwc=memory_format == "nhwc", **options,
    )
    return resolve(chosen, DatasetConfig(path="random", resolution=resolution), device=said["device"])


def computed_in(half: str, device: str) -> str:
    """The type that convolutions have: a CPU takes float32 for float16."""
    return "float32" if (half, device) == ("float16", "cpu") else half


def configurations(
    methods: Sequence[str], half: Sequence[str], formats: Sequence[str], baselines: Sequence[str], **said: Any
) -> dict[tuple[str, str], TrainingConfig]:
    """By method and path: "bfloat16", "bfloat16 nhwc" where formats are compared, or the name of a baseline."""
    configs = {}
    for method in methods:
        for dtype, memory_format in itertools.product(half, formats):
            path = computed_in(dtype, said["device"]) + (f" {memory_format}" if formats != ("nchw",) else "")
            configs[method, path] = configure(method, dtype, memory_format, **said)
        for baseline in baselines:
            memory_format = "nchw" if baseline in PLAIN else formats[0]
            configs[method, baseline] = configure(method, half[0], memory_format, **said)
    return configs


def matrix_product(device: str, dtype: str) -> Callable[[], torch.Tensor]:
    a = torch.randn([MATMUL_SIDE[device]] * 2, device=device).to(getattr(torch, dtype))
    return functools.partial(torch.mm, a, a)


class _FlopCounter(TorchDispatchMode):
    """PyTorch's own counter keeps track of modules besides, which it can't do under `autograd.grad`."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def count_gflop(step: Step) -> dict[str, float]:
    """Of convolutions and matrix products, forward and backward, by part."""
    gflop = {}
    for name, (call, _) in step.parts().items():
        with _FlopCounter() as counter:
            call()
        gflop[name] = counter.total / 1e9
    return gflop


def build(config: TrainingConfig, path: str) -> tuple[Step, float | None]:
    """A step that has run once, and the GB that it took on a GPU; processes can't tell theirs apart."""
    cuda = config.device == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    step = Step(config, path)
    for call, _ in step.parts().values():
        call()
    return step, (torch.cuda.max_memory_allocated() - before) / 1e9 if cuda else None


def measure(
    configs: dict[tuple[str, str], TrainingConfig], repeats: int
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row for each method and path; TFLOP/s of a large matrix product in each type."""
    device = next(iter(configs.values())).device
    built = {key: build(config, key[1]) for key, config in configs.items()}
    gflop = {key: count_gflop(step) for key, (step, _) in built.items() if key[1] != GRAPHS}
    gflop |= {key: next(count for (method, _), count in gflop.items() if method == key[0])
              for key in built if key[1] == GRAPHS}
    cases = {(*key, name): call for key, (step, _) in built.items() for name, (call, _) in step.parts().items()}
    types = dict.fromkeys(["float32", *(path.split()[0] for _, path in configs if path not in BASELINES)])
    cases |= {dtype: matrix_product(device, dtype) for dtype in types}
    warmup = 1 if device == "cpu" else 3    # a GPU's first calls load kernels and try out algorithms
    times = take_turns(cases, repeats=repeats, warmup=warmup, device=device, title="steps")
    flop = 2 * MATMUL_SIDE[device] ** 3
    matmul = {dtype: 1e-12 * flop / sec for dtype, sec in medians({t: times[t] for t in types}).items()}
    rows = []
    for key, (step, memory) in built.items():
        shares = {name: share for name, (_, share) in step.parts().items()}
        parts = {name: times[(*key, name)] for name in shares}
        total = sum(shares[name] * gflop[key][name] for name in shares)
        rows.append(dict(method=key[0], path=key[1], batch=step.config.batch_gpu, memory_gb=memory,
                         graph_difference={name: replay.difference for name, replay in step.replays.items()},
                         gflop={**gflop[key], "iteration": total}, sec={**parts, "iteration": step.iterations(parts)}))
    return rows, matmul


def summarise(rows: list[dict[str, Any]], baselines: Sequence[str], matmul: dict[str, float]) -> None:
    """Add to each row its medians, and its ratios to the baselines' and to stylegan2's of the same turns."""
    by_key = {(row["method"], row["path"]): row["sec"] for row in rows}
    for row in rows:
        row["median_sec"] = medians(row["sec"])
        sec = row["median_sec"]["iteration"]
        row |= dict(img_per_sec=row["batch"] / sec, sec_per_kimg=1000 * sec / row["batch"])
        dtype = row["path"].split()[0]
        peak = matmul[dtype if dtype in matmul else "float32"]
        row["utilisation"] = row["gflop"]["iteration"] / sec / peak / 1e3
        others = {f"to {baseline}": (row["method"], baseline) for baseline in baselines if baseline != row["path"]}
        others |= {"to stylegan2": ("stylegan2", row["path"])} if row["method"] != "stylegan2" else {}
        row["ratios"] = {
            name: {part: ratio({"a": row["sec"][part], "b": by_key[other][part]}, "a", "b")
                   for part in row["sec"] if part in by_key[other]}
            for name, other in others.items() if other in by_key
        }


def print_rows(rows: list[dict[str, Any]]) -> None:
    ratios = list(dict.fromkeys(name for row in rows for name in row["ratios"]))
    table = []
    for row in rows:
        relative = {name: row["ratios"].get(name, {}).get("iteration") for name in ratios}
        ms = {f"{name} ms": 1e3 * sec for name, sec in row["median_sec"].items()}
        table.append(dict(method=row["method"], path=row["path"], **ms, **relative) | {
            "img/s": row["img_per_sec"], "sec/kimg": row["sec_per_kimg"], "memory GB": row["memory_gb"],
            "of matmul": row["utilisation"]})
    print_table(table)
    for name in ratios:
        if name != "to stylegan2":
            print(f"\nTime of each part relative {name}:")
            print_table([dict(method=row["method"], path=row["path"], **row["ratios"][name]) for row in rows
                         if name in row["ratios"] and row["path"] not in BASELINES])


@click.command(cls=cli.Command)
@click.option("--size", type=click.Choice(list(SIZES)), default="small", show_default=True)
@click.option("--methods", type=cli.CommaList(), default=",".join(METHODS), show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--batch", type=click.IntRange(min=1), help="Images at once.  [default: by --size]")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--half", type=cli.CommaList(), default="float16", show_default=True,
              help="Types of half precision to compare, or float32 for none; a CPU takes float32 for float16.")
@click.option("--format", "formats", type=cli.CommaList(), default="nchw", show_default=True,
              help="Memory formats of half precision on a GPU to compare: nchw, nhwc.")
@click.option("--perceptual", default="random-alex", show_default=True, help="As for train.py.")
@cli.trust_net_option
@click.option("--baseline", "baselines", type=cli.CommaList(), is_flag=False, flag_value=BASELINES[0], default="",
              help=f"Compare with these in the same run: {', '.join(BASELINES)}.  [without a name: {BASELINES[0]}]")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--out", type=click.Path(dir_okay=False), help="Write the figures as JSON.")
def main(methods: Sequence[str], half: Sequence[str], formats: Sequence[str], baselines: Sequence[str], repeats: int,
         **said: Any) -> None:
    first_names = [method.split("+")[0] for method in methods]     # rivals may follow
    for option, given, known in (("--methods", first_names, METHODS), ("--half", half, HALF),
                                 ("--format", formats, FORMATS), ("--baseline", baselines or BASELINES, BASELINES)):
        if unknown := [name for name in given or ["none at all"] if name not in known]:
            raise click.UsageError(f"{option} is {','.join(unknown)}, expected some of {', '.join(known)}")
    if said["device"] == "cpu" and GRAPHS in baselines:
        raise click.UsageError(f"--baseline={GRAPHS} needs a GPU: add --device=cuda, or leave it out")
    if said["device"] == "cuda" and not torch.cuda.is_available():
        raise click.ClickException("--device is cuda, but PyTorch finds no CUDA device")
    if said.pop("trust_net"):
        trust_net(said["perceptual"])
    torch.set_num_threads(said["threads"])
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    configs = configurations(methods, half, tuple(formats), baselines, **said)
    rows, matmul = measure(configs, repeats)
    summarise(rows, baselines, matmul)
    print("Matrix products: " + ", ".join(f"{tflops:.3f} TFLOP/s in {name}" for name, tflops in matmul.items()))
    print_rows(rows)
    save_results(said["out"], device=said["device"], size=said["size"], matmul_tflops=matmul, rows=rows)


if __name__ == "__main__":
    main()
