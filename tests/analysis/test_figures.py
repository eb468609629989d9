"""The numbers behind the figures, against closed forms."""

import types

import numpy as np
import pytest
import torch

from analysis import feature_maps
from analysis.attention import attend, attended_area, overlay, pick_resolution
from analysis.fairness import Sample, draw_sample, judge, left_out, realness
from analysis.neighbours import find_neighbours, typical_distance
from analysis.reconstructions import compare, mean_quality, reconstruction_rows
from dataset_fakes import noise, save
from dnnlib.util import UserError
from sampling.images import seed_latents, to_pixels
from small_networks import make_discriminator, make_generator
from training.data.dataset import ImageFolderDataset
from training.perceptual import PixelMSE


class TinyD(torch.nn.Module):
    """Features of an image x: x pooled to 4x4, and -2 times that; the score is 3 sum(first) + 1 sum(second)."""

    block_resolutions = [8]
    minibatch_group = 4
    c_dim, img_channels, img_resolution = 0, 1, 8

    def __init__(self):
        super().__init__()
        self.b8 = Pooling()
        self.weights = torch.nn.Parameter(torch.tensor([3.0, 1.0]), requires_grad=False)

    def forward(self, img, c, force_fp32=False):
        x, _ = self.b8(img)
        own = torch.einsum("c,nchw->n", self.weights, x)
        return (own + 5 * (own.sum() - own))[:, None]    # scores depend on the other images, too


class Pooling(torch.nn.Module):
    def forward(self, img):
        pooled = torch.nn.functional.avg_pool2d(img, 2)
        return torch.cat([pooled, -2 * pooled], dim=1), None


def test_attention_in_closed_form():
    """The mean gradients are 3 and 1, so that the map is ReLU(3 x - 2 x) = ReLU(x)."""
    img = torch.randn(3, 1, 8, 8)
    pooled = torch.nn.functional.avg_pool2d(img, 2)[:, 0].double().numpy()
    found = attend(TinyD(), img, torch.zeros(3, 0), res=4)
    np.testing.assert_allclose(found.maps, np.maximum(pooled, 0), atol=1e-6)
    assert found.scores.shape == (3,)


def test_attention_of_a_discriminator():
    D = make_discriminator(c_dim=2)
    img, c = torch.randn(5, 3, 16, 16), torch.eye(2)[torch.zeros(5, dtype=torch.long)]
    found = attend(D, img, c, res=8)
    assert found.maps.shape == (5, 8, 8) and (found.maps >= 0).all() and found.maps.max() > 0
    order = [0, 1, 2, 3, 4, 0, 1, 2]    # whole groups of four
    np.testing.assert_allclose(found.scores, D(img[order], c[order])[:5, 0], atol=1e-5)
    assert not D._forward_hooks and not D.b16._forward_hooks


def test_area_of_the_attention():
    spot, ramp = np.zeros([4, 4]), np.arange(1, 5).reshape(2, 2)
    spot[1, 2] = 7
    assert attended_area(spot) == 1 / 16
    assert attended_area(np.ones([4, 4])) == 13 / 16
    assert attended_area(ramp) == 3 / 4 and attended_area(ramp, 0.7) == 2 / 4
    assert np.isnan(attended_area(np.zeros([4, 4])))
    image = np.full([8, 8, 3], 100, np.uint8)
    assert (overlay(image, np.zeros([4, 4])) == 100).all() and overlay(image, spot).std() > 0


def test_resolution_of_the_attention():
    def sized(res):
        return types.SimpleNamespace(block_resolutions=[2**k for k in range(int(np.log2(res)), 2, -1)])

    assert [pick_resolution(sized(res), None) for res in (16, 32, 128, 256)] == [8, 16, 64, 64]
    assert pick_resolution(sized(256), 128) == 128
    with pytest.raises(UserError, match="--res is 32, and D has feature maps of 4, 8, 16 pixels a side"):
        pick_resolution(sized(32), 32)


def test_colours_of_features():
    """Equal directions have equal colours in all maps, whatever their lengths; three components use the whole range."""
    first = torch.randn(2, 5, 8, 8)
    colours = feature_maps.to_colours([first, 7 * first[:1], torch.randn(1, 5, 4, 4)])
    assert [c.shape for c in colours] == [(2, 8, 8, 3), (1, 8, 8, 3), (1, 4, 4, 3)]
    np.testing.assert_array_equal(colours[0][:1], colours[1])
    assert colours[0].min() == 0 and colours[0].max() == 255


def test_features_of_networks():
    G, D = make_generator(), make_discriminator()
    ws = G.mapping(torch.randn(3, 8), None)
    img, of_g = feature_maps.generator_features(G, ws, res=8)
    assert torch.equal(of_g, G.synthesis.run(ws, keep=[8], noise_mode="const").states[8].x)
    f = feature_maps.decoder_features(D, img, res=8)
    np.testing.assert_allclose(f, D.run(torch.cat([img, img[:1]]), None).f[:3], atol=1e-6)
    assert f.shape == of_g.shape
    ggdr = make_discriminator(decoder_out_channel=0)
    levels = ggdr.run(img[[0, 1, 2, 0]]).fmaps
    np.testing.assert_allclose(feature_maps.decoder_features(ggdr, img, res=8), levels[8][:3], atol=1e-6)
    assert [feature_maps.find_resolution(net, name="x") for net in (D, ggdr, make_discriminator(res_g=4))] == [8, 8, 4]
    with pytest.raises(UserError, match="x: its D has no decoder"):
        feature_maps.find_resolution(make_discriminator(decoder_res=None), name="x")


def test_neighbours():
    train = torch.tensor([[0.0, 0], [3, 4], [6, 8], [100, 0]])
    found = find_neighbours(torch.tensor([[3.0, 4], [0, 1]]), train, k=2)
    assert found.indices.tolist()[0][0] == 1 and found.indices.tolist()[1] == [0, 1]
    np.testing.assert_allclose(found.distances, [[0, 5], [1, 18**0.5]])
    assert typical_distance(train[:3]) == 5


def test_quality_of_reconstructions():
    """SSIM of two flat images is (2 a b + c) / (a^2 + b^2 + c), with c = (0.01 * 255)^2."""
    rng = np.random.RandomState(0)
    noise = rng.randint(0, 256, [1, 16, 16, 3]).astype(np.uint8)
    flat = np.full([1, 16, 16, 3], 100, np.uint8)
    equal, = compare(noise, noise, PixelMSE())
    assert (equal.perceptual, equal.psnr, equal.ssim) == (0, float("inf"), pytest.approx(1))
    found, = compare(flat, flat + 20, PixelMSE())
    c = 2.55**2
    assert found.ssim == pytest.approx((2 * 100 * 120 + c) / (100**2 + 120**2 + c))
    assert found.psnr == pytest.approx(20 * np.log10(255 / 20)) and found.perceptual == pytest.approx((20 / 127.5) ** 2)
    assert mean_quality([found, found._replace(ssim=0)]).ssim == pytest.approx(found.ssim / 2)


def test_reconstructions_stand_below_their_images():
    G, D = make_generator(c_dim=2), make_discriminator(c_dim=2)
    pixels = np.random.RandomState(0).randint(0, 256, [9, 3, 16, 16]).astype(np.uint8)
    rows = reconstruction_rows("net", G, D, Sample(pixels, torch.eye(2)[[0, 1] * 4 + [0]]))
    assert [row.label for row in rows] == ["unseen real\nnet", "rebuilt\nPSNR", "generated\nnet", "rebuilt\nPSNR"]
    np.testing.assert_array_equal(rows[0].images, pixels[:8].transpose(0, 2, 3, 1))
    fakes = G(seed_latents(range(8), G.z_dim), torch.eye(2)[[0, 1] * 4], noise_mode="const")
    np.testing.assert_array_equal(rows[2].images, to_pixels(fakes))
    for images, rebuilt in (rows[0], rows[1]), (rows[2], rows[3]):
        errors = [np.square(a.astype(float) - b).mean() for a, b in zip(images.images, rebuilt.images)]
        assert rebuilt.captions == [f"{10 * np.log10(255**2 / error):.1f} dB" for error in errors]


class Brightness(torch.nn.Module):
    """The score is the mean of the image."""

    minibatch_group = 4

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, img, c):
        assert len(img) % 4 == 0 or len(img) < 4
        return img.mean(dim=[1, 2, 3])[:, None]


def test_what_d_makes_of_images():
    def sample(*levels):
        pixels = np.stack([np.full([3, 16, 16], level, np.uint8) for level in levels])
        return Sample(pixels, torch.zeros(len(levels), 0))

    found = judge(make_generator(), Brightness(), sample(255, 255, 0), sample(255, 0, 0, 0, 0), batch=2)
    assert (found.train_score, found.held_out_score) == pytest.approx((1 / 3, -3 / 5))
    assert (found.train_accuracy, found.held_out_accuracy) == pytest.approx((2 / 3, 1 / 5))
    assert found.gap == pytest.approx(1 / 3 + 3 / 5) and 0 <= found.fake_accuracy <= 1
    scores = realness(Brightness(), torch.ones(6, 3, 4, 4) * torch.arange(6)[:, None, None, None], torch.zeros(6, 0))
    assert scores.tolist() == [0, 1, 2, 3, 4, 5]


def test_images_that_a_subset_left_out(tmp_path):
    for index in range(10):
        save(tmp_path / f"data/{index}.png", noise(index))
    dataset = ImageFolderDataset(tmp_path / "data", max_size=7, random_seed=3)
    rest = left_out(dataset)
    taken = {dataset.get_details(index).raw_idx for index in range(7)}
    assert sorted([*rest, *taken]) == list(range(10))
    assert len(draw_sample(dataset, range(7), count=5, seed=0).pixels) == 5
    with pytest.raises(UserError, match="left no images out"):
        left_out(dataset.replace(max_size=None))
