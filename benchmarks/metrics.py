"""Where the time of a metric goes: generation, features, statistics, precision and recall, matrix root; peak memory.

    python benchmarks/metrics.py [--device=cuda] [--resolution=256] [--detector=FILE.pt] [--baseline] [--out=FILE.json]
    python benchmarks/metrics.py --baseline --full-size=50000 --matrix-size=20000 [--out=FILE.json]

With --baseline, each stage takes turns with a plain way to do the same, in the same run: batch by batch, one thing
after the other, every result fetched as soon as it is there, nothing cached. Both must give the same numbers. The ratio
is the median over turns of the plain way's time by ours: above 1, ours is faster. Without --detector a net of random
weights is made on the spot; it serves for times, not for scores.

--full-size measures whole metrics instead, fid50k and pr50k3, from random features to the score, on one CPU core. Each
way has a process of its own, so that its peak memory is known. There are two plain ways of pr50k3, one that compares
some rows with all others, and one that holds a whole matrix of distances. Both are measured at the size --matrix-size.
"""

import contextlib
import multiprocessing
import re
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Iterator, NamedTuple

import click
import numpy as np
import scipy.linalg
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.data import draw_files, write_containers  # noqa: E402
from benchmarks.measuring import baseline_option, medians, print_table, ratio, save_results, take_turns  # noqa: E402
from cli import Command, trust_net_option  # noqa: E402
from metrics import metric_main  # noqa: E402
from metrics.detectors import FeatureNet, load_feature_net  # noqa: E402
from metrics.feature_stats import FeatureStats, Moments  # noqa: E402
from metrics.features import generated_stats, real_stats  # noqa: E402
from metrics.frechet_inception_distance import frechet_distance  # noqa: E402
from metrics.options import ImageSet, MetricOptions  # noqa: E402
from metrics.precision_recall import precision_recall  # noqa: E402
from metrics.sampling import draw, generate_uint8, keyed_noise  # noqa: E402
from training.data.dataset import ImageFolderDataset  # noqa: E402
from training.networks import Generator  # noqa: E402

NEIGHBOURS = 3
SHIFTS = 0.0, 0.1   # Of real and of generated random features.


class RandomDetector(torch.nn.Module):
    """A small detector of random weights: three convolutions, pooled."""

    def __init__(self, num_features: int):
        super().__init__()
        widths = (3, 32, 64, num_features)
        self.convs = torch.nn.Sequential(*[
            torch.nn.Sequential(torch.nn.Conv2d(a, b, 3, stride=2, padding=1), torch.nn.ReLU())
            for a, b in zip(widths, widths[1:])])

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return self.convs(img.to(torch.float32) / 255).mean(dim=[2, 3])


class Stage(NamedTuple):
    """A part of the work; both ways give numbers that must agree."""

    items: int
    ours: Callable[[], Any]
    plain: Callable[[], Any]


def make_detector(path: str | Path, *, num_features: int) -> str | Path:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and the format of these files
        torch.jit.script(RandomDetector(num_features)).save(str(path))
    return path


# ----------------------------------------------------------------------------------------------------------------------
# The plain way.


def plain_generated(opts: MetricOptions, net: FeatureNet | None, count: int) -> np.ndarray:
    """Images, or their features, on the host: every batch is fetched before the next one begins."""
    parts = []
    for start in range(0, count, opts.batch_size):
        draws = draw(opts.G, opts.dataset, range(start, min(start + opts.batch_size, count)), seed=opts.seed)
        noise = keyed_noise(opts.G, draws.noise_seeds, device=opts.device)
        img = torch.func.functional_call(
            opts.G, noise, (draws.z[:, 0].to(opts.device), draws.c.to(opts.device)), {"noise_mode": "const"})
        img = (img.cpu() * 127.5 + 128).clamp(0, 255).to(torch.uint8)
        parts.append(img.numpy() if net is None else net(img.to(opts.device)).cpu().numpy())
    return np.concatenate(parts)


def plain_features(net: FeatureNet, images: torch.Tensor, batch: int) -> np.ndarray:
    return np.concatenate([net(img).cpu().numpy() for img in images.split(batch)])


def plain_real(opts: MetricOptions, net: FeatureNet, count: int) -> np.ndarray:
    parts = []
    for start in range(0, count, opts.batch_size):
        items = [opts.dataset[i][0] for i in range(start, min(start + opts.batch_size, count))]
        parts.append(net(torch.from_numpy(np.stack(items)).to(opts.device)).cpu().numpy())
    return np.concatenate(parts)


def plain_moments(features: np.ndarray) -> Moments:
    x = features.astype(np.float64)
    return Moments(torch.from_numpy(x.mean(axis=0)), torch.from_numpy(np.cov(x, rowvar=False, bias=True)))


def plain_frechet(a: Moments, b: Moments) -> float:
    """By the root of the product, which is not symmetric."""
    root = scipy.linalg.sqrtm((a.cov @ b.cov).numpy())
    return float((a.mean - b.mean).square().sum() + (a.cov + b.cov).trace() - 2 * np.trace(root.real))


def plain_precision_recall(
    real: torch.Tensor, gen: torch.Tensor, *, device: str, rows: int = 2000
) -> tuple[float, float]:
    """Distances of some rows to everything, and a choice of the k-th; three times over all pairs."""
    real, gen = real.half().to(device).float(), gen.half().to(device).float()

    def radii(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.cdist(part, x).half().float().kthvalue(NEIGHBOURS + 1, dim=1).values
                          for part in x.split(rows)])

    def inside(x: torch.Tensor, y: torch.Tensor) -> float:
        limits = radii(y)
        hits = [(torch.cdist(part, y).half().float() <= limits).any(dim=1) for part in x.split(rows)]
        return float(torch.cat(hits).double().mean())

    return inside(gen, real), inside(real, gen)


def matrix_precision_recall(real: torch.Tensor, gen: torch.Tensor) -> tuple[float, float]:
    """The whole matrix at once, three times."""
    real, gen = real.half().float(), gen.half().float()

    def distances(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.cdist(x, y).half().float()

    real_radii = distances(real, real).kthvalue(NEIGHBOURS + 1, dim=1).values
    gen_radii = distances(gen, gen).kthvalue(NEIGHBOURS + 1, dim=1).values
    across = distances(gen, real)
    inside = (across <= real_radii).any(dim=1), (across <= gen_radii[:, None]).any(dim=0)
    return float(inside[0].double().mean()), float(inside[1].double().mean())


# ----------------------------------------------------------------------------------------------------------------------
# Full size: from features to the score, each way in a process of its own.


def random_features(items: int, width: int, *, shift: float) -> Iterator[torch.Tensor]:
    """Batch by batch, as a feature net gives them."""
    generator = torch.Generator().manual_seed(int(10 * shift))
    for start in range(0, items, 100):
        yield torch.randn(min(100, items - start), width, generator=generator) + shift


def our_stats(items: int, width: int, *, shift: float, keep_features: bool) -> FeatureStats:
    stats = FeatureStats(keep_moments=True, keep_features=keep_features)
    for batch in random_features(items, width, shift=shift):
        stats.append(batch)
    return stats


def full_fid(way: str, items: int, width: int) -> list[float]:
    if way == "ours":
        return [frechet_distance(*(our_stats(items, width, shift=shift, keep_features=False).moments()
                                   for shift in SHIFTS))]
    return [plain_frechet(*(plain_moments(torch.cat([*random_features(items, width, shift=shift)]).numpy())
                            for shift in SHIFTS))]


def full_precision_recall(way: str, items: int, width: int) -> list[float]:
    if way == "ours":
        stats = [our_stats(items, width, shift=shift, keep_features=True) for shift in SHIFTS]
        return [*precision_recall(*(part.features() for part in stats), k=NEIGHBOURS)]
    clouds = [torch.cat([*random_features(items, width, shift=shift)]) for shift in SHIFTS]
    return [*(plain_precision_recall(*clouds, device="cpu") if way == "plain" else matrix_precision_recall(*clouds))]


FULL = {"fid50k": full_fid, "pr50k3": full_precision_recall}


def run_full(metric: str, way: str, items: int, width: int, answer: Any) -> None:
    """As a process of its own, put a row of figures into the queue `answer`."""
    torch.set_num_threads(1)
    start, cpu_start = time.perf_counter(), time.process_time()
    result = FULL[metric](way, items, width)
    sec, cpu_sec = time.perf_counter() - start, time.process_time() - cpu_start
    # Not ru_maxrss, which starts from the peak of the process that started this one.
    peak_kb = int(re.search(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())[1])
    answer.put(dict(metric=metric, way=way, items=items, width=width, sec=sec, cpu_sec=cpu_sec, peak_mb=peak_kb / 1024,
                    result=" / ".join(f"{value:.7g}" for value in result)))


def measure_full(*, items: int, matrix_items: int, width: int, baseline: str | None) -> list[dict[str, Any]]:
    cases = [("fid50k", "ours", items), ("pr50k3", "ours", items)]
    if baseline:
        cases += [("fid50k", "plain", items)]
        cases += [("pr50k3", way, matrix_items) for way in ("ours", "plain", "whole matrix")]
    context, rows = multiprocessing.get_context("spawn"), []
    for metric, way, count in cases:
        click.echo(f"{metric} of {count} features: {way} ...", err=True)
        answer = context.Queue()
        process = context.Process(target=run_full, args=(metric, way, count, width, answer))
        process.start()
        process.join()
        if process.exitcode:
            raise click.ClickException(f"{metric}, {way}, of {count}: ended with status {process.exitcode}")
        rows.append(answer.get())
        print_table(rows[-1:])
    return rows


# ----------------------------------------------------------------------------------------------------------------------
# Stages.


def stages(opts: MetricOptions, net: FeatureNet, *, images: int, neighbours: int, root: int) -> dict[str, Stage]:
    """By name; what each needs is made beforehand."""
    device, batch = opts.device, opts.batch_size
    batches = [range(i, min(i + batch, images)) for i in range(0, images, batch)]

    def generate() -> torch.Tensor:
        return torch.cat([generate_uint8(opts.G, opts.dataset, indices=b, seed=0, device=device) for b in batches])

    img = generate()
    features = torch.cat([net(part) for part in img.split(batch)])

    def gather() -> FeatureStats:
        stats = FeatureStats(keep_moments=True, keep_features=True)
        for part in features.split(batch):
            stats.append(part)
        return stats

    generator = torch.Generator().manual_seed(0)
    width = features.shape[1]
    cloud = [torch.randn(neighbours, width, generator=generator) + shift for shift in SHIFTS]
    wide = [plain_moments(torch.randn(2 * root, root, generator=generator).numpy() * scale) for scale in (1.0, 1.5)]
    count = min(images, len(opts.dataset))
    fetched = features.cpu().numpy()
    return {
        "generation": Stage(images, generate, lambda: plain_generated(opts, None, images)),
        "features": Stage(images, lambda: torch.cat([net(part) for part in img.split(batch)]).cpu(),
                          lambda: plain_features(net, img, batch)),
        "statistics": Stage(images, lambda: gather().moments().mean, lambda: plain_moments(fetched).mean),
        "generated, all together": Stage(
            images, lambda: generated_stats(opts, net, num_items=images, keep_features=True).moments().mean,
            lambda: plain_moments(plain_generated(opts, net, images)).mean),
        "real, read and all": Stage(
            count, lambda: real_stats(opts, net, ImageSet("all real", count), keep_features=True).moments().mean,
            lambda: plain_moments(plain_real(opts, net, count)).mean),
        f"precision and recall [{neighbours}, {width}]": Stage(
            2 * neighbours, lambda: precision_recall(*cloud, k=NEIGHBOURS, device=device),
            lambda: plain_precision_recall(*cloud, device=str(device))),
        f"matrix root [{root}, {root}]": Stage(
            1, lambda: frechet_distance(*wide), lambda: plain_frechet(*wide)),
    }


def largest_difference(a: Any, b: Any) -> float:
    """Of two results, relative to the largest number in them."""
    a, b = (np.asarray(x, dtype=np.float64) for x in (a, b))
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def measure(all_stages: dict[str, Stage], *, baseline: str | None, repeats: int, device: str) -> list[dict[str, Any]]:
    rows = []
    for name, stage in all_stages.items():
        cases = {"ours": stage.ours} | ({"plain": stage.plain} if baseline else {})
        with torch.inference_mode():
            times = take_turns(cases, repeats=repeats, warmup=1, device=device, title=name)
            sec = medians(times)
            row = dict(stage=name, items=stage.items, sec=sec["ours"], items_per_sec=stage.items / sec["ours"])
            if baseline:
                as_host = [x.cpu() if isinstance(x, torch.Tensor) else x for x in (stage.ours(), stage.plain())]
                row |= dict(plain_sec=sec["plain"], ratio=ratio(times, "plain", "ours"),
                            difference=f"{largest_difference(*as_host):.1e}")
        rows.append(row)
    return rows


def peak_memory(device: str) -> dict[str, float]:
    """Of this process so far, in MB."""
    memory = dict(peak_host_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    if device.startswith("cuda"):
        memory |= dict(peak_device_mb=torch.cuda.max_memory_allocated() / 2**20)
    return memory


@contextlib.contextmanager
def prepared(
    *, device: str, resolution: int, cbase: int, cmax: int, detector: str | None, features: int, data: str | None,
    files: int, batch: int, workers: int, trust_net: bool = False,
) -> Iterator[tuple[MetricOptions, FeatureNet]]:
    """Networks and images to measure with; those drawn on the spot are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="glead-") as folder:
        net_path = detector or make_detector(Path(folder, "detector.pt"), num_features=features)
        if data is None:
            data = str(write_containers(draw_files(files, resolution), Path(folder))["zip"])
        dataset = ImageFolderDataset(data, resolution=resolution)
        torch.manual_seed(0)
        fp16 = {"num_fp16_res": 4, "conv_clamp": 256} if device.startswith("cuda") else {}
        G = Generator(512, 0, 512, resolution, 3, mapping_kwargs={"num_layers": 8},
                      synthesis_kwargs=dict(channel_base=cbase, channel_max=cmax, **fp16))
        opts = MetricOptions(metric="benchmark", G=G.eval().requires_grad_(False).to(device), dataset=dataset,
                             device=torch.device(device), batch_size=batch, workers=workers, cache=False)
        yield opts, load_feature_net(net_path, "features", device=device, trust=trust_net or detector is None)


@click.command(cls=Command)
@click.option("--device", default="cpu", show_default=True)
@click.option("--resolution", default=32, show_default=True, type=click.IntRange(min=8))
@click.option("--cbase", default=2048, show_default=True, help="Of the generator, as in train.py.")
@click.option("--cmax", default=64, show_default=True)
@click.option("--detector", type=click.Path(exists=True, dir_okay=False), help="Feature net.  [default: made]")
@trust_net_option
@click.option("--features", default=512, show_default=True, help="Of the detector that is made.")
@click.option("--data", type=click.Path(exists=True), help="Real images of this resolution.  [default: drawn]")
@click.option("--files", default=256, show_default=True, help="How many are drawn.")
@click.option("--images", default=512, show_default=True, help="Generated in each turn.")
@click.option("--batch", default=64, show_default=True)
@click.option("--neighbours", default=4000, show_default=True, help="Vectors of either kind for precision and recall.")
@click.option("--root", default=512, show_default=True, help="Side of the covariances; Inception's are 2048.")
@click.option("--workers", default=2, show_default=True, help="Processes that decode real images.")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(min=1))
@baseline_option("plain")
@click.option("--full-size", type=click.IntRange(min=10), metavar="N",
              help="Measure whole metrics of N random features of either kind, not stages.")
@click.option("--full-width", default=2048, show_default=True, help="Length of these features.")
@click.option("--matrix-size", type=click.IntRange(min=10), default=20_000, show_default=True, metavar="N",
              help="Features for the plain ways of pr50k3 with --full-size; a matrix takes 12 N^2 bytes.")
@click.option("--only-detector", type=click.Path(dir_okay=False), help="Make a detector here, and stop.")
@click.option("--out", type=click.Path(dir_okay=False), help="Write the figures as JSON.")
def main(
    device: str, images: int, neighbours: int, root: int, threads: int, repeats: int, baseline: str | None,
    full_size: int | None, full_width: int, matrix_size: int, only_detector: str | None, out: str | None,
    **options: Any,
) -> None:
    if only_detector is not None:
        make_detector(only_detector, num_features=options["features"])
        return
    torch.set_num_threads(threads)
    if full_size is not None:
        rows = measure_full(items=full_size, matrix_items=matrix_size, width=full_width, baseline=baseline)
        save_results(out, rows=rows)
        return
    with prepared(device=device, **options) as (opts, net):
        with metric_main.exact_float32():
            work = stages(opts, net, images=images, neighbours=neighbours, root=root)
            rows = measure(work, baseline=baseline, repeats=repeats, device=device)
    print_table(rows)
    memory = peak_memory(device)
    print(", ".join(f"{name} {value:.0f}" for name, value in memory.items()))
    save_results(out, device=device, resolution=opts.dataset.resolution, batch=opts.batch_size,
                 detector=Path(options["detector"]).name if options["detector"] else "random", rows=rows, **memory)


if __name__ == "__main__":
    main()
