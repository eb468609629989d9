"""The configuration of a training run: frozen dataclasses, and their JSON form.

Here every field is decided; `resolve.resolve` fills in what users leave out. A field has a default if few published
settings change it.
"""

import dataclasses
import functools
import json
import reprlib
from typing import Any, Literal, Mapping, NamedTuple, get_args

from dnnlib.util import UserError

Method = Literal["stylegan2", "ggdr", "glead", "glead+ggdr"]
METHOD_NAMES: tuple[Method, ...] = get_args(Method)
Recipe = Literal["paper", "released"]
Distance = Literal["perceptual", "mse", "cosine"]
DecoderAct = Literal["linear", "lrelu"]     # Activation of D's decoder (GGDR's ablation compares the two).
HalfType = Literal["float16", "bfloat16"]   # Type of half precision: float16 on CUDA devices only, bfloat16 everywhere.

Transform = Literal[  # A transform of the augmentation pipe.
    "xflip", "rotate90", "xint",                                            # Pixel blitting.
    "scale", "rotate", "aniso", "xfrac",                                    # General geometry.
    "brightness", "contrast", "lumaflip", "hue", "saturation",              # Colour.
    "imgfilter", "noise", "cutout",
]

# Names of the released GLeaD program for what D's tasks compare, and how.
LEGACY_DISTANCES = {"perceptual": "lpips", "mse": "mse", "cosine": "cos"}
LEGACY_TARGETS = {"reconstruction": "gfwimage", "feature": "gfeat"}


class _Strict:
    """Pydantic reads the dataclasses below from JSON without unknown fields and without conversion of types."""

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
    num_fp16_res: int               # Number of the highest resolutions that run in half precision.
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
    freeze_layers: int = 0          # FreezeD: number of the highest-resolution layers that are not trained.
    half_type: HalfType = "float16"
    channels_last: bool = False     # Memory format of the half precision layers on CUDA devices.
    decoder_res: int | None = None  # Decoder h goes up to this resolution; None = no decoder.
    decoder_kernel: int = 1         # Side of the decoder's convolutions.
    decoder_act: DecoderAct = "linear"
    heads: bool = False             # Heads that give (f, basis image, w) for G; only reconstruction needs them.
    res_g: int | None = None        # Resolution of f; 1 = w only (GLeaD, Table 3, "1x1").
    extra_channels: int = 0         # Channels of the input in addition to those of the images.
    aux_outputs: int = 0            # Outputs of an auxiliary linear head; 0 = no such head.


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig(_Strict):
    """A task of D on real or fake images, besides telling them apart."""

    kind: str                           # One of `tasks.TASKS`.
    distance: Distance | None = None    # How the task compares; None if it has no choice.
    weight: float                       # Lambda 1 (real), lambda 2 (fake); GGDR's 10.
    options: dict[str, Any] = dataclasses.field(default_factory=dict)   # The task's own options; see `Task.options`.


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
    r1: Literal["exact", "finite"] = "exact"    # R1 and R2 by the gradient, or by finite differences.
    rivals: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)   # Options by rival; `rivals.RIVALS`.
    real_task_in_dreg: bool = False     # The released program repeats the real task in the lazy R1 phase.
    recon_target: Literal["input", "clean"] = "input"   # G rebuilds what D was shown, or the image before augmentation.


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig(_Strict):
    """Augmentation of the images that D sees (ADA: Karras et al., NeurIPS 2020)."""

    pipe: str                                       # Name of the set of transforms, such as "bgc".
    transforms: tuple[Transform, ...]               # Each has the probability multiplier 1.
    mode: Literal["ada", "fixed"]                   # Adapt p so that the sign statistic reaches its target, or keep p.
    p: float                                        # Probability of each transform; with "ada", the initial one.
    target: float | None                            # Target of the mean sign(D(real)); None with "fixed".
    ada_kimg: float = 500                           # Thousands of images that take p from 0 to 1.
    interval: int = 4                               # Iterations between adjustments of p.


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(_Strict):
    lr: float
    beta1: float = 0.0
    beta2: float = 0.99
    eps: float = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig(_Strict):
    method: Method                              # Without its rivals; `rivals.name_of` gives the whole composition.
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
    batch_gpu: int                              # Images in one forward pass on one GPU; see `training.draws`.
    fill_gpu: bool = False                      # Compute as many parts of `batch_gpu` at once as fit a GPU's memory.
    ema_kimg: float                             # Half-life of the weights of G_ema.
    ema_rampup: float | None                    # The half-life is at most this share of the images seen so far.
    g_reg_interval: int = 4                     # Iterations from one path length regularisation to the next.
    d_reg_interval: int = 16                    # Iterations from one R1 to the next.
    kimg_per_tick: float = 4
    snapshot_ticks: int                         # Ticks from one snapshot to the next; 0 = only at the end.
    grid_size: int = 4096                       # Largest width and height of grids of images, in pixels.
    metrics: tuple[str, ...]
    detector: str | None = None                 # Feature net of the metrics; None = the standard one of each metric.
    random_seed: int = 0
    num_gpus: int = 1
    device: str                                 # "cpu" or "cuda".
    timeout_sec: float = 600                    # The longest wait of processes for one another.
    keep: str = "all"                           # Network pickles that stay; see `checkpoints.Keep`.
    log: tuple[str, ...] = ("tensorboard",)     # Trackers, see `runs.trackers`.
    workers: int = 3                            # Processes that decode images; 0 = the main process does so.
    resume: str | None = None                   # Network pickle to start from.
    allow_tf32: bool = False
    cudnn_benchmark: bool = True


def computes_in_half(config: TrainingConfig) -> bool:
    """Whether D computes its highest resolutions in half precision on the device of the run."""
    return config.D.num_fp16_res > 0 and (config.device == "cuda" or config.D.half_type == "bfloat16")


def to_json(config: TrainingConfig) -> dict[str, Any]:
    """The configuration as plain data, for `training_options.json`. Empty options of tasks and rivals are left out."""
    data = dataclasses.asdict(config)
    for task in (data["loss"]["real_task"], data["loss"]["fake_task"]):
        if task is not None and not task["options"]:
            del task["options"]
    if not data["loss"]["rivals"]:
        del data["loss"]["rivals"]
    return data


def from_json(data: dict[str, Any]) -> TrainingConfig:
    """Read a configuration from the result of `to_json`, or from the content of `training_options.json`.

    Fields with a default may be missing, because earlier versions did not write all of them.

    Raises:
        UserError: Fields are missing, unknown, or of the wrong type. The error names all of them.
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
    """One of pydantic's errors in words, such as `config.loss.r1_gamma is None, expected a valid number`."""
    where = ".".join(["config", *map(str, error["loc"])])
    if error["type"] == "missing":
        return f"{where} is missing"
    if error["type"] == "unexpected_keyword_argument":
        return f"{where} is unknown"
    if error["type"] == "json_invalid":
        return f"{where} is no JSON that can be read: {error['ctx']['error']}"
    return f"{where} is {reprlib.repr(error['input'])}, {error['msg'].replace('Input should be', 'expected')}"


def generator_kwargs(config: TrainingConfig) -> dict[str, Any]:
    """Arguments of `training.networks.Generator`, as plain data under the ecosystem's names."""
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
    """The sizes that a run takes from the generator that it starts from."""

    map_depth: int                  # Layers of the mapping network.
    map_widths: tuple[int, ...]     # Distinct widths of z, w and the mapping layers, usually (512,).
    channel_base: int
    channel_max: int


def sizes_of(G: Any) -> Sizes | None:
    """The sizes in the arguments that `G` was built with; None if it lacks those of `generator_kwargs`."""
    kwargs = G.init_kwargs
    if not kwargs.keys() >= {"mapping_kwargs", "synthesis_kwargs"}:
        return None
    mapping, synthesis = kwargs["mapping_kwargs"], kwargs["synthesis_kwargs"]
    depth = mapping.get("num_layers", 8)
    width = mapping.get("layer_features") if depth > 1 else None
    widths = {G.z_dim, G.w_dim, width or G.w_dim}
    return Sizes(depth, tuple(sorted(widths)), channel_base=synthesis.get("channel_base", 32768),
                 channel_max=synthesis.get("channel_max", 512))


def discriminator_kwargs(config: TrainingConfig) -> dict[str, Any]:
    """Arguments of `training.networks.Discriminator`, as plain data under the ecosystem's names."""
    D = config.D
    freeze = {"freeze_layers": D.freeze_layers} if D.freeze_layers else {}
    kwargs = {
        "c_dim": config.dataset.label_dim,
        "img_resolution": config.dataset.resolution,
        "img_channels": config.dataset.num_channels + D.extra_channels,
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
    if D.aux_outputs:
        kwargs["aux_outputs"] = D.aux_outputs
    if D.heads:
        kwargs |= {
            "decoder_res": [D.decoder_res],
            "glead_res_g": D.res_g,
            "decoder_out_channel": config.G.w_dim,
        }
    return kwargs


def augment_kwargs(config: TrainingConfig) -> dict[str, Any]:
    """Arguments of `training.augment.AugmentPipe`: the probability multipliers; empty without augmentation."""
    return {} if config.augment is None else dict.fromkeys(config.augment.transforms, 1)


def _channels(net: GeneratorConfig | DiscriminatorConfig) -> dict[str, Any]:
    return {name: getattr(net, name) for name in ("channel_base", "channel_max", "num_fp16_res", "conv_clamp")}


def _half_precision(net: GeneratorConfig | DiscriminatorConfig) -> dict[str, Any]:
    """Arguments for half precision. Defaults are left out, because other programs don't know all arguments."""
    half_type = {"half_type": net.half_type} if net.half_type != "float16" else {}
    return half_type | ({"fp16_channels_last": True} if net.channels_last else {})


def to_legacy_kwargs(config: TrainingConfig) -> dict[str, Any]:
    """The content of `training_options.json`: the keys of the ecosystem, for its tools, and ours under "config".

    Resuming reads "config" only.
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
    """As in StyleGAN2-ADA's program, which leaves out `augment_p` 0 and `ada_kimg` 500."""
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
    """R1's weight, settings that differ from StyleGAN2's, and the tasks under names of GGDR's and GLeaD's programs."""
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
