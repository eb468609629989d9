"""Checks of a configuration, its network arguments, and reading it back."""

import dataclasses
import math

import pytest

from dnnlib.util import UserError
from training.config import schema as configs
from training.config.checks import count_freezable_layers, validate
from training.config.options import Options
from training.config.resolve import resolve
from training.config.schema import DatasetConfig, from_json, to_json
from training.networks import Conv2dLayer, Discriminator
from training.tasks import validate_tasks


def make(resolution=32, device="cpu", data=None, **said):
    return resolve(Options(**said), DatasetConfig(path="d", resolution=resolution, **(data or {})), device=device)


@pytest.mark.parametrize(
    "said, start",
    [
        ({"gpus": 3}, "--gpus is 3, expected a power of two"),
        ({"gpus": 0}, "--gpus is 0, expected a power of two"),
        ({"gpus": -2}, "--gpus is -2, expected a power of two"),
        ({"batch": 9, "gpus": 2}, "--batch is 9, expected at least 1 and divisible by --gpus=2"),
        ({"batch": 0}, "--batch is 0, expected at least 1"),
        ({"batch": 9, "gpus": 2, "device": "cuda"}, "--batch is 9, expected at least 1 and divisible by"),
        ({"batch": 8, "batch_gpu": 3}, "--batch-gpu is 3, expected a divisor of 8"),
        ({"batch": 8, "batch_gpu": 0}, "--batch-gpu is 0"),
        ({"batch": 8, "mbstd_group": 3}, "--mbstd-group is 3, expected a divisor of 8"),
        ({"mbstd_group": 0}, "--mbstd-group is 0"),
        ({"gamma": -1.0}, "--gamma is -1.0, expected at least 0"),
        ({"gamma": math.nan}, "--gamma is nan"),
        ({"kimg": 0.0}, "--kimg is 0.0, expected at least 0.001"),
        ({"kimg": math.inf}, "--kimg is inf"),
        ({"tick": 0.0}, "--tick is 0.0"),
        ({"snap": -1}, "--snap is -1"),
        ({"workers": -1}, "--workers is -1"),
        ({"seed": -1}, "--seed is -1"),
        ({"seed": 2**31}, "--seed is 2147483648, expected less than"),
        ({"workers": 9999}, "--workers is 9999, expected at most 1024"),
        ({"freezed": -1}, "--freezed is -1"),
        ({"freezed": 11}, "--freezed is 11, expected at most 10, the layers of D above 4x4 for images of 32x32"),
        ({"freezed": 8, "cfg": "cifar"}, "--freezed is 8, expected at most 7"),
        ({"map_depth": 0}, "--map-depth is 0"),
        ({"cmax": 0}, "--cmax is 0"),
        ({"cbase": 16}, "--cbase is 16, expected at least 32"),
        ({"res_g": 32}, "--res-g is 32, expected a power of two from 4 to 16"),
        ({"res_g": 2}, "--res-g is 2"),
        ({"res_g": 12}, "--res-g is 12"),
        ({"res_g": 0}, "--res-g is 0"),
        ({"res_g": -8}, "--res-g is -8"),
        ({"res_decoder": 64}, "--res-decoder is 64, expected a power of two from 8 to 32"),
        ({"res_decoder": 4}, "--res-decoder is 4"),
        ({"res_decoder": 24}, "--res-decoder is 24"),
        ({"decoder_kernel": 2}, "--decoder-kernel is 2, expected an odd number"),
        ({"method": "ggdr", "ggdr_res": 64}, "--ggdr-res is 64, expected a power of two from 8 to 32"),
        ({"lambda_real": -1.0}, "--lambda-real is -1.0, expected at least 0"),
        ({"lambda_fake": math.inf}, "--lambda-fake is inf"),
        ({"reg_loss_real": "cos"}, "--reg_loss_real is cos, but images (gfwimage) are compared by lpips or mse"),
        ({"method": "glead+ggdr", "reg_loss_fake": "mse"}, "--reg_loss_fake is mse, but feature maps (gfeat)"),
        ({"method": "glead+ggdr", "res_g": 1}, "--res-g=1 gives no feature map"),
        ({"resolution": 24}, "the resolution of the images is 24, expected a power of two"),
        ({"resolution": 4}, "the resolution of the images is 4, expected a power of two, at least 8"),
        ({"data": {"num_channels": 4}}, "the number of channels of the images is 4, expected 1 or 3"),
    ],
)
def test_mistakes_name_the_option_and_what_was_expected(said, start):
    with pytest.raises(UserError) as e:
        validate_tasks(make(**said))
    assert str(e.value).startswith(start)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "said",
    [
        {"res_g": 1},
        {"res_g": 16},
        {"res_g": 4, "res_decoder": 32},
        {"decoder_kernel": 3},
        {"batch": 6, "batch_gpu": 3},
        {"mbstd_group": 64},
        {"snap": 0},
        {"gamma": 0.0},
        {"workers": 0},
        {"freezed": 10},
    ],
)
def test_limits_that_are_allowed(said):
    validate(make(**said))


def test_validation_of_a_configuration_that_was_edited_by_hand():
    config = make()
    broken = dataclasses.replace(config, D=dataclasses.replace(config.D, res_g=5))
    with pytest.raises(UserError, match="--res-g is 5"):
        validate(from_json(to_json(broken)))


def test_network_arguments():
    said = {"freezed": 2, "nhwc": True, "half": "bfloat16", "decoder_kernel": 3, "res_g": 1}
    config = make(data={"label_dim": 10, "num_channels": 1}, **said)
    common = {"c_dim": 10, "img_resolution": 32, "img_channels": 1}
    channels = {"channel_base": 16384, "channel_max": 512, "num_fp16_res": 4, "conv_clamp": 256}
    assert configs.generator_kwargs(config) == {
        **common,
        "z_dim": 512,
        "w_dim": 512,
        "mapping_kwargs": {"num_layers": 2},
        "synthesis_kwargs": {**channels, "half_type": "bfloat16", "fp16_channels_last": True},
    }
    assert configs.discriminator_kwargs(config) == {
        **common,
        **channels,
        "block_kwargs": {"freeze_layers": 2, "half_type": "bfloat16", "fp16_channels_last": True},
        "mapping_kwargs": {},
        "epilogue_kwargs": {"mbstd_group_size": 4},
        "decoder_res": [16],
        "decoder_conv_kernel_size": 3,
        "glead_res_g": 1,
        "decoder_out_channel": 512,
    }
    assert "half_type" not in repr(configs.to_legacy_kwargs(make(half="float16"))["G_kwargs"])
    assert "decoder_res" not in configs.discriminator_kwargs(make(method="stylegan2", decoder_act="lrelu"))
    assert configs.discriminator_kwargs(make(decoder_act="lrelu"))["decoder_act"] == "lrelu"
    assert configs.discriminator_kwargs(make(method="ggdr"))["decoder_res"] == 8


def test_options_of_runs_before_there_was_bfloat16():
    config = make(half="bfloat16")
    assert from_json(to_json(config)) == config
    old = to_json(make())
    del old["G"]["half_type"], old["D"]["half_type"]
    assert from_json(old) == make()
    with pytest.raises(UserError, match="config.G.half_type is 'float8'"):
        from_json({**old, "G": {**old["G"], "half_type": "float8"}})


@pytest.mark.parametrize("architecture", ["orig", "skip", "resnet"])
@pytest.mark.parametrize("resolution", [4, 8, 64])
def test_layers_that_can_be_frozen_are_those_of_the_network(architecture, resolution):
    D = Discriminator(c_dim=0, img_resolution=resolution, img_channels=3, channel_base=64, architecture=architecture)
    layers = [m for name, m in D.named_modules() if isinstance(m, Conv2dLayer) and not name.startswith("b4.")]
    assert count_freezable_layers(architecture, resolution) == len(layers)


def test_legacy_options_without_workers_suit_the_data_loader():
    assert configs.to_legacy_kwargs(make(workers=0))["data_loader_kwargs"] == {"pin_memory": False, "num_workers": 0}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"p": 2.0}, "--p is 2.0, expected 0 to 1"),
        ({"target": None}, "--target is None, expected 0 to 1"),
        ({"mode": "fixed"}, "--target is 0.6, expected none with --aug=fixed"),
        ({"ada_kimg": 0.0}, "ADA kimg is 0.0, expected more than 0"),
        ({"ada_kimg": math.inf}, "ADA kimg is inf"),
        ({"interval": 0}, "the interval of ADA is 0, expected at least 1"),
    ],
)
def test_validation_of_augmentation(changes, message):
    config = make()
    with pytest.raises(UserError) as e:
        validate(dataclasses.replace(config, augment=dataclasses.replace(config.augment, **changes)))
    assert str(e.value).startswith(message)


def edited(**changes):
    return {**to_json(make()), **changes}


@pytest.mark.parametrize(
    "data, message",
    [
        ([], "config is"),
        (edited(extra=1), "config.extra is unknown"),
        ({k: v for k, v in edited().items() if k not in ("loss", "G")}, "config.G is missing; config.loss is missing"),
        (edited(method="gan"), "config.method is 'gan', expected"),
        (edited(batch_size="8"), "config.batch_size is '8', expected a valid integer"),
        (edited(batch_size=True), "config.batch_size is True, expected a valid integer"),
        (edited(metrics="fid50k"), "config.metrics is 'fid50k'"),
        (edited(augment={**to_json(make())["augment"], "transforms": ["blur"]}),
         "config.augment.transforms.0 is 'blur', expected 'xflip', "),
        (edited(G=None), "config.G is None, expected an object"),
        (edited(loss={**to_json(make())["loss"], "r1_gamma": None}),
         "config.loss.r1_gamma is None, expected a valid number"),
    ],
)
def test_json_that_is_no_configuration(data, message):
    with pytest.raises(UserError) as e:
        from_json(data)
    assert str(e.value).startswith(message)


def test_json_of_a_version_with_fewer_options():
    data = to_json(make())
    del data["allow_tf32"], data["D"]["decoder_kernel"], data["augment"], data["loss"]["recon_target"]
    assert from_json(data) == make(aug="noaug")
