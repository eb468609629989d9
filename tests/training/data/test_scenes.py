import dataclasses
import math

import numpy as np
import pytest
from PIL import Image, ImageDraw

from training.data.scenes import (
    BACKGROUNDS,
    CLASS_NAMES,
    LEVELS,
    RESOLUTIONS,
    SIMPLE_CLASS_NAMES,
    SIMPLE_COLORS,
    TEXTURES,
    Objects,
    describe_scenes,
    draw_scenes,
    render,
    shape_distance,
    uniform_draws,
)

NUM_CLASSES = len(CLASS_NAMES)
CANVAS = 400


def to_canvas(points):
    """Shape coordinates (v up, -1.25..1.25) to pixels of a canvas."""
    return [((u / 1.25 + 1) / 2 * CANVAS, (1 - v / 1.25) / 2 * CANVAS) for u, v in points]


def circle(radius, u=0.0, v=0.0):
    angles = np.radians(np.linspace(0, 360, 720))
    return [(u + radius * math.cos(a), v + radius * math.sin(a)) for a in angles]


def silhouette(name):
    """The shape, drawn as polygons: a second route to what signed distances say."""
    image = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(image)

    def fill(points, value=255):
        draw.polygon(to_canvas(points), fill=value)

    if name == "disc":
        fill(circle(0.84))
    elif name == "ring":
        fill(circle(0.88)), fill(circle(0.44), 0)
    elif name == "square":
        fill([(0.72, 0.72), (-0.72, 0.72), (-0.72, -0.72), (0.72, -0.72)])
    elif name == "triangle":
        fill([(0, 0.94), (0.9007, -0.62), (-0.9007, -0.62)])
    elif name == "cross":
        for a, b in ((0.88, 0.27), (0.27, 0.88)):
            fill([(a, b), (-a, b), (-a, -b), (a, -b)])
    elif name == "heart":
        side = math.sqrt(0.5)  # Half the diagonal of the square.
        fill([(0, side - 0.12), (side, -0.12), (0, -side - 0.12), (-side, -0.12)])
        for sign in (1, -1):
            fill(circle(0.5, sign * side / 2, side / 2 - 0.12))
    else:
        raise AssertionError(name)
    return np.asarray(image) > 0


def plane(side=CANVAS, extent=1.25):
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    return np.meshgrid(axis * extent, -axis * extent)


def overlap(a, b):
    return (a & b).sum() / (a | b).sum()


@pytest.mark.parametrize("shape", range(NUM_CLASSES), ids=CLASS_NAMES)
def test_shape_is_what_its_name_says(shape):
    distance = shape_distance(shape, *plane())
    assert distance.dtype == np.float32
    overlaps = [overlap(distance < 0, silhouette(name)) for name in CLASS_NAMES]
    assert overlaps[shape] > 0.98
    assert max(overlaps[:shape] + overlaps[shape + 1 :]) < 0.93


@pytest.mark.parametrize("shape", range(NUM_CLASSES), ids=CLASS_NAMES)
def test_distance_has_unit_slope_at_the_edge(shape):
    distance = shape_distance(shape, *plane()).astype(np.float64)
    step = 2.5 / CANVAS
    slope = np.hypot(*np.gradient(distance, step))
    edge = np.abs(distance) < step
    assert edge.sum() > 500
    assert np.mean(np.abs(slope[edge] - 1) < 0.05) > 0.93  # Not at corners.


def without_second(scenes):
    return scenes._replace(second_place=np.zeros_like(scenes.second_place))


def main_masks(scenes, side):
    """Where the main object is, from the silhouettes, by its description: bool [N, side, side]."""
    main = scenes.main
    masks = []
    for i, shape in enumerate(main.shape):
        x, y = plane(side, 1)
        x, y = (x - main.centre[i, 0]) / main.size[i], (-y - main.centre[i, 1]) / main.size[i]
        cos, sin = math.cos(main.angle[i]), math.sin(main.angle[i])
        u, v = x * cos - y * sin, -(x * sin + y * cos)
        col = np.floor((u / 1.25 + 1) / 2 * CANVAS).astype(int)
        row = np.floor((1 - v / 1.25) / 2 * CANVAS).astype(int)
        inside = (col >= 0) & (col < CANVAS) & (row >= 0) & (row < CANVAS)
        mask = np.zeros([side, side], dtype=bool)
        mask[inside] = silhouette(CLASS_NAMES[shape])[row[inside], col[inside]]
        masks.append(mask)
    return np.array(masks)


def test_label_is_the_shape_that_is_drawn():
    indices = np.arange(60)
    scenes = without_second(describe_scenes(indices, seed=3))
    _, labels = draw_scenes(indices, resolution=64, seed=3)
    np.testing.assert_array_equal(labels, scenes.main.shape)
    # What changes where the main object is painted in two other colours is the object, and nothing else.
    colors = [np.full([60, 3], value, dtype=np.float32) for value in (0.2, 0.9)]
    drawn = [
        render(scenes._replace(main=dataclasses.replace(scenes.main, color_a=c, color_b=c)), resolution=64).astype(int)
        for c in colors
    ]
    changed = np.abs(drawn[0] - drawn[1]).max(axis=3) > 50
    masks = main_masks(scenes, 64)
    overlaps = [overlap(a, b) for a, b in zip(changed, masks)]
    assert len(set(labels.tolist())) == NUM_CLASSES
    assert min(overlaps) > 0.8 and np.mean(overlaps) > 0.93


def test_main_object_is_inside_larger_and_mostly_visible():
    scenes = describe_scenes(np.arange(3000))
    assert (scenes.second.size < 0.6 * scenes.main.size).all()
    assert (np.abs(scenes.main.centre) + 0.6 * scenes.main.size[:, None] < 1).all()
    some = np.flatnonzero(scenes.second_place == 2)[:80]
    scenes = describe_scenes(some)
    colors = [np.full([len(some), 3], value, dtype=np.float32) for value in (0.2, 0.9)]
    shares = []
    for place in (0, 2):
        drawn = [
            render(
                scenes._replace(
                    main=dataclasses.replace(scenes.main, color_a=c, color_b=c),
                    second_place=np.full(len(some), place),
                ),
                resolution=32,
            ).astype(int) for c in colors
        ]
        shares.append((np.abs(drawn[0] - drawn[1]).max(axis=3) > 50).sum(axis=(1, 2)))
    visible = shares[1] / shares[0]
    assert visible.min() > 0.4 and 0.7 < visible.mean() < 0.99


def test_simple_scenes_are_what_their_labels_say():
    labels = draw_scenes(np.arange(2000), resolution=8, level="simple")[1]
    assert np.bincount(labels, minlength=len(SIMPLE_CLASS_NAMES)).min() > 35
    images = draw_scenes(np.arange(150), resolution=64, level="simple")[0].astype(int)
    objects = np.abs(images - [20, 20, 31]).max(axis=3) > 24
    assert 0.2 < objects.mean() < 0.5 and objects[:, [0, -1]].mean() < 0.02    # large, and hardly at the border
    for image, label, is_object in zip(images, labels, objects):
        color, shape = SIMPLE_CLASS_NAMES[label].split()
        median = np.median(image[is_object], axis=0)
        distances = {name: np.abs(median / median.max() - np.array(rgb) / max(rgb)).sum()
                     for name, rgb in SIMPLE_COLORS.items()}
        assert min(distances, key=distances.get) == color
        share = is_object.sum() / (is_object.any(axis=0).sum() * is_object.any(axis=1).sum())
        assert share == pytest.approx({"disc": 0.785, "square": 1, "triangle": 0.5, "heart": 0.7}[shape], abs=0.06)


@pytest.mark.parametrize("level", LEVELS)
def test_scene_depends_on_seed_and_index_alone(level):
    images, labels = draw_scenes(np.arange(400), resolution=32, seed=1, level=level)
    for part in (np.arange(7), np.array([399]), np.array([250, 3, 128]), np.arange(100, 300)):
        some_images, some_labels = draw_scenes(part, resolution=32, seed=1, level=level)
        np.testing.assert_array_equal(some_images, images[part])
        np.testing.assert_array_equal(some_labels, labels[part])
    other, _ = draw_scenes(np.arange(400), resolution=32, seed=2, level=level)
    assert not (images == other).all(axis=(1, 2, 3)).any()
    big, _ = draw_scenes(np.arange(5), resolution=256, seed=1, level=level)
    np.testing.assert_array_equal(draw_scenes(np.array([4]), resolution=256, seed=1, level=level)[0][0], big[4])


def test_draws_are_uniform_and_independent():
    draws = uniform_draws(np.arange(4000), 0, 60)
    assert draws.min() >= 0 and draws.max() < 1
    for values in (draws, np.diff(draws, axis=0) % 1, np.diff(draws, axis=1) % 1):
        counts = np.histogram(values, bins=50, range=(0, 1))[0]
        expected = values.size / 50
        assert ((counts - expected) ** 2 / expected).sum() < 110  # Chi-square, 49 degrees of freedom.
    correlation = np.corrcoef(draws.T) - np.eye(60)
    assert np.abs(correlation).max() < 0.08
    assert np.unique(uniform_draws(np.array([0, 2**40, 2**62]), 2**63 - 1, 3)).size == 9


@pytest.mark.parametrize("large, small, mean_bound, high_bound", [(64, 32, 1, 25), (256, 32, 1, 30), (32, 8, 4.5, 65)])
def test_resolutions_show_the_same_scene(large, small, mean_bound, high_bound):
    indices = np.arange(120)
    a, labels_a = draw_scenes(indices, resolution=large)
    b, labels_b = draw_scenes(indices, resolution=small)
    np.testing.assert_array_equal(labels_a, labels_b)
    k = large // small
    reduced = a.reshape(len(a), small, k, small, k, 3).mean(axis=(2, 4))
    error = np.abs(reduced - b)
    other = np.abs(reduced - np.roll(b, 1, axis=0)).mean()
    assert error.mean() < mean_bound < other / 10
    assert np.percentile(error, 99.9) < high_bound


def test_variety():
    count = 6000
    images, labels = draw_scenes(np.arange(count), resolution=16)
    classes = np.bincount(labels, minlength=NUM_CLASSES)
    assert ((classes - count / NUM_CLASSES) ** 2 / (count / NUM_CLASSES)).sum() < 40  # 5 degrees of freedom.
    scenes = describe_scenes(np.arange(count))
    assert np.bincount(scenes.main.texture, minlength=len(TEXTURES)).min() > 0.1 * count
    assert np.bincount(scenes.background.kind, minlength=len(BACKGROUNDS)).min() > 0.07 * count
    assert np.bincount(scenes.second_place, minlength=3).min() > 0.25 * count
    assert len(np.unique(images.reshape(count, -1), axis=0)) == count
    assert (images.reshape(count, -1).std(axis=1) > 8).all()  # Not one image is nearly of one color.
    spectrum = np.linalg.svd(images.reshape(count, -1) / 255 - (images / 255).mean(axis=0).reshape(-1),
                             compute_uv=False) ** 2
    assert np.searchsorted(np.cumsum(spectrum) / spectrum.sum(), 0.9) > 40  # Principal components for 90 % of variance.
    assert (np.percentile(images, 1), np.percentile(images, 99)) <= (60, 255) and np.percentile(images, 99) > 225


def test_resolutions_and_types():
    for resolution in RESOLUTIONS:
        images, labels = draw_scenes(np.array([5, 6]), resolution=resolution)
        assert images.shape == (2, resolution, resolution, 3) and images.dtype == np.uint8 and labels.dtype == np.int64
    assert draw_scenes(np.arange(0), resolution=8)[0].shape == (0, 8, 8, 3)
    with pytest.raises(ValueError, match="resolution 48"):
        draw_scenes(np.arange(1), resolution=48)
    assert isinstance(describe_scenes(np.arange(1)).main, Objects)
