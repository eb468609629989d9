"""What one training run is: frozen dataclasses, their cross-checks, and their JSON form.

Defaults that users may leave out are filled in by `presets.resolve`; here every field has been decided. A field with a
default is one that few published settings vary.
"""

import dataclasses
import functools
import json
import math
import reprlib
from typing import Any, Literal, Mapping, NamedTuple

from dnnlib.util import UserError

Method = Literal["stylegan2", "ggdr", "glead", "glead+ggdr"]
Recipe = Literal["paper", "released"]
Distance = Literal["perceptual", "mse", "cosine"]
DecoderAct = Literal["linear", "lrelu"]     # Activation of D's decoder (GGDR's ablation compares the two).
HalfType = Literal["float16", "bfloat16"]   # Of half precision: float16 on CUDA devices alone, bfloat16 everywhere.

Transform = Literal[  # Of the augmentation pipe.
    "xflip", "rotate90", "xint",                                            # Pixel blitting.
    "scale", "rotate", "aniso", "xfrac",                                    # General geometry.
    "brightness", "contrast", "lumaflip", "hue", "saturation",              # Colour.
    "imgfilter", "noise", "cutout",
]

# As the released GLeaD program calls what D's tasks compare, and how.
LEGACY_DISTANCES = {"perceptual": "lpips", "mse": "mse", "cosine": "cos"}
LEGACY_TARGETS = {"reconstruction": "gfwimage", "feature": "gfeat"}


# Options of train.py, and the fields that each sets: its own first, then those that follow from it.
OPTION_FIELDS = {
    "--method":         ("method", "D.heads", "loss.real_task.kind", "loss.fake_task.kind"),
    "--cfg":            ("preset", "D.architecture", "loss.style_mixing_prob", "loss.pl_weight", "G_opt.lr", "D_opt.lr",
                         "ema_kimg", "ema_rampup"),
    "--recipe":         ("recipe", "loss.real_task_in_dreg"),
    "--cond":           ("dataset.use_labels", "dataset.label_dim"),
    "--subset":         ("dataset.max_size",),
    "--mirror":         ("dataset.xflip",),
    "--seed":           ("random_seed", "dataset.random_seed"),
    "--gamma":          ("loss.r1_gamma",),
    "--batch":          ("batch_size",),
    "--batch-gpu":      ("batch_gpu",),
    "--mbstd-group":    ("D.mbstd_group_size",),
    "--map-depth":      ("G.map_depth",),
    "--cbase":          ("G.channel_base", "D.channel_base"),
    "--cmax":           ("G.channel_max", "D.channel_max"),
    "--aug":            ("augment.mode", "augment", "augment.ada_kimg", "augment.interval"),
    "--p":              ("augment.p",),
    "--target":         ("augment.target",),
    "--augpipe":        ("augment.pipe", "augment.transforms"),
    "--recon-target":   ("loss.recon_target",),
    "--lambda-real":    ("loss.real_task.weight", "loss.real_task"),
    "--lambda-fake":    ("loss.fake_task.weight", "loss.fake_task"),
    "--reg_loss_real":  ("loss.real_task.distance",),
    "--reg_loss_fake":  ("loss.fake_task.distance",),
    "--perceptual":     ("perceptual",),
    "--lpips-fp32":     ("lpips_fp32",),
    "--res-g":          ("D.res_g",),
    "--ggdr-res (--res-g for glead+ggdr)":    ("loss.feature_res",),
    "--res-decoder":    ("D.decoder_res",),
    "--decoder-kernel": ("D.decoder_kernel",),
    "--decoder-act":    ("D.decoder_act",),
    "--freezed":        ("D.freeze_layers",),
    "--half":           ("G.half_type", "D.half_type"),
    "--nhwc":           ("G.channels_last", "D.channels_last"),
    "--allow-tf32":     ("allow_tf32",),
    "--fp32 (resolutions in half precision)": ("G.num_fp16_res", "D.num_fp16_res", "G.conv_clamp", "D.conv_clamp"),
    "the resolution of the images":           ("dataset.resolution",),
    "the number of channels of the images":   ("dataset.num_channels",),
}


class _Strict:
    """How pydantic reads the dataclasses below from JSON: no unknown fields, and no value made to fit its type."""

    __pydantic_config__ = {"extra": "forbid", "strict": True}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig(_Strict):
    path: str                       # Folder or zip.
    resolution: int                 # Side of the square images, a power of two.
    num_channels: int = 3           # 1 or 3.
    label_dim: int = 0              # Width of the label vectors; 0 = unconditional.
    use_labels: bool = False
    max_size: int | None = None     # Train on this many images, drawn by random_seed; None = all.
    xflip: bool = False             # Double the set with mirrored copies.
    random_seed: int = 0            # Draws the subset.


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig(_Strict):
    class_name: str = "training.networks.Generator"     # A persistent class; see `training.build`.
    z_dim: int = 512
    w_dim: int = 512
    map_depth: int                  # Layers of the mapping network.
    channel_base: int               # Channels at resolution r are channel_base / r, at most channel_max.
    channel_max: int = 512
    num_fp16_res: int               # So many of the highest resolutions run in half precision.
    conv_clamp: int | None          # Clamps the output of convolutions; needed for float16.
    half_type: HalfType = "float16"
    channels_last: bool = False     # Memory format of the half precision layers on CUDA devices.


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig(_Strict):
    class_name: str = "training.networks.Discriminator"
    architecture: Literal["orig", "skip", "resnet"] = "resnet"
    channel_base: int
    channel_max: int = 512
    num_fp16_res: int
    conv_clamp: int | None
    mbstd_group_size: int           # Images that share a minibatch standard deviation.
    freeze_layers: int = 0          # FreezeD: so many of the highest-resolution layers stay as they are.
    half_type: HalfType = "float16"
    channels_last: bool = False     # Memory format of the half precision layers on CUDA devices.
    decoder_res: int | None = None  # Decoder h goes up to this resolution; None = no decoder.
    decoder_kernel: int = 1         # Side of the decoder's convolutions.
    decoder_act: DecoderAct = "linear"
    heads: bool = False             # Heads that give (f, basis image, w) for G; only reconstruction needs them.
    res_g: int | None = None        # Resolution of f; 1 = w only (Table 3, "1x1").


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig(_Strict):
    """What D has to do with one kind of image besides telling real from fake."""

    kind: str                           # One of `tasks.TASKS`: let G rebuild the image, reproduce G's features, ...
    distance: Distance | None = None    # How the task compares; None where it has no choice.
    weight: float                       # Lambda 1 (real), lambda 2 (fake); GGDR's 10.


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(_Strict):
    r1_gamma: float
    style_mixing_prob: float = 0.9
    pl_weight: float = 2.0
    pl_batch_shrink: int = 2
    pl_decay: float = 0.01
    real_task: TaskConfig | None = None
    fake_task: TaskConfig | None = None
    feature_res: int | None = None      # Resolution of the features that a "feature" task compares.
    adversarial: str = "logistic"       # One of `adversarial.ADVERSARIAL`.
    real_task_in_dreg: bool = False     # The released program repeats the real task in the lazy R1 phase.
    recon_target: Literal["input", "clean"] = "input"   # G rebuilds what D was shown, or the image before augmentation.


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig(_Strict):
    """What happens to the images before D sees them (Karras et al., NeurIPS 2020)."""

    pipe: str                                       # Name of the set of transforms, such as "bgc".
    transforms: tuple[Transform, ...]               # Each at strength 1.
    mode: Literal["ada", "fixed"]                   # Adapt p so that the sign statistic reaches its target, or keep p.
    p: float                                        # Probability of each transform; with "ada", the initial one.
    target: float | None                            # Of the sign statistic, mean sign(D(real)); None with "fixed".
    ada_kimg: float = 500                           # So many thousand images take p from 0 to 1.
    interval: int = 4                               # Iterations between adjustments of p.


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(_Strict):
    lr: float
    beta1: float = 0.0
    beta2: float = 0.99
    eps: float = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(_Strict):
    method: Method
    preset: str
    recipe: Recipe
    dataset: DatasetConfig
    G: GeneratorConfig
    D: DiscriminatorConfig
    loss: LossConfig
    G_opt: OptimizerConfig
    D_opt: OptimizerConfig
    augment: AugmentConfig | None = None        # None = D sees the images as they are.
    perceptual: str | None                      # Name, path or URL of the perceptual net; None = no task needs one.
    lpips_fp32: bool = False                    # LPIPS computes in float32, even where D computes in half precision.
    total_kimg: float
    batch_size: int                             # Images per iteration, over all GPUs.
    batch_gpu: int                              # Images in one forward pass on one GPU.
    ema_kimg: float                             # Half-life of the weights of G_ema.
    ema_rampup: float | None                    # The half-life is at most this share of the images seen so far.
    g_reg_interval: int = 4                     # Path length regularisation every so many iterations.
    d_reg_interval: int = 16                    # R1 every so many iterations.
    kimg_per_tick: float = 4
    snapshot_ticks: int                         # Grids and pickles every so many ticks; 0 = only at the end.
    grid_size: int = 4096                       # The most pixels that grids of images are wide and high.
    metrics: tuple[str, ...]
    detector: str | None = None                 # Feature net of the metrics; None = the standard one of each metric.
    random_seed: int = 0
    num_gpus: int = 1
    device: str                                 # "cpu" or "cuda".
    timeout_sec: float = 600                    # Processes wait so long for one another.
    keep: str = "all"                           # Network pickles that stay; see `checkpoints.Keep`.
    workers: int = 3                            # Processes that decode images; 0 = none beside the main one.
    resume: str | None = None                   # Network pickle to start from.
    allow_tf32: bool = False
    cudnn_benchmark: bool = True


def to_json(config: TrainingConfig) -> dict[str, Any]:
    """The configuration as plain data, for `training_options.json`."""
    return dataclasses.asdict(config)


def from_json(data: dict[str, Any]) -> TrainingConfig:
    """The configuration that `to_json` wrote, also when it stands under the key "config" of `training_options.json`.

    A field that has a default may be missing: earlier versions had fewer of them.

    Raises:
        UserError: Fields are missing, unknown, or not of their type; it names all of them.
    """
    import pydantic  # not needed for --help

    if isinstance(data, dict) and isinstance(data.get("config"), dict):
        data = data["config"]
    try:
        return _adapter().validate_json(json.dumps(data))   # of JSON, strict types include arrays for tuples
    except pydantic.ValidationError as e:
        raise UserError("; ".join(_describe_mistake(error) for error in e.errors(include_url=False))) from e


@functools.cache
def _adapter() -> Any:
    import pydantic

    return pydantic.TypeAdapter(TrainingConfig)


def _describe_mistake(error: Mapping[str, Any]) -> str:
    """What pydantic found, such as `config.loss.r1_gamma is None, expected a valid number`."""
    where = ".".join(["config", *map(str, error["loc"])])
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "unexpected_keyword_argument":
        return f"{where} is unknown"
    if error["type"] == "json_invalid":
        return f"{where} is no JSON that can be read: {error['ctx']['error']}"
    return f"{where} is {reprlib.repr(error['input'])}, {error['msg'].replace('Input should be', 'expected')}"


def generator_kwargs(config: TrainingConfig) -> dict[str, Any]:
    """Arguments of `training.networks.Generator`, plain data under the ecosystem's names."""
    return {
        "z_dim": config.G.z_dim,
        "c_dim": config.dataset.label_dim,
        "w_dim": config.G.w_dim,
        "img_resolution": config.dataset.resolution,
        "img_channels": config.dataset.num_channels,
        "mapping_kwargs": {"num_layers": config.G.map_depth},
        "synthesis_kwargs": _channels(config.G) | _half_precision(config.G),
    }


class Sizes(NamedTuple):
    """Of a generator, what a run that starts from it takes over."""

    map_depth: int                  # Layers of the mapping network.
    map_widths: tuple[int, ...]     # Numbers in z, in w and in its layers, each once: usually (512,).
    channel_base: int
    channel_max: int


def sizes_of(G: Any) -> Sizes:
    """The sizes with which `G` was built."""
    mapping, said = G.mapping, G.synthesis.init_kwargs
    widths = {G.z_dim, G.w_dim, *(getattr(mapping, f"fc{i}").weight.shape[0] for i in range(mapping.num_layers))}
    return Sizes(mapping.num_layers, tuple(sorted(widths)), said.get("channel_base", 32768),
                 said.get("channel_max", 512))


def discriminator_kwargs(config: TrainingConfig) -> dict[str, Any]:
    """Arguments of `training.networks.Discriminator`, plain data under the ecosystem's names."""
    D = config.D
    freeze = {"freeze_layers": D.freeze_layers} if D.freeze_layers else {}
    kwargs = {
        "c_dim": config.dataset.label_dim,
        "img_resolution": config.dataset.resolution,
        "img_channels": config.dataset.num_channels,
        "block_kwargs": freeze | _half_precision(D),
        "mapping_kwargs": {},
        "epilogue_kwargs": {"mbstd_group_size": D.mbstd_group_size},
        **_channels(D),
    }
    if D.architecture != "resnet":
        kwargs["architecture"] = D.architecture
    if D.decoder_res is not None:
        kwargs |= {"decoder_res": D.decoder_res, "decoder_conv_kernel_size": D.decoder_kernel}
    if D.decoder_act != "linear":
        kwargs["decoder_act"] = D.decoder_act
    if D.heads:
        kwargs |= {
            "decoder_res": [D.decoder_res],
            "glead_res_g": D.res_g,
            "decoder_out_channel": config.G.w_dim,
        }
    return kwargs


def augment_kwargs(config: TrainingConfig) -> dict[str, Any]:
    """Arguments of `training.augment.AugmentPipe`: the strength of each transform; empty without augmentation."""
    return {} if config.augment is None else dict.fromkeys(config.augment.transforms, 1)


def _channels(net: GeneratorConfig | DiscriminatorConfig) -> dict[str, Any]:
    return {name: getattr(net, name) for name in ("channel_base", "channel_max", "num_fp16_res", "conv_clamp")}


def _half_precision(net: GeneratorConfig | DiscriminatorConfig) -> dict[str, Any]:
    """Without what is at its default: other programs don't know all of it."""
    half_type = {"half_type": net.half_type} if net.half_type != "float16" else {}
    return half_type | ({"fp16_channels_last": True} if net.channels_last else {})


def to_legacy_kwargs(config: TrainingConfig) -> dict[str, Any]:
    """The content of `training_options.json`: the keys that tools of the ecosystem look for, and ours under "config".

    The ecosystem's keys are written for its tools; only "config" is ever read back.
    """
    names: tuple[str, ...] = ("path", "use_labels", "max_size", "xflip", "resolution")
    names += () if config.dataset.max_size is None else ("random_seed",)
    dataset = {name: getattr(config.dataset, name) for name in names}
    common = ("c_dim", "img_resolution", "img_channels")  # The dataset says these.
    G_kwargs = {name: value for name, value in generator_kwargs(config).items() if name not in common}
    D_kwargs = {name: value for name, value in discriminator_kwargs(config).items() if name not in common}
    options = {
        "num_gpus": config.num_gpus,
        "image_snapshot_ticks": config.snapshot_ticks,
        "network_snapshot_ticks": config.snapshot_ticks,
        "kimg_per_tick": config.kimg_per_tick,
        "metrics": list(config.metrics),
        "random_seed": config.random_seed,
        "training_set_kwargs": {"class_name": "training.dataset.ImageFolderDataset", **dataset},
        "data_loader_kwargs": _data_loader_kwargs(config),
        "reg_type": {"stylegan2": "none", "glead+ggdr": "glead"}.get(config.method, config.method),
        "G_kwargs": {"class_name": config.G.class_name, **G_kwargs},
        "D_kwargs": {"class_name": config.D.class_name, **D_kwargs},
        "G_opt_kwargs": _optimizer_kwargs(config.G_opt),
        "D_opt_kwargs": _optimizer_kwargs(config.D_opt),
        "loss_kwargs": {"class_name": "training.loss.StyleGAN2Loss", **_loss_kwargs(config)},
        "total_kimg": config.total_kimg,
        "batch_size": config.batch_size,
        "batch_gpu": config.batch_gpu,
        "ema_kimg": config.ema_kimg,
        "ema_rampup": config.ema_rampup,
        "G_reg_interval": config.g_reg_interval,
        "D_reg_interval": config.d_reg_interval,
        "cudnn_benchmark": config.cudnn_benchmark,
        "allow_tf32": config.allow_tf32,
    }
    if config.resume is not None:
        options["resume_pkl"] = config.resume
    options |= _augment_options(config)
    return options | {"config": to_json(config)}


def _augment_options(config: TrainingConfig) -> dict[str, Any]:
    """As StyleGAN2-ADA's program, which leaves out what is at its default of 0 or 500."""
    augment = config.augment
    if augment is None:
        return {}
    pipe = {"class_name": "training.augment.AugmentPipe", **augment_kwargs(config)}
    options: dict[str, Any] = {"augment_kwargs": pipe}
    if augment.mode == "fixed":
        return options | {"augment_p": augment.p}
    default = {field.name: field.default for field in dataclasses.fields(AugmentConfig)}["ada_kimg"]
    options |= {"ada_target": augment.target}
    return options if augment.ada_kimg == default else options | {"ada_kimg": augment.ada_kimg}


def _data_loader_kwargs(config: TrainingConfig) -> dict[str, Any]:
    prefetch = {"prefetch_factor": 2} if config.workers else {}  # PyTorch refuses it where there are no workers.
    return {"pin_memory": config.device == "cuda", "num_workers": config.workers, **prefetch}


def _optimizer_kwargs(opt: OptimizerConfig) -> dict[str, Any]:
    return {"class_name": "torch.optim.Adam", "lr": opt.lr, "betas": [opt.beta1, opt.beta2], "eps": opt.eps}


def _loss_kwargs(config: TrainingConfig) -> dict[str, Any]:
    """R1's weight, what departs from StyleGAN2's loss, and the tasks in the words of the GGDR and GLeaD programs."""
    loss = config.loss
    kwargs: dict[str, Any] = {"r1_gamma": loss.r1_gamma}
    for field in dataclasses.fields(LossConfig):
        value = getattr(loss, field.name)
        if field.name in ("style_mixing_prob", "pl_weight", "pl_batch_shrink", "pl_decay") and value != field.default:
            kwargs[field.name] = value
    if config.method == "ggdr":
        kwargs["ggdr_res"] = loss.feature_res
    if config.method in ("glead", "glead+ggdr"):
        res_g = config.D.res_g if config.D.heads else loss.feature_res
        kwargs |= {"glead_res_d": [config.D.decoder_res], "glead_res_g": res_g}
        for images, task in (("real", loss.real_task), ("fake", loss.fake_task)):
            kwargs |= {
                f"reg_target_{images}": LEGACY_TARGETS.get(task.kind, task.kind) if task else None,
                f"reg_loss_{images}": LEGACY_DISTANCES.get(task.distance) if task else None,
                f"reg_weight_{images}": task.weight if task else 0.0,
            }
    return kwargs


def validate(config: TrainingConfig) -> None:
    """Check what can be checked without touching the machine: ranges, and fields against one another.

    Raises:
        UserError: Names the option, what came and what was expected.
    """
    _validate_numbers(config)
    _validate_batch(config)
    _validate_networks(config)
    _validate_tasks(config)
    _validate_augment(config)


def count_freezable_layers(architecture: str, resolution: int) -> int:
    """How many of D's layers, counted from the image on, FreezeD can leave as they are: all but those of 4x4.

    Each block has two convolutions; "resnet" adds one beside them, "skip" a layer that reads the image. The others
    read it in the first block alone.
    """
    blocks = resolution.bit_length() - 3  # From the image's resolution down to 8x8.
    if blocks == 0:
        return 0
    return {"orig": 2 * blocks + 1, "resnet": 3 * blocks + 1, "skip": 3 * blocks}[architecture]


def validate_gpus(num_gpus: int) -> None:
    """Raise UserError unless `num_gpus` is a power of two."""
    _expect(_is_power_of_two(num_gpus), "--gpus", num_gpus, "a power of two")


def _is_power_of_two(value: int) -> bool:
    return value >= 1 and value & (value - 1) == 0


def _expect(ok: bool, option: str, value: Any, expected: str) -> None:
    if not ok:
        raise UserError(f"{option} is {value}, expected {expected}")


def _validate_numbers(config: TrainingConfig) -> None:
    at_least = (
        ("--kimg",       config.total_kimg,       0.001,  True),
        ("--tick",       config.kimg_per_tick,        0,  False),
        ("--snap",       config.snapshot_ticks,       0,  True),
        ("--grid-size",  config.grid_size, config.dataset.resolution, True),
        ("--gamma",      config.loss.r1_gamma,        0,  True),
        ("--workers",    config.workers,              0,  True),
        ("--seed",       config.random_seed,          0,  True),
        ("--freezed",    config.D.freeze_layers,      0,  True),
        ("--map-depth",  config.G.map_depth,          1,  True),
        ("--cmax",       config.G.channel_max,        1,  True),
        ("EMA kimg",     config.ema_kimg,             0,  True),
        ("learning rate of G", config.G_opt.lr,       0,  False),
        ("learning rate of D", config.D_opt.lr,       0,  False),
    )
    at_most = (("--cbase", config.G.channel_base, 1 << 20), ("--cmax", config.G.channel_max, 1 << 14),
               ("--map-depth", config.G.map_depth, 64), ("--batch", config.batch_size, 1 << 20),
               ("--decoder-kernel", config.D.decoder_kernel, 15), ("--workers", config.workers, 1024),
               ("--grid-size", config.grid_size, 1 << 15))
    for option, number, high in at_most:
        _expect(number <= high, option, number, f"at most {high}")
    for option, value, low, inclusive in at_least:
        _expect(math.isfinite(value), option, value, "a finite number")
        ok = value >= low if inclusive else value > low
        _expect(ok, option, value, f"at least {low}" if inclusive else f"more than {low}")
    _expect(config.random_seed < 2**31, "--seed", config.random_seed, "less than 2147483648")


def _validate_batch(config: TrainingConfig) -> None:
    gpus, batch, batch_gpu = config.num_gpus, config.batch_size, config.batch_gpu
    validate_gpus(gpus)
    ok = batch >= 1 and batch % gpus == 0
    _expect(ok, "--batch", batch, f"at least 1 and divisible by --gpus={gpus}")
    ok = batch_gpu >= 1 and batch // gpus % batch_gpu == 0
    _expect(ok, "--batch-gpu", batch_gpu, f"a divisor of {batch // gpus}, the share of one GPU (--batch / --gpus)")
    group = config.D.mbstd_group_size
    _expect(group >= 1, "--mbstd-group", group, "at least 1")
    ok = batch_gpu % min(group, batch_gpu) == 0
    _expect(ok, "--mbstd-group", group, f"a divisor of {batch_gpu}, the images that one GPU sees at once (--batch-gpu)")


def _validate_networks(config: TrainingConfig) -> None:
    res, D, glead = config.dataset.resolution, config.D, config.method in ("glead", "glead+ggdr")
    _expect(_is_power_of_two(res) and res >= 4, "the resolution of the images", res, "a power of two, at least 4")
    channels = config.dataset.num_channels
    _expect(channels in (1, 3), "the number of channels of the images", channels, "1 or 3")
    for net in (config.G, D):
        _expect(net.channel_base >= res, "--cbase", net.channel_base, f"at least {res}, the resolution of the images")
    layers = count_freezable_layers(D.architecture, res)
    _expect(D.freeze_layers <= layers, "--freezed", D.freeze_layers,
            f"at most {layers}, the layers of D above 4x4 for images of {res}x{res}")
    if D.decoder_res is not None:
        ok = _is_power_of_two(D.decoder_res) and 8 <= D.decoder_res <= res
        option = "--res-decoder" if glead else "--ggdr-res"
        _expect(ok, option, D.decoder_res, f"a power of two from 8 to {res}, the resolution of the images")
        ok = D.decoder_kernel >= 1 and D.decoder_kernel % 2 == 1
        _expect(ok, "--decoder-kernel", D.decoder_kernel, "an odd number")
    if D.heads:
        ok = D.res_g == 1 or _is_power_of_two(D.res_g) and 4 <= D.res_g < res
        expected = f"a power of two from 4 to {res // 2}, below the resolution of the images, or 1 for w alone"
        _expect(ok, "--res-g", D.res_g, expected)
    elif glead and config.loss.feature_res is not None:
        ok = _is_power_of_two(config.loss.feature_res) and 8 <= config.loss.feature_res <= D.decoder_res
        _expect(ok, "--res-g", config.loss.feature_res, f"a power of two from 8 to {D.decoder_res}, the resolution of "
                "D's decoder, whose features are compared where D has no task on real images")


def _validate_tasks(config: TrainingConfig) -> None:
    loss = config.loss
    for option, task in (("--lambda-real", loss.real_task), ("--lambda-fake", loss.fake_task)):
        if task is None:
            continue
        _expect(math.isfinite(task.weight), option, task.weight, "a finite number")
        _expect(task.weight > 0, option, task.weight, "at least 0")
    if config.method != "stylegan2" and loss.real_task is None and loss.fake_task is None:
        raise UserError(f"no weight is above 0, so --method={config.method} has nothing to do: say --method=stylegan2")
    if config.D.res_g == 1 and config.method == "glead+ggdr":
        raise UserError("--res-g=1 gives no feature map, which --method=glead+ggdr compares: say --method=glead")


def _validate_augment(config: TrainingConfig) -> None:
    augment = config.augment
    if augment is None:
        return
    _expect(0 <= augment.p <= 1, "--p", augment.p, "0 to 1")
    _expect(math.isfinite(augment.ada_kimg) and augment.ada_kimg > 0, "ADA kimg", augment.ada_kimg, "more than 0")
    _expect(augment.interval >= 1, "the interval of ADA", augment.interval, "at least 1")
    if augment.mode == "ada":
        _expect(augment.target is not None and 0 <= augment.target <= 1, "--target", augment.target, "0 to 1")
    else:
        _expect(augment.target is None, "--target", augment.target, "none with --aug=fixed")
