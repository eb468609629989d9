"""Augmentation of the images that D sees, and of G's feature maps (ADA: Karras et al., NeurIPS 2020, appendix B).

The parameters of the transforms are drawn on the host, a few numbers for each image, and applied on the device. So the
margins of geometric transforms are known without waiting for the device, and a transform that no image of a batch gets
costs nothing. Pickles hold instances together with the source of this file. The class and its arguments have the
ecosystem's names.
"""

from typing import Dict, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import scipy.special
import torch
import torch.nn.functional as F

from torch_utils import misc, persistence
from torch_utils.ops import upfirdn2d

Tensor = torch.Tensor

# Wavelets (Daubechies, Ten Lectures on Wavelets, 1992, table 8.1): low-pass filters of the least asymmetric ones.
_SYM2 = (-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025)
_SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)
_BAND_POWER = np.array([10, 1, 1, 1]) / 13      # Power of natural images: their spectrum falls as 1 / f (appendix B).
_GRAY_AXIS = np.array([1, 1, 1]) / np.sqrt(3)   # Luma changes along it, and hue rotates around it.
_MAX_MAP_RES = 128                              # Larger feature maps are left unchanged, as in GGDR's program.


class AugmentOutput(NamedTuple):
    images: Tensor              # [N, C, H, W].
    maps: Dict[int, Tensor]     # Feature maps [N, C_r, r, r], by resolution r.


class Geometry(NamedTuple):
    """The position x_in from which an output pixel is sampled: x_in = blit (warp (x_out - shift) - round(blit_shift)).

    Positions are relative to the image's centre. Shifts are in units of the image's size, so that the same numbers
    serve images and feature maps of every resolution.
    """

    blit: np.ndarray            # [N, 2, 2] flips and quarter turns, inverted.
    blit_shift: np.ndarray      # [N, 2] x, y.
    warp: np.ndarray            # [N, 2, 2] scalings and rotations, inverted.
    shift: np.ndarray           # [N, 2].

    def moves(self) -> np.ndarray:
        """bool [N]: whether the transform changes the image."""
        turned = ((self.blit != np.eye(2)) | (self.warp != np.eye(2))).any(axis=(1, 2))
        return turned | (self.blit_shift != 0).any(axis=1) | (self.shift != 0).any(axis=1)

    def take(self, indices: np.ndarray) -> "Geometry":
        return Geometry(*(part[indices] for part in self))


class Transforms(NamedTuple):
    """The transforms of N images, float64 on the host. None = no image has this transform."""

    geometry: Optional[Geometry]        # None = the pipe has no geometric transforms.
    color: Optional[np.ndarray]         # [N, 3, 4]: affine transforms of RGB.
    gains: Optional[np.ndarray]         # [N, 4]: of the frequency bands, from the lowest.
    noise_sigma: Optional[np.ndarray]   # [N]: standard deviation of the noise.
    cutout: Optional[np.ndarray]        # [N, 3] centre x, y, and size, in units of the image's size; size 0 = none.


class TransformDraws:
    """The source of random numbers for the transforms of `n` images. Each call draws the named numbers for all images.

    The numbers come from PyTorch's generator on the host, even if the images are on a GPU.
    """

    def __init__(self, n: int, p: float):
        self.n = n
        self.p = p      # Overall strength; it multiplies every probability.

    def uniform(self, name: str, *size: int) -> np.ndarray:
        """float64 [N, *size] in [0, 1)."""
        return torch.rand([self.n, *size]).double().numpy()

    def normal(self, name: str, *size: int) -> np.ndarray:
        return torch.randn([self.n, *size]).double().numpy()

    def half_normal(self, name: str) -> np.ndarray:
        return np.abs(self.normal(name))

    def normal_image(self, images: Tensor) -> Tensor:
        return torch.randn_like(images)

    def happens(self, name: str, probability: float) -> np.ndarray:
        """bool [N]: whether a transform happens. The caller has multiplied the probability by `p`."""
        return self.uniform(name) < probability

    def post_rotation(self) -> np.ndarray:
        return self.uniform("rotate_post_value")


class PercentileDraws(TransformDraws):
    """Not random: every possible transform happens. Its parameter is the `percentile`, 0 to 1, of its distribution."""

    def __init__(self, n: int, percentile: float):
        super().__init__(n, 1.0)
        self.percentile = percentile

    def uniform(self, name: str, *size: int) -> np.ndarray:
        return np.full([self.n, *size], self.percentile)

    def normal(self, name: str, *size: int) -> np.ndarray:
        return np.full([self.n, *size], scipy.special.erfinv(2 * self.percentile - 1))

    def half_normal(self, name: str) -> np.ndarray:
        return np.full([self.n], scipy.special.erfinv(self.percentile))

    def happens(self, name: str, probability: float) -> np.ndarray:
        return np.full([self.n], probability > 0)  # the probability is 0 for bands that `imgfilter_bands` leaves out

    def post_rotation(self) -> np.ndarray:
        return np.full([self.n], 0.5)  # no rotation, because it would undo or double the first one


@persistence.persistent_class
class AugmentPipe(torch.nn.Module):
    """Random transforms of images before D sees them. Differentiable twice.

    The buffer `p` is the overall strength. Each transform has a probability multiplier, 0 by default, and happens to
    each image independently with probability multiplier * `p`. The other arguments set the range of the transforms.

    Args:
        xflip:      Mirror left and right.
        rotate90:   Turn by multiples of 90 degrees.
        xint:       Shift by whole pixels, up to `xint_max` of the size, along each axis.
        scale:      Scale, by 2 to the power of N(0, `scale_std`).
        rotate:     Rotate by up to `rotate_max` half turns.
        aniso:      Stretch one axis and shrink the other, by 2 to the power of N(0, `aniso_std`).
        xfrac:      Shift by N(0, `xfrac_std`) of the size, along each axis.
        brightness: Add N(0, `brightness_std`).
        contrast:   Multiply by 2 to the power of N(0, `contrast_std`).
        lumaflip:   Invert luma, keep chroma.
        hue:        Rotate by up to `hue_max` half turns around the gray axis; not for grayscale.
        saturation: Multiply chroma by 2 to the power of N(0, `saturation_std`); not for grayscale.
        imgfilter:  Scale each of four frequency bands by 2 to the power of N(0, `imgfilter_std`), then normalise the
                    expected power. The upper three bands are octaves. `imgfilter_bands` multiplies the probability for
                    each band, from the lowest.
        noise:      Add Gaussian noise. Its standard deviation is half-normal with scale `noise_std`.
        cutout:     Set a square to 0. Its side is `cutout_size` times that of the image.
    """

    Hz_geom: torch.Tensor
    Hz_fbank: torch.Tensor

    def __init__(
        self,
        xflip: float = 0, rotate90: float = 0, xint: float = 0, xint_max: float = 0.125,
        scale: float = 0, rotate: float = 0, aniso: float = 0, xfrac: float = 0,
        scale_std: float = 0.2, rotate_max: float = 1, aniso_std: float = 0.2, xfrac_std: float = 0.125,
        brightness: float = 0, contrast: float = 0, lumaflip: float = 0, hue: float = 0, saturation: float = 0,
        brightness_std: float = 0.2, contrast_std: float = 0.5, hue_max: float = 1, saturation_std: float = 1,
        imgfilter: float = 0, imgfilter_bands: Sequence[float] = (1, 1, 1, 1), imgfilter_std: float = 1,
        noise: float = 0, cutout: float = 0, noise_std: float = 0.1, cutout_size: float = 0.5,
    ):  # fmt: skip
        super().__init__()
        self.register_buffer("p", torch.ones([]))
        # Pixel blitting.
        self.xflip, self.rotate90 = float(xflip), float(rotate90)
        self.xint, self.xint_max = float(xint), float(xint_max)
        # Other geometric transforms.
        self.scale, self.rotate, self.aniso, self.xfrac = float(scale), float(rotate), float(aniso), float(xfrac)
        self.scale_std, self.rotate_max = float(scale_std), float(rotate_max)
        self.aniso_std, self.xfrac_std = float(aniso_std), float(xfrac_std)
        # Colour.
        self.brightness, self.contrast, self.lumaflip = float(brightness), float(contrast), float(lumaflip)
        self.hue, self.saturation = float(hue), float(saturation)
        self.brightness_std, self.contrast_std = float(brightness_std), float(contrast_std)
        self.hue_max, self.saturation_std = float(hue_max), float(saturation_std)
        # Filtering and corruption.
        self.imgfilter, self.imgfilter_std = float(imgfilter), float(imgfilter_std)
        self.imgfilter_bands = [float(strength) for strength in imgfilter_bands]
        self.noise, self.cutout = float(noise), float(cutout)
        self.noise_std, self.cutout_size = float(noise_std), float(cutout_size)
        if len(self.imgfilter_bands) != len(_BAND_POWER):
            raise ValueError(f"imgfilter_bands has {len(self.imgfilter_bands)} numbers, expected {len(_BAND_POWER)}")
        self.register_buffer("Hz_geom", upfirdn2d.setup_filter(_SYM6))
        self.register_buffer("Hz_fbank", torch.as_tensor(filter_bank(), dtype=torch.float32))

    def _apply(self, fn, *args, **kwargs):
        """Move the module to another device or type, but keep `p` on the host, where transforms are drawn."""
        p = self.p
        super()._apply(fn, *args, **kwargs)
        self.p = p
        return self

    def forward(self, images: Tensor, debug_percentile: Optional[float] = None) -> Tensor:
        """Transform images only; see `run`."""
        return self.run(images, debug_percentile=debug_percentile).images

    def run(
        self,
        images: Tensor,
        maps: Optional[Dict[int, Tensor]] = None,
        debug_percentile: Optional[float] = None,
    ) -> AugmentOutput:
        """Transform images, and apply the same geometric transforms to feature maps of them (as GGDR does).

        Args:
            images:           [N, C, H, W] in about [-1, 1], with 1 or 3 channels.
            maps:             Feature maps [N, C_r, r, r] of these images, by resolution r. Those above 128 are returned
                              unchanged.
            debug_percentile: None = random transforms. A number from 0 to 1 = all transforms happen, and each parameter
                              is this percentile of its distribution.
        """
        n = images.shape[0]
        if debug_percentile is None:
            draws = TransformDraws(n, float(self.p))
        else:
            draws = PercentileDraws(n, float(debug_percentile))
        return self.transform(images, maps or {}, draws)

    def transform(self, images: Tensor, maps: Dict[int, Tensor], draws: TransformDraws) -> AugmentOutput:
        """As `run`, with the given source of random numbers."""
        t = self.draw(draws, num_channels=images.shape[1])
        if t.geometry is not None:
            images = warp_images(images, t.geometry, self.Hz_geom)
            maps = {res: warp_maps(x, t.geometry, self.Hz_geom) if res <= _MAX_MAP_RES else x
                    for res, x in maps.items()}
        if t.color is not None:
            images = transform_colors(images, t.color)
        if t.gains is not None:
            images = filter_bands(images, t.gains, self.Hz_fbank)
        if t.noise_sigma is not None:
            images = images + draws.normal_image(images) * _upload(t.noise_sigma, images)[:, None, None, None]
        if t.cutout is not None:
            images = cut_out(images, t.cutout)
        return AugmentOutput(images, maps)

    # Drawing.

    @misc.profiled_function
    def draw(self, draws: TransformDraws, *, num_channels: int) -> Transforms:
        """Draw one transform for each image."""
        if num_channels not in (1, 3):
            raise ValueError(f"augmentation of images with {num_channels} channels, expected 1 or 3")
        return Transforms(
            geometry=self._draw_geometry(draws),
            color=self._draw_color(draws, num_channels),
            gains=self._draw_gains(draws) if self.imgfilter > 0 else None,
            noise_sigma=self._draw_noise(draws) if self.noise > 0 else None,
            cutout=self._draw_cutout(draws) if self.cutout > 0 else None,
        )

    def _draw_geometry(self, draws: TransformDraws) -> Optional[Geometry]:
        if max(self.xflip, self.rotate90, self.xint, self.scale, self.rotate, self.aniso, self.xfrac) <= 0:
            return None
        n, p = draws.n, draws.p
        blit, warp = _identities(n, 2), _identities(n, 2)
        blit_shift, shift = np.zeros([n, 2]), np.zeros([n, 2])
        if self.xflip > 0:
            i = np.floor(draws.uniform("xflip_value") * 2)
            i = np.where(draws.happens("xflip_gate", self.xflip * p), i, 0)
            blit = blit @ _scalings(1 - 2 * i, np.ones(n))
        if self.rotate90 > 0:
            i = np.floor(draws.uniform("rotate90_value") * 4)
            i = np.where(draws.happens("rotate90_gate", self.rotate90 * p), i, 0)
            blit = blit @ _rotations(i * (np.pi / 2))
        if self.xint > 0:
            t = (draws.uniform("xint_value", 2) * 2 - 1) * self.xint_max
            blit_shift = t * draws.happens("xint_gate", self.xint * p)[:, None]
        if self.scale > 0:
            s = np.exp2(draws.normal("scale_value") * self.scale_std)
            s = np.where(draws.happens("scale_gate", self.scale * p), s, 1)
            warp = warp @ _scalings(1 / s, 1 / s)
        # There are two rotations, one before and one after the stretching. With probability rotate * p, at least one
        # of them happens.
        p_rotate = 1 - np.sqrt(np.clip(1 - self.rotate * p, 0, 1))
        if self.rotate > 0:
            theta = (draws.uniform("rotate_pre_value") * 2 - 1) * np.pi * self.rotate_max
            warp = warp @ _rotations(np.where(draws.happens("rotate_pre_gate", p_rotate), theta, 0))
        if self.aniso > 0:
            s = np.exp2(draws.normal("aniso_value") * self.aniso_std)
            s = np.where(draws.happens("aniso_gate", self.aniso * p), s, 1)
            warp = warp @ _scalings(1 / s, s)
        if self.rotate > 0:
            theta = (draws.post_rotation() * 2 - 1) * np.pi * self.rotate_max
            warp = warp @ _rotations(np.where(draws.happens("rotate_post_gate", p_rotate), theta, 0))
        if self.xfrac > 0:
            t = draws.normal("xfrac_value", 2) * self.xfrac_std
            shift = t * draws.happens("xfrac_gate", self.xfrac * p)[:, None]
        return Geometry(blit, blit_shift, warp, shift)

    def _draw_color(self, draws: TransformDraws, num_channels: int) -> Optional[np.ndarray]:
        n, p = draws.n, draws.p
        gray = np.outer(_GRAY_AXIS, _GRAY_AXIS)
        linear, offset = _identities(n, 3), np.zeros([n, 3])
        if self.brightness > 0:
            b = draws.normal("brightness_value") * self.brightness_std
            offset = offset + np.where(draws.happens("brightness_gate", self.brightness * p), b, 0)[:, None]
        if self.contrast > 0:
            s = np.exp2(draws.normal("contrast_value") * self.contrast_std)
            s = np.where(draws.happens("contrast_gate", self.contrast * p), s, 1)
            linear, offset = linear * s[:, None, None], offset * s[:, None]
        steps = []
        if self.lumaflip > 0:
            i = np.floor(draws.uniform("lumaflip_value") * 2)
            i = np.where(draws.happens("lumaflip_gate", self.lumaflip * p), i, 0)
            steps.append(np.eye(3) - 2 * gray * i[:, None, None])
        if self.hue > 0 and num_channels > 1:
            theta = (draws.uniform("hue_value") * 2 - 1) * np.pi * self.hue_max
            steps.append(_turns(np.where(draws.happens("hue_gate", self.hue * p), theta, 0)))
        if self.saturation > 0 and num_channels > 1:
            s = np.exp2(draws.normal("saturation_value") * self.saturation_std)
            s = np.where(draws.happens("saturation_gate", self.saturation * p), s, 1)
            steps.append(gray + (np.eye(3) - gray) * s[:, None, None])
        for step in steps:
            linear, offset = step @ linear, (step @ offset[:, :, None])[:, :, 0]
        idle = (linear == np.eye(3)).all() and not offset.any()
        return None if idle else np.concatenate([linear, offset[:, :, None]], axis=2)

    def _draw_gains(self, draws: TransformDraws) -> Optional[np.ndarray]:
        gains = np.ones([draws.n, len(_BAND_POWER)])
        for i, strength in enumerate(self.imgfilter_bands):
            t = np.exp2(draws.normal(f"imgfilter{i}_value") * self.imgfilter_std)
            t = np.where(draws.happens(f"imgfilter{i}_gate", self.imgfilter * draws.p * strength), t, 1)
            band = np.ones_like(gains)
            band[:, i] = t
            gains *= band / np.sqrt((_BAND_POWER * band**2).sum(axis=1, keepdims=True))
        return None if (gains == 1).all() else gains

    def _draw_noise(self, draws: TransformDraws) -> Optional[np.ndarray]:
        sigma = draws.half_normal("noise_sigma_value") * self.noise_std
        sigma = np.where(draws.happens("noise_gate", self.noise * draws.p), sigma, 0)
        return sigma if sigma.any() else None

    def _draw_cutout(self, draws: TransformDraws) -> Optional[np.ndarray]:
        size = np.where(draws.happens("cutout_gate", self.cutout * draws.p), self.cutout_size, 0)
        centre = draws.uniform("cutout_center", 2)
        return np.concatenate([centre, size[:, None]], axis=1) if size.any() else None


# ----------------------------------------------------------------------------------------------------------------------
# Matrices, all [N, ...] float64 on the host.


def _identities(n: int, size: int) -> np.ndarray:
    return np.tile(np.eye(size), [n, 1, 1])


def _scalings(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.stack([x, y], axis=1)[:, :, None] * np.eye(2)


def _rotations(theta: np.ndarray) -> np.ndarray:
    cos, sin = np.cos(theta), np.sin(theta)
    return np.stack([np.stack([cos, -sin], axis=1), np.stack([sin, cos], axis=1)], axis=1)


def _turns(theta: np.ndarray) -> np.ndarray:
    """Rotations of colours around the gray axis v: Rodrigues' formula, cos I + sin [v]x + (1 - cos) v v'."""
    x, y, z = _GRAY_AXIS
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    cos, sin = np.cos(theta)[:, None, None], np.sin(theta)[:, None, None]
    return cos * np.eye(3) + sin * cross + (1 - cos) * np.outer(_GRAY_AXIS, _GRAY_AXIS)


def filter_bank() -> np.ndarray:
    """Four zero-phase filters that split a signal into octaves and add up to it, float64 [4, 43] (appendix B).

    With L and H = 1 - L the squared magnitudes of a low-pass and its high-pass wavelet filter, the bands from the
    lowest are L(z) L(z^2) L(z^4), L(z) L(z^2) H(z^4), L(z) H(z^2) and H(z).
    """
    low = np.convolve(_SYM2, _SYM2[::-1]) / 2
    signs = (-1.0) ** np.arange(len(_SYM2))
    high = np.convolve(_SYM2 * signs, (_SYM2 * signs)[::-1]) / 2
    below = np.ones([1])  # Low-pass filter of all octaves so far.
    bands = []
    for octave in range(3):
        bands.append(np.convolve(below, _spread(high, 2**octave)))
        below = np.convolve(below, _spread(low, 2**octave))
    bands.append(below)
    padded = [np.pad(band, (len(below) - len(band)) // 2) for band in bands]
    return np.stack(padded[::-1])


def _spread(taps: np.ndarray, factor: int) -> np.ndarray:
    """The filter f(z^factor)."""
    result = np.zeros([(len(taps) - 1) * factor + 1])
    result[::factor] = taps
    return result


# ----------------------------------------------------------------------------------------------------------------------
# Applying, on the device.


def _upload(array: np.ndarray, like: Tensor, dtype: Optional[torch.dtype] = None) -> Tensor:
    """Copy an array to the device and type of `like`, without waiting for the device."""
    tensor = torch.from_numpy(array).to(like.dtype if dtype is None else dtype)
    if like.device.type != "cpu" and torch.cuda.is_available():
        tensor = tensor.pin_memory()
    return tensor.to(like.device, non_blocking=True)


def _inverse_maps(geometry: Geometry, width: int, height: int) -> Tuple[np.ndarray, np.ndarray]:
    """x_in = linear x_out + offset, in pixels from the centre: [N, 2, 2] and [N, 2]."""
    size = np.array([width, height])
    linear = geometry.blit @ geometry.warp
    moved = geometry.warp @ (geometry.shift * size)[:, :, None] + np.round(geometry.blit_shift * size)[:, :, None]
    return linear, -(geometry.blit @ moved)[:, :, 0]


def _margins(linear: np.ndarray, offset: np.ndarray, width: int, height: int, support: int) -> Tuple[int, ...]:
    """How many pixels the warps read beyond the left, right, top and bottom edge, limited to what reflection allows."""
    cx, cy = (width - 1) / 2, (height - 1) / 2
    corners = np.array([[-cx, cx, cx, -cx], [-cy, -cy, cy, cy]])
    where = linear @ corners + offset[:, :, None]  # [N, 2, 4]
    x0, y0 = -where.min(axis=(0, 2))
    x1, y1 = where.max(axis=(0, 2))
    beyond = np.ceil(np.array([x0 - cx, x1 - cx, y0 - cy, y1 - cy]) + support)
    return tuple(int(m) for m in np.clip(beyond, 0, [width - 1, width - 1, height - 1, height - 1]))


@misc.profiled_function
def warp_images(images: Tensor, geometry: Geometry, wavelet: Tensor) -> Tensor:
    """Warp images at twice their resolution. The wavelet filter limits the bandwidth on the way up and down.

    Images that do not move are returned unchanged, at no cost.
    """
    moved = np.flatnonzero(geometry.moves())
    if len(moved) == 0:
        return images
    if len(moved) == len(images):
        return _warp(images, geometry, wavelet, lambda x: upfirdn2d.upsample2d(x, wavelet, up=2))
    index = _upload(moved, images, dtype=torch.int64)
    warped = warp_images(images.index_select(0, index), geometry.take(moved), wavelet)
    return images.index_copy(0, index, warped)


@misc.profiled_function
def warp_maps(maps: Tensor, geometry: Geometry, wavelet: Tensor) -> Tensor:
    """Warp feature maps with bilinear up-sampling, as in GGDR's program. This smooths even maps that do not move."""
    x = maps.to(torch.float32)
    doubled = lambda x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
    return _warp(x, geometry, wavelet, doubled).to(maps.dtype)


def _warp(x: Tensor, geometry: Geometry, wavelet: Tensor, double) -> Tensor:
    n, channels, height, width = x.shape
    reach = wavelet.shape[0] // 4  # Pixels that the filter reaches on either side at the original resolution.
    linear, offset = _inverse_maps(geometry, width, height)
    left, right, top, bottom = _margins(linear, offset, width, height, 2 * reach)
    x = double(F.pad(x, [left, right, top, bottom], mode="reflect"))
    offset = 2 * (offset + np.array([left - right, top - bottom]) / 2)
    # The wavelet is not symmetric: it shifts the doubled image by half a pixel, which down-sampling undoes.
    offset = linear @ np.full([2], 0.5) + offset - 0.5
    # Positions as affine_grid wants them: from -1 to 1 between the outer edges.
    size_in = np.array([x.shape[3], x.shape[2]])
    size_out = np.array([(width + 2 * reach) * 2, (height + 2 * reach) * 2])
    theta = np.concatenate([linear * size_out / size_in[:, None], offset[:, :, None] * 2 / size_in[:, None]], axis=2)
    shape = [n, channels, int(size_out[1]), int(size_out[0])]
    x = grid_sample(x, F.affine_grid(_upload(theta, x), shape, align_corners=False))
    return upfirdn2d.downsample2d(x, wavelet, down=2, padding=-2 * reach, flip_filter=True)


def transform_colors(images: Tensor, color: np.ndarray) -> Tensor:
    """Apply affine transforms [N, 3, 4] of RGB. Grayscale images get their effect on gray, averaged over RGB."""
    n, channels, height, width = images.shape
    if channels == 1:
        color = color.mean(axis=1, keepdims=True)
        color = np.stack([color[:, :, :3].sum(axis=2), color[:, :, 3]], axis=2)
    matrix = _upload(color, images)
    flat = torch.baddbmm(matrix[:, :, channels:], matrix[:, :, :channels], images.reshape(n, channels, height * width))
    return flat.reshape(images.shape)


@misc.profiled_function
def filter_bands(images: Tensor, gains: np.ndarray, bank: Tensor) -> Tensor:
    """Filter each image, along both axes, with the sum of the bank's filters [4, taps] times its gains [N, 4]."""
    n, channels, height, width = images.shape
    taps = bank.shape[1]
    kernels = (_upload(gains, images) @ bank.to(images.dtype)).repeat_interleave(channels, dim=0)  # [N * C, taps]
    x = reflect_pad(images, taps // 2).reshape(1, n * channels, height + taps - 1, width + taps - 1)
    x = F.conv2d(x, kernels[:, None, None, :], groups=n * channels)
    x = F.conv2d(x, kernels[:, None, :, None], groups=n * channels)
    return x.reshape(images.shape)


def reflect_pad(images: Tensor, margin: int) -> Tensor:
    """Pad by reflection at the outer pixels. Reflects repeatedly if the image is smaller than the margin."""
    for dim in (2, 3):
        size = images.shape[dim]
        position = np.arange(-margin, size + margin) % max(2 * size - 2, 1)
        index = np.minimum(position, 2 * size - 2 - position)
        images = images.index_select(dim, misc.constant(index, dtype=torch.int64, device=images.device))
    return images


def cut_out(images: Tensor, cutout: np.ndarray) -> Tensor:
    """Set a square of each image to 0; `cutout` [N, 3] has centre x, y and size, in units of the image's size."""
    _, _, height, width = images.shape
    inside = []
    for axis, size in ((0, width), (1, height)):
        distance = np.abs((np.arange(size) + 0.5) / size - cutout[:, axis : axis + 1])
        inside.append(distance < cutout[:, 2:] / 2)  # [N, size]
    inside_x, inside_y = _upload(np.concatenate(inside, axis=1), images, dtype=torch.bool).split([width, height], dim=1)
    return images.masked_fill(inside_x[:, None, None, :] & inside_y[:, None, :, None], 0)


# ----------------------------------------------------------------------------------------------------------------------
# R1 differentiates bilinear sampling twice, which PyTorch itself can do only from version 2.13 on. Sampling is linear
# in the image: its derivative is its adjoint, and the derivative of the adjoint is sampling.


def grid_sample(x: Tensor, grid: Tensor) -> Tensor:
    """Sample x [N, C, H, W] bilinearly at grid [N, H', W', 2]; 0 outside. The grid gets no gradient."""
    return _GridSample.apply(x, grid.to(x.dtype))


class _GridSample(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, grid):
        ctx.save_for_backward(grid)
        ctx.size = x.shape[2:]
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    @staticmethod
    def backward(ctx, dy):
        (grid,) = ctx.saved_tensors
        return _GridSampleAdjoint.apply(dy, grid, ctx.size), None


class _GridSampleAdjoint(torch.autograd.Function):
    @staticmethod
    def forward(ctx, dy, grid, size):
        ctx.save_for_backward(grid)
        x = dy.new_empty([*dy.shape[:2], *size])  # Only its shape matters.
        bilinear, zeros = 0, 0
        return torch.ops.aten.grid_sampler_2d_backward(dy, x, grid, bilinear, zeros, False, [True, False])[0]

    @staticmethod
    def backward(ctx, ddx):
        (grid,) = ctx.saved_tensors
        return _GridSample.apply(ddx, grid), None, None
