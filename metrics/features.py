"""From images to feature statistics: real images (cached on disk) and generated ones."""

import contextlib
import hashlib
import json
import sys
import zipfile
from pathlib import Path
from typing import Any, Iterator, Sequence

import filelock
import numpy as np
import torch

from dnnlib.util import atomic_write, cache_dir
from metrics.detectors import FeatureNet
from metrics.feature_stats import FeatureStats
from metrics.options import ImageSet, MetricOptions, shared_failure, track
from metrics.polarity import Polarity, cache_path, choose, load_volumes, log_volume, save_volumes
from metrics.sampling import draw, generate_uint8
from torch_utils import distributed
from torch_utils.image_reader import ImageReader

_LOCK_SEC = 60
_CACHE_VERSION = 2  # goes up when the meaning of a cached file changes


def real_stats(
    opts: MetricOptions, net: FeatureNet, images: ImageSet, *, keep_features: bool = False
) -> FeatureStats:
    """Statistics of real images: moments, and features if this metric, or another one that shares them, needs those.

    On processes other than the first they are empty if they came from the cache.
    """
    images = images.resolved(opts.dataset)
    path, key = _cache_path(opts, net, images)
    kept = {} if opts.kept_real is None else opts.kept_real
    keep_features = keep_features or images in opts.wanted
    if key not in kept or (keep_features and not kept[key].keep_features):
        kept[key] = _read_real(opts, net, images, path=path, key=key, keep_features=keep_features)
    return kept[key]


def is_known(opts: MetricOptions, net: FeatureNet, images: ImageSet, *, keep_features: bool) -> bool:
    """Whether `real_stats` need not look at the images, it seems; arrays in a cached file are not read."""
    path, key = _cache_path(opts, net, images)
    kept = (opts.kept_real or {}).get(key)
    if kept is not None:
        return kept.keep_features or not keep_features
    if not opts.cache or not path.is_file():
        return False
    with contextlib.suppress(OSError, EOFError, ValueError, zipfile.BadZipFile), np.load(path) as f:
        return "features" in f.files or not keep_features
    return False


def _read_real(
    opts: MetricOptions, net: FeatureNet, images: ImageSet, *, path: Path, key: str, keep_features: bool
) -> FeatureStats:
    """From the file in the cache, if it holds what belongs to `key`; else from the images."""
    stats = FeatureStats(keep_moments=True, keep_features=keep_features, what="real images")
    with _cache_lock(path, opts) if opts.cache and opts.rank == 0 else contextlib.nullcontext():
        cached = _load(path, key, keep_features=keep_features) if opts.cache and opts.rank == 0 else None
        if _agree(cached is not None, opts):
            return cached if cached is not None else stats
        dataset, num_items = images.find(opts.dataset)
        _append_images(stats, opts, net, dataset, stage="real", num_items=num_items)
        if opts.cache and opts.rank == 0:
            _save(path, key, stats)
    return stats


def _append_images(
    stats: FeatureStats, opts: MetricOptions, net: FeatureNet, dataset: Any, *, stage: str, num_items: int
) -> None:
    """Read the first images of a data set, and gather their features from all processes."""
    indices = range(opts.rank, num_items, opts.num_gpus)
    with torch.inference_mode():
        with shared_failure(opts), track(opts, stage, num_items) as done, load_images(opts, dataset, indices) as read:
            for _, img in read:
                stats.append(net(img.to(opts.device, non_blocking=True)))
                done(len(img) * opts.num_gpus)
            stats.finish()
        stats.gather(num_gpus=opts.num_gpus, device=opts.device)


def generated_stats(
    opts: MetricOptions, net: FeatureNet, *, num_items: int, keep_features: bool = False
) -> FeatureStats:
    """Likewise of `num_items` generated images, those with the indices 0, 1, ... under the seed."""
    known = {} if opts.shared is None else opts.shared.generated
    key = (net.digest, net.output, num_items, opts.seed, opts.polarity)
    if key not in known:
        keep_features = keep_features or ImageSet("generated", num_items) in opts.wanted
        known[key] = _generate(opts, net, num_items=num_items, keep_moments=True, keep_features=keep_features)
    return known[key]


def _generate(opts: MetricOptions, net: FeatureNet, *, num_items: int, **keep: bool) -> FeatureStats:
    stats = FeatureStats(**keep, what="generated images")
    if opts.gen_images is not None:
        _append_images(stats, opts, net, opts.gen_images, stage="generated", num_items=num_items)
        return stats
    indices: Sequence[int] = range(opts.rank, num_items, opts.num_gpus)
    if opts.polarity is not None:
        indices = _chosen(opts, opts.polarity, num_items)[opts.rank::opts.num_gpus]
    with torch.inference_mode():
        with shared_failure(opts), track(opts, "generated", num_items) as done:
            for start in range(0, len(indices), opts.batch_size):
                batch = indices[start:start + opts.batch_size]
                img = generate_uint8(opts.G, opts.dataset, indices=batch, seed=opts.seed, device=opts.device)
                stats.append(net(img))
                done(len(batch) * opts.num_gpus)
            stats.finish()
        stats.gather(num_gpus=opts.num_gpus, device=opts.device)
    return stats


def _chosen(opts: MetricOptions, polarity: Polarity, num_items: int) -> list[int]:
    """The candidates that images are made of: indices as of ordinary images, which have the same latents."""
    labels = opts.dataset.fingerprint if opts.G.c_dim > 0 else ""
    path = cache_path(opts.G, f"{opts.seed} {polarity.num_candidates} {labels}")
    volumes = load_volumes(path) if opts.rank == 0 else None
    if not _agree(volumes is not None, opts):
        volumes = _log_volumes(opts, polarity.num_candidates)
        if opts.rank == 0:
            save_volumes(path, volumes)
    random_state = np.random.RandomState(opts.seed)
    return distributed.from_rank0(
        choose(volumes, polarity.rho, num_items, random_state).tolist() if opts.rank == 0 else None)


def _log_volumes(opts: MetricOptions, num_candidates: int) -> np.ndarray:
    stats = FeatureStats(keep_features=True, what="candidates")
    with shared_failure(opts), track(opts, "polarity", num_candidates) as done:
        for index in range(opts.rank, num_candidates, opts.num_gpus):
            draws = draw(opts.G, opts.dataset, [index], seed=opts.seed).to(opts.device)
            stats.append(torch.tensor([[log_volume(opts.G, draws.z[0, 0], draws.c[0])]]))
            done(opts.num_gpus)
        stats.finish()
    stats.gather(num_gpus=opts.num_gpus, device=opts.device)
    return stats.features()[:, 0].double().numpy()


def load_images(opts: MetricOptions, dataset: Any, indices: range) -> ImageReader:
    batches = (indices[start:start + opts.batch_size] for start in range(0, len(indices), opts.batch_size))
    return ImageReader(dataset, batches, batch_size=opts.batch_size, pin_memory=opts.device.type == "cuda",
                       num_workers=opts.workers if len(indices) > opts.batch_size else 0)


def _cache_path(opts: MetricOptions, net: FeatureNet, images: ImageSet) -> tuple[Path, str]:
    """The file for this content and net, and the key that must be found in it."""
    dataset, num_items = images.find(opts.dataset)
    key = json.dumps({
        "version": _CACHE_VERSION,
        "dataset": dataset.fingerprint,
        "net": net.digest,
        "output": net.output,
        "num_items": num_items,
    }, sort_keys=True)
    return cache_dir("features", f"{net.name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"), key


@contextlib.contextmanager
def _cache_lock(path: Path, opts: MetricOptions) -> Iterator[None]:
    """Of several programs that want the same statistics, one computes them; the others wait, and read its file.

    Where further processes wait for this one, as in training, it doesn't wait for long, and computes them, too.
    """
    lock = filelock.FileLock(cache_dir("locks", f"{path.name}.lock"))
    try:
        cache_dir("locks").mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            print(f"Waiting for another program that computes {path}", file=sys.stderr, flush=True)
            with contextlib.suppress(filelock.Timeout):
                lock.acquire(timeout=-1 if opts.num_gpus == 1 else _LOCK_SEC)
    except (OSError, NotImplementedError):  # a cache that can't be written, a file system without locks
        pass
    try:
        yield
    finally:
        lock.release()


def _load(path: Path, key: str, *, keep_features: bool) -> FeatureStats | None:
    """What the cache holds; None where it holds nothing, no features, or nothing usable, which is said once."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as f:
            if str(f["key"]) != key:
                raise ValueError("it belongs to other data")
            if keep_features and "features" not in f.files:
                return None  # it was written for moments alone
            names = set(f.files) - (set() if keep_features else {"features"})
            arrays = {name: f[name] for name in names}  # reading checks the zip file's CRCs
        return FeatureStats.from_arrays(arrays, keep_moments=True, keep_features=keep_features)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as e:
        print(f"Cached features {path} can't be used ({e}): computing them anew.", file=sys.stderr, flush=True)
        return None


def _save(path: Path, key: str, stats: FeatureStats) -> None:
    """The cache saves time, no more: a full disk is reported, and is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as f:
            np.savez(f, key=np.asarray(key), **stats.to_arrays())
    except OSError as e:
        print(f"Features can't be cached in {path}: {e.strerror or e}", file=sys.stderr, flush=True)


def _agree(found: bool, opts: MetricOptions) -> bool:
    """The first process's word, on every process."""
    if opts.num_gpus == 1:
        return found
    flag = torch.tensor([int(found)], device=opts.device)
    torch.distributed.broadcast(flag, src=0)
    return bool(flag.item())
