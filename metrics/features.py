"""Feature statistics of real images (cached on disk) and of generated images."""

import contextlib
import hashlib
import json
import sys
import zipfile
from pathlib import Path
from typing import Any, Iterator

import filelock
import numpy as np
import torch

from dnnlib.util import atomic_write, cache_dir
from metrics.detectors import FeatureNet
from metrics.feature_stats import FeatureStats
from metrics.options import ImageSet, MetricOptions, own_batches, shared_failure, track
from metrics.polarity import Polarity, cache_path, choose, load_volumes, log_volume, save_volumes
from metrics.sampling import draw, generate_uint8
from torch_utils import distributed
from torch_utils.image_reader import ImageReader

_LOCK_SEC = 60
_CACHE_VERSION = 2  # increase it when the meaning of a cached file changes


def real_stats(
    opts: MetricOptions, net: FeatureNet, images: ImageSet, *, keep_features: bool = False
) -> FeatureStats:
    """Statistics of real images: moments, and also features if this metric or another one that shares them needs them.

    On ranks above 0, they are empty if rank 0 read them from the cache.
    """
    images = images.resolved(opts.dataset)
    path, key = _cache_path(opts, net, images)
    kept = {} if opts.kept_real is None else opts.kept_real
    keep_features = keep_features or images in opts.wanted
    if key not in kept or (keep_features and not kept[key].keep_features):
        kept[key] = _read_real(opts, net, images, path=path, key=key, keep_features=keep_features)
    return kept[key]


def is_known(opts: MetricOptions, net: FeatureNet, images: ImageSet, *, keep_features: bool) -> bool:
    """Whether `real_stats` seems to have the statistics already. The arrays in a cached file are not checked."""
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
    """Read statistics from the cached file if it belongs to `key`; otherwise compute them from the images."""
    stats = FeatureStats(keep_moments=True, keep_features=keep_features, what="real images")
    use_cache = opts.cache and distributed.rank() == 0
    with _cache_lock(path) if use_cache else contextlib.nullcontext():
        with shared_failure(opts):
            cached = _load(path, key, keep_features=keep_features) if use_cache else None
        if distributed.from_rank0(cached is not None):
            return cached if cached is not None else stats
        dataset, num_items = images.find(opts.dataset)
        _append_images(stats, opts, net, dataset, stage="real", num_items=num_items)
        if use_cache:
            _save(path, key, stats)
    return stats


def _append_images(
    stats: FeatureStats, opts: MetricOptions, net: FeatureNet, dataset: Any, *, stage: str, num_items: int
) -> None:
    """Compute the features of the first images of a data set, and gather them from all processes."""
    batches = own_batches(range(num_items), opts.batch_size)
    with torch.inference_mode():
        with shared_failure(opts), track(opts, stage, num_items) as done, ImageReader(
            dataset, batches, batch_size=opts.batch_size, num_workers=opts.workers if len(batches) > 1 else 0,
            pin_memory=opts.device.type == "cuda",
        ) as reader:
            for _, img in reader:
                stats.append(net(img.to(opts.device, non_blocking=True)))
                done(len(img) * distributed.world_size())
            stats.finish()
        stats.gather(opts.device)


def generated_stats(
    opts: MetricOptions, net: FeatureNet, *, num_items: int, keep_features: bool = False
) -> FeatureStats:
    """Statistics of generated images: those with the indices 0 to `num_items` - 1 under the seed of `opts`."""
    known = {} if opts.shared is None else opts.shared.generated
    key = (net.digest, net.output, num_items, opts.seed, opts.polarity)
    if key not in known:
        keep_features = keep_features or ImageSet("generated", num_items) in opts.wanted
        known[key] = _generate(opts, net, num_items, keep_features=keep_features)
    return known[key]


def _generate(opts: MetricOptions, net: FeatureNet, num_items: int, *, keep_features: bool) -> FeatureStats:
    stats = FeatureStats(keep_moments=True, keep_features=keep_features, what="generated images")
    if opts.gen_images is not None:
        _append_images(stats, opts, net, opts.gen_images, stage="generated", num_items=num_items)
        return stats
    indices = range(num_items) if opts.polarity is None else _chosen(opts, opts.polarity, num_items)
    with torch.inference_mode():
        with shared_failure(opts), track(opts, "generated", num_items) as done:
            for batch in own_batches(indices, opts.batch_size):
                img = generate_uint8(opts.G, opts.dataset, indices=batch, seed=opts.seed, device=opts.device)
                stats.append(net(img))
                done(len(batch) * distributed.world_size())
            stats.finish()
        stats.gather(opts.device)
    return stats


def _chosen(opts: MetricOptions, polarity: Polarity, num_items: int) -> list[int]:
    """Indices of the candidates that polarity sampling chooses. An index stands for the same latent as elsewhere."""
    labels = opts.dataset.fingerprint if opts.G.c_dim > 0 else ""
    path = cache_path(opts.G, f"{opts.seed} {polarity.num_candidates} {labels}")
    is_first = distributed.rank() == 0
    volumes = load_volumes(path) if is_first else None
    if not distributed.from_rank0(volumes is not None):
        volumes = _log_volumes(opts, polarity.num_candidates)
        if is_first:
            save_volumes(path, volumes)
    random_state = np.random.RandomState(opts.seed)
    return distributed.from_rank0(
        choose(volumes, polarity.rho, num_items, random_state).tolist() if is_first else None)


def _log_volumes(opts: MetricOptions, num_candidates: int) -> np.ndarray:
    """The log volume of each candidate, float64 [num_candidates]."""
    stats = FeatureStats(keep_features=True, what="candidates")
    with shared_failure(opts), track(opts, "polarity", num_candidates) as done:
        for batch in own_batches(range(num_candidates), 1):
            draws = draw(opts.G, opts.dataset, batch, seed=opts.seed).to(opts.device)
            stats.append(torch.tensor([[log_volume(opts.G, draws.z[0, 0], draws.c[0])]]))
            done(distributed.world_size())
        stats.finish()
    stats.gather(opts.device)
    return stats.features()[:, 0].double().numpy()


def _cache_path(opts: MetricOptions, net: FeatureNet, images: ImageSet) -> tuple[Path, str]:
    """The cached file for these images and this net, and the key that the file must hold."""
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
def _cache_lock(path: Path) -> Iterator[None]:
    """Let one program compute the statistics while others that need the same ones wait for its file.

    If other processes of this program wait for this one, as in training, it waits for at most `_LOCK_SEC`. After that,
    it computes them as well.
    """
    lock = filelock.FileLock(cache_dir("locks", f"{path.name}.lock"))
    try:
        cache_dir("locks").mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            print(f"Waiting for another program that computes {path}", file=sys.stderr, flush=True)
            with contextlib.suppress(filelock.Timeout):
                lock.acquire(timeout=-1 if distributed.world_size() == 1 else _LOCK_SEC)
    except (OSError, NotImplementedError):  # the cache can't be written, or the file system has no locks
        pass
    try:
        yield
    finally:
        lock.release()


def _load(path: Path, key: str, *, keep_features: bool) -> FeatureStats | None:
    """Statistics from the cached file; None if there is no file, or if it lacks features that are wanted.

    If the file can't be used, a line on stderr says why, and the result is None.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as f:
            if str(f["key"]) != key:
                raise ValueError("it belongs to other data")
            if keep_features and "features" not in f.files:
                return None  # the file was written for a metric that needs moments only
            names = set(f.files) - (set() if keep_features else {"features"})
            arrays = {name: f[name] for name in names}  # reading checks the zip file's CRCs
        return FeatureStats.from_arrays(arrays, keep_moments=True, keep_features=keep_features)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as e:
        print(f"Cached features {path} can't be used ({e}): computing them anew.", file=sys.stderr, flush=True)
        return None


def _save(path: Path, key: str, stats: FeatureStats) -> None:
    """Write the cached file. If that fails, a line on stderr says why: without the file, only time is lost."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as f:
            np.savez(f, key=np.asarray(key), **stats.to_arrays())
    except OSError as e:
        print(f"Features can't be cached in {path}: {e.strerror or e}", file=sys.stderr, flush=True)
