"""Tables of published settings: those of --cfg, augmentation, methods, and the papers' experiments."""

import os
import re
from typing import Any, Literal, NamedTuple

from metrics.published import DATASETS, find_dataset

from .schema import DatasetConfig, TaskConfig, Transform


class Preset(NamedTuple):
    """One row of the table. A value of "auto" follows from the resolution and the number of GPUs."""

    map_depth: int
    cbase: int | Literal["auto"]        # Channel base of G and D.
    cbase_task: int | Literal["auto"]   # "task": the same if D has a task (every method but stylegan2).
    cmax: int
    D_arch: Literal["orig", "skip", "resnet"]
    lr: float | Literal["auto"]         # Of G and D.
    r1_gamma: float | Literal["auto"]
    pl_weight: float
    mixing: float                       # Probability of style mixing.
    batch_size: int | Literal["auto"]
    batch_gpu: int | Literal["auto"]    # "gpu": the most images at once on one GPU, for any number of GPUs.
    mbstd: int | Literal["auto"]
    ema_kimg: float | Literal["auto"]
    rampup: float | None                # EMA ramp-up.
    total_kimg: float
    tick: float = 4                     # kimg per tick.
    snap: int = 50                      # Ticks per snapshot.
    metrics: tuple[str, ...] = ("fid50k_full",)


A = "auto"

# Sources:
#   auto           The automatic configuration of the StyleGAN2-ADA program (Karras et al. 2020): see `auto_preset`.
#   stylegan2      StyleGAN2's config F at 1024x1024 (Karras et al. 2020).
#   paper256       ADA paper: FFHQ and LSUN Cat at 256x256. The setting of GGDR and GLeaD.
#   paper512       ADA paper: BreCaHAD and AFHQ at 512x512.
#   paper1024      ADA paper: MetFaces at 1024x1024.
#   cifar          ADA paper: tuned for CIFAR-10. GGDR's and GLeaD's programs have a channel base of 16384 instead of
#                  32768. At 32x32, both give the same networks, because both reach the limit of 512 channels.
#   cifarbaseline  GGDR's program: cifar with StyleGAN2's D, mapping depth and regularisers.
#   quickstart     Ours: images of 16x16 or 32x32 on two CPU cores. Small networks, the shortcuts of cifar, strong R1, a
#                  short EMA. The values after kimg are tick, snap and metrics; the other rows use the defaults above.
_ROWS: dict[str, tuple[Any, ...]] = {
    #                 map cbase  task   cmax D_arch    lr      gamma pl mix  batch gpu mbstd ema  ramp  kimg
    "auto":          (2,  A,     A,     512, "resnet", A,      A,    2, 0.9, A,    A,  A,    A,   0.05, 25000),
    "stylegan2":     (8,  32768, 32768, 512, "resnet", 0.0020, 10,   2, 0.9, 32,   4,  4,    10,  None, 25000),
    "paper256":      (8,  16384, 16384, 512, "resnet", 0.0025, 1,    2, 0.9, 64,   8,  8,    20,  None, 25000),
    "paper512":      (8,  32768, 32768, 512, "resnet", 0.0025, 0.5,  2, 0.9, 64,   8,  8,    20,  None, 25000),
    "paper1024":     (8,  32768, 32768, 512, "resnet", 0.0020, 2,    2, 0.9, 32,   4,  4,    10,  None, 25000),
    "cifar":         (2,  32768, 16384, 512, "orig",   0.0025, 0.01, 0, 0.0, 64,   32, 32,   500, 0.05, 100000),
    "cifarbaseline": (8,  16384, 16384, 512, "resnet", 0.0025, 0.01, 2, 0.9, 64,   32, 32,   500, 0.05, 100000),
    "quickstart":    (2,  1024,  1024,  64,  "orig",   0.0030, 1,    0, 0.0, 32,   32, 4,    5,   0.05, 90,  5, 4, ()),
}
PRESETS = {name: Preset(*row) for name, row in _ROWS.items()}

# Sets of transforms: ADA paper, Sections 2.3 and 2.4. The paper chooses bgc.
_BLIT: tuple[Transform, ...] = ("xflip", "rotate90", "xint")
_GEOM: tuple[Transform, ...] = ("scale", "rotate", "aniso", "xfrac")
_COLOR: tuple[Transform, ...] = ("brightness", "contrast", "lumaflip", "hue", "saturation")
_FILTER: tuple[Transform, ...] = ("imgfilter",)
_NOISE: tuple[Transform, ...] = ("noise",)
_CUTOUT: tuple[Transform, ...] = ("cutout",)
PIPES = {
    "blit":   _BLIT,
    "geom":   _GEOM,
    "color":  _COLOR,
    "filter": _FILTER,
    "noise":  _NOISE,
    "cutout": _CUTOUT,
    "bg":     _BLIT + _GEOM,
    "bgc":    _BLIT + _GEOM + _COLOR,
    "bgcf":   _BLIT + _GEOM + _COLOR + _FILTER,
    "bgcfn":  _BLIT + _GEOM + _COLOR + _FILTER + _NOISE,
    "bgcfnc": _BLIT + _GEOM + _COLOR + _FILTER + _NOISE + _CUTOUT,
}
ADA_TARGET = 0.6            # Of the sign statistic: ADA paper, Section 3.
ADA_KIMG_TRANSFER = 100     # As in ADA's program, for runs that start from a trained network; 500 otherwise.

# StyleGAN2-ADA's source networks for transfer learning, by the names that its --resume takes.
_SOURCE_NETS = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/transfer-learning-source-nets/"
RESUME_SOURCES = {
    "ffhq256":     _SOURCE_NETS + "ffhq-res256-mirror-paper256-noaug.pkl",
    "ffhq512":     _SOURCE_NETS + "ffhq-res512-mirror-stylegan2-noaug.pkl",
    "ffhq1024":    _SOURCE_NETS + "ffhq-res1024-mirror-stylegan2-noaug.pkl",
    "celebahq256": _SOURCE_NETS + "celebahq-res256-mirror-paper256-kimg100000-ada-target0.5.pkl",
    "lsundog256":  _SOURCE_NETS + "lsundog-res256-paper256-kimg100000-noaug.pkl",
}


class PublishedData(NamedTuple):
    """A data set of the papers, with the settings that all published runs on it share."""

    name: str                   # Key in `metrics.published.DATASETS`.
    mirror: bool                # Add mirrored copies.
    options: dict[str, Any]     # Fields of `options.Options`.
    res_g: int | None = None    # Resolution of f.

    @property
    def resolution(self) -> int:
        return DATASETS[self.name].resolution


# GLeaD, Section 4.1 ("Other settings") and Table 3. GGDR's runs have the presets of its program. For AFHQ, a length of
# 25 million images and mirroring are assumptions.
_256 = {"cfg": "paper256", "gpus": 8, "aug": "noaug"}
_512 = {"cfg": "paper512", "gpus": 8, "aug": "ada", "kimg": 25000}
PUBLISHED_DATA = {
    data.name: data
    for data in (
        PublishedData("FFHQ", True, _256 | {"kimg": 25000}, 64),
        PublishedData("LSUN Church", False, _256 | {"kimg": 50000}, 32),
        PublishedData("LSUN Bedroom", False, _256 | {"kimg": 50000}, 32),
        PublishedData("CIFAR-10", False, {"cfg": "cifar", "gpus": 2, "aug": "ada", "kimg": 100000}),
        PublishedData("AFHQ Cat", True, _512),
        PublishedData("AFHQ Dog", True, _512),
        PublishedData("AFHQ Wild", True, _512),
    )
}


class PublishedRun(NamedTuple):
    """A row of a paper's table that this program can reproduce."""

    source: str                 # Paper and table.
    data: PublishedData
    options: dict[str, Any]     # Fields of `options.Options`, in addition to those of the data set.


_ADA_TABLES = {"CIFAR-10": "GGDR, Table 2", "AFHQ Cat": "GGDR, Table 4", "AFHQ Dog": "GGDR, Table 4",
               "AFHQ Wild": "GGDR, Table 4"}
_LAMBDAS = ((100, 0), (10, 0), (1, 0), (0, 10), (10, 10), (10, 3), (10, 1))
PUBLISHED_RUNS = tuple(
    PublishedRun(source, PUBLISHED_DATA[data], options)  # type: ignore[arg-type]
    for source, data, options in (
        *(("GLeaD, Table 1", data, {"method": method})
          for data in ("FFHQ", "LSUN Church", "LSUN Bedroom")
          for method in ("stylegan2", "glead", "ggdr", "glead+ggdr")),
        *(("GLeaD, Table 2", "LSUN Church", {"method": "glead", "lambda_real": real, "lambda_fake": fake})
          for real, fake in _LAMBDAS),
        *(("GLeaD, Table 3", "LSUN Church", {"method": "glead", "res_g": res}) for res in (1, 8, 16, 32, 64)),
        *((source, data, {"method": method})
          for data, source in _ADA_TABLES.items() for method in ("stylegan2", "ggdr")),
    )
)


def published_data(dataset: DatasetConfig) -> PublishedData | None:
    """The entry of `PUBLISHED_DATA` that fits the resolution and the whole name of the file or folder, or None."""
    stem = re.sub(r"\.zip$", "", os.path.basename(os.path.normpath(dataset.path)), flags=re.IGNORECASE)
    return PUBLISHED_DATA.get(find_dataset(stem, dataset.resolution) or "")


class MethodTasks(NamedTuple):
    """The tasks of D in a method, on real and on fake images; for their kinds, see `training.tasks`."""

    real: TaskConfig | None
    fake: TaskConfig | None


_FEATURE = TaskConfig(kind="feature", distance="cosine", weight=10.0)                       # GGDR; GLeaD's "Ours*".
_REBUILD_REAL = TaskConfig(kind="reconstruction", distance="perceptual", weight=10.0)       # GLeaD Eq. 7, lambda 1.
_REBUILD_FAKE = TaskConfig(kind="reconstruction", distance="perceptual", weight=3.0)        # GLeaD Eq. 7, lambda 2.
METHODS: dict[str, MethodTasks] = {
    "stylegan2":  MethodTasks(real=None,          fake=None),
    "ggdr":       MethodTasks(real=None,          fake=_FEATURE),
    "glead":      MethodTasks(real=_REBUILD_REAL, fake=_REBUILD_FAKE),
    "glead+ggdr": MethodTasks(real=_REBUILD_REAL, fake=_FEATURE),
}
RECON_TARGET: dict[str, Literal["input", "clean"]] = {"paper": "input", "released": "clean"}
PERCEPTUAL = {"paper": "lpips-vgg", "released": "lpips-alex"}


def auto_preset(preset: Preset, resolution: int, num_gpus: int) -> Preset:
    """Replace values of "auto" by the rules of ADA's program. They depend on the resolution and the number of GPUs.

    gamma and the EMA follow from the batch size of these rules, so `--batch` does not change them.
    """
    batch_size = max(min(num_gpus * min(4096 // resolution, 32), 64), num_gpus)  # bounds the memory of activations
    rules: dict[str, Any] = {
        "cbase":      32768 if resolution >= 512 else 16384,
        "cbase_task": 32768 if resolution >= 512 else 16384,
        "lr":         0.002 if resolution >= 1024 else 0.0025,
        "r1_gamma":   0.0002 * resolution**2 / batch_size,
        "batch_size": batch_size,
        "batch_gpu":  batch_size // num_gpus,
        "mbstd":      min(batch_size // num_gpus, 4),  # makes the share of a GPU one group, if possible
        "ema_kimg":   batch_size * 10 / 32,
    }
    return preset._replace(**{name: rules[name] for name, value in preset._asdict().items() if value == A})


def default_res_g(dataset: DatasetConfig, method: str) -> int:
    """Resolution of f: the published one for the paper's data sets, else 32 for "glead" and 64 for "glead+ggdr".

    These are GLeaD's values for LSUN and for "Ours*" at 256x256. The result is at most a quarter of the image, which is
    8 at 32x32.
    """
    data = published_data(dataset)
    if data is not None and data.res_g is not None:
        return data.res_g
    return max(4, min(32 if method == "glead" else 64, dataset.resolution // 4))


def default_decoder_res(resolution: int) -> int:
    """Resolution of GLeaD's decoder: 64 (its default at 256x256), but at most half of the image (16 at 32x32)."""
    return max(8, min(64, resolution // 2))


def default_ggdr_res(resolution: int) -> int:
    """Resolution of GGDR's features: 64 (its program's default), or a quarter of images below 64 (8 for CIFAR-10)."""
    return 64 if resolution >= 64 else max(8, resolution // 4)
