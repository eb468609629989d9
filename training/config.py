"""What one training run is: frozen dataclasses, their cross-checks, and their JSON form.

Defaults that users may leave out are filled in by `presets.resolve`; here every field has been decided. A field with a
default is one that no published setting varies.
"""

import dataclasses
from typing import Any, Literal

Method = Literal["stylegan2", "ggdr", "glead", "glead+ggdr"]
Recipe = Literal["paper", "released"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    path: str                       # Folder or zip.
    resolution: int                 # Side of the square images, a power of two.
    num_channels: int = 3           # 1 or 3.
    label_dim: int = 0              # Width of the label vectors; 0 = unconditional.
    use_labels: bool = False
    max_size: int | None = None     # Train on this many images, drawn by random_seed; None = all.
    xflip: bool = False             # Double the set with mirrored copies.
    random_seed: int = 0            # Draws the subset.


@dataclasses.dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    z_dim: int = 512
    w_dim: int = 512
    map_depth: int                  # Layers of the mapping network.
    channel_base: int               # Channels at resolution r are channel_base / r, at most channel_max.
    channel_max: int = 512
    num_fp16_res: int               # So many of the highest resolutions run in float16 on CUDA devices.
    conv_clamp: float | None        # Clamps the output of convolutions; needed for float16.


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiscriminatorConfig:
    channel_base: int
    channel_max: int = 512
    num_fp16_res: int
    conv_clamp: float | None
    mbstd_group_size: int           # Images that share a minibatch standard deviation.
    freeze_layers: int = 0          # FreezeD: so many of the highest-resolution layers stay as they are.
    channels_last: bool = False     # Memory format of the float16 layers.
    decoder_res: int | None = None  # Decoder h goes up to this resolution; None = no decoder.
    decoder_kernel: int = 1         # Side of the decoder's convolutions.
    heads: bool = False             # Heads that give (f, basis image, w) for G.
    res_g: int | None = None        # Resolution of f; 1 = w only (Table 3, "1x1").


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """What D has to do with one kind of image besides telling real from fake."""

    kind: Literal["reconstruction", "feature"]               # Let G rebuild the image; reproduce G's features.
    distance: Literal["perceptual", "mse", "cosine"]
    weight: float                                            # Lambda 1 (real), lambda 2 (fake); GGDR's 10.


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    r1_gamma: float
    style_mixing_prob: float = 0.9
    pl_weight: float = 2.0
    pl_batch_shrink: int = 2
    pl_decay: float = 0.01
    real_task: TaskConfig | None = None
    fake_task: TaskConfig | None = None
    feature_res: int | None = None      # Resolution of the features that a "feature" task compares.
    real_task_in_dreg: bool = False     # The released program repeats the real task in the lazy R1 phase.


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    lr: float
    beta1: float = 0.0
    beta2: float = 0.99
    eps: float = 1e-8


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    method: Method
    preset: str
    recipe: Recipe
    dataset: DatasetConfig
    G: GeneratorConfig
    D: DiscriminatorConfig
    loss: LossConfig
    G_opt: OptimizerConfig
    D_opt: OptimizerConfig
    perceptual: str | None                      # Name, path or URL of the perceptual net; None = no task needs one.
    total_kimg: float
    batch_size: int                             # Images per iteration, over all GPUs.
    batch_gpu: int                              # Images in one forward pass on one GPU.
    ema_kimg: float                             # Half-life of the weights of G_ema.
    ema_rampup: float | None                    # The half-life is at most this share of the images seen so far.
    g_reg_interval: int = 4                     # Path length regularisation every so many iterations.
    d_reg_interval: int = 16                    # R1 every so many iterations.
    kimg_per_tick: float = 4
    snapshot_ticks: int                         # Grids and pickles every so many ticks; 0 = only at the end.
    metrics: tuple[str, ...]
    detector: str | None = None                 # Feature net of the metrics; None = the standard one of each metric.
    random_seed: int = 0
    num_gpus: int = 1
    device: str                                 # "cpu" or "cuda".
    workers: int = 3                            # Processes that decode images; 0 = none beside the main one.
    resume: str | None = None                   # Network pickle to start from.
    allow_tf32: bool = False
    cudnn_benchmark: bool = True


def to_json(config: TrainingConfig) -> dict[str, Any]:
    """The configuration as plain data, for `training_options.json`."""
    return dataclasses.asdict(config)
