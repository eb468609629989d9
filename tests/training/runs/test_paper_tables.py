"""Which run belongs in which cell of the papers' tables, and the print."""

import csv
import dataclasses
import io
import json
import re

import pytest

from benchmarks.soak import small_config
from dnnlib.util import UserError
from training.config.schema import to_legacy_kwargs
from training.runs.paper_tables import NAMES, fill, find_models, published_tables, render, rows_of


def config_of(data, *options):
    return small_config(data, "--metrics=none", *options, *([] if "--aug=ada" in options else ["--aug=noaug"]))


def save_run(folder, config):
    folder.mkdir(parents=True)
    (folder / "training_options.json").write_text(json.dumps(to_legacy_kwargs(config)))
    return str(folder)


def named(config, name):
    """The same run, on images of another name."""
    dataset = dataclasses.replace(config.dataset, path=f"/data/{name}.zip", resolution=256)
    return dataclasses.replace(config, dataset=dataset)


@pytest.mark.parametrize("arguments, rows", [
    (["--method=stylegan2"], {"StyleGAN2", "lambda 0, 0", "no f", "no target"}),
    (["--method=stylegan2", "--aug=ada"], {"ADA"}), (["--method=ggdr", "--aug=ada"], {"ADA+GGDR"}),
    (["--method=glead+ggdr"], {"GLeaD+GGDR"}),
    (["--method=zcr"], {"zCR"}), (["--method=wgan-gp"], {"WGAN-GP"}), (["--method=centring"], set()),
    (["--method=zcr+ar"], set()), (["--method=glead+relativistic"], set()), (["--method=zcr", "--aug=ada"], set()),
    (["--method=ggdr"], {"GGDR", "linear decoder", "1x1 decoder kernel", "target at 8x8"}),
    (["--method=ggdr", "--decoder-act=lrelu"], {"leaky ReLU decoder"}),
    (["--method=glead", "--res-g=8"], {"GLeaD", "lambda 10, 3", "f at 8x8"}),
    (["--method=glead", "--lambda-fake=0", "--res-g=8"], {"lambda 10, 0"}),
])
def test_rows_of_a_run(tiny_dataset, arguments, rows):
    assert rows_of(config_of(tiny_dataset, *arguments), None) == rows


def test_rows_of_a_run_on_a_data_set_of_the_papers(tiny_dataset):
    assert rows_of(config_of(tiny_dataset, "--method=glead", "--res-g=8"), "LSUN Church") == {"f at 8x8"}
    config = named(config_of(tiny_dataset, "--method=glead", "--res-g=8"), "church256")
    config = dataclasses.replace(config, D=dataclasses.replace(config.D, res_g=32))
    assert rows_of(config, "LSUN Church") == {"GLeaD", "lambda 10, 3", "f at 32x32"}
    assert rows_of(config, "FFHQ") == {"f at 32x32"}


def test_a_folder_of_runs_fills_its_cells(tiny_dataset, tmp_path):
    glead = named(config_of(tiny_dataset, "--method=glead"), "church256")
    glead = dataclasses.replace(glead, D=dataclasses.replace(glead.D, res_g=32))
    runs = [save_run(tmp_path / "runs" / name, dataclasses.replace(glead, random_seed=seed))
            for seed, name in enumerate(("0", "1/inside"))]
    save_run(tmp_path / "runs" / "2", named(glead, "my-photos"))
    (tmp_path / "runs" / "3").mkdir()
    (tmp_path / "runs" / "3" / "training_options.json").write_text("{}")     # of another program
    models = find_models("glead-1", str(tmp_path / "runs"))
    assert [(model.row, model.network, model.note) for model in models] == [("GLeaD", run, "") for run in runs]

    fids = {runs[0]: 2.0, runs[1]: 4.0}
    rows = fill("glead-1", models, lambda model: {"fid50k_full": fids[model.network], "pr50k3_full_recall": 0.5})
    text = render(rows, form="text")
    line = next(line for line in text.splitlines() if line.startswith("GLeaD ") and "3.00" in line)
    assert line.split() == ["GLeaD", "2.82", "3.00", "+-1.41", "+0.18", "0.62", "-", "-", "0.43", "0.50", "+-0.00",
                            "+0.07"]
    assert text.count("no run") == 5 + 4 + 5 and "GLeaD (CVPR 2023), Table 1: LSUN Bedroom" in text
    assert "\\toprule" in render(rows, form="latex") and "| GLeaD " in render(rows, form="markdown")
    as_json = json.loads(render(rows, form="json"))
    cell = next(row for row in as_json if row["networks"])
    assert (cell["fid_published"], cell["fid_measured"], cell["networks"]) == (2.82, 3.0, runs)
    assert list(csv.DictReader(io.StringIO(render(rows, form="csv"))))[as_json.index(cell)]["fid_measured"] == "3.0"

    stand_ins = find_models("glead-1", str(tmp_path / "runs" / "2"), stand_in="FFHQ")
    rows = fill("glead-1", stand_ins, lambda model: {"fid1k_full@net": 9.0})
    assert [row.note for row in rows if row.networks] == [
        "on my-photos at 256x256, by fid1k_full, feature net net"]
    assert {row.table.dataset for row in rows if row.networks} == {"FFHQ"}

    cifar = named(config_of(tiny_dataset, "--method=ggdr"), "cifar10")
    cifar = dataclasses.replace(cifar, dataset=dataclasses.replace(cifar.dataset, resolution=32))
    save_run(tmp_path / "cifar", cifar)     # which other tables are about
    (model,) = find_models("glead-1", str(tmp_path / "cifar"), stand_in="FFHQ")
    assert (model.row, model.note) == ("GGDR", "on cifar10 at 32x32")


def test_every_table_is_there():
    for name in NAMES:
        tables = published_tables(name)
        assert tables and render(fill(name, [], None), form="text").count("no run") == sum(len(t.rows) for t in tables)


def test_a_manifest_names_networks(tmp_path):
    (tmp_path / "net.pkl").write_text("")
    entries = [{"row": "GLeaD", "dataset": "FFHQ", "network": "net.pkl"}]
    path = tmp_path / "models.json"
    path.write_text(json.dumps(entries))
    (model,) = find_models("glead-1", str(path))
    assert (model.row, model.table.dataset, model.network) == ("GLeaD", "FFHQ", str(tmp_path / "net.pkl"))
    path.write_text("- {row: GLeaD, dataset: FFHQ, network: net.pkl}\n")
    assert find_models("glead-1", str(path)) == [model]


@pytest.mark.parametrize("entries, message", [
    ([{"row": "GLeaD", "dataset": "FFHQ", "network": "nowhere.pkl"}], r"entry 1: network is .*nowhere.pkl, which does"),
    ([{"row": "GLeaD", "dataset": "FFHQ", "network": "net.pkl", "data": "no.zip"}], r"entry 1: data is .*/no.zip"),
    ([{"row": "Best", "dataset": "FFHQ", "network": "net.pkl"}], r"no row 'Best' for 'FFHQ', but FFHQ: UT, StyleGAN2"),
    ([{"row": "GLeaD", "network": "net.pkl"}], "entry 1: expected row, dataset, network"),
    ([{"row": "GLeaD", "dataset": "FFHQ", "network": "net.pkl"}] * 2, "are both for GLeaD on FFHQ, and don't differ"),
    ({}, "is no list of networks"), ([], "holds no network for glead-1"),
])
def test_mistakes_in_manifests(tmp_path, entries, message):
    (tmp_path / "net.pkl").write_text("")
    (tmp_path / "models.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match=message):
        find_models("glead-1", str(tmp_path / "models.json"))


def test_mistakes_in_folders_of_runs(tiny_dataset, tmp_path):
    config = config_of(tiny_dataset, "--method=glead")
    for run in "ab":
        save_run(tmp_path / run, config)
    with pytest.raises(UserError, match=r"holds no network for glead-2: .* such as --stand-in='LSUN Church'"):
        find_models("glead-2", str(tmp_path))
    with pytest.raises(UserError, match="a and .*b are both for GLeaD on FFHQ, and don't differ in --seed"):
        find_models("glead-1", str(tmp_path), stand_in="FFHQ")
    for fields, differing in ({"batch_size": 6, "num_gpus": 2, "total_kimg": 9.0}, "batch_size, total_kimg"), (
            {"dataset": named(config, "other").dataset}, "dataset.resolution, their images"):
        other = dataclasses.replace(config, random_seed=1, **fields)
        (tmp_path / "b/training_options.json").write_text(json.dumps(to_legacy_kwargs(other)))
        with pytest.raises(UserError, match=f"on FFHQ, and differ not only in --seed, but in {differing}: move one"):
            find_models("glead-1", str(tmp_path), stand_in="FFHQ")
    with pytest.raises(UserError, match=re.escape("--stand-in is 'LFW', and glead-1 is about FFHQ, LSUN Bedroom")):
        find_models("glead-1", str(tmp_path), stand_in="LFW")
    with pytest.raises(UserError, match="can't read .*nowhere"):
        find_models("glead-1", str(tmp_path / "nowhere"))
