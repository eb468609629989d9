"""How a run differs from published ones: in one line, and in the name of its directory."""

import os
import re
from typing import Callable, NamedTuple

from metrics.published import DATASETS

from .options import Options
from .presets import PUBLISHED_RUNS, PublishedRun, published_data
from .resolve import resolve
from .schema import LEGACY_DISTANCES, DatasetConfig, TaskConfig, TrainingConfig

DATASET_NAME_LENGTH = 24    # Longest name of a data set in the name of a run directory.


class Setting(NamedTuple):
    """Something in which a run is compared with a published one."""

    label: str
    value: Callable[[TrainingConfig], str]
    by_cfg: bool = False    # Compare with the defaults of the run's --cfg, so that another --cfg is a single departure.


def _augmentation(c: TrainingConfig) -> str:
    if c.augment is None:
        return "none"
    strength = f"p {c.augment.p:g}" if c.augment.mode == "fixed" else f"ada to {c.augment.target:g}"
    return f"{c.augment.pipe}, {strength}"


def _task(task: TaskConfig | None) -> str:
    return "none" if task is None else f"{task.weight:g} times {LEGACY_DISTANCES[task.distance]}"


def _rivals(options: dict[str, dict[str, float]]) -> str:
    said = [f"{name} with " + ", ".join(f"{option} {value:g}" for option, value in values.items())
            for name, values in options.items()]
    return " and ".join(said) or "nothing"


def _f(c: TrainingConfig) -> str:
    if not c.D.heads:
        return "none"
    return "w alone" if c.D.res_g == 1 else f"{c.D.res_g}x{c.D.res_g}"


def _of_decoder(field: str) -> Callable[[TrainingConfig], str]:
    return lambda c: "none" if c.D.decoder_res is None else str(getattr(c.D, field))


def _rebuilt(c: TrainingConfig) -> str:
    # Without augmentation, both targets are the same image.
    return "what D sees" if c.augment is None or c.loss.recon_target == "input" else "the clean image"


SETTINGS = (
    Setting("augmentation", _augmentation),
    Setting("mirroring", lambda c: "yes" if c.dataset.xflip else "no"),
    Setting("labels", lambda c: "yes" if c.dataset.use_labels else "no"),
    Setting("images", lambda c: "all" if c.dataset.max_size is None else str(c.dataset.max_size)),
    Setting("length", lambda c: f"{c.total_kimg:g} kimg"),
    Setting("batch", lambda c: str(c.batch_size)),
    Setting("minibatch deviation", lambda c: f"over {min(c.D.mbstd_group_size, c.batch_gpu)}"),
    Setting("f", _f),
    Setting("resolution of D's decoder", _of_decoder("decoder_res")),
    Setting("kernel of D's decoder", _of_decoder("decoder_kernel")),
    Setting("activation of D's decoder", _of_decoder("decoder_act")),
    Setting("compared features of G", lambda c: f"at {c.loss.feature_res}"),
    Setting("task on real images", lambda c: _task(c.loss.real_task)),
    Setting("task on generated images", lambda c: _task(c.loss.fake_task)),
    Setting("perceptual net", lambda c: _stem(c.perceptual or "none")),
    Setting("phases with the task on real images", lambda c: "Dmain, Dreg" if c.loss.real_task_in_dreg else "Dmain"),
    Setting("what G rebuilds", _rebuilt),
    Setting("settings", lambda c: f"--cfg={c.preset}"),
    Setting("R1 gamma", lambda c: f"{c.loss.r1_gamma:g}", by_cfg=True),
    Setting("learning rates", lambda c: f"{c.G_opt.lr:g} of G, {c.D_opt.lr:g} of D", by_cfg=True),
    Setting("adversarial loss", lambda c: c.loss.adversarial),
    Setting("gradient penalty", lambda c: c.loss.r1),
    Setting("what is added to the method", lambda c: _rivals(c.loss.rivals)),
    Setting("networks", lambda c: f"{c.G.map_depth} mapping layers, cbase {c.G.channel_base}, cmax {c.G.channel_max}",
            by_cfg=True),
    Setting("start", lambda c: _stem(c.resume or "new networks")),
    Setting("frozen layers of D", lambda c: str(c.D.freeze_layers)),
    Setting("precision", lambda c: c.D.half_type if c.D.num_fp16_res else "float32"),
)


def departures_line(config: TrainingConfig) -> str:
    """`As published (...)`, or the differences from the most similar published run."""
    run, differences = _nearest(config)
    if not differences:
        return f"As published ({run.source}, {run.data.name})"
    return f"Departs from the paper in: {', '.join(differences)}"


def _nearest(config: TrainingConfig) -> tuple[PublishedRun, list[str]]:
    """The published run with the fewest differences, and these differences.

    Only runs of the same method are candidates, and of these only runs on the same data set, if there are any.
    """
    data = published_data(config.dataset)
    runs = [run for run in PUBLISHED_RUNS if run.options["method"] == config.method]
    on_it = [run for run in runs if run.data is data]
    by_cfg = _as_cfg_says(config)
    compared = []
    for run in on_it or runs:
        reference = _configuration(run, device=config.device)
        pairs = [(s.label, s.value(config), s.value(by_cfg if s.by_cfg else reference)) for s in SETTINGS]
        differences = [f"{label} ({ours} instead of {theirs})" for label, ours, theirs in pairs if ours != theirs]
        compared.append((run, differences if on_it else ["data set", *differences]))
    return min(compared, key=lambda pair: len(pair[1]))


def _configuration(run: PublishedRun, *, device: str) -> TrainingConfig:
    data = run.data
    dataset = DatasetConfig(path=DATASETS[data.name].names[0], resolution=data.resolution, xflip=data.mirror)
    return resolve(Options(**{**data.options, **run.options}), dataset, device=device)


def _as_cfg_says(config: TrainingConfig) -> TrainingConfig:
    """The same method, data and batches with the settings of --cfg."""
    options = Options(cfg=config.preset, method=config.method, gpus=config.num_gpus, batch=config.batch_size,
                      batch_gpu=config.batch_gpu, mbstd_group=config.D.mbstd_group_size)
    return resolve(options, config.dataset, device=config.device)


def run_name(dataset_name: str, method: str) -> str:
    """The name of a run directory after its number, such as `church256-glead`."""
    return re.sub(r"[^\w.,=+-]", "_", f"{dataset_name[:DATASET_NAME_LENGTH]}-{method}")


def _stem(value: str) -> str:
    """The file name of a path or URL, without suffix. `lpips-vgg:FILE` becomes `lpips-vgg`: same weights."""
    if value.startswith("lpips-"):
        return value.partition(":")[0]
    return os.path.splitext(os.path.basename(value))[0]
