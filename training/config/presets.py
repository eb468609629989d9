"""Published settings as one table, and how they fill in whatever the user left out."""

import dataclasses
import os
import re
from typing import Any, Literal, NamedTuple, cast

from dnnlib.util import UserError
from metrics.published import DATASETS, find_dataset
from training.config.schema import (
    AugmentConfig,
    DatasetConfig,
    DecoderAct,
    DiscriminatorConfig,
    Distance,
    GeneratorConfig,
    HalfType,
    LossConfig,
    Method,
    OptimizerConfig,
    Recipe,
    TaskConfig,
    TrainingConfig,
    Transform,
    validate,
    validate_gpus,
)


class Preset(NamedTuple):
    """One row of the table; a cell that is "auto" follows from the resolution and the number of GPUs."""

    map_depth: int
    cbase: int | Literal["auto"]        # Channel base of G and D.
    cbase_task: int | Literal["auto"]   # "task": the same, where D has a task (every method but stylegan2).
    cmax: int
    D_arch: Literal["orig", "skip", "resnet"]
    lr: float | Literal["auto"]         # Of G and D.
    r1_gamma: float | Literal["auto"]
    pl_weight: float
    mixing: float                       # Probability of style mixing.
    batch_size: int | Literal["auto"]
    batch_gpu: int | Literal["auto"]    # "gpu": at most so many images at once on one GPU, on however few GPUs.
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
#   cifar          ADA paper: tuned for CIFAR-10. GGDR's and GLeaD's programs have a channel base of 16384 in place of
#                  32768; at 32x32 the two give the same networks, because both reach the limit of 512 channels.
#   cifarbaseline  GGDR's program: cifar with StyleGAN2's D, mapping depth and regularisers.
#   quickstart     Ours: 32x32 images on two CPU cores. Small networks, the shortcuts of cifar, a short EMA. Behind its
#                  kimg stand tick, snap and metrics, which the published settings leave at the defaults above.
_ROWS: dict[str, tuple[Any, ...]] = {
    #                 map cbase  task   cmax D_arch    lr      gamma pl mix  batch gpu mbstd ema  ramp  kimg
    "auto":          (2,  A,     A,     512, "resnet", A,      A,    2, 0.9, A,    A,  A,    A,   0.05, 25000),
    "stylegan2":     (8,  32768, 32768, 512, "resnet", 0.0020, 10,   2, 0.9, 32,   4,  4,    10,  None, 25000),
    "paper256":      (8,  16384, 16384, 512, "resnet", 0.0025, 1,    2, 0.9, 64,   8,  8,    20,  None, 25000),
    "paper512":      (8,  32768, 32768, 512, "resnet", 0.0025, 0.5,  2, 0.9, 64,   8,  8,    20,  None, 25000),
    "paper1024":     (8,  32768, 32768, 512, "resnet", 0.0020, 2,    2, 0.9, 32,   4,  4,    10,  None, 25000),
    "cifar":         (2,  32768, 16384, 512, "orig",   0.0025, 0.01, 0, 0.0, 64,   32, 32,   500, 0.05, 100000),
    "cifarbaseline": (8,  16384, 16384, 512, "resnet", 0.0025, 0.01, 2, 0.9, 64,   32, 32,   500, 0.05, 100000),
    "quickstart":    (2,  4096,  4096,  32,  "resnet", 0.0025, 0.3,  0, 0.0, 16,   16, 4,    1,   0.05, 15, 1, 5, ()),
}
PRESETS = {name: Preset(*row) for name, row in _ROWS.items()}

# Sets of transforms: ADA paper, Sections 2.3 and 2.4, which settle on bgc.
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
ADA_KIMG_TRANSFER = 100     # ADA's program adapts faster when it starts from a trained network; 500 otherwise.

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
    """A data set of the papers, and what all published runs on it share."""

    name: str                   # In `metrics.published.DATASETS`.
    mirror: bool
    options: dict[str, Any]     # Of `Options`.
    res_g: int | None = None    # Resolution of f.

    @property
    def resolution(self) -> int:
        return DATASETS[self.name].resolution


# GLeaD, Section 4.1 ("Other settings") and Table 3; GGDR's runs have the presets of its program. Of AFHQ, 25 million
# images and mirroring are assumed.
_256 = {"preset": "paper256", "num_gpus": 8, "aug": "noaug"}
_512 = {"preset": "paper512", "num_gpus": 8, "aug": "ada", "total_kimg": 25000}
PUBLISHED_DATA = {
    data.name: data
    for data in (
        PublishedData("FFHQ", True, _256 | {"total_kimg": 25000}, 64),
        PublishedData("LSUN Church", False, _256 | {"total_kimg": 50000}, 32),
        PublishedData("LSUN Bedroom", False, _256 | {"total_kimg": 50000}, 32),
        PublishedData("CIFAR-10", False, {"preset": "cifar", "num_gpus": 2, "aug": "ada", "total_kimg": 100000}),
        PublishedData("AFHQ Cat", True, _512),
        PublishedData("AFHQ Dog", True, _512),
        PublishedData("AFHQ Wild", True, _512),
    )
}


class PublishedRun(NamedTuple):
    """A row of a paper's table, as far as this program can repeat it."""

    source: str
    data: PublishedData
    options: dict[str, Any]     # Of `Options`, beside those of the data set.


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
    """The data set of the papers that `dataset` is, by the whole name of its file or folder and its resolution."""
    stem = re.sub(r"\.zip$", "", os.path.basename(os.path.normpath(dataset.path)), flags=re.IGNORECASE)
    return PUBLISHED_DATA.get(find_dataset(stem, dataset.resolution) or "")


class MethodTasks(NamedTuple):
    """A method is what D has to do with real and with fake images; the kinds are those of `training.tasks`."""

    real: TaskConfig | None
    fake: TaskConfig | None


_FEATURE = TaskConfig(kind="feature", distance="cosine", weight=10.0)                       # GGDR; GLeaD's "Ours*".
_REBUILD_REAL = TaskConfig(kind="reconstruction", distance="perceptual", weight=10.0)       # GLeaD Eq. 7, lambda 1.
_REBUILD_FAKE = TaskConfig(kind="reconstruction", distance="perceptual", weight=3.0)        # GLeaD Eq. 7, lambda 2.
METHODS: dict[Method, MethodTasks] = {
    "stylegan2":  MethodTasks(real=None,          fake=None),
    "ggdr":       MethodTasks(real=None,          fake=_FEATURE),
    "glead":      MethodTasks(real=_REBUILD_REAL, fake=_REBUILD_FAKE),
    "glead+ggdr": MethodTasks(real=_REBUILD_REAL, fake=_FEATURE),
}
RECON_TARGET = {"paper": "input", "released": "clean"}
PERCEPTUAL = {"paper": "lpips-vgg", "released": "lpips-alex"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What the user said beside the data set; None = left out."""

    preset: str = "auto"
    method: Method = "glead"
    recipe: Recipe = "paper"
    aug: Literal["noaug", "ada", "fixed"] | None = None     # None = ada, and not named in the run's description.
    p: float | None = None
    target: float | None = None
    augpipe: str | None = None
    recon_target: Literal["input", "clean"] | None = None
    lambda_real: float | None = None
    lambda_fake: float | None = None
    distance_real: Distance | None = None
    distance_fake: Distance | None = None
    res_g: int | None = None
    decoder_res: int | None = None
    decoder_kernel: int | None = None
    decoder_act: DecoderAct | None = None
    ggdr_res: int | None = None
    perceptual: str | None = None
    channel_base: int | None = None
    channel_max: int | None = None
    map_depth: int | None = None
    mbstd_group_size: int | None = None
    r1_gamma: float | None = None
    total_kimg: float | None = None
    batch_size: int | None = None
    batch_gpu: int | None = None
    kimg_per_tick: float | None = None
    snapshot_ticks: int | None = None
    grid_size: int = 4096
    metrics: tuple[str, ...] | None = None
    detector: str | None = None
    random_seed: int = 0
    num_gpus: int = 1
    workers: int = 3
    resume: str | None = None           # A path, a URL, one of RESUME_SOURCES, or "noresume".
    freeze_layers: int = 0
    fp32: bool = False
    half: HalfType | None = None
    lpips_fp32: bool = False
    channels_last: bool = False
    allow_tf32: bool = False
    cudnn_benchmark: bool = True


def auto_preset(preset: Preset, resolution: int, num_gpus: int) -> Preset:
    """Replace the "auto" cells by the rules of the ADA program, which never looks at the data but for its resolution.

    The rules use the batch size that they give themselves: `--batch` changes neither gamma nor the EMA.
    """
    batch_size = max(min(num_gpus * min(4096 // resolution, 32), 64), num_gpus)  # keeps the activations' memory even
    rules: dict[str, Any] = {
        "cbase":      32768 if resolution >= 512 else 16384,
        "cbase_task": 32768 if resolution >= 512 else 16384,
        "lr":         0.002 if resolution >= 1024 else 0.0025,
        "r1_gamma":   0.0002 * resolution**2 / batch_size,
        "batch_size": batch_size,
        "batch_gpu":  batch_size // num_gpus,
        "mbstd":      min(batch_size // num_gpus, 4),  # keeps every GPU's share at one group, if it can
        "ema_kimg":   batch_size * 10 / 32,
    }
    return preset._replace(**{name: rules[name] for name, value in preset._asdict().items() if value == A})


def default_res_g(dataset: DatasetConfig, method: Method) -> int:
    """Resolution of f: the published one for the data sets of the paper.

    Else 32 (GLeaD, LSUN) or 64 ("Ours*") at 256x256, at most a quarter of the image: 8 at 32x32.
    """
    data = published_data(dataset)
    if data is not None and data.res_g is not None:
        return data.res_g
    return max(4, min(32 if method == "glead" else 64, dataset.resolution // 4))


def default_decoder_res(resolution: int) -> int:
    """Resolution of GLeaD's decoder: 64 (its default at 256x256), at most half of the image: 16 at 32x32."""
    return max(8, min(64, resolution // 2))


def default_ggdr_res(resolution: int) -> int:
    """Resolution of GGDR's features: 64, its program's default, where images have it; a quarter of smaller ones.

    That is 8 for CIFAR-10.
    """
    return 64 if resolution >= 64 else max(8, resolution // 4)


def source_network(options: Options) -> str | None:
    """Path or URL of the network to start from."""
    return None if options.resume == "noresume" else RESUME_SOURCES.get(options.resume or "", options.resume)


def resolve(options: Options, dataset: DatasetConfig, *, device: str) -> TrainingConfig:
    """Fill in what was left out, from the preset, the method, the recipe and the resolution.

    The rules for the resolutions of f, of the decoder and of GGDR's features are `default_res_g`,
    `default_decoder_res` and `default_ggdr_res`. Weights of 0 drop a task (the zeros of GLeaD's Table 2).

    Args:
        options: What the user said.
        dataset: The data, with `label_dim` 0 for unconditional training.
        device:  "cpu" or "cuda".

    Returns:
        The configuration, checked by `config.validate`.

    Raises:
        UserError: An option is out of range, or contradicts another one.
    """
    if options.preset not in PRESETS:
        raise UserError(f"--cfg is {options.preset}, expected one of {', '.join(PRESETS)}")
    validate_gpus(options.num_gpus)
    preset = auto_preset(PRESETS[options.preset], dataset.resolution, options.num_gpus)
    resume = source_network(options)
    loss = _loss(options, preset, dataset)
    tasks = (loss.real_task, loss.fake_task)
    needs_perceptual = any(task is not None and task.distance == "perceptual" for task in tasks)
    config = TrainingConfig(
        method=options.method,
        preset=options.preset,
        recipe=options.recipe,
        dataset=dataset,
        G=_generator(options, preset),
        D=_discriminator(options, preset, dataset, loss),
        loss=loss,
        G_opt=OptimizerConfig(lr=cast(float, preset.lr)),
        D_opt=OptimizerConfig(lr=cast(float, preset.lr)),
        augment=_augment(options, transfer=resume is not None),
        perceptual=_given(options.perceptual, PERCEPTUAL[options.recipe]) if needs_perceptual else None,
        lpips_fp32=options.lpips_fp32,
        total_kimg=_given(options.total_kimg, preset.total_kimg),
        batch_size=_given(options.batch_size, preset.batch_size),
        batch_gpu=_batch_gpu(options, preset),
        ema_kimg=cast(float, preset.ema_kimg),
        ema_rampup=None if resume else preset.rampup,  # the weights to average are good ones from the start
        kimg_per_tick=_given(options.kimg_per_tick, preset.tick),
        snapshot_ticks=_given(options.snapshot_ticks, preset.snap),
        grid_size=options.grid_size,
        metrics=_given(options.metrics, preset.metrics),
        detector=options.detector,
        random_seed=options.random_seed,
        num_gpus=options.num_gpus,
        device=device,
        workers=options.workers,
        resume=resume,
        allow_tf32=options.allow_tf32,
        cudnn_benchmark=options.cudnn_benchmark,
    )
    validate(config)
    return config


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _batch_gpu(options: Options, preset: Preset) -> int:
    """A published batch is seen in its published parts on fewer GPUs too, which minibatch deviation depends on."""
    if options.batch_gpu is not None:
        return options.batch_gpu
    share = _given(options.batch_size, preset.batch_size) // options.num_gpus
    return share if options.batch_size is not None else min(preset.batch_gpu, share)


def _generator(options: Options, preset: Preset) -> GeneratorConfig:
    return GeneratorConfig(
        map_depth=_given(options.map_depth, preset.map_depth),
        **_network(options, preset),
    )


def _network(options: Options, preset: Preset) -> dict:
    """What G and D have in common. Half precision for the four highest resolutions, and its clamp: ADA paper."""
    cbase = preset.cbase if options.method == "stylegan2" else preset.cbase_task
    return {
        "channel_base": _given(options.channel_base, cbase),
        "channel_max": _given(options.channel_max, preset.cmax),
        "num_fp16_res": 0 if options.fp32 else 4,
        "conv_clamp": None if options.fp32 else 256,
        "half_type": "float16" if options.fp32 else _given(options.half, "float16"),
        "channels_last": options.channels_last,
    }


def _discriminator(
    options: Options, preset: Preset, dataset: DatasetConfig, loss: LossConfig
) -> DiscriminatorConfig:
    """D has a decoder where a task reads its features, and heads where G rebuilds images from them."""
    heads = any(task is not None and task.kind == "reconstruction" for task in (loss.real_task, loss.fake_task))
    decoder_res = None
    if heads:
        decoder_res = _given(options.decoder_res, default_decoder_res(dataset.resolution))
    elif loss.feature_res is not None:
        said = options.ggdr_res if options.method == "ggdr" else options.decoder_res
        decoder_res = _given(said, max(loss.feature_res, 8))
    return DiscriminatorConfig(
        architecture=preset.D_arch,
        mbstd_group_size=_given(options.mbstd_group_size, preset.mbstd),
        freeze_layers=options.freeze_layers,
        decoder_res=decoder_res,
        decoder_kernel=_given(options.decoder_kernel, 1) if decoder_res else 1,
        decoder_act=_given(options.decoder_act, "linear") if decoder_res else "linear",
        heads=heads,
        res_g=_given(options.res_g, default_res_g(dataset, options.method)) if heads else None,
        **_network(options, preset),
    )


def _loss(options: Options, preset: Preset, dataset: DatasetConfig) -> LossConfig:
    method, feature_res = options.method, None
    real_task = _task(METHODS[method].real, options.lambda_real, options.distance_real)
    fake_task = _task(METHODS[method].fake, options.lambda_fake, options.distance_fake)
    if fake_task is not None and fake_task.kind == "feature":
        if method == "ggdr":
            feature_res = _given(options.ggdr_res, default_ggdr_res(dataset.resolution))
        else:
            lowest = 4 if real_task is not None else 8  # a level of the decoder, where D has no head for f
            feature_res = _given(options.res_g, max(default_res_g(dataset, method), lowest))
    return LossConfig(
        r1_gamma=_given(options.r1_gamma, preset.r1_gamma),
        style_mixing_prob=preset.mixing,
        pl_weight=preset.pl_weight,
        real_task=real_task,
        fake_task=fake_task,
        feature_res=feature_res,
        real_task_in_dreg=options.recipe == "released" and real_task is not None,
        recon_target=_given(options.recon_target, RECON_TARGET[options.recipe]),
    )


def _augment(options: Options, *, transfer: bool) -> AugmentConfig | None:
    """What --aug, --p, --target and --augpipe mean together."""
    aug = _given(options.aug, "ada")
    if options.p is not None and aug != "fixed":
        raise UserError(f"--p is {options.p:g}, but --aug={aug} takes no strength: say --aug=fixed, or leave out --p")
    if options.target is not None and aug != "ada":
        raise UserError(f"--target is {options.target:g}, but --aug={aug} adapts nothing: say --aug=ada, or leave out "
                        "--target")
    if options.augpipe is not None and aug == "noaug":
        raise UserError(f"--augpipe is {options.augpipe}, but --aug is noaug: leave out one of them")
    if aug == "noaug":
        return None
    if aug == "fixed" and options.p is None:
        raise UserError("--aug=fixed needs --p, the probability of each augmentation, from 0 to 1")
    pipe = _given(options.augpipe, "bgc")
    if pipe not in PIPES:
        raise UserError(f"--augpipe is {pipe}, expected one of {', '.join(PIPES)}")
    return AugmentConfig(
        pipe=pipe,
        transforms=PIPES[pipe],
        mode=aug,
        p=_given(options.p, 0.0),
        target=_given(options.target, ADA_TARGET) if aug == "ada" else None,
        **({"ada_kimg": ADA_KIMG_TRANSFER} if transfer and aug == "ada" else {}),
    )


def _task(task: TaskConfig | None, weight: float | None, distance: Distance | None) -> TaskConfig | None:
    """A task of the method with what was said of it; a weight of 0 drops it."""
    if task is None or weight == 0:
        return None
    return dataclasses.replace(task, weight=_given(weight, task.weight), distance=_given(distance, task.distance))


_TASK_OPTIONS = {  # Option names, by the field of Options; the second is the name in the released programs.
    "lambda_real":    "--lambda-real (--reg_weight_real)",
    "lambda_fake":    "--lambda-fake (--reg_weight_fake)",
    "distance_real":  "--reg_loss_real",
    "distance_fake":  "--reg_loss_fake",
    "res_g":          "--res-g (--glead_res_g)",
    "decoder_res":    "--res-decoder (--glead_res_d)",
    "decoder_kernel": "--decoder-kernel (--decoder_conv_kernel_size)",
    "decoder_act":    "--decoder-act",
    "ggdr_res":       "--ggdr-res",
    "perceptual":     "--perceptual",
    "recon_target":   "--recon-target",
}
_WITHOUT_EFFECT = {
    "stylegan2":  tuple(_TASK_OPTIONS),
    "ggdr":       ("lambda_real", "distance_real", "res_g", "decoder_res", "perceptual", "recon_target"),
    "glead":      ("ggdr_res",),
    "glead+ggdr": ("ggdr_res",),
}


def warnings(options: Options, config: TrainingConfig) -> list[str]:
    """One line for each option that was given and has no effect on this run, or none that was meant."""
    lines = [
        f"{_TASK_OPTIONS[name]} has no effect with --method={options.method}"
        for name in _WITHOUT_EFFECT[options.method]
        if getattr(options, name) is not None
    ]
    glead = options.method in ("glead", "glead+ggdr")
    if options.recipe != "paper" and not glead:
        lines.append(f"--recipe={options.recipe} has no effect with --method={options.method}")
    if glead:
        for images, task in (("real", config.loss.real_task), ("fake", config.loss.fake_task)):
            if task is None and getattr(options, f"distance_{images}") is not None:
                lines.append(f"--reg_loss_{images} has no effect where --lambda-{images} is 0")
        if options.perceptual is not None and config.perceptual is None:
            lines.append("--perceptual has no effect: no task of D compares images by a perceptual net")
        if options.recon_target is not None:
            tasks = (config.loss.real_task, config.loss.fake_task)
            if all(task is None or task.kind == "feature" for task in tasks):
                lines.append("--recon-target has no effect: G rebuilds no images")
            elif config.augment is None:
                lines.append("--recon-target has no effect with --aug=noaug")
    if options.half is not None and options.fp32:
        lines.append("--half has no effect with --fp32=true")
    elif options.half == "float16" and config.device == "cpu":
        lines.append("--half=float16 has no effect with --device=cpu, which computes in float32 or bfloat16")
    if options.freeze_layers > 0 and config.resume is None:
        lines.append(f"--freezed={options.freeze_layers} leaves layers of D as they are initialised, because there is "
                     "no network to start from (--resume)")
    on_half = config.D.num_fp16_res > 0 and (config.device == "cuda" or config.D.half_type == "bfloat16")
    if options.lpips_fp32 and not (on_half and (config.perceptual or "").startswith(("lpips-", "random-"))):
        lines.append("--lpips-fp32 has no effect: no LPIPS computes in half precision here")
    if options.detector is not None and not config.metrics:
        lines.append("--detector has no effect without --metrics")
    return lines
