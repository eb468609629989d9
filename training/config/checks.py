"""Checks of a configuration: ranges of options, and whether fields fit together."""

import math

from dnnlib.util import UserError

from .options import check_ranges, expect
from .rivals import RIVALS, names_in
from .schema import TrainingConfig, computes_in_half


def validate(config: TrainingConfig) -> None:
    """Check ranges, and whether fields fit together. This looks at the configuration only, not at the machine.

    Raises:
        UserError: An option has a bad value. The error names the option, its value and what was expected.
    """
    check_ranges(config)
    _validate_batch(config)
    _validate_networks(config)
    _validate_rivals(config)
    _validate_tasks(config)
    _validate_augment(config)
    _validate_finite_differences(config)


def count_freezable_layers(architecture: str, resolution: int) -> int:
    """The number of D's layers that FreezeD can freeze: all but those at 4x4.

    Each block has two convolutions. "resnet" adds a convolution beside them, and "skip" a layer that reads the image.
    "orig" and "resnet" read the image in the first block only.
    """
    blocks = resolution.bit_length() - 3  # From the image's resolution down to 8x8.
    if blocks == 0:
        return 0
    return {"orig": 2 * blocks + 1, "resnet": 3 * blocks + 1, "skip": 3 * blocks}[architecture]


def validate_gpus(num_gpus: int) -> None:
    """Raise UserError unless `num_gpus` is a power of two."""
    expect(_is_power_of_two(num_gpus), "--gpus", num_gpus, "a power of two")


def _is_power_of_two(value: int) -> bool:
    return value >= 1 and value & (value - 1) == 0


def _validate_batch(config: TrainingConfig) -> None:
    gpus, batch, batch_gpu = config.num_gpus, config.batch_size, config.batch_gpu
    validate_gpus(gpus)
    ok = batch >= 1 and batch % gpus == 0
    expect(ok, "--batch", batch, f"at least 1 and divisible by --gpus={gpus}")
    ok = batch_gpu >= 1 and batch // gpus % batch_gpu == 0
    expect(ok, "--batch-gpu", batch_gpu, f"a divisor of {batch // gpus}, the share of one GPU (--batch / --gpus)")
    group = config.D.mbstd_group_size
    ok = batch_gpu % min(group, batch_gpu) == 0
    expect(ok, "--mbstd-group", group, f"a divisor of {batch_gpu}, the images that one GPU sees at once (--batch-gpu)")


def _validate_networks(config: TrainingConfig) -> None:
    res, D, glead = config.dataset.resolution, config.D, config.method in ("glead", "glead+ggdr")
    expect(_is_power_of_two(res) and res >= 8, "the resolution of the images", res, "a power of two, at least 8")
    channels = config.dataset.num_channels
    expect(channels in (1, 3), "the number of channels of the images", channels, "1 or 3")
    expect(config.grid_size >= res, "--grid-size", config.grid_size, f"at least {res}, the resolution of the images")
    for net in (config.G, D):
        expect(net.channel_base >= res, "--cbase", net.channel_base, f"at least {res}, the resolution of the images")
    layers = count_freezable_layers(D.architecture, res)
    expect(D.freeze_layers <= layers, "--freezed", D.freeze_layers,
            f"at most {layers}, the layers of D above 4x4 for images of {res}x{res}")
    if D.decoder_res is not None:
        ok = _is_power_of_two(D.decoder_res) and 8 <= D.decoder_res <= res
        option = "--res-decoder" if glead else "--ggdr-res"
        expect(ok, option, D.decoder_res, f"a power of two from 8 to {res}, the resolution of the images")
        ok = D.decoder_kernel >= 1 and D.decoder_kernel % 2 == 1
        expect(ok, "--decoder-kernel", D.decoder_kernel, "an odd number")
    if D.heads:
        ok = D.res_g == 1 or _is_power_of_two(D.res_g) and 4 <= D.res_g < res
        expected = f"a power of two from 4 to {res // 2}, below the resolution of the images, or 1 for w alone"
        expect(ok, "--res-g", D.res_g, expected)
    elif glead and config.loss.feature_res is not None:
        ok = _is_power_of_two(config.loss.feature_res) and 8 <= config.loss.feature_res <= D.decoder_res
        expect(ok, "--res-g", config.loss.feature_res, f"a power of two from 8 to {D.decoder_res}, the resolution of "
                "D's decoder, whose features are compared where D has no task on real images")


def _validate_tasks(config: TrainingConfig) -> None:
    loss = config.loss
    if config.method != "stylegan2" and loss.real_task is None and loss.fake_task is None:
        raise UserError(f"no weight is above 0, so --method={config.method} has nothing to do: say --method=stylegan2")
    if config.D.res_g == 1 and config.method == "glead+ggdr":
        raise UserError("--res-g=1 gives no feature map, which --method=glead+ggdr compares: say --method=glead")


def _validate_rivals(config: TrainingConfig) -> None:
    for name in names_in(vars(config.loss)):
        problem = RIVALS[name].problem(config)
        if RIVALS[name].compares and config.batch_gpu < 2:
            problem = "compares the images that a GPU computes at once, and --batch-gpu is 1: expected 2 or more"
        if problem:
            raise UserError(f"{name} {problem}")


def _validate_finite_differences(config: TrainingConfig) -> None:
    loss = config.loss
    if loss.r1 == "exact":
        return
    if loss.adversarial in RIVALS and RIVALS[loss.adversarial].r1_gamma is not None:
        raise UserError(f"--r1=finite estimates the squared gradient, and {loss.adversarial} needs its norm: leave out "
                        "one of them")
    if computes_in_half(config):
        raise UserError("--r1=finite needs float32, because half precision loses the small difference of two scores: "
                        "say --fp32=true")


def _validate_augment(config: TrainingConfig) -> None:
    augment = config.augment
    if augment is None:
        return
    expect(math.isfinite(augment.ada_kimg) and augment.ada_kimg > 0, "ADA kimg", augment.ada_kimg, "more than 0")
    expect(augment.interval >= 1, "the interval of ADA", augment.interval, "at least 1")
    if augment.mode == "ada":
        expect(augment.target is not None, "--target", augment.target, "0 to 1")
    else:
        expect(augment.target is None, "--target", augment.target, "none with --aug=fixed")
