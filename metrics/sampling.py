"""Generated images whose random numbers depend only on (seed, index of the image), not on batch or process."""

from typing import Any, NamedTuple, Sequence

import numpy as np
import torch
from torch.func import functional_call

from torch_utils import misc

_NOISE = "noise_const"  # the name of a synthesis layer's noise [H, W] in StyleGAN2's programs


class Draws(NamedTuple):
    """All random inputs of N samples."""

    z: torch.Tensor                 # float32 [N, num_z, z_dim]
    c: torch.Tensor                 # float32 [N, c_dim], labels of random images of the dataset
    t: torch.Tensor                 # float32 [N], uniform in [0, 1)
    noise_seeds: tuple[int, ...]    # N seeds for `keyed_noise`

    def to(self, device: torch.device) -> "Draws":
        """Copy the tensors to a device. The host does not wait."""
        z, c, t = (misc.upload(x, device) for x in (self.z, self.c, self.t))
        return self._replace(z=z, c=c, t=t)


def draw(G: torch.nn.Module, dataset: Any, indices: Sequence[int], *, seed: int, num_z: int = 1) -> Draws:
    """Draw the random inputs of samples. Those of each sample depend only on (seed, index).

    Args:
        G:       Generator with `z_dim` and `c_dim`.
        dataset: Source of labels if G takes them: `len()`, `get_label(i)`.
        indices: Global indices of the samples.
        seed:    Seed of the whole evaluation.
        num_z:   Latents per sample: 1 for images, 2 for the ends of a path.
    """
    z = np.empty([len(indices), num_z, G.z_dim], dtype=np.float32)
    c = np.zeros([len(indices), G.c_dim], dtype=np.float32)
    t = np.empty([len(indices)], dtype=np.float32)
    noise_seeds = []
    for row, index in enumerate(indices):
        # Philox is counter-based: its low words count the numbers drawn, and its high word holds the index.
        rng = np.random.Generator(np.random.Philox(key=[seed, num_z], counter=[0, 0, 0, index]))
        z[row] = rng.standard_normal([num_z, G.z_dim], dtype=np.float32)
        t[row] = rng.random(dtype=np.float32)
        noise_seeds.append(int(rng.integers(2**63 - 1)))
        label_index = int(rng.integers(len(dataset)))
        if G.c_dim > 0:
            c[row] = dataset.get_label(label_index)
    return Draws(torch.from_numpy(z), torch.from_numpy(c), torch.from_numpy(t), tuple(noise_seeds))


def keyed_noise(net: torch.nn.Module, noise_seeds: Sequence[int], *, device: torch.device) -> dict[str, torch.Tensor]:
    """Draw noise for each image, on the device: {name of a noise buffer of `net`: [N, 1, H, W]}.

    If it replaces the buffers, noise_mode='const' gives the distribution of noise_mode='random'.
    """
    shapes = {name: buf.shape for name, buf in net.named_buffers() if name.rpartition(".")[2] == _NOISE}
    sizes = [shape.numel() for shape in shapes.values()]
    if not shapes:
        return {}
    generator = torch.Generator(device=device)
    flat = torch.empty(len(noise_seeds), sum(sizes), device=device)
    for row, noise_seed in zip(flat, noise_seeds):
        row.normal_(generator=generator.manual_seed(noise_seed))
    parts = flat.split(sizes, dim=1)
    return {name: part.reshape(-1, 1, *shape) for (name, shape), part in zip(shapes.items(), parts)}


@torch.inference_mode()
def generate_uint8(
    G: torch.nn.Module,             # in eval mode, on `device`
    dataset: Any,                   # for labels
    *,
    indices: Sequence[int],         # global indices of the images
    seed: int,
    device: torch.device,
) -> torch.Tensor:
    """Generate images [N, C, H, W], uint8, without truncation."""
    draws = draw(G, dataset, indices, seed=seed).to(device)
    noise = keyed_noise(G, draws.noise_seeds, device=device)
    img = functional_call(G, noise, (draws.z[:, 0], draws.c), {"noise_mode": "const"} if noise else {})
    return (img * 127.5 + 128).clamp(0, 255).to(torch.uint8)
