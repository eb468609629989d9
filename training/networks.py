"""Generator and discriminator of StyleGAN2 (Karras et al., CVPR 2020), with GGDR's decoder and GLeaD's heads.

Class, argument and parameter names are those of the StyleGAN ecosystem. Pickles hold instances together with the source
of this file, and other people's checkouts open them. So this file imports only those parts of `torch_utils` that every
StyleGAN2-ADA and StyleGAN3 checkout has.
"""

from typing import Any, Collection, Dict, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch

from torch_utils import misc, persistence
from torch_utils.ops import bias_act, conv2d_resample, fma, upfirdn2d

try:
    from torch_utils.ops.modconv_epilogue import modconv_epilogue
except ImportError:  # another StyleGAN's checkout
    modconv_epilogue = None

Tensor = torch.Tensor


class SynthesisState(NamedTuple):
    """The output of the block at resolution `res`, from which synthesis can resume (GLeaD, Eq. 5 and 6)."""

    res: int
    x: Tensor               # Feature map [N, channels at res, res, res].
    img: Optional[Tensor]   # Image so far [N, img_channels, res, res]; None if the architecture has none.


class SynthesisOutput(NamedTuple):
    img: Tensor                         # [N, img_channels, R, R] float32, about [-1, 1].
    states: Dict[int, SynthesisState]   # The requested ones, by resolution.


class DiscriminatorOutput(NamedTuple):
    logits: Tensor              # Realness [N, 1].
    fmaps: Dict[int, Tensor]    # Decoder features by resolution [N, channels of D at r, r, r]; empty without decoder.
    f: Optional[Tensor]         # Feature map for G [N, channels of G at res_g, r, r]; None without such a head.
    img: Optional[Tensor]       # Basis image for G [N, img_channels, r, r]; None without such a head.
    w: Optional[Tensor]         # One latent for all layers of G [N, w_dim]; None without such a head.
    aux: Optional[Tensor] = None    # [N, aux_outputs]; None without such a head.


@misc.profiled_function
def normalize_2nd_moment(x: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    return x * (x.square().mean(dim=dim, keepdim=True) + eps).rsqrt()


def _check_choices(architecture: str, half_type: str) -> None:
    if architecture not in ("orig", "skip", "resnet"):
        raise ValueError(f"architecture is 'orig', 'skip' or 'resnet', got {architecture!r}")
    if half_type not in ("float16", "bfloat16"):
        raise ValueError(f"half_type is 'float16' or 'bfloat16', got {half_type!r}")


def _initial_weight(out_channels: int, in_channels: int, kernel_size: int, channels_last: bool) -> Tensor:
    weight = torch.randn([out_channels, in_channels, kernel_size, kernel_size])
    return weight.to(memory_format=torch.channels_last) if channels_last else weight


def precision(block: Any, device: torch.device, force_fp32: bool) -> Tuple[torch.dtype, torch.memory_format]:
    """The type and memory format in which a block of G or D computes. CPUs are fastest with channels last."""
    half = block.use_fp16 and not force_fp32 and (device.type == "cuda" or block.half_type == "bfloat16")
    dtype = getattr(torch, block.half_type) if half else torch.float32
    channels_last = device.type == "cpu" or (half and block.channels_last)
    return dtype, torch.channels_last if channels_last else torch.contiguous_format


def _modulation(x: Tensor, weight: Tensor, styles: Tensor, demodulate: bool) -> Tuple[Tensor, Tensor, Optional[Tensor]]:
    """Weights and styles to use, and factors [N, C_out] that demodulate the result (None = no demodulation)."""
    in_channels, kh, kw = weight.shape[1:]
    misc.assert_shape(x, [None, in_channels, None, None])
    misc.assert_shape(styles, [x.shape[0], in_channels])
    if not demodulate:
        return weight, styles, None
    if x.dtype == torch.float16:  # normalise, so that float16 does not overflow; demodulation cancels these factors
        weight = weight / weight.abs().amax(dim=[1, 2, 3], keepdim=True) / np.sqrt(in_channels * kh * kw)
        styles = styles / styles.abs().amax(dim=1, keepdim=True)
    # The sum over (in, kh, kw) of (w s)^2, computed without the weights of each image.
    return weight, styles, (styles.square() @ weight.square().sum(dim=[2, 3]).t() + 1e-8).rsqrt()


def _scaled_conv2d(
    x: Tensor, weight: Tensor, styles: Tensor, demodulate: bool = True, **resample: Any
) -> Tuple[Tensor, Optional[Tensor]]:
    """The convolution of scaled activations, and the factors [N, C_out] by which the caller must multiply it."""
    weight, styles, dcoefs = _modulation(x, weight, styles, demodulate)
    x = x * styles.to(x.dtype)[:, :, None, None]
    return conv2d_resample.conv2d_resample(x=x, w=weight.to(x.dtype), **resample), dcoefs


@misc.profiled_function
def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Optional[Tensor] = None,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    resample_filter: Optional[Tensor] = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    fused_modconv: bool = True,
) -> Tensor:
    """Convolution whose weights are scaled, per image and input channel, by `styles` (StyleGAN2, Eq. 1 to 3).

    Args:
        x:               [N, C_in, H, W].
        weight:          [C_out, C_in, k, k].
        styles:          [N, C_in].
        noise:           Added to the result; its shape can be broadcast.
        demodulate:      Scale each output feature map to unit expected standard deviation.
        fused_modconv:   True = one grouped convolution with a kernel per image. False = scale the activations before
                         and after an ordinary convolution; the result is the same, and training is faster.
        The other arguments are those of `conv2d_resample`.
    """
    resample = dict(f=resample_filter, up=up, down=down, padding=padding, flip_weight=flip_weight)
    if not fused_modconv:
        x, dcoefs = _scaled_conv2d(x, weight, styles, demodulate, **resample)
        if dcoefs is None:
            return x if noise is None else x + noise.to(x.dtype)
        scale = dcoefs.to(x.dtype)[:, :, None, None]
        return x * scale if noise is None else fma.fma(x, scale, noise.to(x.dtype))

    batch_size = x.shape[0]
    weight, styles, dcoefs = _modulation(x, weight, styles, demodulate)
    w = weight[None] * styles[:, None, :, None, None]  # [N, C_out, C_in, kh, kw]
    if dcoefs is not None:
        w = w * dcoefs[:, :, None, None, None]
    x = x.reshape(1, -1, *x.shape[2:])
    w = w.reshape(-1, *weight.shape[1:]).to(x.dtype)
    x = conv2d_resample.conv2d_resample(x=x, w=w, groups=int(batch_size), **resample)
    x = x.reshape(batch_size, -1, *x.shape[2:])
    return x if noise is None else x + noise.to(x.dtype)


@persistence.persistent_class
class FullyConnectedLayer(torch.nn.Module):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activation: str = "linear",
        lr_multiplier: float = 1,
        bias_init: float = 0,
    ):
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.activation = activation
        self.weight = torch.nn.Parameter(torch.randn([out_features, in_features]) / lr_multiplier)
        self.bias = torch.nn.Parameter(torch.full([out_features], float(bias_init))) if bias else None
        self.weight_gain = lr_multiplier / np.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight.to(x.dtype) * self.weight_gain
        b = self.bias
        if b is not None:
            b = b.to(x.dtype) * self.bias_gain if self.bias_gain != 1 else b.to(x.dtype)
        if self.activation == "linear":
            return torch.nn.functional.linear(x, w, b)
        return bias_act.bias_act(x.matmul(w.t()), b, act=self.activation)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, activation={self.activation}"


@persistence.persistent_class
class Conv2dLayer(torch.nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool = True,
        activation: str = "linear",
        up: int = 1,
        down: int = 1,
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        conv_clamp: Optional[float] = None,     # Limit of the absolute value of the output; None = no limit.
        channels_last: bool = False,
        trainable: bool = True,                 # False = weights are buffers, which training leaves unchanged.
    ):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.activation = activation
        self.up = up
        self.down = down
        self.conv_clamp = None if conv_clamp is None else float(conv_clamp)
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(list(resample_filter)))
        self.padding = kernel_size // 2
        self.weight_gain = 1 / np.sqrt(in_channels * kernel_size**2)
        self.act_gain = bias_act.activation_funcs[activation].def_gain

        weight = _initial_weight(out_channels, in_channels, kernel_size, channels_last)
        values = {"weight": weight, "bias": torch.zeros([out_channels]) if bias else None}
        for name, value in values.items():
            if trainable:
                self.register_parameter(name, None if value is None else torch.nn.Parameter(value))
            else:
                self.register_buffer(name, value)

    def forward(self, x: Tensor, gain: float = 1) -> Tensor:
        w = (self.weight * self.weight_gain).to(x.dtype)
        b = None if self.bias is None else self.bias.to(x.dtype)
        x = conv2d_resample.conv2d_resample(
            x=x, w=w, f=self.resample_filter, up=self.up, down=self.down, padding=self.padding,
            flip_weight=(self.up == 1),
        )
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        return bias_act.bias_act(x, b, act=self.activation, gain=self.act_gain * gain, clamp=clamp)

    def extra_repr(self) -> str:
        sizes = f"in_channels={self.in_channels}, out_channels={self.out_channels}"
        return f"{sizes}, activation={self.activation}, up={self.up}, down={self.down}"


@persistence.persistent_class
class MappingNetwork(torch.nn.Module):
    def __init__(
        self,
        z_dim: int,                             # 0 = no latent (as in D).
        c_dim: int,                             # 0 = no labels.
        w_dim: int,
        num_ws: Optional[int],                  # Copies of w that are returned; None = w without that dimension.
        num_layers: int = 8,
        embed_features: Optional[int] = None,   # Width of the embedded label; None = w_dim.
        layer_features: Optional[int] = None,   # Width of the hidden layers; None = w_dim.
        activation: str = "lrelu",
        lr_multiplier: float = 0.01,
        w_avg_beta: Optional[float] = 0.995,    # Decay of the running mean of w; None = no mean is tracked.
        normalize_jointly: bool = False,        # Normalise z and label as one vector, as the first StyleGAN2 program.
    ):
        super().__init__()
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.num_ws = num_ws
        self.num_layers = num_layers
        self.w_avg_beta = w_avg_beta
        self.normalize_jointly = normalize_jointly

        embed_features = (w_dim if embed_features is None else embed_features) if c_dim > 0 else 0
        layer_features = w_dim if layer_features is None else layer_features
        features = [z_dim + embed_features] + [layer_features] * (num_layers - 1) + [w_dim]
        if c_dim > 0:
            self.embed = FullyConnectedLayer(c_dim, embed_features)
        for idx in range(num_layers):
            layer = FullyConnectedLayer(*features[idx:idx + 2], activation=activation, lr_multiplier=lr_multiplier)
            setattr(self, f"fc{idx}", layer)
        if num_ws is not None and w_avg_beta is not None:
            self.register_buffer("w_avg", torch.zeros([w_dim]))

    def forward(
        self,
        z: Optional[Tensor],                        # [N, z_dim].
        c: Optional[Tensor],                        # [N, c_dim].
        truncation_psi: float = 1,                  # 1 = no truncation, 0 = the mean w.
        truncation_cutoff: Optional[int] = None,    # How many ws are truncated; None = all.
        skip_w_avg_update: bool = False,
    ) -> Tensor:
        parts = []
        if self.z_dim > 0:
            misc.assert_shape(z, [None, self.z_dim])
            parts.append(z.to(torch.float32))
        if self.c_dim > 0:
            misc.assert_shape(c, [None, self.c_dim])
            parts.append(self.embed(c.to(torch.float32)))
        parts = [torch.cat(parts, dim=1)] if self.normalize_jointly else parts
        parts = [normalize_2nd_moment(x) for x in parts]
        x = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        for idx in range(self.num_layers):
            x = getattr(self, f"fc{idx}")(x)

        if self.w_avg_beta is not None and self.training and not skip_w_avg_update:
            self.w_avg.copy_(x.detach().mean(dim=0).lerp(self.w_avg, self.w_avg_beta))
        if self.num_ws is not None:
            x = x.unsqueeze(1).repeat([1, self.num_ws, 1])  # [N, num_ws, w_dim]
        if truncation_psi != 1:
            if self.w_avg_beta is None:
                raise ValueError("truncation needs the mean w, which this mapping network does not track")
            if self.num_ws is None or truncation_cutoff is None:
                x = self.w_avg.lerp(x, truncation_psi)
            else:
                x[:, :truncation_cutoff] = self.w_avg.lerp(x[:, :truncation_cutoff], truncation_psi)
        return x


@persistence.persistent_class
class SynthesisLayer(torch.nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int,                                    # Of the output.
        kernel_size: int = 3,
        up: int = 1,
        use_noise: bool = True,
        activation: str = "lrelu",
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        conv_clamp: Optional[float] = None,
        channels_last: bool = False,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.resolution = resolution
        self.up = up
        self.use_noise = use_noise
        self.activation = activation
        self.conv_clamp = None if conv_clamp is None else float(conv_clamp)
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(list(resample_filter)))
        self.padding = kernel_size // 2
        self.act_gain = bias_act.activation_funcs[activation].def_gain
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = torch.nn.Parameter(_initial_weight(out_channels, in_channels, kernel_size, channels_last))
        if use_noise:
            self.register_buffer("noise_const", torch.randn([resolution, resolution]))
            self.noise_strength = torch.nn.Parameter(torch.zeros([]))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels]))

    def forward(
        self, x: Tensor, w: Tensor, noise_mode: str = "random", fused_modconv: bool = True, gain: float = 1
    ) -> Tensor:
        if noise_mode not in ("random", "const", "none"):
            raise ValueError(f"noise_mode is 'random', 'const' or 'none', got {noise_mode!r}")
        noise = None
        if self.use_noise and noise_mode == "random":
            noise = torch.randn([x.shape[0], 1, self.resolution, self.resolution], device=x.device)
        elif self.use_noise and noise_mode == "const":
            noise = self.noise_const
        styles, resample = self.affine(w), dict(up=self.up, padding=self.padding, flip_weight=(self.up == 1))
        clamp = None if self.conv_clamp is None else self.conv_clamp * gain
        epilogue = dict(act=self.activation, gain=self.act_gain * gain, clamp=clamp)
        fused = modconv_epilogue is not None and self.activation in ("linear", "relu", "lrelu") and not fused_modconv
        if fused and (noise is None or not noise.requires_grad):  # projectors optimise the noise
            x, scale = _scaled_conv2d(x, self.weight, styles, f=self.resample_filter, **resample)
            strength = None if noise is None else self.noise_strength
            return modconv_epilogue(x, scale, noise, strength, self.bias, **epilogue)
        noise = None if noise is None else noise * self.noise_strength
        x = modulated_conv2d(x, self.weight, styles, noise, resample_filter=self.resample_filter,
                             fused_modconv=fused_modconv, **resample)
        return bias_act.bias_act(x, self.bias.to(x.dtype), **epilogue)

    def extra_repr(self) -> str:
        sizes = f"in_channels={self.in_channels}, out_channels={self.out_channels}, resolution={self.resolution}"
        return f"{sizes}, up={self.up}, activation={self.activation}"


@persistence.persistent_class
class ToRGBLayer(torch.nn.Module):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        kernel_size: int = 1,
        conv_clamp: Optional[float] = None,
        channels_last: bool = False,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.conv_clamp = None if conv_clamp is None else float(conv_clamp)
        self.affine = FullyConnectedLayer(w_dim, in_channels, bias_init=1)
        self.weight = torch.nn.Parameter(_initial_weight(out_channels, in_channels, kernel_size, channels_last))
        self.bias = torch.nn.Parameter(torch.zeros([out_channels]))
        self.weight_gain = 1 / np.sqrt(in_channels * kernel_size**2)

    def forward(self, x: Tensor, w: Tensor, fused_modconv: bool = True) -> Tensor:
        styles = self.affine(w) * self.weight_gain
        x = modulated_conv2d(x=x, weight=self.weight, styles=styles, demodulate=False, fused_modconv=fused_modconv)
        return bias_act.bias_act(x, self.bias.to(x.dtype), clamp=self.conv_clamp)

    def extra_repr(self) -> str:
        return f"in_channels={self.in_channels}, out_channels={self.out_channels}"


@persistence.persistent_class
class SynthesisBlock(torch.nn.Module):
    def __init__(
        self,
        in_channels: int,                                   # 0 = the first block, which has a learned constant.
        out_channels: int,
        w_dim: int,
        resolution: int,                                    # Of the output.
        img_channels: int,
        is_last: bool,
        architecture: str = "skip",                         # "orig", "skip" or "resnet".
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        conv_clamp: Optional[float] = 256,
        use_fp16: bool = False,                             # Compute in half precision.
        fp16_channels_last: bool = False,
        half_type: str = "float16",                         # "float16": on CUDA devices; "bfloat16": everywhere.
        **layer_kwargs: Any,                                # For SynthesisLayer.
    ):
        _check_choices(architecture, half_type)
        super().__init__()
        self.in_channels = in_channels
        self.w_dim = w_dim
        self.resolution = resolution
        self.img_channels = img_channels
        self.is_last = is_last
        self.architecture = architecture
        self.use_fp16 = use_fp16
        self.half_type = half_type
        self.channels_last = use_fp16 and fp16_channels_last
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(list(resample_filter)))
        self.num_conv = 1 if in_channels == 0 else 2
        self.num_torgb = 1 if is_last or architecture == "skip" else 0
        common = dict(conv_clamp=conv_clamp, channels_last=self.channels_last)
        layer = dict(w_dim=w_dim, resolution=resolution, **common, **layer_kwargs)

        if in_channels == 0:
            self.const = torch.nn.Parameter(torch.randn([out_channels, resolution, resolution]))
        else:
            self.conv0 = SynthesisLayer(in_channels, out_channels, up=2, resample_filter=resample_filter, **layer)
        self.conv1 = SynthesisLayer(out_channels, out_channels, **layer)
        if self.num_torgb > 0:
            self.torgb = ToRGBLayer(out_channels, img_channels, w_dim=w_dim, **common)
        if in_channels != 0 and architecture == "resnet":
            self.skip = Conv2dLayer(
                in_channels, out_channels, kernel_size=1, bias=False, up=2, resample_filter=resample_filter,
                channels_last=self.channels_last,
            )

    def forward(
        self,
        x: Optional[Tensor],
        img: Optional[Tensor],
        ws: Tensor,                             # [N, num_conv + num_torgb, w_dim].
        force_fp32: bool = False,
        fused_modconv: Optional[bool] = None,   # None = whichever is faster.
        **layer_kwargs: Any,
    ) -> Tuple[Tensor, Optional[Tensor]]:
        misc.assert_shape(ws, [None, self.num_conv + self.num_torgb, self.w_dim])
        w_iter = iter(ws.unbind(dim=1))
        dtype, memory_format = precision(self, ws.device, force_fp32)
        if fused_modconv is None:
            with misc.suppress_tracer_warnings():
                fast = (dtype == torch.float32 and ws.device.type != "cpu") or int(ws.shape[0]) == 1
                fused_modconv = (not self.training) and fast
        layer_kwargs = dict(layer_kwargs, fused_modconv=fused_modconv)

        if self.in_channels == 0:
            x = self.const.to(dtype).unsqueeze(0).repeat([ws.shape[0], 1, 1, 1]).to(memory_format=memory_format)
            x = self.conv1(x, next(w_iter), **layer_kwargs)
        else:
            misc.assert_shape(x, [None, self.in_channels, self.resolution // 2, self.resolution // 2])
            x = x.to(dtype=dtype, memory_format=memory_format)
            if self.architecture == "resnet":
                y = self.skip(x, gain=np.sqrt(0.5))
                x = self.conv0(x, next(w_iter), **layer_kwargs)
                x = y + self.conv1(x, next(w_iter), gain=np.sqrt(0.5), **layer_kwargs)
            else:
                x = self.conv0(x, next(w_iter), **layer_kwargs)
                x = self.conv1(x, next(w_iter), **layer_kwargs)

        if img is not None:
            misc.assert_shape(img, [None, self.img_channels, self.resolution // 2, self.resolution // 2])
            img = upfirdn2d.upsample2d(img, self.resample_filter)
        if self.is_last or self.architecture == "skip":
            y = self.torgb(x, next(w_iter), fused_modconv=fused_modconv)
            y = y.to(dtype=torch.float32, memory_format=torch.contiguous_format)
            img = y if img is None else img + y
        return x, img

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}, architecture={self.architecture}"


@persistence.persistent_class
class SynthesisNetwork(torch.nn.Module):
    def __init__(
        self,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        channel_base: int = 32768,      # Channels at resolution r: channel_base / r, at most channel_max.
        channel_max: int = 512,
        num_fp16_res: int = 0,          # How many of the highest resolutions use half precision.
        **block_kwargs: Any,            # For SynthesisBlock.
    ):
        if img_resolution < 4 or img_resolution & (img_resolution - 1):
            raise ValueError(f"img_resolution must be a power of two from 4 up, got {img_resolution}")
        super().__init__()
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_resolution_log2 = int(np.log2(img_resolution))
        self.img_channels = img_channels
        self.block_resolutions = [2**i for i in range(2, self.img_resolution_log2 + 1)]
        channels = {res: min(channel_base // res, channel_max) for res in self.block_resolutions}
        fp16_resolution = max(2 ** (self.img_resolution_log2 + 1 - num_fp16_res), 8)

        self.num_ws = 0
        for res in self.block_resolutions:
            is_last = res == img_resolution
            block = SynthesisBlock(
                channels[res // 2] if res > 4 else 0, channels[res], w_dim=w_dim, resolution=res,
                img_channels=img_channels, is_last=is_last, use_fp16=(res >= fp16_resolution), **block_kwargs,
            )
            self.num_ws += block.num_conv + (block.num_torgb if is_last else 0)
            setattr(self, f"b{res}", block)

    def forward(self, ws: Tensor, **block_kwargs: Any) -> Tensor:
        """Make images [N, img_channels, R, R] from ws [N, num_ws, w_dim]. Keywords go to blocks and layers."""
        misc.assert_shape(ws, [None, self.num_ws, self.w_dim])
        return self.run(ws, **block_kwargs).img

    def num_ws_from(self, res: int) -> int:
        """Number of ws needed to resume from resolution `res`: 2 log2(R / res) + 1. For res < 4, all ws."""
        blocks = [getattr(self, f"b{r}") for r in self.block_resolutions if r > res]
        # One w is needed even if no block is left to run, as in the released program.
        return sum(block.num_conv for block in blocks) + 1

    def run(
        self,
        ws: Tensor,
        start: Optional[SynthesisState] = None,
        keep: Collection[int] = (),
        **block_kwargs: Any,
    ) -> SynthesisOutput:
        """Run all blocks, or, with `start`, only those above `start.res`.

        Args:
            ws:    [N, num_ws_from(start.res) or more, w_dim]. The first one is for the first layer that runs.
            start: Feature map and image to resume from; None = start from the learned constant.
            keep:  Resolutions whose states are returned with the image.
        """
        x, img = (None, None) if start is None else (start.x, start.img)
        ws = ws.to(torch.float32)
        states, w_idx = {}, 0
        for res in self.block_resolutions:
            if start is not None and res <= start.res:
                continue
            block = getattr(self, f"b{res}")
            x, img = block(x, img, ws.narrow(1, w_idx, block.num_conv + block.num_torgb), **block_kwargs)
            w_idx += block.num_conv
            if res in keep:
                states[res] = SynthesisState(res, x, img)
        return SynthesisOutput(img, states)


@persistence.persistent_class
class Generator(torch.nn.Module):
    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        img_resolution: int,
        img_channels: int,
        mapping_kwargs: Dict[str, Any] = {},    # noqa: B006 - For MappingNetwork; read only.
        synthesis_kwargs: Dict[str, Any] = {},  # noqa: B006 - For SynthesisNetwork; read only.
    ):
        super().__init__()
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.synthesis = SynthesisNetwork(w_dim, img_resolution, img_channels, **synthesis_kwargs)
        self.num_ws = self.synthesis.num_ws
        self.mapping = MappingNetwork(z_dim, c_dim, w_dim, num_ws=self.num_ws, **mapping_kwargs)

    @property
    def w_avg(self) -> Optional[Tensor]:
        """Moving average of w [w_dim]; None if it is not tracked."""
        return self.mapping.w_avg if self.mapping.w_avg_beta is not None else None

    def forward(
        self,
        z: Tensor,                                  # [N, z_dim].
        c: Optional[Tensor],                        # [N, c_dim]; ignored by unconditional networks.
        truncation_psi: float = 1,
        truncation_cutoff: Optional[int] = None,
        **synthesis_kwargs: Any,
    ) -> Tensor:
        ws = self.mapping(z, c, truncation_psi=truncation_psi, truncation_cutoff=truncation_cutoff)
        return self.synthesis(ws, **synthesis_kwargs)


@persistence.persistent_class
class DiscriminatorBlock(torch.nn.Module):
    def __init__(
        self,
        in_channels: int,                                   # 0 = first block.
        tmp_channels: int,                                  # At this block's resolution.
        out_channels: int,                                  # At half of it.
        resolution: int,                                    # Of the input.
        img_channels: int,
        first_layer_idx: int,                               # Number of layers of D before this block.
        architecture: str = "resnet",                       # "orig", "skip" or "resnet".
        activation: str = "lrelu",
        resample_filter: Sequence[float] = (1, 3, 3, 1),
        conv_clamp: Optional[float] = None,
        use_fp16: bool = False,
        fp16_channels_last: bool = False,
        half_type: str = "float16",                         # "float16": on CUDA devices; "bfloat16": everywhere.
        freeze_layers: int = 0,                             # FreezeD (Mo et al., 2020): number of frozen layers of D.
    ):
        _check_choices(architecture, half_type)
        super().__init__()
        self.in_channels = in_channels
        self.resolution = resolution
        self.img_channels = img_channels
        self.architecture = architecture
        self.use_fp16 = use_fp16
        self.half_type = half_type
        self.channels_last = use_fp16 and fp16_channels_last
        self.register_buffer("resample_filter", upfirdn2d.setup_filter(list(resample_filter)))
        self.num_layers = 0

        def layer(c_in: int, c_out: int, kernel_size: int, **kwargs: Any) -> Conv2dLayer:
            trainable = first_layer_idx + self.num_layers >= freeze_layers
            self.num_layers += 1
            kwargs.update(trainable=trainable, channels_last=self.channels_last)
            return Conv2dLayer(c_in, c_out, kernel_size, **kwargs)

        common = dict(activation=activation, conv_clamp=conv_clamp)
        resample = dict(down=2, resample_filter=resample_filter)  # other layers keep the default, as in StyleGAN2-ADA
        if in_channels == 0 or architecture == "skip":
            self.fromrgb = layer(img_channels, tmp_channels, 1, **common)
        self.conv0 = layer(tmp_channels, tmp_channels, 3, **common)
        self.conv1 = layer(tmp_channels, out_channels, 3, **resample, **common)
        if architecture == "resnet":
            self.skip = layer(tmp_channels, out_channels, 1, bias=False, **resample)

    def forward(
        self, x: Optional[Tensor], img: Optional[Tensor], force_fp32: bool = False
    ) -> Tuple[Tensor, Optional[Tensor]]:
        device = img.device if x is None else x.device
        dtype, memory_format = precision(self, device, force_fp32)
        if x is not None:
            misc.assert_shape(x, [None, self.in_channels, self.resolution, self.resolution])
            x = x.to(dtype=dtype, memory_format=memory_format)
        if self.in_channels == 0 or self.architecture == "skip":
            misc.assert_shape(img, [None, self.img_channels, self.resolution, self.resolution])
            img = img.to(dtype=dtype, memory_format=memory_format)
            y = self.fromrgb(img)
            x = y if x is None else x + y
            img = upfirdn2d.downsample2d(img, self.resample_filter) if self.architecture == "skip" else None

        if self.architecture == "resnet":
            y = self.skip(x, gain=np.sqrt(0.5))
            x = self.conv0(x)
            x = y + self.conv1(x, gain=np.sqrt(0.5))
        else:
            x = self.conv1(self.conv0(x))
        return x, img

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}, architecture={self.architecture}"


@persistence.persistent_class
class MinibatchStdLayer(torch.nn.Module):
    """Appends the standard deviation over groups of images, as `num_channels` constant feature maps."""

    def __init__(self, group_size: Optional[int], num_channels: int = 1):
        super().__init__()
        if group_size is not None and not group_size > 0:
            raise ValueError(f"group_size must be positive, got {group_size}")
        self.group_size = group_size  # None = the whole batch.
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        with misc.suppress_tracer_warnings():
            group = int(n) if self.group_size is None else min(self.group_size, int(n))
        if n % group:
            raise ValueError(f"a batch of {n} images can't be cut into groups of {group} for minibatch std")
        y = x.reshape(group, -1, self.num_channels, c // self.num_channels, h, w)  # [G, N/G, F, C/F, H, W]
        y = y - y.mean(dim=0)
        y = (y.square().mean(dim=0) + 1e-8).sqrt()
        y = y.mean(dim=[2, 3, 4]).reshape(-1, self.num_channels, 1, 1)             # [N/G, F, 1, 1]
        return torch.cat([x, y.repeat(group, 1, h, w)], dim=1)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, num_channels={self.num_channels}"


@persistence.persistent_class
class DiscriminatorEpilogue(torch.nn.Module):
    def __init__(
        self,
        in_channels: int,
        cmap_dim: int,                              # Width of the mapped label; 0 = unconditional.
        resolution: int,
        img_channels: int,
        architecture: str = "resnet",
        mbstd_group_size: Optional[int] = 4,
        mbstd_num_channels: int = 1,                # 0 = no minibatch standard deviation.
        activation: str = "lrelu",
        conv_clamp: Optional[float] = None,
    ):
        super().__init__()
        self.in_channels = in_channels
        self.cmap_dim = cmap_dim
        self.resolution = resolution
        self.img_channels = img_channels
        self.architecture = architecture
        if architecture == "skip":
            self.fromrgb = Conv2dLayer(img_channels, in_channels, kernel_size=1, activation=activation)
        self.mbstd = MinibatchStdLayer(mbstd_group_size, mbstd_num_channels) if mbstd_num_channels > 0 else None
        self.conv = Conv2dLayer(
            in_channels + mbstd_num_channels, in_channels, kernel_size=3, activation=activation, conv_clamp=conv_clamp
        )
        self.fc = FullyConnectedLayer(in_channels * resolution**2, in_channels, activation=activation)
        self.out = FullyConnectedLayer(in_channels, cmap_dim if cmap_dim > 0 else 1)

    def forward(
        self, x: Tensor, img: Optional[Tensor], cmap: Optional[Tensor], force_fp32: bool = False
    ) -> Tensor:
        misc.assert_shape(x, [None, self.in_channels, self.resolution, self.resolution])
        x = x.to(dtype=torch.float32, memory_format=torch.contiguous_format)
        if self.architecture == "skip":
            x = x + self.fromrgb(img.to(dtype=torch.float32, memory_format=torch.contiguous_format))
        if self.mbstd is not None:
            x = self.mbstd(x)
        x = self.out(self.fc(self.conv(x).flatten(1)))
        if self.cmap_dim > 0:  # projection (Miyato and Koyama, 2018)
            misc.assert_shape(cmap, [None, self.cmap_dim])
            x = (x * cmap).sum(dim=1, keepdim=True) / np.sqrt(self.cmap_dim)
        return x


@persistence.persistent_class
class Discriminator(torch.nn.Module):
    """StyleGAN2's discriminator, optionally with the decoder of GGDR and the heads of GLeaD.

    The decoder has levels r = 8, 16, ..., decoder_res. Each is a convolution of two inputs, the previous level and the
    backbone's features at r / 2, with up-sampling by 2. The heads use the last level. They return a feature map, a
    basis image and a w for G (GLeaD, Eq. 3 and 4); for glead_res_g = 1, only w (Table 3, "1x1").
    """

    def __init__(
        self,
        c_dim: int,
        img_resolution: int,
        img_channels: int,
        architecture: str = "resnet",
        channel_base: int = 32768,
        channel_max: int = 512,
        num_fp16_res: int = 0,
        conv_clamp: Optional[float] = None,
        cmap_dim: Optional[int] = None,                             # None = the number of channels at 4x4.
        block_kwargs: Dict[str, Any] = {},                          # noqa: B006 - For DiscriminatorBlock; read only.
        mapping_kwargs: Dict[str, Any] = {},                        # noqa: B006 - For MappingNetwork; read only.
        epilogue_kwargs: Dict[str, Any] = {},                       # noqa: B006 - For DiscriminatorEpilogue; read only.
        decoder_res: Union[int, Sequence[int], None] = None,        # Resolution, or a list of it; None = no decoder.
        glead_res_g: Optional[int] = None,                          # Resolution of f in G; 1 = w only.
        decoder_out_channel: int = 0,                               # w_dim of G; 0 = no heads.
        decoder_conv_kernel_size: int = 1,
        decoder_act: str = "linear",                                # Or "lrelu" (GGDR's ablation).
        aux_outputs: int = 0,                                       # Of a linear head on the mean of the 4x4 features.
    ):
        super().__init__()
        self.c_dim = c_dim
        self.img_resolution = img_resolution
        self.img_resolution_log2 = int(np.log2(img_resolution))
        self.img_channels = img_channels
        self.block_resolutions = [2**i for i in range(self.img_resolution_log2, 2, -1)]
        channels = {res: min(channel_base // res, channel_max) for res in self.block_resolutions + [4]}
        fp16_resolution = max(2 ** (self.img_resolution_log2 + 1 - num_fp16_res), 8)
        cmap_dim = (channels[4] if cmap_dim is None else cmap_dim) if c_dim > 0 else 0

        first_layer_idx = 0
        for res in self.block_resolutions:
            block = DiscriminatorBlock(
                channels[res] if res < img_resolution else 0, channels[res], channels[res // 2], resolution=res,
                img_channels=img_channels, first_layer_idx=first_layer_idx, architecture=architecture,
                conv_clamp=conv_clamp, use_fp16=(res >= fp16_resolution), **block_kwargs,
            )
            setattr(self, f"b{res}", block)
            first_layer_idx += block.num_layers
        if c_dim > 0:
            self.mapping = MappingNetwork(0, c_dim, cmap_dim, num_ws=None, w_avg_beta=None, **mapping_kwargs)
        self.b4 = DiscriminatorEpilogue(
            channels[4], cmap_dim=cmap_dim, resolution=4, img_channels=img_channels, architecture=architecture,
            conv_clamp=conv_clamp, **epilogue_kwargs,
        )

        if aux_outputs > 0:
            self.aux = FullyConnectedLayer(channels[4], aux_outputs)
        last = _last_level(decoder_res, img_resolution)
        self.decoder_resolutions = [] if last is None else [2**i for i in range(3, int(np.log2(last)) + 1)]
        for res in self.decoder_resolutions:
            c_in = channels[4] if res == 8 else 2 * channels[res // 2]
            layer = Conv2dLayer(c_in, channels[res], decoder_conv_kernel_size, activation=decoder_act, up=2)
            setattr(self, f"b{res}_dec", layer)
        self.has_heads = bool(self.decoder_resolutions) and decoder_out_channel > 0
        self.spatial_heads = self.has_heads and glead_res_g != 1
        if self.has_heads:
            g_channels = min(channel_base // glead_res_g, channel_max) if self.spatial_heads else 0
            self._add_heads(channels[last], w_dim=decoder_out_channel, g_channels=g_channels)

    def _add_heads(self, in_channels: int, w_dim: int, g_channels: int) -> None:
        """Add heads on the decoder's last level: for an image, a feature map and w of G, or for w only."""
        if self.spatial_heads:
            self.img_proj = Conv2dLayer(in_channels, self.img_channels, 1)
            self.feat_proj1 = Conv2dLayer(in_channels, g_channels, 1)
            self.feat_proj2 = Conv2dLayer(in_channels, w_dim, 1)
        else:
            self.final_proj = Conv2dLayer(in_channels, w_dim, 1)

    @property
    def minibatch_group(self) -> Optional[int]:
        """Number of images that share a minibatch standard deviation; None = the whole batch."""
        return 1 if self.b4.mbstd is None else self.b4.mbstd.group_size

    def forward(self, img: Tensor, c: Optional[Tensor] = None, **block_kwargs: Any) -> Tensor:
        """Realness logits [N, 1] of images [N, C, R, R] in about [-1, 1] with labels [N, c_dim]."""
        x, skip_img, _ = self._encode(img, **block_kwargs)
        return self._realness(x, skip_img, c)

    def run(self, img: Tensor, c: Optional[Tensor] = None, **block_kwargs: Any) -> DiscriminatorOutput:
        """Run the decoder and the heads, too. Takes the arguments of `forward`."""
        x, skip_img, features = self._encode(img, **block_kwargs)
        aux = self.aux(x.mean(dim=[2, 3]).to(torch.float32)) if hasattr(self, "aux") else None
        return DiscriminatorOutput(self._realness(x, skip_img, c), *self._decode(features), aux)

    def _encode(self, img: Tensor, **block_kwargs: Any) -> Tuple[Tensor, Optional[Tensor], Dict[int, Tensor]]:
        x, features = None, {}
        for res in self.block_resolutions:
            x, img = getattr(self, f"b{res}")(x, img, **block_kwargs)
            features[res // 2] = x
        return x, img, features

    def _realness(self, x: Tensor, img: Optional[Tensor], c: Optional[Tensor]) -> Tensor:
        cmap = self.mapping(None, c) if self.c_dim > 0 else None
        return self.b4(x, img, cmap)

    def _decode(
        self, features: Dict[int, Tensor]
    ) -> Tuple[Dict[int, Tensor], Optional[Tensor], Optional[Tensor], Optional[Tensor]]:
        fmaps = {}
        x = features[4].to(torch.float32)
        for res in self.decoder_resolutions:
            if res > 8:
                x = torch.cat([x, features[res // 2].to(torch.float32)], dim=1)
            x = fmaps[res] = getattr(self, f"b{res}_dec")(x)
        if not self.has_heads:
            return fmaps, None, None, None
        mean = x.mean(dim=[2, 3], keepdim=True)  # heads are linear, so head(mean) = mean(head), which costs far more
        if self.spatial_heads:
            return fmaps, self.feat_proj1(x), self.img_proj(x), self.feat_proj2(mean).flatten(1)
        return fmaps, None, None, self.final_proj(mean).flatten(1)

    def extra_repr(self) -> str:
        return f"c_dim={self.c_dim}, img_resolution={self.img_resolution}, img_channels={self.img_channels}"


def _last_level(decoder_res: Union[int, Sequence[int], None], img_resolution: int) -> Optional[int]:
    """Resolution of the decoder's last level; None = no decoder."""
    levels = [] if decoder_res is None else [decoder_res] if isinstance(decoder_res, int) else list(decoder_res)
    if not levels:
        return None
    last = max(levels)
    if last < 8 or last > img_resolution or last & (last - 1):
        raise ValueError(f"decoder_res must be a power of two from 8 to {img_resolution}, got {decoder_res}")
    return last
