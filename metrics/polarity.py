"""Polarity sampling (Humayun et al., CVPR 2022): latents are resampled by how much G stretches space around them.

Around z, a generator stretches space by the product of the singular values of its Jacobian, and divides the density of
z by that product. Polarity sampling draws candidates as usual, and then chooses among them with probabilities
proportional to the product to the power of rho. With rho < 0, it favours the modes of the distribution, with rho > 0
the regions of low density. With rho = 0, it changes nothing.
"""

import hashlib
import sys
from pathlib import Path
from typing import Callable, NamedTuple

import numpy as np
import torch

from dnnlib.util import atomic_write, cache_dir

NUM_VALUES = 30     # Number of singular values in the product, the largest ones.
_OVERSAMPLING = 10
_NUM_ITERATIONS = 2
_TINY = 1e-12       # Replaces singular values of 0: G doesn't depend on z there.


class Polarity(NamedTuple):
    """How latents are resampled."""

    rho: float
    num_candidates: int


def singular_values(
    f: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor, *, k: int = NUM_VALUES, seed: int = 0
) -> torch.Tensor:
    """The k largest singular values of the Jacobian of f at z, or all if there are fewer; descending, float64.

    They are exact if z has at most k + 10 numbers. Otherwise a randomised subspace iteration (Halko et al., SIAM Review
    2011) approximates them. It needs only products of the Jacobian with vectors.

    Args:
        f: Maps float [N, D] to float [N, ...], each row independently. It is twice differentiable.
        z: Float [D].
    """
    size = z.numel()
    count = min(k + _OVERSAMPLING, size)
    if count == size:
        basis = torch.eye(size, dtype=z.dtype, device=z.device)
    else:
        normal = torch.randn(size, count, generator=torch.Generator().manual_seed(seed))
        basis = torch.linalg.qr(normal.to(z)).Q
        for _ in range(_NUM_ITERATIONS):
            image = torch.linalg.qr(_times_jacobian(f, z, basis)).Q
            basis = torch.linalg.qr(_jacobian_times(f, z, image)).Q
    return torch.linalg.svdvals(_times_jacobian(f, z, basis).double())[:k]


def _times_jacobian(f: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """J V [P, M] for V [D, M], as the derivative of u^T J V by u: our kernels have no forward derivatives."""
    with torch.enable_grad():
        x = z.expand(vectors.shape[1], -1).clone().requires_grad_()
        y = f(x)
        u = torch.zeros_like(y, requires_grad=True)
        gradient, = torch.autograd.grad(y, x, u, create_graph=True)
        result, = torch.autograd.grad(gradient, u, vectors.T)
    return result.flatten(1).T


def _jacobian_times(f: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """J^T U [D, M] for U [P, M]."""
    with torch.enable_grad():
        x = z.expand(vectors.shape[1], -1).clone().requires_grad_()
        y = f(x)
        result, = torch.autograd.grad(y, x, vectors.T.reshape(y.shape))
    return result.T


def log_volume(G: torch.nn.Module, z: torch.Tensor, c: torch.Tensor) -> float:
    """Sum of the logarithms of the largest singular values of the Jacobian of G(z): z [z_dim], c [c_dim].

    Layers use their constant noise. The mapping network normalises z, and hence one singular value is always 0. It is
    left out.
    """
    def images(z: torch.Tensor) -> torch.Tensor:
        return G.synthesis(G.mapping(z, c.expand(len(z), -1)), noise_mode="const", force_fp32=True)

    values = singular_values(images, z, k=min(NUM_VALUES, len(z) - 1))
    return float(values.clamp(min=_TINY).log().sum())


def choose(log_volumes: np.ndarray, rho: float, count: int, random_state: np.random.RandomState) -> np.ndarray:
    """Choose `count` candidates, with repetition. Returns their indices."""
    weights = rho * (log_volumes - log_volumes.mean())
    weights = np.exp(weights - weights.max())
    return random_state.choice(len(log_volumes), count, p=weights / weights.sum())


def cache_path(G: torch.nn.Module, what: str) -> Path:
    """The file for log volumes. Its name depends on the weights of G, and on `what` else the volumes depend on."""
    digest = hashlib.sha256(what.encode())
    for name, tensor in G.state_dict().items():
        digest.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return cache_dir("polarity", f"{digest.hexdigest()[:32]}.npy")


def load_volumes(path: Path) -> np.ndarray | None:
    """Log volumes from the cache; None if there is no file, or it is damaged."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, EOFError, ValueError):
        return None


def save_volumes(path: Path, volumes: np.ndarray) -> None:
    """Write log volumes to the cache. If that fails, a line on stderr says why: without the file, only time is lost."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as f:
            np.save(f, volumes)
    except OSError as e:
        print(f"Log volumes can't be cached in {path}: {e.strerror or e}", file=sys.stderr, flush=True)
