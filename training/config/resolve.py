"""Makes a configuration from options. Options that were left out follow from --cfg, the method and the data."""

import dataclasses
from typing import Any, Iterable, cast

from dnnlib.util import UserError

from . import presets
from .checks import validate, validate_gpus
from .options import GLEAD, OPTIONS, Options, apply
from .presets import Preset
from .rivals import RIVALS, method_name, read_method, read_options
from .schema import (
    LEGACY_DISTANCES,
    AugmentConfig,
    DatasetConfig,
    DiscriminatorConfig,
    GeneratorConfig,
    LossConfig,
    Method,
    OptimizerConfig,
    TaskConfig,
    TrainingConfig,
    computes_in_half,
)

_DISTANCES = {theirs: ours for ours, theirs in LEGACY_DISTANCES.items()}


def source_network(options: Options) -> str | None:
    """Path or URL of the network to start from; None if --resume names none."""
    if options.resume in ("auto", "noresume"):
        return None
    return presets.RESUME_SOURCES.get(options.resume or "", options.resume)


def resolve(options: Options, dataset: DatasetConfig, *, device: str) -> TrainingConfig:
    """Fill in what was left out, from the preset, the method, the recipe and the resolution.

    `presets` has the rules for the resolutions of f, of the decoder and of GGDR's features. A weight of 0 removes a
    task (as in GLeaD's Table 2).

    Args:
        options: What the user said.
        dataset: The data set; its `label_dim` is 0 for unconditional training.
        device:  "cpu" or "cuda".

    Returns:
        The configuration, checked by `validate`.

    Raises:
        UserError: An option is out of range, or contradicts another one.
    """
    method, names = read_method(_with_adversarial(options))
    rivals = read_options(options.rival_options, names)
    options = dataclasses.replace(options, method=method, recipe=options.recipe or "paper",
                                  gpus=_given(options.gpus, 1))
    if options.cfg not in presets.PRESETS:
        raise UserError(f"--cfg is {options.cfg}, expected one of {', '.join(presets.PRESETS)}")
    validate_gpus(options.gpus)
    preset = presets.auto_preset(presets.PRESETS[options.cfg], dataset.resolution, options.gpus)
    config = _with_rivals(_by_preset(options, preset, dataset, device=device), names, rivals)
    config = apply(options, config)
    validate(config)
    return config


def _with_adversarial(options: Options) -> str:
    """The method with its rivals, such as `glead+relativistic`. --adversarial is one of these, if it is a rival."""
    method, names = read_method(options.method or "glead")
    said = options.adversarial
    of_names = {RIVALS[name].adversarial for name in names} - {"logistic"}
    if said is not None and of_names - {said}:
        raise UserError(f"--adversarial is {said}, but --method={method_name(method, names)} means "
                        f"{', '.join(of_names)}: leave out one of them")
    return method_name(method, {*names, said} if said in RIVALS else names)


def _with_rivals(
    config: TrainingConfig, names: Iterable[str], options: dict[str, dict[str, float]]
) -> TrainingConfig:
    """Apply the changes of the rows of `rivals.RIVALS`."""
    D, loss, fill_gpu = config.D, dataclasses.replace(config.loss, rivals=options), config.fill_gpu
    for name in names:
        row = RIVALS[name]
        D = dataclasses.replace(D, **row.D(options.get(name, {}), config))
        if row.adversarial != "logistic":
            loss = dataclasses.replace(loss, adversarial=row.adversarial)
        if row.r1_gamma is not None:
            loss = dataclasses.replace(loss, r1_gamma=row.r1_gamma)
        fill_gpu = fill_gpu and not row.compares
    return dataclasses.replace(config, D=D, loss=loss, fill_gpu=fill_gpu)


def _by_preset(options: Options, preset: Preset, dataset: DatasetConfig, *, device: str) -> TrainingConfig:
    """The configuration before `apply` sets single fields of it."""
    resume = source_network(options)
    loss = _loss(options, preset, dataset)
    tasks = (loss.real_task, loss.fake_task)
    needs_perceptual = any(task is not None and task.distance == "perceptual" for task in tasks)
    return TrainingConfig(
        method=cast(Method, options.method),
        preset=options.cfg,
        recipe=options.recipe,
        dataset=dataset,
        G=GeneratorConfig(map_depth=preset.map_depth, **_network(options, preset)),
        D=_discriminator(options, preset, dataset, loss),
        loss=loss,
        G_opt=OptimizerConfig(lr=cast(float, preset.lr)),
        D_opt=OptimizerConfig(lr=cast(float, preset.lr)),
        augment=_augment(options, transfer=resume is not None),
        perceptual=_given(options.perceptual, presets.PERCEPTUAL[options.recipe]) if needs_perceptual else None,
        total_kimg=preset.total_kimg,
        batch_size=cast(int, preset.batch_size),
        batch_gpu=_batch_gpu(options, preset),
        fill_gpu=options.batch_gpu in (None, "auto") and device == "cuda",
        ema_kimg=cast(float, preset.ema_kimg),
        ema_rampup=None if resume else preset.rampup,  # the first weights in the average are good already
        kimg_per_tick=preset.tick,
        snapshot_ticks=preset.snap,
        metrics=preset.metrics,
        num_gpus=options.gpus,
        device=device,
        resume=resume,
        cudnn_benchmark=not options.nobench,
    )


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _batch_gpu(options: Options, preset: Preset) -> int:
    """Images per part. Published parts hold on fewer GPUs, too, because minibatch deviation depends on them."""
    if isinstance(options.batch_gpu, int):
        return options.batch_gpu
    share = _given(options.batch, preset.batch_size) // options.gpus
    return share if options.batch is not None else min(preset.batch_gpu, share)


def _network(options: Options, preset: Preset) -> dict:
    """The settings that G and D share. As in the ADA paper, four resolutions use half precision, with a clamp."""
    return {
        "channel_base": preset.cbase if options.method == "stylegan2" else preset.cbase_task,
        "channel_max": preset.cmax,
        "num_fp16_res": 0 if options.fp32 else 4,
        "conv_clamp": None if options.fp32 else 256,
        "half_type": "float16" if options.fp32 else _given(options.half, "float16"),
    }


def _discriminator(
    options: Options, preset: Preset, dataset: DatasetConfig, loss: LossConfig
) -> DiscriminatorConfig:
    """D has a decoder if a task needs one, and heads if a task rebuilds images."""
    heads = any(task is not None and task.kind == "reconstruction" for task in (loss.real_task, loss.fake_task))
    decoder_res = None
    if heads:
        decoder_res = _given(options.res_decoder, presets.default_decoder_res(dataset.resolution))
    elif loss.feature_res is not None:
        said = options.ggdr_res if options.method == "ggdr" else options.res_decoder
        decoder_res = _given(said, max(loss.feature_res, 8))
    return DiscriminatorConfig(
        architecture=preset.D_arch,
        mbstd_group_size=cast(int, preset.mbstd),
        decoder_res=decoder_res,
        decoder_kernel=_given(options.decoder_kernel, 1) if decoder_res else 1,
        decoder_act=_given(options.decoder_act, "linear") if decoder_res else "linear",
        heads=heads,
        res_g=_given(options.res_g, presets.default_res_g(dataset, options.method)) if heads else None,
        **_network(options, preset),
    )


def _loss(options: Options, preset: Preset, dataset: DatasetConfig) -> LossConfig:
    method, feature_res = options.method, None
    real_task = _task(presets.METHODS[method].real, options.lambda_real, options.reg_loss_real)
    fake_task = _task(presets.METHODS[method].fake, options.lambda_fake, options.reg_loss_fake)
    if fake_task is not None and fake_task.kind == "feature":
        if method == "ggdr":
            feature_res = _given(options.ggdr_res, presets.default_ggdr_res(dataset.resolution))
        else:
            lowest = 4 if real_task is not None else 8  # without a head for f, a level of the decoder is compared
            feature_res = _given(options.res_g, max(presets.default_res_g(dataset, method), lowest))
    return LossConfig(
        r1_gamma=cast(float, preset.r1_gamma),
        style_mixing_prob=preset.mixing,
        pl_weight=preset.pl_weight,
        real_task=real_task,
        fake_task=fake_task,
        feature_res=feature_res,
        adversarial=_given(options.adversarial, "logistic"),
        real_task_in_dreg=options.recipe == "released" and real_task is not None,
        recon_target=presets.RECON_TARGET[options.recipe],
    )


def _augment(options: Options, *, transfer: bool) -> AugmentConfig | None:
    """The augmentation by --aug, --p, --target and --augpipe."""
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
    if pipe not in presets.PIPES:
        raise UserError(f"--augpipe is {pipe}, expected one of {', '.join(presets.PIPES)}")
    return AugmentConfig(
        pipe=pipe,
        transforms=presets.PIPES[pipe],
        mode=aug,
        p=_given(options.p, 0.0),
        target=_given(options.target, presets.ADA_TARGET) if aug == "ada" else None,
        **({"ada_kimg": presets.ADA_KIMG_TRANSFER} if transfer and aug == "ada" else {}),
    )


def _task(task: TaskConfig | None, weight: float | None, distance: str | None) -> TaskConfig | None:
    """A task of the method with the given weight and distance; a weight of 0 removes it."""
    if task is None or weight == 0:
        return None
    return dataclasses.replace(task, weight=_given(weight, task.weight),
                               distance=_given(_DISTANCES.get(distance), task.distance))


def warnings(options: Options, config: TrainingConfig) -> list[str]:
    """One line for each option that was given, and has no effect on this run, or probably not the intended one."""
    method = config.method
    lines = [
        f"{known.both_names} has no effect with --method={method}"
        for name, known in OPTIONS.items()
        if known.methods and method not in known.methods and getattr(options, name) is not None
    ]
    if config.recipe != "paper" and method not in GLEAD:
        lines.append(f"--recipe={config.recipe} has no effect with --method={method}")
    if method in GLEAD:
        lines += _warnings_of_tasks(options, config)
    if options.half is not None and options.fp32:
        lines.append("--half has no effect with --fp32=true")
    elif options.half == "float16" and config.device == "cpu":
        lines.append("--half=float16 has no effect with --device=cpu, which computes in float32 or bfloat16")
    if options.freezed > 0 and config.resume is None:
        lines.append(f"--freezed={options.freezed} leaves layers of D as they are initialised, because there is "
                     "no network to start from (--resume)")
    is_lpips = (config.perceptual or "").startswith(("lpips-", "random-"))
    if options.lpips_fp32 and not (computes_in_half(config) and is_lpips):
        lines.append("--lpips-fp32 has no effect: no LPIPS computes in half precision here")
    if options.detector is not None and not config.metrics:
        lines.append("--detector has no effect without --metrics")
    return lines


def _warnings_of_tasks(options: Options, config: TrainingConfig) -> list[str]:
    """Warnings about options of the tasks of GLeaD."""
    lines = []
    tasks = {"real": config.loss.real_task, "fake": config.loss.fake_task}
    for images, task in tasks.items():
        if task is None and getattr(options, f"reg_loss_{images}") is not None:
            lines.append(f"--reg_loss_{images} has no effect where --lambda-{images} is 0")
    if options.perceptual is not None and config.perceptual is None:
        lines.append("--perceptual has no effect: no task of D compares images by a perceptual net")
    if options.recon_target is not None:
        if all(task is None or task.kind == "feature" for task in tasks.values()):
            lines.append("--recon-target has no effect: G rebuilds no images")
        elif config.augment is None:
            lines.append("--recon-target has no effect with --aug=noaug")
    return lines
