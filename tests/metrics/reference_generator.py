"""A StyleGAN2 generator written straight from its definition, in any float type: for tests that need some G."""

import numpy as np
import torch
import torch.nn.functional as F


class Branch(torch.nn.Module):
    """Tensors under dotted names, as buffers of nested modules."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__()
        groups: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            head, _, rest = name.partition(".")
            if rest:
                groups.setdefault(head, {})[rest] = tensor
            else:
                self.register_buffer(head, tensor)
        for head, group in groups.items():
            self.add_module(head, Branch(group))


def affine(layer: Branch, w: torch.Tensor) -> torch.Tensor:
    return w @ (layer.weight / layer.weight.shape[1] ** 0.5).T + layer.bias


def lrelu(x: torch.Tensor) -> torch.Tensor:
    return F.leaky_relu(x, 0.2) * 2**0.5


def smooth(x: torch.Tensor, kernel: torch.Tensor, pad: tuple[int, int, int, int]) -> torch.Tensor:
    kernel = (kernel * 4).flip([0, 1])[None, None].repeat(x.shape[1], 1, 1, 1)
    return F.conv2d(F.pad(x, pad), kernel, groups=x.shape[1])


def double(x: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    spread = x.new_zeros(*x.shape[:2], x.shape[2] * 2, x.shape[3] * 2)
    spread[:, :, ::2, ::2] = x
    return smooth(spread, kernel, (2, 1, 2, 1))


class Mapping(Branch):
    num_ws = 6

    def forward(self, z, c=None):
        x = z * (z.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()
        for fc in (self.fc0, self.fc1):
            x = lrelu(x @ (fc.weight * (0.01 / fc.weight.shape[1] ** 0.5)).T + fc.bias * 0.01)
        return x[:, None].repeat(1, self.num_ws, 1)


class Synthesis(Branch):
    def forward(self, ws, noise_mode="random", force_fp32=False):
        x = self.b4.const[None].repeat(len(ws), 1, 1, 1)
        x = self.conv(x, self.b4.conv1, ws[:, 0], noise_mode, up=False)
        img = self.rgb(x, self.b4.torgb, ws[:, 1])
        for i, block in enumerate((self.b8, self.b16)):
            x = self.conv(x, block.conv0, ws[:, 2 * i + 1], noise_mode, up=True)
            x = self.conv(x, block.conv1, ws[:, 2 * i + 2], noise_mode, up=False)
            img = double(img, block.resample_filter) + self.rgb(x, block.torgb, ws[:, 2 * i + 3])
        return img

    @staticmethod
    def conv(x, layer, w, noise_mode, *, up):
        styles = affine(layer.affine, w)
        scale = ((layer.weight[None] * styles[:, None, :, None, None]).square().sum(dim=[2, 3, 4]) + 1e-8).rsqrt()
        x = x * styles[:, :, None, None]
        if up:
            x = smooth(F.conv_transpose2d(x, layer.weight.transpose(0, 1), stride=2), layer.resample_filter, (1, 1, 1, 1))
        else:
            x = F.conv2d(x, layer.weight, padding=1)
        x = x * scale[:, :, None, None]
        if noise_mode == "random":
            x = x + torch.randn(len(x), 1, *x.shape[2:], dtype=x.dtype) * layer.noise_strength
        elif noise_mode == "const":
            x = x + layer.noise_const * layer.noise_strength
        return lrelu(x + layer.bias[:, None, None])

    @staticmethod
    def rgb(x, layer, w):
        styles = affine(layer.affine, w) / layer.weight.shape[1] ** 0.5
        return F.conv2d(x * styles[:, :, None, None], layer.weight) + layer.bias[:, None, None]


class ReferenceGenerator(torch.nn.Module):
    """16x16 RGB, skip architecture, two mapping layers."""

    img_resolution = 16
    img_channels = 3
    c_dim = 0

    def __init__(self, state_dict: dict[str, torch.Tensor]):
        super().__init__()
        parts = {part: {k.partition(".")[2]: v for k, v in state_dict.items() if k.startswith(part)}
                 for part in ("mapping", "synthesis")}
        self.mapping, self.synthesis = Mapping(parts["mapping"]), Synthesis(parts["synthesis"])
        self.z_dim = self.w_dim = state_dict["mapping.fc0.weight"].shape[0]

    def forward(self, z, c=None, noise_mode="random"):
        return self.synthesis(self.mapping(z, c), noise_mode=noise_mode)


def random_generator(*, seed: int = 0, z_dim: int = 8, channels: int = 6) -> ReferenceGenerator:
    rng = np.random.RandomState(seed)

    def randn(*shape):
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    kernel = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64
    sd = {"synthesis.b4.const": randn(channels, 4, 4)}
    for i in range(2):
        sd |= {f"mapping.fc{i}.weight": randn(z_dim, z_dim) * 100, f"mapping.fc{i}.bias": randn(z_dim)}
    for res in (4, 8, 16):
        block = f"synthesis.b{res}"
        sd[f"{block}.resample_filter"] = kernel
        for conv in ("conv1",) if res == 4 else ("conv0", "conv1"):
            sd |= {
                f"{block}.{conv}.weight": randn(channels, channels, 3, 3), f"{block}.{conv}.bias": randn(channels) * 0.1,
                f"{block}.{conv}.affine.weight": randn(channels, z_dim), f"{block}.{conv}.affine.bias": torch.ones(channels),
                f"{block}.{conv}.noise_const": randn(res, res), f"{block}.{conv}.noise_strength": torch.tensor(0.3),
                f"{block}.{conv}.resample_filter": kernel,
            }
        sd |= {
            f"{block}.torgb.weight": randn(3, channels, 1, 1) * 0.4, f"{block}.torgb.bias": torch.zeros(3),
            f"{block}.torgb.affine.weight": randn(channels, z_dim), f"{block}.torgb.affine.bias": torch.ones(channels),
        }
    return ReferenceGenerator(sd)
