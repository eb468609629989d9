"""Procedurally drawn scenes with exact class labels: data for trying things out without downloading any.

A scene of the full level has a main object, whose shape is the class, often a smaller second object in front of or
behind it, textures, shading and a background. A scene of the simple level is one plain object on a dark ground; its
colour and shape are the class. Scene i is a function of (seed, i) alone. It is drawn from formulas, which average edges
and textures over the width of a pixel. So a small drawing looks like a large one scaled down.

The formulas for pixels use only operations that IEEE 754 rounds exactly: no sines, no matrix products. So pixels do not
depend on how scenes are grouped into batches.
"""

import dataclasses
import math
from typing import Callable, NamedTuple, TypeVar

import numpy as np

SIMPLE_SHAPES = ("disc", "square", "triangle", "heart")
SIMPLE_COLORS = {
    "red": (0.92, 0.18, 0.18), "yellow": (0.98, 0.88, 0.20), "green": (0.25, 0.80, 0.30), "blue": (0.25, 0.40, 0.95),
}
SIMPLE_CLASS_NAMES = tuple(f"{color} {shape}" for shape in SIMPLE_SHAPES for color in SIMPLE_COLORS)
TEXTURES = ("plain", "stripes", "checks")
RESOLUTIONS = (8, 16, 32, 64, 128, 256)

_PIXELS_AT_ONCE = 1 << 17   # Pixels drawn at a time, few enough to stay in the processor's cache.
_NUM_DRAWS = 48             # Random numbers that describe a scene, without the places of blobs.
_NUM_BLOBS = 4
_NUM_SPARE = 3 * _NUM_BLOBS     # Random numbers for the places of blobs in the background.


# --- Shapes: signed distances in units of the object's size, negative inside. Near the edge they are exact, as
# anti-aliasing needs. Far from it some are lower bounds, which are good enough for shading. v points up.


def _disc(u: np.ndarray, v: np.ndarray, radius: float = 0.84) -> np.ndarray:
    return np.sqrt(u * u + v * v) - np.float32(radius)


def _ring(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return np.abs(_disc(u, v, 0.66)) - np.float32(0.22)


def _box(u: np.ndarray, v: np.ndarray, half_u: float, half_v: float) -> np.ndarray:
    a, b = np.abs(u) - np.float32(half_u), np.abs(v) - np.float32(half_v)
    outside_a, outside_b = np.maximum(a, 0), np.maximum(b, 0)
    return np.sqrt(outside_a * outside_a + outside_b * outside_b) + np.minimum(np.maximum(a, b), 0)


def _square(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return _box(u, v, 0.72, 0.72)


def _triangle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    v = v + np.float32(0.1)  # Centred by eye: the centroid of a triangle lies low.
    return np.maximum(np.abs(u) * np.float32(math.sqrt(3) / 2) + v * np.float32(0.5), -v) - np.float32(0.52)


def _cross(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    u, v = np.abs(u), np.abs(v)
    return np.maximum(np.maximum(u, v) - np.float32(0.88), np.minimum(u, v) - np.float32(0.27))


def _heart(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # A square on its corner, with half discs on its two upper sides.
    half = 0.5
    v = v + np.float32(0.12)
    a, b = (u + v) * np.float32(math.sqrt(0.5)), (v - u) * np.float32(math.sqrt(0.5))
    lobes = np.minimum(_disc(a - np.float32(half), b, half), _disc(a, b - np.float32(half), half))
    return np.minimum(_box(a, b, half, half), lobes)


_SHAPES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "disc": _disc, "ring": _ring, "square": _square, "triangle": _triangle, "cross": _cross, "heart": _heart,
}
CLASS_NAMES = tuple(_SHAPES)


def shape_distance(shape: int, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance to the outline of class `shape` in its own coordinates (v up, extent about [-1, 1]), float32."""
    return _SHAPES[CLASS_NAMES[shape]](np.asarray(u, np.float32), np.asarray(v, np.float32))


# --- Descriptions of scenes: every field has one entry (or row) per scene.


_T = TypeVar("_T", bound="_Columns")


class _Columns:
    def take(self: _T, index: np.ndarray) -> _T:
        """The rows of some scenes."""
        return type(self)(**{name: column[index] for name, column in vars(self).items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Objects(_Columns):
    shape: np.ndarray       # int64 [N], index into CLASS_NAMES.
    texture: np.ndarray     # int64 [N], index into TEXTURES.
    centre: np.ndarray      # float32 [N, 2] (x, y); the image is [-1, 1] x [-1, 1], y down.
    size: np.ndarray        # float32 [N], half the extent.
    angle: np.ndarray       # float64 [N], radians, counter-clockwise.
    color_a: np.ndarray     # float32 [N, 3], RGB in 0..1.
    color_b: np.ndarray     # float32 [N, 3], the second colour of the texture.
    frequency: np.ndarray   # float32 [N], texture periods per object size.
    phase: np.ndarray       # float32 [N], offset of the texture in periods.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backgrounds(_Columns):
    kind: np.ndarray        # int64 [N], index into BACKGROUNDS.
    color_a: np.ndarray     # float32 [N, 3].
    color_b: np.ndarray     # float32 [N, 3].
    angle: np.ndarray       # float64 [N], direction of gradients and stripes.
    draws: np.ndarray       # float32 [N, _NUM_SPARE] in 0..1: places of blobs, or frequency and phase of stripes.


class Scenes(NamedTuple):
    main: Objects
    second: Objects
    second_place: np.ndarray    # int64 [N]: 0 = there is none, 1 = behind the main object, 2 = in front of it.
    background: Backgrounds
    light: np.ndarray           # float32 [N, 2], unit vector towards the light.
    label: np.ndarray           # int64 [N], index into the class names of the level.


class Level(NamedTuple):
    """How varied scenes are."""

    class_names: tuple[str, ...]
    describe: Callable[..., Scenes]     # Has the arguments of `describe_scenes`.


def uniform_draws(indices: np.ndarray, seed: int, count: int) -> np.ndarray:
    """Counter-based random numbers in [0, 1): float64 [N, count]. Row i is a function of (seed, indices[i]) alone.

    Bits are mixed by the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), once for each part of the key.
    """

    def mix(x: np.ndarray) -> np.ndarray:
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    gamma = np.uint64(0x9E3779B97F4A7C15)
    key = mix(np.array([seed], dtype=np.uint64) + gamma)
    key = mix(key + gamma * (np.asarray(indices).astype(np.uint64) + np.uint64(1)))
    bits = mix(key[:, None] + gamma * np.arange(1, count + 1, dtype=np.uint64))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def describe_scenes(indices: np.ndarray, *, seed: int = 0) -> Scenes:
    """Describe scenes of the full level, for `render`.

    Args:
        indices: Numbers of the scenes, int [N], non-negative.
        seed:    Non-negative.
    """
    draws = uniform_draws(indices, seed, _NUM_DRAWS + _NUM_SPARE)
    draws, spare = draws[:, :_NUM_DRAWS], draws[:, _NUM_DRAWS:]
    column = iter(range(_NUM_DRAWS))

    def draw(low: float = 0.0, high: float = 1.0) -> np.ndarray:
        return low + (high - low) * draws[:, next(column)]

    def choice(*weights: float) -> np.ndarray:
        return np.searchsorted(np.cumsum(weights)[:-1] / np.sum(weights), draw(), side="right")

    size = draw(0.46, 0.8)
    room = 1.02 - 0.9 * size  # Only the outermost corners of the object may leave the image.
    main = _describe_objects(draw, choice, size, np.stack([draw(-1, 1) * room, draw(-1, 1) * room], axis=1))
    second_size = size * draw(0.36, 0.56)
    direction, distance = draw(0, 2 * math.pi), size * draw(0.75, 1.3)
    offset = np.stack([np.cos(direction), np.sin(direction)], axis=1) * distance[:, None]
    # If the second object would leave the image, it goes to the other side of the main one.
    offset = np.where(np.abs(main.centre + offset) > 0.95, -offset, offset)
    second = _describe_objects(draw, choice, second_size, main.centre + offset)
    second_place = choice(0.4, 0.3, 0.3)
    background = _describe_backgrounds(draw, choice, _luminance(main.color_a), spare)
    light_angle = draw(math.radians(30), math.radians(150))
    light = np.stack([np.cos(light_angle), -np.sin(light_angle)], axis=1).astype(np.float32)
    return Scenes(main, second, second_place, background, light, label=main.shape)


def describe_simple_scenes(indices: np.ndarray, *, seed: int = 0) -> Scenes:
    """Describe scenes of the simple level, as `describe_scenes`. Small networks learn such scenes within minutes."""
    draws = uniform_draws(indices, seed, 5)
    n, zeros = len(draws), np.zeros([len(draws)])
    size = 0.74 + 0.12 * draws[:, 0]
    centre = (draws[:, 1:3] * 2 - 1) * (1 - size)[:, None]
    shape, color = ((draws[:, 3:] * [len(SIMPLE_SHAPES), len(SIMPLE_COLORS)]).astype(np.int64)).T
    rgb = np.array(list(SIMPLE_COLORS.values()), np.float32)[color]
    main = Objects(
        shape=np.array([CLASS_NAMES.index(name) for name in SIMPLE_SHAPES])[shape],
        texture=np.zeros([n], np.int64),
        centre=centre.astype(np.float32),
        size=size.astype(np.float32),
        angle=zeros,
        color_a=rgb,
        color_b=rgb,
        frequency=zeros.astype(np.float32),
        phase=zeros.astype(np.float32),
    )
    dark = np.tile(np.array([0.08, 0.08, 0.12], np.float32), [n, 1])
    background = Backgrounds(kind=np.zeros([n], np.int64), color_a=dark, color_b=dark, angle=zeros,
                             draws=np.zeros([n, _NUM_SPARE], np.float32))
    light = np.tile(np.array([-0.6, -0.8], np.float32), [n, 1])
    no_second = np.zeros([n], np.int64)
    return Scenes(main, main, no_second, background, light, label=shape * len(SIMPLE_COLORS) + color)


LEVELS = {"full": Level(CLASS_NAMES, describe_scenes), "simple": Level(SIMPLE_CLASS_NAMES, describe_simple_scenes)}


def _describe_objects(draw: Callable, choice: Callable, size: np.ndarray, centre: np.ndarray) -> Objects:
    shape = choice(*[1] * len(CLASS_NAMES))
    texture = choice(*[1] * len(TEXTURES))
    hue, value = draw(), draw(0.72, 1.0)
    color_a = _from_hsv(hue, draw(0.5, 0.95), value)
    # The texture's second colour: another hue, and darker or lighter than the first.
    darker = draw() < 0.5
    color_b = _from_hsv(hue + draw(-0.25, 0.25), np.where(darker, draw(0.5, 0.9), draw(0.05, 0.3)),
                        np.where(darker, value * draw(0.35, 0.6), 1.0))
    return Objects(
        shape=shape,
        texture=texture,
        centre=centre.astype(np.float32),
        size=size.astype(np.float32),
        angle=draw(0, 2 * math.pi),
        color_a=color_a,
        color_b=color_b,
        frequency=draw(1.5, 3.0).astype(np.float32),
        phase=draw().astype(np.float32),
    )


def _describe_backgrounds(
    draw: Callable, choice: Callable, main_luminance: np.ndarray, spare: np.ndarray
) -> Backgrounds:
    kind = choice(*[1] * len(BACKGROUNDS))
    hue = draw()
    color_a = _from_hsv(hue, draw(0.15, 0.7), draw(0.35, 0.98))
    color_b = _from_hsv(hue + draw(-0.25, 0.25), draw(0.1, 0.7), draw(0.35, 0.98))
    color_a, color_b = (_contrasting(color, main_luminance) for color in (color_a, color_b))
    return Backgrounds(kind=kind, color_a=color_a, color_b=color_b, angle=draw(0, 2 * math.pi),
                       draws=spare.astype(np.float32))


def _contrasting(color: np.ndarray, luminance: np.ndarray) -> np.ndarray:
    """Change colours that are about as bright as the main object: darker if it is bright, lighter if it is dark."""
    close = np.abs(_luminance(color) - luminance) < 0.22
    darker, lighter = color * np.float32(0.5), color * np.float32(0.45) + np.float32(0.55)
    moved = np.where((luminance > 0.5)[:, None], darker, lighter)
    return np.where(close[:, None], moved, color).astype(np.float32)


def _luminance(color: np.ndarray) -> np.ndarray:
    return color[:, 0] * 0.299 + color[:, 1] * 0.587 + color[:, 2] * 0.114


def _from_hsv(hue: np.ndarray, saturation: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Colours, RGB in 0..1, float32 [N, 3], from hue (1 = a full turn), saturation and value in 0..1, each [N]."""
    # As a function of the hue, each channel is a trapezoid. The three differ by a shift.
    offsets = np.array([0.0, 1 / 3, 2 / 3])
    distance = np.abs((hue[:, None] - offsets + 0.5) % 1.0 - 0.5)  # To the hue where the channel is strongest.
    ramp = np.clip(2 - 6 * distance, 0, 1)
    return (value[:, None] * (1 - saturation[:, None] * (1 - ramp))).astype(np.float32)


# --- Drawing. Arrays of pixels are float32 [N, R, R]; the canvas is [N, 3, R, R].


def draw_scenes(
    indices: np.ndarray, *, resolution: int, seed: int = 0, level: str = "full"
) -> tuple[np.ndarray, np.ndarray]:
    """Describe and draw scenes.

    Args:
        indices:    Numbers of the scenes, int [N], non-negative.
        resolution: Side of the images, one of RESOLUTIONS.
        seed:       Non-negative.
        level:      One of LEVELS.

    Returns:
        Images uint8 [N, R, R, 3] and labels int64 [N], indices into the class names of the level.
    """
    if resolution not in RESOLUTIONS:
        raise ValueError(f"resolution {resolution}, expected one of {', '.join(map(str, RESOLUTIONS))}")
    indices = np.asarray(indices)
    images = np.empty([len(indices), resolution, resolution, 3], dtype=np.uint8)
    labels = np.empty([len(indices)], dtype=np.int64)
    step = max(_PIXELS_AT_ONCE // resolution**2, 1)
    for begin in range(0, len(indices), step):
        part = slice(begin, begin + step)
        scenes = LEVELS[level].describe(indices[part], seed=seed)
        images[part] = render(scenes, resolution=resolution)
        labels[part] = scenes.label
    return images, labels


def render(scenes: Scenes, *, resolution: int) -> np.ndarray:
    """Draw described scenes: uint8 [N, R, R, 3]."""
    canvas = _draw_backgrounds(scenes.background, resolution)
    behind, in_front = np.flatnonzero(scenes.second_place == 1), np.flatnonzero(scenes.second_place == 2)
    _draw_objects(canvas, behind, scenes.second.take(behind), scenes.light[behind])
    _draw_objects(canvas, np.arange(len(canvas)), scenes.main, scenes.light)
    _draw_objects(canvas, in_front, scenes.second.take(in_front), scenes.light[in_front])
    canvas *= np.float32(255)
    canvas += np.float32(0.5)
    np.clip(canvas, 0, 255, out=canvas)
    return canvas.astype(np.uint8).transpose(0, 2, 3, 1)


def _axis(resolution: int) -> np.ndarray:
    """Centres of pixels along one side, from -1 to 1, float32 [R]."""
    return ((np.arange(resolution) * 2 + 1) / resolution - 1).astype(np.float32)


def _column(values: np.ndarray) -> np.ndarray:
    """One value per scene, [N] => float32 [N, 1, 1]."""
    return values.astype(np.float32)[:, None, None]


def _wave(t: np.ndarray, width: np.ndarray) -> np.ndarray:
    """A square wave of period 1 between 0 and 1, averaged over `width` around t."""

    def integral(x: np.ndarray) -> np.ndarray:
        """The integral of a wave that is +1 in the first half of each period, and -1 in the second."""
        return np.float32(0.5) - np.abs(x - np.floor(x) - np.float32(0.5))

    half = width * np.float32(0.5)
    return (integral(t + half) - integral(t - half)) / (2 * width) + np.float32(0.5)


def _draw_objects(canvas: np.ndarray, targets: np.ndarray, objects: Objects, light: np.ndarray) -> None:
    """Draw objects[i] on canvas[targets[i]], all objects of a shape at once."""
    resolution = canvas.shape[-1]
    for shape in np.unique(objects.shape):
        members = np.flatnonzero(objects.shape == shape)
        some, some_light = objects.take(members), light[members]
        u, v, x, y = _local_coordinates(some, resolution)
        inside = shape_distance(int(shape), u, v)   # In units of the object's size, as all lengths below.
        pixel = _column(2 / (resolution * some.size.astype(np.float64)))
        cover = np.clip(np.float32(0.5) - inside / pixel, 0, 1)
        mixture = _textures(some, u, v, pixel)
        shade, gloss = _shading(inside, x, y, some_light)
        # A soft dark seam around the object sets it off from what is behind. Beyond sharp corners, where `inside` is
        # too small, the distance from the object's circle limits the seam.
        reach = np.maximum(np.sqrt(u * u + v * v) - 1, 0)
        seam = np.clip(1 - (np.maximum(inside, 0) + reach * 2) * np.float32(4), 0, 1)
        keep = (1 - np.float32(0.35) * seam * seam) * (1 - cover)
        shade, gloss = shade * cover, gloss * cover
        color_difference = some.color_b - some.color_a
        background = canvas[targets[members]]
        for channel in range(3):
            color = mixture * _column(color_difference[:, channel]) + _column(some.color_a[:, channel])
            background[:, channel] = background[:, channel] * keep + color * shade + gloss
        canvas[targets[members]] = background


def _local_coordinates(objects: Objects, resolution: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates u, v, x, y in units of the object's size. (u, v) turn with it, v up; (x, y) do not, y down."""
    axis = _axis(resolution)
    x = (axis - objects.centre[:, :1]) / objects.size[:, None]   # [N, R]
    y = (axis - objects.centre[:, 1:]) / objects.size[:, None]
    cos, sin = _column(np.cos(objects.angle)), _column(np.sin(objects.angle))
    x, y = x[:, None, :], y[:, :, None]
    return x * cos - y * sin, -x * sin - y * cos, x, y


def _shading(
    distance: np.ndarray, x: np.ndarray, y: np.ndarray, light: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A factor, which is smaller at the rim and away from the light, and a highlight to add."""
    light_x, light_y = _column(light[:, 0]), _column(light[:, 1])
    rim = np.clip(1 + distance * np.float32(5), 0, 1)
    shade = np.float32(0.86) + np.float32(0.2) * (x * light_x + y * light_y) - np.float32(0.22) * rim * rim
    dx, dy = x - np.float32(0.3) * light_x, y - np.float32(0.3) * light_y
    gloss = np.maximum(1 - np.float32(3.5) * (dx * dx + dy * dy), 0)
    return shade, np.float32(0.2) * gloss * gloss


def _textures(objects: Objects, u: np.ndarray, v: np.ndarray, pixel: np.ndarray) -> np.ndarray:
    """The share of the second colour in each pixel, 0..1."""
    mixture = np.zeros_like(u)
    for texture in np.unique(objects.texture):
        kind = TEXTURES[texture]
        members = np.flatnonzero(objects.texture == texture)
        if kind != "plain":
            frequency, phase = _column(objects.frequency[members]), _column(objects.phase[members])
            mixture[members] = _texture(kind, u[members], v[members], frequency, phase, pixel[members])
    return mixture


def _texture(
    kind: str, u: np.ndarray, v: np.ndarray, frequency: np.ndarray, phase: np.ndarray, pixel: np.ndarray
) -> np.ndarray:
    if kind == "stripes":
        return _wave(u * frequency + phase, pixel * frequency)
    frequency = frequency * np.float32(0.7)
    first, second = _wave(u * frequency + phase, pixel * frequency), _wave(v * frequency + phase, pixel * frequency)
    return first + second - 2 * first * second


def _draw_backgrounds(backgrounds: Backgrounds, resolution: int) -> np.ndarray:
    mixture = np.zeros([len(backgrounds.kind), resolution, resolution], dtype=np.float32)
    for kind in np.unique(backgrounds.kind):
        members = np.flatnonzero(backgrounds.kind == kind)
        mixture[members] = _BACKGROUND_FIELDS[BACKGROUNDS[kind]](backgrounds.take(members), resolution)
    canvas = np.empty([len(mixture), 3, resolution, resolution], dtype=np.float32)
    axis = _axis(resolution)
    # Corners are a little darker than the middle, as in photographs.
    vignette = np.float32(1.04) - np.float32(0.12) * (axis * axis + (axis * axis)[:, None])
    difference = backgrounds.color_b - backgrounds.color_a
    for channel in range(3):
        color = mixture * _column(difference[:, channel]) + _column(backgrounds.color_a[:, channel])
        canvas[:, channel] = color * vignette
    return canvas


def _along(backgrounds: Backgrounds, resolution: int) -> np.ndarray:
    """The coordinate of each pixel along the background's direction, about -1..1."""
    axis = _axis(resolution)
    cos, sin = _column(np.cos(backgrounds.angle)), _column(np.sin(backgrounds.angle))
    return axis[None, None, :] * cos + axis[None, :, None] * sin


def _plain_field(backgrounds: Backgrounds, resolution: int) -> np.ndarray:
    return np.zeros([len(backgrounds.kind), 1, 1], dtype=np.float32)


def _gradient_field(backgrounds: Backgrounds, resolution: int) -> np.ndarray:
    return np.clip(np.float32(0.5) + np.float32(0.5) * _along(backgrounds, resolution), 0, 1)


def _stripes_field(backgrounds: Backgrounds, resolution: int) -> np.ndarray:
    frequency = 1 + 2 * _column(backgrounds.draws[:, 0])
    t = _along(backgrounds, resolution) * frequency + _column(backgrounds.draws[:, 1])
    return _wave(t, frequency * np.float32(2 / resolution)) * np.float32(0.7)


def _blobs_field(backgrounds: Backgrounds, resolution: int) -> np.ndarray:
    axis = _axis(resolution)
    total = np.zeros([len(backgrounds.kind), resolution, resolution], dtype=np.float32)
    for blob in range(_NUM_BLOBS):
        place = backgrounds.draws[:, 3 * blob : 3 * blob + 3]
        x = axis - (place[:, :1] * 2 - 1)  # [N, R]
        y = axis - (place[:, 1:2] * 2 - 1)
        radius = np.float32(0.4) + np.float32(0.5) * place[:, 2:3]
        bump = np.maximum(1 - ((x * x)[:, None, :] + (y * y)[:, :, None]) / (radius * radius)[:, :, None], 0)
        total += bump * bump
    return np.minimum(total, 1)


_BACKGROUND_FIELDS: dict[str, Callable[[Backgrounds, int], np.ndarray]] = {
    "plain": _plain_field, "gradient": _gradient_field, "stripes": _stripes_field, "blobs": _blobs_field,
}
BACKGROUNDS = tuple(_BACKGROUND_FIELDS)
