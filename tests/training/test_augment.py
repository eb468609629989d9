"""The augmentation pipe against golden numbers, closed forms, and second routes."""

import copy
import io
import pickle

import numpy as np
import pytest
import scipy.special
import torch
import torch.nn.functional as F

from torch_utils.formats import read_networks
from torch_utils.formats.network_pickle import save_network_pkl
from training import augment
from training.augment import AugmentPipe, Geometry, PercentileDraws, TransformDraws
from training.networks import Generator

GEOMETRY = ("xflip", "rotate90", "xint", "scale", "rotate", "aniso", "xfrac")
COLOR = ("brightness", "contrast", "lumaflip", "hue", "saturation")
OTHERS = ("imgfilter", "noise", "cutout")
ALL = dict.fromkeys(GEOMETRY + COLOR + OTHERS, 1)


class StoredNoise(PercentileDraws):
    def __init__(self, n, percentile, noise):
        super().__init__(n, percentile)
        self.noise = noise

    def normal_image(self, images):
        return self.noise


class StoredDraws(TransformDraws):
    def __init__(self, p, draws):
        super().__init__(4, p)
        self.draws = draws
        self.asked = set()

    def uniform(self, name, *size):
        self.asked.add(name)
        return self.draws[name].numpy().reshape(self.n, *size).astype(np.float64)

    normal = uniform

    def normal_image(self, images):
        self.asked.add("noise_image")
        return self.draws["noise_image"]


def random_images(*shape, seed=0, dtype=torch.float32):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1


# Golden numbers.


def test_golden_filters(golden):
    g = golden("augment/pipes.npz")
    pipe = AugmentPipe()
    g.compare("out/filters/Hz_geom", pipe.Hz_geom)
    g.compare("out/filters/Hz_fbank", pipe.Hz_fbank)


def test_golden_pipes(golden):
    g = golden("augment/pipes.npz")
    images = g.get("in/images")
    for name, spec in g.meta["specs"].items():
        for p in g.meta["percentiles"]:
            draws = StoredNoise(len(images), p, g.get("in/noise_randn"))
            g.compare(f"out/{name}/p{p}", AugmentPipe(**spec).transform(images, {}, draws).images)


def test_golden_gradient(golden):
    g = golden("augment/pipes.npz")
    images = g.get("in/images").requires_grad_()
    bgcf = {name: strength for name, strength in g.meta["specs"]["bgcfnc"].items() if name not in ("noise", "cutout")}
    out = AugmentPipe(**bgcf)(images, debug_percentile=0.9)
    (grad,) = torch.autograd.grad((out * g.get("in/cot")).sum(), images)
    g.compare("out/bgcf_grad/dx", grad)


def test_golden_feature_maps(golden):
    g = golden("augment/gfeat_glead.npz")
    images = g.get("in/images")
    maps = {res: g.get(f"in/feat{res}") for res in (8, 16)}
    for name, spec in g.meta["specs"].items():
        for p in g.meta["percentiles"]:
            draws = StoredNoise(len(images), p, g.get("in/noise_randn"))
            out = AugmentPipe(**spec).transform(images, maps, draws)
            g.compare(f"out/{name}/p{p}/images", out.images)
            for res in maps:
                g.compare(f"out/{name}/p{p}/feat{res}", out.maps[res])


def test_golden_random_path(golden):
    """Every image has transforms of its own, gates included."""
    g = golden("augment/replay_random.npz")
    draws = StoredDraws(g.meta["p"], {name: g.get(f"in/draw/{name}") for name, _, _ in g.meta["draw_order"]})
    out = AugmentPipe(**g.meta["spec"]).transform(g.get("in/images"), {}, draws)
    g.compare("out/images_out", out.images)
    assert draws.asked == set(draws.draws)


# What the transforms are.


class Chosen(TransformDraws):
    """All transforms happen where the gate's name is listed; values are given by name, else neutral."""

    def __init__(self, n, **values):
        super().__init__(n, 1.0)
        self.values = values

    def uniform(self, name, *size):
        return np.full([self.n, *size], 0.0) + self.values.get(name, 0.5)

    def normal(self, name, *size):
        return np.full([self.n, *size], 0.0) + self.values.get(name, 0.0)

    def happens(self, name, probability):
        return np.full([self.n], name.replace("_gate", "_value") in self.values)


def chosen(images, pipe=None, **values):
    pipe = pipe or AugmentPipe(**{name: 1 for name in GEOMETRY + COLOR + ("imgfilter", "cutout")})
    return pipe.transform(images, {}, Chosen(len(images), **values)).images


def wave(x, y):
    """A smooth picture; coordinates from the centre, in units of the size."""
    return torch.sin(11 * x + 1) * torch.cos(7 * y - 2)


def sampled_wave(size, dtype=torch.float32):
    t = (torch.arange(size, dtype=dtype) + 0.5) / size - 0.5
    return t[None, :], t[:, None], wave(t[None, :], t[:, None])[None, None]


def test_blitting_moves_pixels():
    """Shifts do so exactly, except where pixels come in; mirror images differ a little: the wavelet is asymmetric."""
    x = random_images(2, 3, 16, 16, dtype=torch.float64)
    pipe = AugmentPipe(xflip=1, rotate90=1, xint=1).double()
    out = chosen(x, pipe, xint_value=np.array([1.0, 0.5]))  # an eighth of the size to the right
    expected = torch.cat([x[:, :, :, 1:3].flip(3), x[:, :, :, :-2]], dim=3)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)
    _, _, image = sampled_wave(64, torch.float64)
    inner = (..., slice(8, 56), slice(8, 56))
    close = dict(rtol=0, atol=2e-2)  # the slope is 0.17 a pixel: a tenth of one
    torch.testing.assert_close(chosen(image, pipe, xflip_value=0.7)[inner], image.flip(3)[inner], **close)
    for turns in range(4):
        out = chosen(image, pipe, rotate90_value=(turns + 0.5) / 4)
        torch.testing.assert_close(out[inner], torch.rot90(image, turns, [2, 3])[inner], **close)


@pytest.mark.parametrize("values, source", [
    ({"scale_value": np.array(1.0)}, lambda x, y, s: (x / s, y / s)),           # enlarges by 2 ** 0.2
    ({"aniso_value": np.array(-1.0)}, lambda x, y, s: (x * s, y / s)),
    ({"xfrac_value": np.array([0.8, -0.4])}, lambda x, y, s: (x - 0.1, y + 0.05)),
    ({"rotate_pre_value": 0.625}, lambda x, y, s: ((x - y) / 2**0.5, (x + y) / 2**0.5)),    # an eighth of a turn
])
def test_warps_of_a_smooth_image(values, source):
    """A band-limited function, resampled, is that function elsewhere; compared away from the border."""
    x, y, image = sampled_wave(64)
    expected = wave(*source(x, y, 2**0.2))
    inner = slice(20, 44)
    torch.testing.assert_close(chosen(image, **values)[0, 0, inner, inner], expected[inner, inner], rtol=0, atol=1e-2)
    assert (image[0, 0] - expected)[inner, inner].abs().max() > 0.2  # it did move


def test_colors():
    x = random_images(3, 3, 8, 8)
    torch.testing.assert_close(chosen(x, brightness_value=0.5), x + 0.1)
    torch.testing.assert_close(chosen(x, contrast_value=2.0), x * 2)
    luma = x.mean(1, keepdim=True)
    torch.testing.assert_close(chosen(x, lumaflip_value=0.9), x - 2 * luma)
    torch.testing.assert_close(chosen(x, saturation_value=1.0), luma + (x - luma) * 2)
    # A third of a turn takes red to green, green to blue, blue to red.
    torch.testing.assert_close(chosen(x, hue_value=(2 / 3 + 1) / 2), x[:, [2, 0, 1]])
    # In this order: brightness first, then contrast.
    torch.testing.assert_close(chosen(x, brightness_value=0.5, contrast_value=2.0), (x + 0.1) * 2)


def test_gray_images_get_brightness_and_contrast_but_no_hue():
    x = random_images(2, 1, 8, 8)
    torch.testing.assert_close(chosen(x, brightness_value=0.5, contrast_value=2.0), (x + 0.1) * 2)
    torch.testing.assert_close(chosen(x, lumaflip_value=0.9), -x)
    assert torch.equal(chosen(x, hue_value=0.9, saturation_value=2.0), x)
    with pytest.raises(ValueError, match="2 channels"):
        chosen(random_images(1, 2, 8, 8))


def test_filter_bank_splits_and_adds_up():
    bank = augment.filter_bank()
    impulse = np.zeros(43)
    impulse[21] = 1
    np.testing.assert_allclose(bank.sum(0), impulse, atol=1e-12)
    np.testing.assert_allclose(bank, bank[:, ::-1], atol=1e-12)  # zero phase
    response = np.abs(np.fft.rfft(bank, 1024))  # [4, 513], up to the Nyquist limit
    edges = [0, 64, 128, 256, 512]
    for band, (begin, end) in enumerate(zip(edges, edges[1:])):
        middle = (begin + end) // 2 if band else 0
        assert response[band, middle] > 0.7 and response.argmax(0)[middle] == band


def test_band_gains_act_on_their_frequencies():
    """A wave in the middle of the highest band is amplified like that band, and the constant part like the lowest."""
    x = torch.cos(torch.arange(32) * np.pi)[None, None, None].expand(1, 1, 32, 32)
    pipe = AugmentPipe(imgfilter=1).double()
    bank = pipe.Hz_fbank
    gains = np.array([[1.0, 1.0, 1.0, 3.0]])
    torch.testing.assert_close(augment.filter_bands(x.double(), gains, bank), 3 * x.double(), rtol=0, atol=1e-6)
    flat = torch.ones(1, 1, 32, 32, dtype=torch.float64)
    gains = np.array([[0.5, 9.0, 9.0, 9.0]])
    along_each_axis = augment.filter_bands(flat, gains, bank)
    torch.testing.assert_close(along_each_axis, 0.25 * flat, rtol=0, atol=1e-6)


def test_band_gains_keep_the_expected_power():
    gains = AugmentPipe(imgfilter=1).draw(TransformDraws(50, 1.0), num_channels=3).gains
    # Each of the four steps keeps it for what was white before; the first one alone does so exactly.
    one = AugmentPipe(imgfilter=1, imgfilter_bands=[0, 1, 0, 0]).draw(TransformDraws(50, 1.0), num_channels=3).gains
    power = (np.array([10, 1, 1, 1]) / 13 * one**2).sum(1)
    np.testing.assert_allclose(power, 1)
    assert gains.shape == (50, 4) and (gains.std(0) > 0).all()


def test_bands_of_strength_0_stay_as_they_are_at_a_percentile():
    only_second = AugmentPipe(imgfilter=1, imgfilter_bands=[0, 1, 0, 0])
    gains = only_second.draw(PercentileDraws(1, 0.9), num_channels=3).gains
    t = 2 ** scipy.special.erfinv(0.8)
    np.testing.assert_allclose(gains, [np.array([1, t, 1, 1]) / np.sqrt((12 + t**2) / 13)])


def test_small_images_are_reflected_as_often_as_it_takes():
    x = random_images(1, 2, 5, 5)
    assert torch.equal(augment.reflect_pad(x, 3), F.pad(x, [3] * 4, mode="reflect"))
    twice = F.pad(F.pad(x, [4] * 4, mode="reflect"), [4] * 4, mode="reflect")
    assert torch.equal(augment.reflect_pad(x, 8), twice)
    AugmentPipe(**ALL)(random_images(2, 3, 8, 8), debug_percentile=0.8)


def test_cutout_blanks_a_square():
    x = torch.ones(1, 3, 16, 16)
    out = chosen(x, cutout_value=0, cutout_center=np.array([0.5, 0.25]))
    expected = x.clone()
    expected[:, :, 0:8, 4:12] = 0
    assert torch.equal(out, expected)


def test_noise_has_the_drawn_deviation():
    pipe = AugmentPipe(noise=1)
    torch.manual_seed(0)
    out = pipe(torch.zeros(4, 3, 64, 64), debug_percentile=0.5)
    sigma = 0.1 * torch.erfinv(torch.tensor(0.5))
    torch.testing.assert_close(out.std(dim=[1, 2, 3]), sigma.expand(4), rtol=0.05, atol=0)


# Probabilities.


def test_strength_zero_changes_nothing_and_draws_follow_p():
    x = random_images(4, 3, 24, 24)
    pipe = AugmentPipe(**ALL)
    pipe.p.fill_(0)
    assert torch.equal(pipe(x), x)
    pipe.p.fill_(0.3)
    n = 4000
    t = pipe.draw(TransformDraws(n, 0.3), num_channels=3)
    g = t.geometry
    turned = ~(np.isclose(g.warp[:, 0, 1], 0) & np.isclose(g.warp[:, 1, 0], 0))
    rates = {
        "xint": (g.blit_shift != 0).any(1),     # each axis is drawn under one gate
        "xfrac": (g.shift != 0).any(1),
        "rotate": turned,                       # before or after: p in all
        "noise": t.noise_sigma > 0,
        "cutout": t.cutout[:, 2] > 0,
    }
    for name, happened in rates.items():
        assert abs(happened.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / n), name
    flipped_or_turned = ~np.isclose(g.blit, np.eye(2)).all((1, 2))
    expected = 1 - (1 - 0.3 * 1 / 2) * (1 - 0.3 * 3 / 4)  # a flip is one of two draws, a turn three of four
    assert abs(flipped_or_turned.mean() - (expected)) < 0.04


def test_images_that_stay_are_left_alone_because_resampling_reconstructs_them():
    x = random_images(2, 3, 32, 32)
    wavelet = AugmentPipe().Hz_geom
    idle = Geometry(np.tile(np.eye(2), [2, 1, 1]), np.zeros([2, 2]), np.tile(np.eye(2), [2, 1, 1]), np.zeros([2, 2]))
    assert augment.warp_images(x, idle, wavelet) is x
    resampled = augment._warp(x, idle, wavelet, lambda x: augment.upfirdn2d.upsample2d(x, wavelet))
    torch.testing.assert_close(resampled, x, rtol=0, atol=2e-5)
    shift = np.array([[0, 0], [0.1, 0]])
    one = augment.warp_images(x, idle._replace(shift=shift), wavelet)
    assert torch.equal(one[0], x[0])
    torch.testing.assert_close(one[1:], augment.warp_images(x[1:], idle.take([1])._replace(shift=shift[1:]), wavelet))


def test_draws_depend_on_the_seed_alone():
    x = random_images(3, 3, 16, 16)
    pipe = AugmentPipe(**ALL)
    torch.manual_seed(5)
    first = pipe(x)
    torch.manual_seed(5)
    assert torch.equal(pipe(x), first)
    assert not torch.equal(pipe(x), first)


# Feature maps.


def test_feature_map_that_is_the_image_moves_like_it():
    """A map that is the down-scaled image stays so: smooth images, all geometric transforms, at random."""
    size, n = 64, 16
    coarse = random_images(n, 3, 6, 6, seed=1)
    images = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)
    res = 16
    shrink = lambda x: F.avg_pool2d(x, size // res)
    torch.manual_seed(0)
    # Whole pixels of the image are fractions of the map's, and round differently there: no integer shifts.
    pipe = AugmentPipe(xflip=1, rotate90=1, scale=1, rotate=1, aniso=1, xfrac=1)
    out = pipe.run(images, {res: shrink(images)})
    expected = shrink(out.images)
    moved = (expected - shrink(images)).square().mean()
    error = (out.maps[res] - expected)[:, :, 2:-2, 2:-2].square().mean()
    # Bilinear doubling blurs the map a little. Another turn, or a shift by one of its pixels, is far outside.
    assert error < 0.05 * moved
    assert (out.maps[res].roll(1, 3) - expected)[:, :, 2:-2, 2:-2].square().mean() > 0.1 * moved


def test_feature_maps_of_other_kinds():
    pipe = AugmentPipe(**ALL)
    images = random_images(2, 3, 32, 32)
    large, half = torch.randn(2, 1, 256, 256), torch.randn(2, 4, 8, 8).half()
    out = pipe.run(images, {256: large, 8: half})
    assert out.maps[256] is large                       # above 128, as in GGDR's program
    assert out.maps[8].dtype == torch.float16 and out.maps[8].shape == half.shape
    assert pipe.run(images).maps == {}
    color_only = AugmentPipe(**dict.fromkeys(COLOR, 1)).run(images, {8: half}).maps[8]
    assert color_only is half


# Derivatives.


def test_gradcheck_and_gradgradcheck():
    pipe = AugmentPipe(**dict.fromkeys(GEOMETRY + COLOR + ("imgfilter", "cutout"), 1)).double()
    x = random_images(1, 3, 6, 6, dtype=torch.float64).requires_grad_()
    fn = lambda x: pipe(x, debug_percentile=0.7)
    assert torch.autograd.gradcheck(fn, (x,))
    assert torch.autograd.gradgradcheck(lambda x: fn(x).sin(), (x,))
    maps = random_images(1, 2, 4, 4, dtype=torch.float64).requires_grad_()
    geometry = pipe.draw(PercentileDraws(1, 0.7), num_channels=3).geometry
    assert torch.autograd.gradcheck(lambda m: augment._warp(m, geometry, pipe.Hz_geom, lambda v: F.interpolate(
        v, scale_factor=2, mode="bilinear")), (maps,))


def test_sampling_and_its_adjoint():
    """Against the native operation, whose first derivative serves as the oracle."""
    x = random_images(2, 3, 7, 5, dtype=torch.float64).requires_grad_()
    grid = random_images(2, 4, 6, 2, seed=3, dtype=torch.float64) * 1.2
    native = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    ours = augment.grid_sample(x, grid)
    assert torch.equal(ours, native)
    dy = random_images(*native.shape, seed=4, dtype=torch.float64)
    expected = torch.autograd.grad(native, x, dy)[0]
    torch.testing.assert_close(torch.autograd.grad(ours, x, dy)[0], expected, rtol=0, atol=1e-12)
    assert torch.autograd.gradgradcheck(lambda x: augment.grid_sample(x, grid).square(), (x,))


# Pickles and devices.


def test_pickles_travel(tmp_path):
    pipe = AugmentPipe(xflip=1, rotate=1, imgfilter=1, rotate_max=0.25)
    pipe.p.fill_(0.375)
    G = Generator(z_dim=4, c_dim=0, w_dim=4, img_resolution=8, img_channels=3, mapping_kwargs={"num_layers": 1},
                  synthesis_kwargs={"channel_base": 32, "channel_max": 4})
    save_network_pkl(tmp_path / "net.pkl", dict(G_ema=G, augment_pipe=pipe))
    with open(tmp_path / "net.pkl", "rb") as f:
        loaded = read_networks(f)["augment_pipe"]
    x = random_images(2, 3, 16, 16)
    assert float(loaded.p) == 0.375 and loaded.rotate_max == 0.25
    assert torch.equal(loaded(x, debug_percentile=0.7), pipe(x, debug_percentile=0.7))
    again = pickle.load(io.BytesIO(pickle.dumps(copy.deepcopy(pipe))))
    assert torch.equal(again(x, debug_percentile=0.7), pipe(x, debug_percentile=0.7))


def test_wrong_number_of_bands():
    with pytest.raises(ValueError, match="3 numbers, expected 4"):
        AugmentPipe(imgfilter_bands=[1, 1, 1])


def test_nothing_waits_for_the_device():
    """Transforms are drawn, and their margins found, from numbers of the host alone: the images are never looked at."""
    pipe = AugmentPipe(**ALL).to("meta")
    assert pipe.p.device.type == "cpu" and pipe.Hz_geom.is_meta
    x = torch.empty(4, 3, 32, 32, device="meta")
    out = pipe.run(x, {16: torch.empty(4, 7, 16, 16, device="meta")}, debug_percentile=0.8)
    assert out.images.shape == x.shape and out.maps[16].shape == (4, 7, 16, 16)


@pytest.mark.gpu
def test_gpu_agrees_with_cpu_without_synchronisation(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    x = random_images(8, 3, 64, 64)
    maps = {16: torch.randn(8, 32, 16, 16)}
    pipe = AugmentPipe(**dict.fromkeys(GEOMETRY + COLOR + ("imgfilter", "cutout"), 1))
    torch.manual_seed(1)
    expected = pipe.run(x, maps)
    pipe.to("cuda")
    on_gpu = x.cuda(), {16: maps[16].cuda()}
    pipe.run(*on_gpu)  # warms up
    torch.manual_seed(1)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out = pipe.run(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(out.images.cpu(), expected.images, rtol=0, atol=1e-3)
    torch.testing.assert_close(out.maps[16].cpu(), expected.maps[16], rtol=0, atol=1e-3)


