"""Presets against the resolved options of the published programs, and the rules for what is left out."""

import dataclasses
import json
import os
from pathlib import Path

import pytest

from dnnlib.util import UserError
from training import presets
from training.config import DatasetConfig, TaskConfig, from_json, to_json, to_legacy_kwargs
from training.presets import Options, describe, resolve, warnings

SHARED = Path(os.environ.get("GLEAD_SHARED", Path(__file__).resolve().parents[2] / "../shared"))
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
# These say nothing about what is built here: augmentation comes as a part of its own, one program has a site's switch.
NOT_OURS = ("ada_target", "augment_p", "augment_kwargs", "ada_kimg", "use_nsml")


def comparable(legacy, published):
    """Ours without the keys that the published options lack, in their spelling."""
    ours = {name: value for name, value in legacy.items() if name in published}
    ours["training_set_kwargs"] = dict(ours["training_set_kwargs"])
    if ours["training_set_kwargs"]["max_size"] is None:
        ours["training_set_kwargs"]["max_size"] = 1000  # all images of the data set of the golden runs
    for kwargs in ("G_kwargs", "D_kwargs", "loss_kwargs"):  # one file holds all methods here
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
    options = Options(preset=preset, num_gpus=int(gpus.removeprefix("gpus")), **METHODS[method])
    if method == "glead_gfwimage" and preset == "auto":
        assert presets.default_res_g(int(res.removeprefix("res")), "glead") == published["D_kwargs"]["glead_res_g"]
    config = resolve(options, dataset(int(res.removeprefix("res"))), device="cuda")
    ours, theirs = comparable(to_legacy_kwargs(config), published)
    assert ours == theirs
    if options.method != "ggdr":  # its program does not name itself
        assert describe(options, config, "fake") == published["desc"]


OPTIONS = {
    "noaug": ({"aug": "noaug"}, {}),
    "gamma_kimg_batch": ({"r1_gamma": 5.0, "total_kimg": 123, "batch_size": 16}, {}),
    "mirror_cond_subset": (
        {"random_seed": 4},
        {"use_labels": True, "label_dim": 10, "max_size": 100, "xflip": True, "random_seed": 4},
    ),
    "resume_freezed": ({"resume": "ffhq256", "freeze_layers": 3}, {}),
    "fp32_nhwc": ({"fp32": True, "channels_last": True}, {}),
    "snap_metrics": ({"snapshot_ticks": 5, "metrics": ("fid50k", "kid50k")}, {}),
}


@needs_golden
@pytest.mark.parametrize("program", ["sg2", "ggdr", "glead"])
@pytest.mark.parametrize("name", OPTIONS)
def test_golden_options(program, name):
    said, data = OPTIONS[name]
    published = golden(program)["options"][name]
    method = {"sg2": "sg2", "ggdr": "ggdr", "glead": "glead_gfwimage"}[program]
    options = Options(preset="paper256", num_gpus=8, **METHODS[method], **said)
    config = resolve(options, dataset(**data), device="cuda")
    ours, theirs = comparable(to_legacy_kwargs(config), published["result"])
    assert ours == theirs
    words = describe(options, config, "fake")
    if program == "sg2":
        assert words == published["desc"]
    elif program == "glead":
        assert sorted(words.split("-")) == sorted(published["desc"].split("-"))


@needs_golden
@pytest.mark.parametrize("name", ["bad_gpus", "bad_batch"])
def test_golden_errors(name):
    published = golden("sg2")["options"][name]
    names = {"gpus": "num_gpus", "batch": "batch_size"}
    said = {"num_gpus": 8} | {names[option]: value for option, value in published["kwargs"].items()}
    with pytest.raises(UserError) as e:
        resolve(Options(preset="paper256", **said), dataset(), device="cuda")
    option = published["error"].split()[1]
    assert str(e.value).startswith(option)


def test_every_golden_option_is_either_tested_or_about_augmentation():
    if not golden("sg2")["options"]:
        pytest.skip("no golden numbers: set GLEAD_SHARED")
    untested = golden("sg2")["options"].keys() - OPTIONS.keys() - {"bad_gpus", "bad_batch"}
    assert untested == {"fixed_p", "ada_target", "fixed_without_p"}


@pytest.mark.parametrize("method", ["stylegan2", "ggdr", "glead", "glead+ggdr"])
@pytest.mark.parametrize("recipe", ["paper", "released"])
@pytest.mark.parametrize("preset", presets.PRESETS)
def test_json_round_trip(method, recipe, preset):
    options = Options(preset=preset, method=method, recipe=recipe)
    config = resolve(options, dataset(32, label_dim=10, use_labels=True), device="cpu")
    text = json.dumps(to_legacy_kwargs(config), allow_nan=False)
    assert from_json(json.loads(text)) == config
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


def tasks(**said):
    config = resolve(Options(preset="paper256", num_gpus=8, **said), dataset(), device="cuda")
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


def test_released_recipe_changes_two_things_only():
    paper, released = (tasks(method="glead", recipe=recipe)[0] for recipe in ("paper", "released"))
    assert (released.perceptual, released.loss.real_task_in_dreg) == ("lpips-alex", True)
    loss = dataclasses.replace(released.loss, real_task_in_dreg=False)
    assert dataclasses.replace(released, recipe="paper", perceptual="lpips-vgg", loss=loss) == paper
    assert tasks(method="glead", recipe="released", perceptual="lpips-vgg")[0].perceptual == "lpips-vgg"


@pytest.mark.parametrize(
    "resolution, res_g, decoder_res, ggdr_res",
    [
        (8, 4, 8, 8),
        (16, 4, 8, 8),
        (32, 8, 16, 8),
        (64, 16, 32, 16),
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
        ("paper256", 1, {"batch_size": 32}, 32),
        ("paper256", 1, {"batch_size": 32, "batch_gpu": 16}, 16),
    ],
)
def test_published_batches_keep_their_parts_on_other_numbers_of_gpus(preset, num_gpus, said, batch_gpu):
    options = Options(preset=preset, num_gpus=num_gpus, **said)
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
        ({"method": "ggdr", "perceptual": "lpips-vgg", "decoder_res": 16}, ["--res-decoder", "--perceptual"]),
        ({"method": "glead", "ggdr_res": 8}, ["--ggdr-res"]),
        ({"method": "glead+ggdr", "ggdr_res": 8}, ["--ggdr-res"]),
        ({"method": "glead", "distance_real": "mse", "distance_fake": "mse", "perceptual": "x"}, ["--perceptual"]),
        ({"method": "glead", "lambda_fake": 0.0, "distance_fake": "mse"}, ["--reg_loss_fake"]),
        ({"method": "glead", "metrics": (), "detector": "x.pt"}, ["--detector"]),
        ({"method": "glead", "res_g": 8, "perceptual": "lpips-vgg", "decoder_res": 8, "lambda_fake": 1.0}, []),
        ({"method": "ggdr", "ggdr_res": 16, "lambda_fake": 1.0, "decoder_kernel": 3}, []),
    ],
)
def test_warnings_for_options_without_effect(said, lines):
    options = Options(**said)
    found = warnings(options, resolve(options, dataset(32), device="cpu"))
    assert [line.split()[0] for line in found] == lines
    assert all("no effect" in line for line in found)


@pytest.mark.parametrize(
    "said, data, words",
    [
        ({"method": "stylegan2"}, {}, "d-auto1"),
        ({"method": "stylegan2", "resume": "nets/my net.pkl"}, {}, "d-auto1-resumecustom"),
        ({"method": "stylegan2", "resume": "noresume"}, {}, "d-auto1-noresume"),
        ({"method": "stylegan2", "total_kimg": 0.5, "batch_size": 100}, {}, "d-auto1-kimg0.5-batch100"),
        ({"method": "ggdr"}, {}, "d-auto1-ggdr-res8"),
        (
            {"method": "glead", "lambda_fake": 0.0, "recipe": "released", "perceptual": "/nets/small.pt"},
            {},
            "d-auto1-glead-gres_8_dres_16-real_gfwimage_lpips10.0-fake_None-dconvks1-released-small",
        ),
    ],
)
def test_description(said, data, words):
    options = Options(**said)
    assert describe(options, resolve(options, dataset(32, **data), device="cpu"), "d") == words


def test_description_is_a_file_name():
    options = Options(method="stylegan2")
    assert describe(options, resolve(options, dataset(32), device="cpu"), "a b/c") == "a_b_c-auto1"


def test_unknown_preset_and_augmentation():
    with pytest.raises(UserError, match="--cfg is nope, expected one of auto, "):
        resolve(Options(preset="nope"), dataset(), device="cpu")
    for aug in ("ada", "fixed"):
        with pytest.raises(UserError, match=f"--aug={aug} is not available"):
            resolve(Options(aug=aug), dataset(), device="cpu")
