"""Projection of images to w: the optimisation of StyleGAN2 (Karras et al., CVPR 2020), Appendix D."""

import os
from dataclasses import dataclass
from typing import Any, Callable, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from dnnlib.util import UserError, atomic_write, open_url
from training.perceptual import PerceptualLoss

from .images import map_latents

Tensor = torch.Tensor

COMPARED_RES = 256          # Larger images are scaled down to this resolution before they are compared.
_SMALLEST_NOISE = 8         # Noise pyramids go down to this resolution.
_NOISE_SUFFIX = "noise_const"
_MAX_BYTES = 1 << 30        # Size of all arrays in a file when they are decompressed.


@dataclass(frozen=True, kw_only=True)
class ProjectionConfig:
    """Settings of the optimisation. The defaults are the paper's."""

    num_steps: int = 1000
    w_samples: int = 10000          # Random w's to estimate mean and standard deviation from.
    lr: float = 0.1                 # Highest learning rate.
    lr_rampup: float = 0.05         # Fraction of the steps in which the learning rate rises linearly from 0.
    lr_rampdown: float = 0.25       # Fraction of the steps in which the learning rate falls to 0, as a cosine.
    w_noise: float = 0.05           # Standard deviation of the noise on w at the start, relative to that of w.
    w_noise_length: float = 0.75    # Fraction of the steps after which the noise on w is 0.
    noise_weight: float = 1e5       # Weight of the regularisation of noise maps: alpha in the paper.
    seed: int = 0


class WStatistics(NamedTuple):
    """Mean and spread of w."""

    mean: Tensor    # float32 [w_dim].
    std: float      # Root mean square of the Euclidean distance from the mean.


class Projection(NamedTuple):
    """The result of a projection. All tensors are float32."""

    w_mean: Tensor              # [w_dim] on the CPU: the mean w, where the search starts.
    w_steps: Tensor             # [num_steps, w_dim] on the CPU: w after each step.
    noise: dict[str, Tensor]    # Final noise maps [r, r] on G's device, by their name in G.synthesis.
    start_distance: float       # Perceptual distance from the target to the image of the mean w ...
    distance: float             # ... and to the image of the last w, both with the final noise maps.


def learning_rate(t: float, config: ProjectionConfig) -> float:
    """The learning rate at the time t, from 0 to 1."""
    down = min(1, (1 - t) / config.lr_rampdown)
    return config.lr * min(1, t / config.lr_rampup) * (0.5 - 0.5 * np.cos(np.pi * down))


def w_noise_std(t: float, w_std: float, config: ProjectionConfig) -> float:
    """Standard deviation of the noise on w at the time t, from 0 to 1."""
    return w_std * config.w_noise * max(0, 1 - t / config.w_noise_length) ** 2


def w_statistics(G: torch.nn.Module, label: np.ndarray | None, *, samples: int, seed: int) -> WStatistics:
    """Mean and spread of the w's of random z's."""
    z = torch.from_numpy(np.random.RandomState(seed).randn(samples, G.z_dim))
    w = map_latents(G, z, label=label, batch=1000)[:, 0].double()
    mean = w.mean(dim=0)
    return WStatistics(mean.float(), (w - mean).square().sum(dim=1).mean().sqrt().item())


def noise_regularization(noise: Tensor) -> Tensor:
    """How far a map [r, r] is from white noise: squared correlations of neighbouring pixels, on several scales.

    On each scale, this adds (mean of n(x, y) n(x-1, y))^2 + (mean of n(x, y) n(x, y-1))^2 with cyclic indices. The next
    scale averages 2x2 pixels, and doubles the result to keep the variance.
    """
    total = noise.new_zeros([])
    while True:
        for dim in (0, 1):
            total = total + (noise * noise.roll(1, dim)).mean().square()
        if noise.shape[0] <= _SMALLEST_NOISE:
            return total
        noise = F.avg_pool2d(noise[None, None], 2)[0, 0] * 2


@torch.no_grad()
def normalize_noise(noise: Tensor) -> None:
    """Normalise a map to zero mean and unit variance, in place."""
    noise -= noise.mean()
    noise *= noise.square().mean().rsqrt()


def noise_names(G: torch.nn.Module) -> list[str]:
    """The names of the noise maps in G.synthesis."""
    return [name for name, _ in G.synthesis.named_buffers() if name.rpartition(".")[2] == _NOISE_SUFFIX]


def synthesize_with(G: torch.nn.Module, w: Tensor, noise: dict[str, Tensor]) -> Tensor:
    """Images [N, C, R, R] of w's [N, w_dim], which all layers share. The given noise maps replace G's own."""
    ws = w.unsqueeze(1).repeat(1, G.num_ws, 1)
    return torch.func.functional_call(G.synthesis, noise, (ws,), dict(noise_mode="const"))


def project(
    G: torch.nn.Module,
    target: Tensor,
    *,
    perceptual: PerceptualLoss,
    config: ProjectionConfig = ProjectionConfig(),
    label: np.ndarray | None = None,
    report: Callable[[int, float], None] | None = None,
) -> Projection:
    """Find the w and the noise maps whose image looks most like a given one.

    Args:
        G:          Generator in eval mode, whose parameters require no gradient.
        target:     The given image, float32 [1, C, R, R] in [-1, 1], on G's device.
        perceptual: The distance to minimise.
        config:     Settings.
        label:      Label for the statistics of w, float32 [c_dim]; None for unconditional networks.
        report:     Called after each step with the number of steps done and the distance.
    """
    device = target.device
    random = torch.Generator().manual_seed(config.seed)  # on the CPU, for the same numbers on every device
    stats = w_statistics(G, label, samples=config.w_samples, seed=config.seed)
    with torch.no_grad():
        embedded = perceptual.embed_target(_compared(target))
    shapes = {name: G.synthesis.get_buffer(name).shape for name in noise_names(G)}
    noise = {name: torch.randn(shape, generator=random).to(device).requires_grad_() for name, shape in shapes.items()}
    w = stats.mean.clone()[None].requires_grad_()  # [1, w_dim]
    optimizer = torch.optim.Adam([w, *noise.values()], betas=(0.9, 0.999))

    w_steps = torch.empty(config.num_steps, w.shape[1])
    for step in range(config.num_steps):
        t = step / config.num_steps
        optimizer.param_groups[0]["lr"] = learning_rate(t, config)
        shift = torch.randn(w.shape, generator=random).to(device) * w_noise_std(t, stats.std, config)
        distance = perceptual.distance(_compared(synthesize_with(G, w + shift, noise)), embedded).sum()
        loss = distance + config.noise_weight * sum(noise_regularization(n) for n in noise.values())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        for n in noise.values():
            normalize_noise(n)
        w_steps[step] = w.detach()[0]
        if report is not None:
            report(step + 1, distance.item())

    noise = {name: n.detach() for name, n in noise.items()}
    with torch.no_grad():
        ends = torch.cat([stats.mean[None], w.detach()])
        targets = tuple(e.expand(2, *e.shape[1:]) for e in embedded)
        start_distance, distance = perceptual.distance(_compared(synthesize_with(G, ends, noise)), targets).tolist()
    return Projection(stats.mean.cpu(), w_steps, noise, start_distance, distance)


def _compared(img: Tensor) -> Tensor:
    return F.interpolate(img, size=COMPARED_RES, mode="area") if img.shape[-1] > COMPARED_RES else img


# ----------------------------------------------------------------------------------------------------------------------
# Files. An .npz file holds the array `w`, and noise maps under their names in G.synthesis.


class ProjectedW(NamedTuple):
    """The content of a file."""

    ws: np.ndarray                  # float32 [N, num_ws, w_dim].
    noise: dict[str, Any]           # Noise maps (float32 arrays) by their name in G.synthesis; may be empty.


def save_projected_w(path: str | os.PathLike, projected: ProjectedW) -> None:
    """Write an .npz file."""
    with atomic_write(path) as f:
        np.savez(f, w=projected.ws, **projected.noise)


def load_projected_w(path: str | os.PathLike, G: torch.nn.Module) -> ProjectedW:
    """Read an .npz file with the array `w` and optionally noise maps, or an .npy file with w alone.

    Raises:
        UserError: The file can't be read, or doesn't fit the network.
    """
    arrays = _read_arrays(path)
    if "w" not in arrays:
        raise UserError(f"{path}: holds {', '.join(arrays)[:200] or 'nothing'}, no array 'w'")
    ws = arrays["w"]
    expected = f"[N, {G.num_ws}, {G.w_dim}]"
    if ws.dtype.kind not in "fiu" or ws.ndim != 3 or ws.shape[1:] != (G.num_ws, G.w_dim) or len(ws) == 0:
        raise UserError(f"{path}: w is {ws.dtype} {list(ws.shape)}; the network takes float32 {expected}")
    noise = {name: array for name, array in arrays.items() if name.rpartition(".")[2] == _NOISE_SUFFIX}
    known = {name: tuple(G.synthesis.get_buffer(name).shape) for name in noise_names(G)}
    for name, array in noise.items():
        if array.dtype.kind not in "fiu" or array.shape != known.get(name):
            raise UserError(f"{path}: its noise map {name} is {array.dtype} {list(array.shape)}, which this network "
                            "has no place for: it was made with another one")
    for name, array in {"w": ws, **noise}.items():
        if not (np.abs(array) <= np.finfo(np.float32).max).all():  # false for NaN too
            raise UserError(f"{path}: {name} holds values that are not finite float32 numbers")
    return ProjectedW(ws.astype(np.float32), {name: array.astype(np.float32) for name, array in noise.items()})


def _read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    with open_url(path) as f:
        try:
            content = np.load(f, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return {"w": content}
            large = sum(entry.file_size for entry in content.zip.infolist()) > _MAX_BYTES
            arrays = {} if large else {name: content[name] for name in content.files}
        except Exception as e:  # zipfile, zlib and NumPy's parser raise many kinds of errors
            raise UserError(f"can't read {path}: neither .npz nor .npy, or damaged ({type(e).__name__})") from e
    if large:
        raise UserError(f"{path}: its arrays take more than {_MAX_BYTES >> 30} GiB: give it in parts")
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
