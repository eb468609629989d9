"""How runs differ from published ones, and what their directories are called."""

import pytest

from metrics.published import DATASETS
from training.config import presets
from training.config.comparison import departures_line, run_name
from training.config.options import Options
from training.config.resolve import resolve
from training.config.schema import DatasetConfig

CHURCH = dict(cfg="paper256", gpus=8, aug="noaug", kimg=50000)
FFHQ = CHURCH | dict(kimg=25000)


def run(said, path="church256.zip", **data):
    dataset = DatasetConfig(path=path, **({"resolution": 256} | data))
    options = Options(**said)
    return options, resolve(options, dataset, device="cpu")


@pytest.mark.parametrize("row", presets.PUBLISHED_RUNS, ids=lambda row: f"{row.source} {row.data.name} {row.options}")
def test_published_runs_are_as_published(row):
    """In their table or in an earlier one: the centre of Tables 2 and 3 is Table 1's GLeaD."""
    said = row.data.options | row.options
    _, config = run(said, f"/data/{DATASETS[row.data.name].names[0]}{row.data.resolution}.zip",
                    resolution=row.data.resolution,
                    xflip=row.data.mirror)
    line = departures_line(config)
    centre = row.options in ({"method": "glead", "lambda_real": 10, "lambda_fake": 3}, {"method": "glead", "res_g": 32})
    assert line == f"As published ({'GLeaD, Table 1' if centre else row.source}, {row.data.name})"


@pytest.mark.parametrize("path, resolution, name", [
    ("church256.zip", 256, "LSUN Church"), ("sets/lsun-church-256x256.zip", 256, "LSUN Church"),
    ("church_outdoor/", 256, "LSUN Church"), ("Bedroom256", 256, "LSUN Bedroom"), ("ffhq", 256, "FFHQ"),
    ("ffhq-256x256.zip", 256, "FFHQ"), ("cifar10.zip", 32, "CIFAR-10"), ("cifar10-32x32.zip", 32, "CIFAR-10"),
    ("afhqcat512.zip", 512, "AFHQ Cat"), ("church256.zip", 128, None), ("churches256.zip", 256, None),
    ("ffhq2k.zip", 256, None), ("my-ffhq.zip", 256, None), ("cifar100.zip", 32, None), ("afhqcat256.zip", 256, None),
])  # fmt: skip
def test_data_sets_go_by_their_whole_names(path, resolution, name):
    data = presets.published_data(DatasetConfig(path=path, resolution=resolution))
    assert (data and data.name) == name


@pytest.mark.parametrize("path, method, res_g", [
    ("ffhq256.zip", "glead", 64), ("ffhq256.zip", "glead+ggdr", 64), ("church256.zip", "glead", 32),
    ("church256.zip", "glead+ggdr", 32), ("bedroom256", "glead+ggdr", 32), ("photos256.zip", "glead", 32),
    ("photos256.zip", "glead+ggdr", 64),
])  # fmt: skip
def test_f_of_published_data_sets(path, method, res_g):
    config = run(dict(method=method), path)[1]
    assert config.D.res_g == res_g and config.loss.feature_res in (None, res_g)
    assert run(dict(method=method, res_g=16), path)[1].D.res_g == 16


@pytest.mark.parametrize("said, data, line", [
    (CHURCH | dict(recipe="released"), {},
     "perceptual net (lpips-alex instead of lpips-vgg), phases with the task on real images (Dmain, Dreg instead of "
     "Dmain)"),
    (FFHQ | dict(recipe="released", aug="ada"), dict(path="ffhq256.zip", xflip=True),
     "augmentation (bgc, ada to 0.6 instead of none), perceptual net (lpips-alex instead of lpips-vgg), phases with "
     "the task on real images (Dmain, Dreg instead of Dmain), what G rebuilds (the clean image instead of what D "
     "sees)"),
    (FFHQ, dict(path="ffhq256.zip"), "mirroring (no instead of yes)"),
    (CHURCH | dict(res_g=4), {}, "f (4x4 instead of 32x32)"),
    (CHURCH | dict(gamma=2.0, map_depth=2, batch=32, kimg=100), dict(max_size=1000),
     "images (1000 instead of all), length (100 kimg instead of 50000 kimg), batch (32 instead of 64), minibatch "
     "deviation (over 4 instead of over 8), R1 gamma (2 instead of 1), networks (2 mapping layers, cbase 16384, cmax "
     "512 instead of 8 mapping layers, cbase 16384, cmax 512)"),
    (CHURCH | dict(method="ggdr", decoder_act="lrelu", decoder_kernel=3), {},
     "kernel of D's decoder (3 instead of 1), activation of D's decoder (lrelu instead of linear)"),
    (dict(method="stylegan2", gpus=8, aug="noaug", kimg=50000), {},
     "minibatch deviation (over 4 instead of over 8), settings (--cfg=auto instead of --cfg=paper256)"),
    (CHURCH | dict(half="bfloat16"), {}, "precision (bfloat16 instead of float16)"),
    (CHURCH | dict(method="glead+ggdr"), dict(path="photos.zip"), "data set, mirroring (no instead of yes), length "
     "(50000 kimg instead of 25000 kimg)"),
])  # fmt: skip
def test_departures(said, data, line):
    assert departures_line(run(said, **data)[1]) == f"Departs from the paper in: {line}"


def test_departures_of_transfer_learning():
    line = departures_line(run(CHURCH | dict(resume="ffhq256", freezed=3))[1])
    assert line == ("Departs from the paper in: start (ffhq-res256-mirror-paper256-noaug instead of new networks), "
                    "frozen layers of D (3 instead of 0)")


@pytest.mark.parametrize("method", ["stylegan2", "ggdr", "glead", "glead+ggdr"])
@pytest.mark.parametrize("preset", presets.PRESETS)
@pytest.mark.parametrize("resolution", [8, 32, 1024])
def test_every_run_has_a_line(method, preset, resolution):
    line = departures_line(run(dict(method=method, cfg=preset, gpus=4), "images.zip", resolution=resolution)[1])
    assert line.startswith("Departs from the paper in: data set, ") and "\n" not in line


@pytest.mark.parametrize("data, name", [
    ("church256", "church256-glead"), ("a b/c", "a_b_c-glead"),
    ("a-data-set-with-a-name-that-goes-on-and-on", "a-data-set-with-a-name-t-glead"),
])  # fmt: skip
def test_names(data, name):
    assert run_name(data, "glead") == name
