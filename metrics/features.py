"""From images to feature statistics: real images (cached on disk) and generated ones."""

import hashlib
import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dnnlib.util import atomic_write, cache_dir
from metrics.detectors import FeatureNet
from metrics.feature_stats import FeatureStats
from metrics.options import MetricOptions, shared_failure, track
from metrics.sampling import generate_uint8
from torch_utils.image_reader import ImageReader

_CACHE_VERSION = 1  # goes up when the meaning of a cached file changes


def real_stats(
    opts: MetricOptions,
    net: FeatureNet,
    *,
    full: bool,                     # all images, as they are in the file; else the set as given, mirroring included
    max_items: int | None = None,   # at most so many, the first ones
    keep_moments: bool = False,
    keep_features: bool = False,
) -> FeatureStats:
    """Statistics of the real images. On processes other than the first they are empty if they came from the cache."""
    dataset = opts.dataset.replace(max_size=None, xflip=False) if full else opts.dataset.replace(max_size=None)
    num_items = len(dataset) if max_items is None else min(len(dataset), max_items)
    keep = {"keep_moments": keep_moments, "keep_features": keep_features}
    path, key = _cache_path(dataset, net, num_items=num_items, **keep)
    kept = {} if opts.kept_real is None else opts.kept_real
    if key not in kept:
        kept[key] = _read_real(opts, net, dataset=dataset, num_items=num_items, path=path, key=key, **keep)
    return kept[key]


def _read_real(
    opts: MetricOptions, net: FeatureNet, *, dataset: Any, num_items: int, path: Path, key: str, **keep: bool
) -> FeatureStats:
    """From the file in the cache, if it holds what belongs to `key`; else from the images."""
    cached = _load(path, key, **keep) if opts.cache and opts.rank == 0 else None
    if _agree(cached is not None, opts):
        return cached if cached is not None else FeatureStats(**keep)
    stats = FeatureStats(**keep)
    indices = range(opts.rank, num_items, opts.num_gpus)
    with torch.inference_mode():
        with shared_failure(opts), track(opts, "real", num_items) as done, _load_images(dataset, indices, opts) as read:
            for _, img in read:
                stats.append(net(img.to(opts.device, non_blocking=True)))
                done(len(img) * opts.num_gpus)
        stats.gather(num_gpus=opts.num_gpus, device=opts.device)
    if opts.cache and opts.rank == 0:
        _save(path, key, stats)
    return stats


def generated_stats(
    opts: MetricOptions,
    net: FeatureNet,
    *,
    num_items: int,
    keep_moments: bool = False,
    keep_features: bool = False,
) -> FeatureStats:
    """Statistics of `num_items` generated images, those with the indices 0, 1, ... under the seed."""
    if opts.shared is None:
        return _generate(opts, net, num_items=num_items, keep_moments=keep_moments, keep_features=keep_features)
    key = (net.digest, net.output, num_items, opts.seed)
    if key not in opts.shared:
        opts.shared[key] = _generate(opts, net, num_items=num_items, keep_moments=True, keep_features=True)
    return opts.shared[key]


def _generate(opts: MetricOptions, net: FeatureNet, *, num_items: int, **keep: bool) -> FeatureStats:
    stats = FeatureStats(**keep)
    indices = range(opts.rank, num_items, opts.num_gpus)
    with torch.inference_mode():
        with shared_failure(opts), track(opts, "generated", num_items) as done:
            for start in range(0, len(indices), opts.batch_size):
                batch = indices[start:start + opts.batch_size]
                img = generate_uint8(opts.G, opts.dataset, indices=batch, seed=opts.seed, device=opts.device)
                stats.append(net(img))
                done(len(batch) * opts.num_gpus)
        stats.gather(num_gpus=opts.num_gpus, device=opts.device)
    return stats


def _load_images(dataset: Any, indices: range, opts: MetricOptions) -> ImageReader:
    batches = (indices[start:start + opts.batch_size] for start in range(0, len(indices), opts.batch_size))
    return ImageReader(dataset, batches, batch_size=opts.batch_size, pin_memory=opts.device.type == "cuda",
                       num_workers=opts.workers if len(indices) > opts.batch_size else 0)


def _cache_path(dataset: Any, net: FeatureNet, **protocol: Any) -> tuple[Path, str]:
    """The file for this content, net and protocol, and the key that must be found in it."""
    key = json.dumps({
        "version": _CACHE_VERSION,
        "dataset": dataset.fingerprint,
        "net": net.digest,
        "output": net.output,
        **protocol,
    }, sort_keys=True)
    return cache_dir("features", f"{net.name}-{hashlib.sha256(key.encode()).hexdigest()[:32]}.npz"), key


def _load(path: Path, key: str, *, keep_moments: bool, keep_features: bool) -> FeatureStats | None:
    """What the cache holds; None where it holds nothing, or nothing usable, which is said once."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as f:
            if str(f["key"]) != key:
                raise ValueError("it belongs to other data")
            arrays = {name: f[name] for name in f.files}  # reading checks the zip file's CRCs
        return FeatureStats.from_arrays(arrays, keep_moments=keep_moments, keep_features=keep_features)
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
