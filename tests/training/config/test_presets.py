"""Presets against the resolved options of the published programs, and the rules for what is left out."""

import dataclasses
import json
import math
import typing

import numpy as np
import pytest

from dnnlib.util import UserError
from paths import SHARED
from training.config import presets
from training.config.options import Options
from training.config.presets import default_res_g
from training.config.resolve import resolve, warnings
from training.config.schema import (
    AugmentConfig,
    DatasetConfig,
    TaskConfig,
    Transform,
    augment_kwargs,
    from_json,
    to_json,
    to_legacy_kwargs,
)

needs_golden = pytest.mark.skipif(not (SHARED / "golden/misc").is_dir(), reason="no golden numbers: set GLEAD_SHARED")


def dataset(resolution=256, **changes):
    return DatasetConfig(**{"path": "fake", "resolution": resolution, **changes})


def golden(program):
    path = SHARED / f"golden/misc/train_configs_{program}.json"
    return json.loads(path.read_text()) if path.is_file() else {"configs": {}, "options": {}}


# What the golden runs were called with beside preset, GPUs and resolution, in our options.
METHODS = {
    "sg2": {"method": "stylegan2"},
    "none": {"method": "stylegan2"},
    "ggdr": {"method": "ggdr"},
    "glead_gfwimage": {"method": "glead", "res_g": 32},
    "glead_gfeat": {"method": "glead+ggdr", "res_g": 64},
}
CONFIGS = [
    (program, key, published)
    for program in ("sg2", "ggdr", "glead")
    for key, published in golden(program)["configs"].items()
]
NOT_OURS = ("use_nsml",)  # A switch for one site.
AUGMENTATION = ("ada_target", "augment_p", "augment_kwargs", "ada_kimg")


def comparable(legacy, published):
    """Ours without the keys that the published options lack, in their spelling."""
    ours = {name: value for name, value in legacy.items() if name in published or name in AUGMENTATION}
    ours["training_set_kwargs"] = dict(ours["training_set_kwargs"])
    if ours["training_set_kwargs"]["max_size"] is None:
        ours["training_set_kwargs"]["max_size"] = 1000  # all images of the data set of the golden runs
    for kwargs in {"G_kwargs", "D_kwargs", "loss_kwargs", "augment_kwargs"} & ours.keys() & published.keys():
        # One file holds all methods here, one class all augmentation.
        ours[kwargs] = {**ours[kwargs], "class_name": published[kwargs]["class_name"]}
    if published["D_kwargs"]["class_name"] == "training.networks_ggdr.Discriminator":
        assert ours["D_kwargs"].pop("decoder_conv_kernel_size") == 1  # fixed in that program
    if "decoder_conv_kernel_size" in published:
        ours["decoder_conv_kernel_size"] = ours["D_kwargs"].get("decoder_conv_kernel_size")
    share = published["batch_size"] // published["num_gpus"]
    published = {**published, "batch_gpu": min(published["batch_gpu"], share)}  # a limit there, exact here
    theirs = {name: value for name, value in published.items() if name not in NOT_OURS and name != "desc"}
    return ours, theirs


@needs_golden
@pytest.mark.parametrize("program, key, published", CONFIGS, ids=[f"{p}:{k}" for p, k, _ in CONFIGS])
def test_golden_configs(program, key, published):
    method, preset, gpus, res = key.split("|")
    options = Options(cfg=preset, gpus=int(gpus.removeprefix("gpus")), **METHODS[method])
    if method == "glead_gfwimage" and preset == "auto":
        ours = default_res_g(dataset(int(res.removeprefix("res"))), "glead")
        assert ours == published["D_kwargs"]["glead_res_g"]
    config = resolve(options, dataset(int(res.removeprefix("res"))), device="cuda")
    ours, theirs = comparable(to_legacy_kwargs(config), published)
    assert ours == theirs
    if method == "ggdr":
        assert presets.default_ggdr_res(int(res.removeprefix("res"))) == published["loss_kwargs"]["ggdr_res"]


OPTIONS = {
    "noaug": ({"aug": "noaug"}, {}),
    "fixed_p": ({"aug": "fixed", "p": 0.3, "augpipe": "bgcfnc"}, {}),
    "ada_target": ({"target": 0.7}, {}),
    "gamma_kimg_batch": ({"gamma": 5.0, "kimg": 123, "batch": 16}, {}),
    "mirror_cond_subset": (
        {"seed": 4},
        {"use_labels": True, "label_dim": 10, "max_size": 100, "xflip": True, "random_seed": 4},
    ),
    "resume_freezed": ({"resume": "ffhq256", "freezed": 3}, {}),
    "fp32_nhwc": ({"fp32": True, "nhwc": True}, {}),
    "snap_metrics": ({"snap": 5, "metrics": ("fid50k", "kid50k")}, {}),
}


@needs_golden
@pytest.mark.parametrize("program", ["sg2", "ggdr", "glead"])
@pytest.mark.parametrize("name", OPTIONS)
def test_golden_options(program, name):
    said, data = OPTIONS[name]
    published = golden(program)["options"][name]
    method = {"sg2": "sg2", "ggdr": "ggdr", "glead": "glead_gfwimage"}[program]
    options = Options(cfg="paper256", gpus=8, **METHODS[method], **said)
    config = resolve(options, dataset(**data), device="cuda")
    ours, theirs = comparable(to_legacy_kwargs(config), published["result"])
    assert ours == theirs


ERRORS = ("bad_gpus", "bad_batch", "fixed_without_p")


@needs_golden
@pytest.mark.parametrize("name", ERRORS)
def test_golden_errors(name):
    published = golden("sg2")["options"][name]
    said = {"gpus": 8} | published["kwargs"]
    with pytest.raises(UserError) as e:
        resolve(Options(cfg="paper256", **said), dataset(), device="cuda")
    option = published["error"].split()[1]
    assert str(e.value).startswith(option)


@needs_golden
@pytest.mark.parametrize("program", ["sg2", "ggdr", "glead"])
def test_every_golden_option_is_tested(program):
    assert golden(program)["options"].keys() == {*OPTIONS, *ERRORS}


@needs_golden
def test_golden_pipes():
    meta = json.loads(str(np.load(SHARED / "golden/augment/pipes.npz")["meta"]))
    assert meta["specs"]
    for name, strengths in meta["specs"].items():
        options = Options(aug="fixed", p=1.0, augpipe=name)
        assert augment_kwargs(resolve(options, dataset(), device="cuda")) == strengths


def test_pipes_are_sums_of_the_six_basic_ones():
    letters = {"b": "blit", "g": "geom", "c": "color", "f": "filter", "n": "noise"}
    for name in ("bg", "bgc", "bgcf", "bgcfn"):
        assert presets.PIPES[name] == sum((presets.PIPES[letters[letter]] for letter in name), ())
    assert presets.PIPES["bgcfnc"] == presets.PIPES["bgcfn"] + presets.PIPES["cutout"]
    assert set(presets.PIPES["bgcfnc"]) == set(typing.get_args(Transform))


def augment(**said):
    return resolve(Options(**said), dataset(), device="cuda").augment


def test_augmentation_defaults():
    bgc = {"pipe": "bgc", "transforms": presets.PIPES["bgc"]}
    ada = AugmentConfig(**bgc, mode="ada", p=0.0, target=0.6, ada_kimg=500, interval=4)
    assert augment() == augment(aug="ada") == augment(cfg="paper256", resume="noresume") == ada
    assert augment(resume="net.pkl") == dataclasses.replace(ada, ada_kimg=100)
    assert augment(aug="ada", target=0.5).target == 0.5
    fixed = AugmentConfig(**bgc, mode="fixed", p=0.2, target=None)
    assert augment(aug="fixed", p=0.2) == augment(aug="fixed", p=0.2, resume="net.pkl") == fixed
    assert augment(aug="noaug") is None
    assert augment_kwargs(resolve(Options(aug="noaug"), dataset(), device="cuda")) == {}


def test_target_of_reconstructions():
    def target(**said):
        return resolve(Options(**said), dataset(), device="cuda").loss.recon_target

    assert (target(), target(recipe="released")) == ("input", "clean")
    assert target(recon_target="clean") == target(recipe="released", recon_target="clean") == "clean"
    assert target(recipe="released", recon_target="input") == "input"


@pytest.mark.parametrize(
    "said, start",
    [
        ({"p": 0.3}, "--p is 0.3, but --aug=ada takes no strength"),
        ({"aug": "noaug", "p": 0.0}, "--p is 0, but --aug=noaug takes no strength"),
        ({"aug": "fixed"}, "--aug=fixed needs --p"),
        ({"aug": "fixed", "p": 1.5}, "--p is 1.5, expected 0 to 1"),
        ({"aug": "fixed", "p": -0.1}, "--p is -0.1, expected 0 to 1"),
        ({"aug": "fixed", "p": math.nan}, "--p is nan, expected 0 to 1"),
        ({"target": 1.1}, "--target is 1.1, expected 0 to 1"),
        ({"target": -1.0}, "--target is -1.0, expected 0 to 1"),
        ({"aug": "fixed", "p": 0.1, "target": 0.5}, "--target is 0.5, but --aug=fixed adapts nothing"),
        ({"aug": "noaug", "target": 0.5}, "--target is 0.5, but --aug=noaug adapts nothing"),
        ({"aug": "noaug", "augpipe": "bgc"}, "--augpipe is bgc, but --aug is noaug"),
        ({"augpipe": "all"}, "--augpipe is all, expected one of blit, geom, "),
    ],
)
def test_contradictions_in_augmentation(said, start):
    with pytest.raises(UserError) as e:
        augment(**said)
    assert str(e.value).startswith(start) and "\n" not in str(e.value)


@pytest.mark.parametrize("method", ["stylegan2", "ggdr", "glead", "glead+ggdr"])
@pytest.mark.parametrize("recipe", ["paper", "released"])
@pytest.mark.parametrize("augmented", [{}, {"aug": "noaug"}, {"aug": "fixed", "p": 0.5, "augpipe": "bgcfnc"}])
@pytest.mark.parametrize("preset", presets.PRESETS)
def test_json_round_trip(method, recipe, preset, augmented):
    options = Options(cfg=preset, method=method, recipe=recipe, **augmented)
    config = resolve(options, dataset(32, label_dim=10, use_labels=True), device="cpu")
    text = json.dumps(to_legacy_kwargs(config), allow_nan=False)
    assert from_json(json.loads(text)) == config
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def tasks(**said):
    config = resolve(Options(cfg="paper256", gpus=8, **said), dataset(), device="cuda")
    return config, config.loss.real_task, config.loss.fake_task


def test_methods_as_in_the_papers():
    rebuilt = {"kind": "reconstruction", "distance": "perceptual"}
    feature = TaskConfig(kind="feature", distance="cosine", weight=10)
    config, real, fake = tasks(method="stylegan2")
    assert (real, fake, config.D.decoder_res, config.D.heads, config.perceptual) == (None, None, None, False, None)
    config, real, fake = tasks(method="ggdr")
    assert (real, fake, config.D.decoder_res, config.D.heads) == (None, feature, 64, False)
    assert (config.loss.feature_res, config.perceptual) == (64, None)
    config, real, fake = tasks(method="glead")
    assert (real, fake) == (TaskConfig(**rebuilt, weight=10), TaskConfig(**rebuilt, weight=3))
    assert (config.D.decoder_res, config.D.res_g, config.D.heads) == (64, 32, True)
    assert (config.perceptual, config.loss.real_task_in_dreg, config.loss.feature_res) == ("lpips-vgg", False, None)
    config, real, fake = tasks(method="glead+ggdr")
    assert (real, fake) == (TaskConfig(**rebuilt, weight=10), feature)
    assert (config.D.decoder_res, config.D.res_g, config.loss.feature_res) == (64, 64, 64)


def test_released_recipe_changes_three_things_only():
    paper, released = (tasks(method="glead", recipe=recipe)[0] for recipe in ("paper", "released"))
    assert (released.perceptual, released.loss.real_task_in_dreg) == ("lpips-alex", True)
    loss = dataclasses.replace(released.loss, real_task_in_dreg=False, recon_target="input")
    assert dataclasses.replace(released, recipe="paper", perceptual="lpips-vgg", loss=loss) == paper
    assert tasks(method="glead", recipe="released", perceptual="lpips-vgg")[0].perceptual == "lpips-vgg"


@pytest.mark.parametrize(
    "resolution, res_g, decoder_res, ggdr_res",
    [
        (8, 4, 8, 8),
        (16, 4, 8, 8),
        (32, 8, 16, 8),
        (64, 16, 32, 64),
        (128, 32, 64, 64),
        (256, 32, 64, 64),
        (1024, 32, 64, 64),
    ],
)
def test_resolutions_that_follow_from_the_images(resolution, res_g, decoder_res, ggdr_res):
    D = resolve(Options(method="glead"), dataset(resolution), device="cpu").D
    assert (D.res_g, D.decoder_res) == (res_g, decoder_res)
    config = resolve(Options(method="ggdr"), dataset(resolution), device="cpu")
    assert (config.D.decoder_res, config.loss.feature_res) == (ggdr_res, ggdr_res)


@pytest.mark.parametrize(
    "preset, num_gpus, said, batch_gpu",
    [
        ("paper256", 1, {}, 8),
        ("paper256", 8, {}, 8),
        ("paper256", 16, {}, 4),
        ("cifar", 1, {}, 32),
        ("auto", 1, {}, 32),
        ("paper256", 1, {"batch": 32}, 32),
        ("paper256", 1, {"batch": 32, "batch_gpu": 16}, 16),
    ],
)
def test_published_batches_keep_their_parts_on_other_numbers_of_gpus(preset, num_gpus, said, batch_gpu):
    options = Options(cfg=preset, gpus=num_gpus, **said)
    assert resolve(options, dataset(32), device="cuda").batch_gpu == batch_gpu


def test_no_preset_has_an_open_cell_left():
    for name, preset in presets.PRESETS.items():
        assert "auto" not in presets.auto_preset(preset, 64, 2), name


def test_auto_preset_on_more_gpus_than_images():
    preset = presets.auto_preset(presets.PRESETS["auto"], 1024, 128)
    assert (preset.batch_size, preset.mbstd) == (128, 1)


def test_zero_weight_drops_the_task():
    config, real, fake = tasks(method="glead", lambda_fake=0.0)
    assert fake is None and real.weight == 10
    assert tasks(method="glead+ggdr", lambda_real=0.0)[0].perceptual is None
    with pytest.raises(UserError, match="--method=stylegan2"):
        tasks(method="glead", lambda_real=0.0, lambda_fake=0.0)


def test_starting_from_a_pickle_has_no_ema_rampup():
    assert resolve(Options(), dataset(32), device="cpu").ema_rampup == 0.05
    assert resolve(Options(resume="noresume"), dataset(32), device="cpu").ema_rampup == 0.05
    config = resolve(Options(resume="some/net.pkl"), dataset(32), device="cpu")
    assert (config.ema_rampup, config.resume) == (None, "some/net.pkl")


@pytest.mark.parametrize(
    "said, lines",
    [
        ({"method": "stylegan2", "lambda_real": 1.0, "res_g": 8}, ["--lambda-real", "--res-g"]),
        ({"method": "stylegan2", "recipe": "released"}, ["--recipe=released"]),
        ({"method": "ggdr", "perceptual": "lpips-vgg", "res_decoder": 16}, ["--res-decoder", "--perceptual"]),
        ({"method": "glead", "ggdr_res": 8}, ["--ggdr-res"]),
        ({"method": "glead+ggdr", "ggdr_res": 8}, ["--ggdr-res"]),
        ({"method": "glead", "reg_loss_real": "mse", "reg_loss_fake": "mse", "perceptual": "x"}, ["--perceptual"]),
        ({"method": "glead", "lambda_fake": 0.0, "reg_loss_fake": "mse"}, ["--reg_loss_fake"]),
        ({"method": "glead", "metrics": (), "detector": "x.pt"}, ["--detector"]),
        ({"method": "glead", "lpips_fp32": True}, ["--lpips-fp32"]),    # a CPU computes in float32
        ({"method": "glead", "half": "bfloat16", "lpips_fp32": True}, []),
        ({"method": "ggdr", "half": "bfloat16", "lpips_fp32": True}, ["--lpips-fp32"]),
        ({"method": "glead", "res_g": 8, "perceptual": "lpips-vgg", "res_decoder": 8, "lambda_fake": 1.0}, []),
        ({"method": "ggdr", "ggdr_res": 16, "lambda_fake": 1.0, "decoder_kernel": 3}, []),
        ({"method": "glead", "recon_target": "clean"}, []),
        ({"method": "glead", "aug": "noaug", "recon_target": "clean"}, ["--recon-target"]),
        ({"method": "glead+ggdr", "lambda_real": 0.0, "recon_target": "clean"}, ["--recon-target"]),
        ({"method": "ggdr", "recon_target": "clean"}, ["--recon-target"]),
        ({"method": "stylegan2", "aug": "noaug", "recon_target": "input"}, ["--recon-target"]),
    ],
)
def test_warnings_for_options_without_effect(said, lines):
    options = Options(**said)
    found = warnings(options, resolve(options, dataset(32), device="cpu"))
    assert [line.split()[0] for line in found] == lines
    assert all("no effect" in line for line in found)


def test_unknown_preset():
    with pytest.raises(UserError, match="--cfg is nope, expected one of auto, "):
        resolve(Options(cfg="nope"), dataset(), device="cpu")
