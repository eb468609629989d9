"""The command line, run as users run it."""

import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import PIL.Image
import pytest
import torch
from click.testing import CliRunner

import calc_metrics
import cli
from benchmarks.soak import small_config
from metrics import metric_main
from metrics.registry import METRICS
from paths import ROOT
from tests.metrics.metric_fakes import random_images, save_net
from torch_utils.formats.network_pickle import save_network_pkl
from training.config.schema import to_legacy_kwargs
from training.data.dataset import ImageFolderDataset
from training.jobs import scoring
from training.networks import Generator


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A run directory with a network, and beside it images and a feature net."""
    save_images(tmp_path / "images.zip")
    monkeypatch.setenv("GLEAD_CACHE_DIR", str(tmp_path / "cache"))
    save_net(tmp_path / "small-net.pt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "training_options.json").write_text("{}")
    save_network(tmp_path / "run" / "network-snapshot-000200.pkl", training_set_kwargs={
        "class_name": "training.dataset.ImageFolderDataset", "path": str(tmp_path / "images.zip"), "xflip": True,
        "use_labels": False, "max_size": 500, "resolution": 16, "random_seed": 0})
    return tmp_path


def save_images(path, *, count=600, **options):
    with zipfile.ZipFile(path, "w") as z:
        for i, img in enumerate(random_images(count, **options)):
            buffer = io.BytesIO()
            PIL.Image.fromarray(img.transpose(1, 2, 0)).save(buffer, format="PNG")
            z.writestr(f"00000/img{i:08d}.png", buffer.getvalue())


def save_network(path, *, c_dim=0, training_set_kwargs=None):
    torch.manual_seed(0)
    G = Generator(8, c_dim, 8, 16, 3, mapping_kwargs=dict(num_layers=2), synthesis_kwargs=dict(channel_base=128))
    save_network_pkl(path, dict(G=G, D=None, G_ema=G, augment_pipe=None, training_set_kwargs=training_set_kwargs))


def command(folder, *args):
    env = os.environ | {
        "GLEAD_CACHE_DIR": str(folder / "cache"),
        "OMP_NUM_THREADS": "1",
        "https_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9",  # no downloads in tests
    }
    return dict(args=[sys.executable, str(ROOT / "calc_metrics.py"), *map(str, args)], env=env, cwd=folder, text=True)


def run(folder, *args):
    return subprocess.run(**command(folder, *args), capture_output=True, timeout=120)


def assert_one_line_error(result, pattern, *, code=1):
    assert result.returncode == code, result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr
    message = result.stderr.strip().splitlines()
    assert re.search(pattern, message[-1]), result.stderr
    if code == 1:
        assert len(message) == 1


def test_metrics_of_a_run(folder):
    network = folder / "run" / "network-snapshot-000200.pkl"
    result = run(folder, "--network", network, "--metrics=fid1k_full,is1k", "--detector", folder / "small-net.pt",
                 "--table", "--device=cpu")
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    fid, score = json.loads(lines[0]), json.loads(lines[1])
    assert list(fid["results"]) == ["fid1k_full@small-net"] and fid["snapshot_pkl"] == "network-snapshot-000200.pkl"
    assert list(score["results"]) == ["is1k_mean@small-net", "is1k_std@small-net"]
    assert lines[2] == "Measured on images at 16x16"
    assert lines[-1].startswith("The papers have no results for a data set")
    assert "fid1k_full generated" in result.stderr and "Warning" not in result.stderr
    assert (folder / "run" / "metric-fid1k_full.jsonl").read_text() == lines[0] + "\n"
    assert (folder / "run" / "metric-is1k.jsonl").is_file()

    other = folder / "elsewhere.pkl"
    other.write_bytes(network.read_bytes())
    again = run(folder, "--network", other, "--metrics=fid1k_full", "--detector=small-net.pt", "--verbose=false",
                "--device=cpu", "--batch=50")
    assert again.returncode == 0 and again.stderr == ""
    assert json.loads(again.stdout)["results"]["fid1k_full@small-net"] == pytest.approx(
        fid["results"]["fid1k_full@small-net"], rel=1e-3)
    assert not list(folder.glob("metric-*.jsonl"))


def test_mirror_and_seed_change_the_score(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GLEAD_CACHE_DIR", str(folder / "cache"))

    def fid(*args):
        args = ["--network=run/network-snapshot-000200.pkl", "--metrics=fid1k", "--detector=small-net.pt",
                "--device=cpu",
                "--workers=0", *args]
        result = CliRunner().invoke(calc_metrics.main, args)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)["results"]["fid1k@small-net"]

    first = fid()  # mirrored, as in training
    assert fid("--mirror=false") != first
    assert fid("--seed=1") != first


def call(*args):
    """The command in this process."""
    result = CliRunner().invoke(calc_metrics.main, ["--detector=small-net.pt", "--device=cpu", "--verbose=false",
                                                    "--workers=0", *args])
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


def test_repeats_give_mean_and_deviation_and_lines_their_protocol(folder, monkeypatch):
    monkeypatch.chdir(folder)
    network = "--network=run/network-snapshot-000200.pkl"
    single = [call(network, "--metrics=fid1k_full", f"--seed={seed}")[0] for seed in (3, 4)]
    (record,) = call(network, "--metrics=fid1k_full", "--seed=3", "--repeats=2", "--table")
    values = [line["results"]["fid1k_full@small-net"] for line in single]
    assert record["results"]["fid1k_full@small-net"] == pytest.approx(sum(values) / 2)
    assert record["std"]["fid1k_full@small-net"] == pytest.approx(abs(values[0] - values[1]) / 2**0.5)
    assert record["repeats"] == 2 and record["seed"] == 3 and record["protocol"] == {"seed": 3, "repeats": 2}
    assert record["real"] == dict(num_images=600, mirrored=False, sha256=ImageFolderDataset("images.zip").fingerprint)
    assert record["num_gen"] == 1000 and record["versions"]["torch"] == torch.__version__
    assert "std" not in single[0] and "repeats" not in single[0]
    result = CliRunner().invoke(calc_metrics.main, [
        network, "--metrics=fid1k", "--detector=small-net.pt", "--device=cpu", "--repeats=2", "--table"])
    assert re.search(r"fid1k@small-net +\d+\.\d{4} \+-\d+\.\d{4}", result.stdout)


def test_path_length_by_lpips_from_a_file(folder, shared, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setitem(METRICS, "ppl2_wend", dataclasses.replace(METRICS["ppl2_wend"], num_gen=20))
    args = ["--network=run/network-snapshot-000200.pkl", "--metrics=ppl2_wend"]
    (record,) = call(*args, f"--detector=lpips-vgg:{shared}/models/vgg16-features.safetensors")
    assert record["results"]["ppl2_wend@lpips-vgg"] > 0 and record["detector"]["name"] == "lpips-vgg"
    result = CliRunner().invoke(calc_metrics.main, [*args, "--detector=lpips-vgg:small-net.pt", "--device=cpu"])
    assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.stderr
    assert "small-net.pt is damaged, or holds other weights than vgg16-397923af.pth" in result.stderr


def test_images_of_other_programs(folder, monkeypatch):
    monkeypatch.chdir(folder)
    save_images(folder / "samples.zip", count=1000, seed=1)
    fid, pr = call("--images=samples.zip", "--data=images.zip", "--metrics=fid1k_full,pr1k3_full")
    assert fid["images"] == str(folder / "samples.zip") and fid["snapshot_pkl"] is None
    assert pr["results"]["pr1k3_full_precision@small-net"] > 0.5    # drawn alike
    assert not list(folder.rglob("*.jsonl"))
    for args, pattern in [
        (["--images=samples.zip"], "must be compared with real images: give them with --data"),
        (["--images=samples.zip", "--data=images.zip", "--metrics=fid50k_full"], "50000 generated images, .* 1000:"),
        (["--images=samples.zip", "--data=images.zip", "--metrics=ppl2_wend"], "ppl2_wend is about paths"),
        (["--images=samples.zip", "--data=images.zip", "--repeats=2"], "--images are always the same"),
        (["--images=samples.zip", "--data=images.zip", "--polarity=-1"], "has no meaning for --images"),
        (["--images=samples.zip", "--data=small.zip", "--metrics=fid1k"], r"samples have the shape \[3, 16, 16\]"),
        (["--images=nowhere.zip", "--data=images.zip", "--metrics=fid1k"], "nowhere.zip does not exist"),
    ]:
        save_images(folder / "small.zip", count=3, resolution=8)
        result = CliRunner().invoke(calc_metrics.main, [*args, "--detector=small-net.pt", "--device=cpu"])
        assert result.exit_code == 1 and result.stderr.count("\n") == 1, result.output
        assert re.search(pattern, result.stderr), result.stderr
    both = CliRunner().invoke(calc_metrics.main, ["--images=a", "--network=b"])
    assert both.exit_code == 2 and "--network or --images, not both" in both.stderr


def test_prefetched_statistics_are_used(folder, monkeypatch):
    monkeypatch.chdir(folder)
    result = run(folder, "prefetch", "--metrics=fid1k,pr1k3_full", "--data=images.zip", "--detector=small-net.pt",
                 "--cache-dir=elsewhere", "--device=cpu", "--trust-net")
    assert result.returncode == 0, result.stderr
    assert [line.partition(":")[0] for line in result.stdout.splitlines()[1:]] == ["fid1k", "pr1k3_full"]
    assert str(folder / "elsewhere") in result.stdout and len(list((folder / "elsewhere/features").iterdir())) == 1
    monkeypatch.setattr("metrics.features.ImageReader", lambda *args, **kwargs: pytest.fail("looked at"))
    call("--network=run/network-snapshot-000200.pkl", "--metrics=fid1k", "--mirror=false", "--cache-dir=elsewhere",
         "--data=images.zip")
    assert_one_line_error(run(folder, "prefetch", "--metrics=fid1k", "--detector=nowhere.pt"), "nowhere.pt can't be")


def table(*args):
    return CliRunner().invoke(calc_metrics.table, [*args, "--detector=small-net.pt", "--device=cpu", "--workers=0"])


def test_a_table_of_the_paper_from_a_folder_of_runs(folder, monkeypatch):
    """The best pickle by the first metric has scores by the others; the same command finds all of them there."""
    monkeypatch.chdir(folder)
    config = small_config("images.zip", "--method=glead", "--aug=noaug", "--metrics=none", "--cond=false")
    (folder / "run" / "training_options.json").write_text(json.dumps(to_legacy_kwargs(config)))
    shutil.copy("run/network-snapshot-000200.pkl", "run/network-snapshot-000400.pkl")
    args = ["glead-1", "--models=.", "--stand-in=FFHQ", "--metrics=fid1k_full,pr1k3_full", "--out=table.md",
            "--format=markdown"]
    result = table(*args)
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stdout.splitlines() if "on images at 16x16" in line]
    fids, prs = recorded(folder / "run", "fid1k_full"), recorded(folder / "run", "pr1k3_full")
    assert len(fids) == 2 and [record["snapshot_pkl"] for record in prs] == ["network-snapshot-000200.pkl"]
    fid, precision = fids[0]["results"]["fid1k_full@small-net"], prs[0]["results"]["pr1k3_full_precision@small-net"]
    assert [cell.strip() for cell in line.split("|")[1:7]] == [
        "GLeaD", "3.24", f"{fid:.2f}", f"{fid - 3.24:+.2f}", "0.69", f"{precision:.2f}"]
    assert "by fid1k_full, pr1k3_full, feature net small-net" in line
    assert result.stdout == (folder / "table.md").read_text() and result.stdout.count("no run") == 4 + 4 + 6
    monkeypatch.setattr(metric_main, "calc_metric", lambda *args, **kwargs: pytest.fail("calculated again"))
    assert table(*args).stdout == result.stdout
    refused = table("glead-1", "--models=.", "--out=table.md")
    assert refused.exit_code == 1 and "holds no network for glead-1" in refused.stderr
    assert result.stdout == (folder / "table.md").read_text()


def test_a_table_from_a_manifest(folder, monkeypatch):
    monkeypatch.chdir(folder)
    shutil.copy("run/network-snapshot-000200.pkl", "church.pkl")
    entry = {"row": "f at 32x32", "dataset": "LSUN Church", "network": "church.pkl", "data": "images.zip"}
    args = ["glead-3", "--models=models.json", "--metrics=fid1k_full", "--format=json", "--cache-dir=elsewhere"]
    (folder / "models.json").write_text(json.dumps([entry]))
    untrusted = table(*args)
    assert untrusted.exit_code == 1 and "--trust-net" in untrusted.stderr and not list(folder.glob("*.jsonl"))
    result = table(*args, "--trust-net")
    assert result.exit_code == 0, result.output
    (row,) = [row for row in json.loads(result.stdout) if row["networks"]]
    (record,) = recorded(folder, "fid1k_full")
    assert record["snapshot_pkl"] == "church.pkl" and row["fid_measured"] == record["results"]["fid1k_full@small-net"]
    monkeypatch.setattr(metric_main, "calc_metric", lambda *args, **kwargs: pytest.fail("calculated again"))
    assert table(*args).stdout == result.stdout


@pytest.fixture
def whole_run(folder):
    """The run directory with what train.py says of it: 400 kimg, all but the last of them shown."""
    options = {"total_kimg": 400, "training_set_kwargs": {
        "class_name": "training.dataset.ImageFolderDataset", "path": str(folder / "images.zip"), "xflip": True,
        "use_labels": False, "max_size": 500, "resolution": 16, "random_seed": 0}}
    (folder / "run" / "training_options.json").write_text(json.dumps(options))
    return folder / "run"


def test_other_images_are_refused_or_noted(folder, whole_run, monkeypatch):
    """Also where an earlier version, or another program, tells the images by a path that depends on the folder."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("GLEAD_CACHE_DIR", str(folder / "cache"))
    pickle = "run/network-snapshot-000200.pkl"
    options = json.loads((whole_run / "training_options.json").read_text())
    kwargs = options["training_set_kwargs"]
    trained_on = ImageFolderDataset(kwargs["path"], xflip=True, max_size=500)
    options |= {"data_fingerprint": trained_on.fingerprint}
    (whole_run / "training_options.json").write_text(json.dumps(options))

    def score(*args):
        return CliRunner().invoke(calc_metrics.main, ["--metrics=is1k", "--detector=small-net.pt", "--device=cpu",
                                                      "--verbose=false", "--workers=0", *args])

    result = score(f"--network={pickle}")
    assert result.exit_code == 0 and result.stderr == ""
    (record,) = recorded(whole_run, "is1k")
    assert record["data"] == str(folder / "images.zip") and "protocol" not in record
    (folder / "images.zip").rename(folder / "moved.zip")
    save_images(folder / "images.zip", count=501)
    for args in ([f"--network={pickle}"], ["--network=run", "--mirror=false"], ["--network=run", "--follow"]):
        result = score(*args)
        assert result.exit_code == 1 and result.stdout == "" and result.stderr.count("\n") == 1, result.output
        assert result.stderr.startswith(f"Error: the images in {folder}/images.zip are not those that ")
    assert len(recorded(whole_run, "is1k")) == 1
    assert score("--network=run", "--data=images.zip").exit_code == 0
    record = recorded(whole_run, "is1k")[-1]
    assert record["data"] == str(folder / "images.zip") and list(record["protocol"]) == ["data"]

    del options["data_fingerprint"]     # as earlier versions
    kwargs["path"] = "moved.zip"
    (whole_run / "training_options.json").write_text(json.dumps(options))
    result = score("--network=run")
    assert result.exit_code == 0
    assert result.stderr == f"Warning: run names its images by a relative path: taking {folder}/moved.zip\n"
    monkeypatch.chdir(whole_run)
    result = score("--network=.", "--detector=../small-net.pt")
    assert result.exit_code == 1 and result.stderr.startswith(
        f"Error: the images that . was trained on: dataset {whole_run}/moved.zip does not exist")


def drop(run_dir, kimg):
    """As training writes a pickle: under its name there is nothing, or all of it."""
    source = run_dir / "network-snapshot-000200.pkl"
    (run_dir / "being-written").write_bytes(source.read_bytes())
    (run_dir / "being-written").rename(run_dir / f"network-snapshot-{kimg:06d}.pkl")


def recorded(run_dir, metric):
    return [json.loads(line) for line in (run_dir / f"metric-{metric}.jsonl").read_text().splitlines()]


def test_all_pickles_of_a_run(folder, whole_run):
    """What is broken is named, the others are scored; next time only what is missing is."""
    drop(whole_run, 0)
    whole = (whole_run / "network-snapshot-000200.pkl").read_bytes()
    (whole_run / "network-snapshot-000100.pkl").write_bytes(whole[: len(whole) // 2])
    args = ["--network=run", "--metrics=fid1k_full,pr1k3", "--detector=small-net.pt", "--device=cpu"]
    first = run(folder, *args, "--table", "--cache=false")
    assert first.returncode == 1 and "Traceback" not in first.stderr
    warnings = [line for line in first.stderr.splitlines() if "Warning" in line]
    assert len(warnings) == 1 and re.match(r"Warning: no scores of network-snapshot-000100\.pkl: ", warnings[0])
    names = [f"network-snapshot-{kimg:06d}.pkl" for kimg in (0, 100, 200)]
    for number, name in enumerate(names, 1):
        assert f"{name}: {number} of 3" in first.stderr
    lines = first.stdout.splitlines()
    assert [json.loads(line)["snapshot_pkl"] for line in lines[:4]] == [names[0], names[0], names[2], names[2]]
    assert [line.split()[0] for line in lines[4:8]] == ["kimg", "0", "100", "200"]
    assert lines[6].split() == ["100", "-", "-", "-"] and lines[5].count("*") == 3 and "*" not in lines[7]  # the same G
    assert f"The best by fid1k_full@small-net: {names[0]}" in lines and "Measured on images at 16x16" in lines
    before, _, after = first.stderr.partition(f"{names[2]}: ")
    assert "fid1k_full real" in before and "fid1k_full generated" in after
    assert " real" not in after and not (folder / "cache/features").exists()    # they are looked at once
    assert [record["snapshot_pkl"] for record in recorded(whole_run, "fid1k_full")] == [names[0], names[2]]

    (whole_run / "network-snapshot-000100.pkl").write_bytes(whole)
    again = run(folder, *args, "--verbose=false", "--data=images.zip")      # with mirroring, but not the subset
    assert again.returncode == 0 and again.stderr == ""
    records = recorded(whole_run, "fid1k_full")
    assert [record["snapshot_pkl"] for record in records[2:]] == names and "protocol" not in records[0]
    assert all(len(record["protocol"]["data"]) == 64 for record in records[2:])
    once_more = run(folder, *args, "--mirror=true")
    assert once_more.returncode == 0 and once_more.stderr.splitlines()[0] == f"{names[1]}: 1 of 1"
    assert [record["snapshot_pkl"] for record in recorded(whole_run, "pr1k3")[5:]] == [names[1]]


def test_two_processes_score_as_one(folder, whole_run):
    """What is printed and written is the same, and stands there once."""
    drop(whole_run, 100)
    (whole_run / "network-snapshot-000050.pkl").write_bytes(b"no pickle")
    shutil.copytree(whole_run, folder / "one")
    args = ["--metrics=fid1k_full,pr1k3", "--detector=small-net.pt", "--device=cpu"]
    one, two = run(folder, "--network=one", *args), run(folder, "--network=run", *args, "--gpus=2", "--cache=false")
    assert one.returncode == two.returncode == 1, two.stderr     # for want of one pickle
    lines = [result.stdout.splitlines() for result in (one, two)]
    assert lines[0][4:] == lines[1][4:] and len(lines[0]) == 9   # the table
    for metric in ("fid1k_full", "pr1k3"):
        for a, b in zip(recorded(folder / "one", metric), recorded(whole_run, metric), strict=True):
            assert (a["snapshot_pkl"], a["detector"]) == (b["snapshot_pkl"], b["detector"])
            assert (a["num_gpus"], b["num_gpus"]) == (1, 2)
            assert b["results"] == pytest.approx(a["results"], rel=1e-9)
    said = [[line.partition(": one/")[0].partition(": run/")[0] for line in re.split("[\\r\\n]", result.stderr)
             if "snapshot" in line] for result in (one, two)]
    assert said[0] == said[1] and len(said[0]) == 4 and "Warning: no scores of" in said[0][1]

    again = run(folder, "--network=run/network-snapshot-000100.pkl", *args, "--gpus=2", "--verbose=false", "--table")
    assert again.returncode == 0 and again.stderr == ""
    fid, pr = map(json.loads, again.stdout.splitlines()[:2])
    assert fid["results"] == pytest.approx(recorded(folder / "one", "fid1k_full")[0]["results"], rel=1e-9)
    assert f"fid1k_full@small-net       {fid['results']['fid1k_full@small-net']:.4f}" in again.stdout


def wait_for(process, log, pattern):
    stop = time.monotonic() + 60
    while not re.search(pattern, log.read_text()):
        assert process.poll() is None and time.monotonic() < stop, log.read_text()
        time.sleep(0.05)


def start(folder, *args):
    """The command in the background, and the file that its stderr goes to."""
    log = folder / f"stderr-{len(list(folder.glob('stderr-*')))}.txt"
    with open(log, "w") as f:
        return subprocess.Popen(**command(folder, *args), stdout=subprocess.PIPE, stderr=f, start_new_session=True), log


def test_following_a_run_to_its_end(folder, whole_run):
    source = (whole_run / "network-snapshot-000200.pkl").rename(folder / "source.pkl")
    process, log = start(folder, "--network=run", "--metrics=fid1k_full", "--detector=small-net.pt", "--device=cpu",
                         "--follow", "--gpus=2")
    try:
        wait_for(process, log, "No program is training in run")
        source.rename(whole_run / "network-snapshot-000200.pkl")
        wait_for(process, log, "network-snapshot-000200.pkl: 1 of 1\n")
        drop(whole_run, 400)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, log.read_text()
    names = ["network-snapshot-000200.pkl", "network-snapshot-000400.pkl"]
    assert [record["snapshot_pkl"] for record in recorded(whole_run, "fid1k_full")] == names
    assert [json.loads(line)["snapshot_pkl"] for line in output.splitlines()[:2]] == names
    assert [line.split()[0] for line in output.splitlines()[2:5]] == ["kimg", "200", "400"]
    assert log.read_text().count("No program") == 1 == log.read_text().count("Waiting for network pickles in run")


def test_requests_to_stop_end_it_cleanly(folder, whole_run):
    """While it waits, and in the middle of a score, by two processes; what is scored stays."""
    args = ["--network=run", "--detector=small-net.pt", "--device=cpu", "--follow"]
    waiting = start(folder, *args, "--metrics=fid1k_full")
    scoring = start(folder, *args, "--metrics=fid50k", "--gpus=2")
    try:
        for (process, log), pattern, number in ((waiting, "Waiting", signal.SIGINT),
                                                (scoring, "fid50k generated", signal.SIGTERM)):
            wait_for(process, log, pattern)
            os.killpg(process.pid, number)
            process.communicate(timeout=60)
            assert process.returncode == 1 and "Traceback" not in log.read_text()
    finally:
        waiting[0].kill()
        scoring[0].kill()
    assert waiting[1].read_text().endswith("Stopped; 1 pickle(s) scored. The same command scores the others.\n")
    assert scoring[1].read_text().endswith("Stopped; 0 pickle(s) scored. The same command scores the others.\n")
    assert scoring[1].read_text().count("Stopped") == 1
    assert len(recorded(whole_run, "fid1k_full")) == 1 and not (whole_run / "metric-fid50k.jsonl").exists()


def test_mistakes_about_runs_are_one_line(folder, whole_run):
    (folder / "empty").mkdir()
    (folder / "empty" / "training_options.json").write_bytes((whole_run / "training_options.json").read_bytes())
    save_images(folder / "small.zip", resolution=8)
    for args, pattern in [
        (["--network=run/network-snapshot-000200.pkl", "--follow"], "--follow needs a run directory .* run/network"),
        (["--network=http://127.0.0.1:9/run", "--follow"], "--follow needs a run directory"),
        (["--network=cache"], "cache is a folder without training_options.json: give a network, or a run directory"),
        (["--network=empty"], "empty holds no network-snapshot-KKKKKK.pkl yet: say --follow"),
        (["--network=empty", "--follow", "--data=small.zip"], "small.zip are 8x8, expected 16x16"),
    ]:
        (folder / "cache").mkdir(exist_ok=True)
        assert_one_line_error(run(folder, *args, "--detector=small-net.pt"), pattern)
    assert not list(folder.rglob("*.jsonl"))


@pytest.mark.parametrize("args,pattern", [
    (["--metrics=none"], "names no metric"),
    (["--gpus=99", "--device=cuda"], "no CUDA device: say --device=cpu|--gpus is 99, but this machine has"),
    (["--data=broken", "--workers=3", "--metrics=fid1k_full", "--detector=small-net.pt", "--verbose=false"],
     r"^Error: image 00000/img00000150\.png in broken"),
    (["--gpus=2", "--device=cpu", "--data=broken", "--workers=1", "--metrics=fid1k_full", "--detector=small-net.pt",
      "--verbose=false"], r"^Error: image 00000/img00000150\.png in broken"),
    (["--gpus=2", "--device=cpu", "--data=three.zip", "--mirror=false", "--metrics=pr1k3",
      "--detector=small-net.pt", "--verbose=false"],
     r"^Error: precision and recall with k=3 need more than 3 images, got 3 real ones$"),
    (["--device=gpu"], "--device=gpu can't be used"),
    (["--data=nowhere.zip"], "no images at nowhere.zip|nowhere.zip"),
    (["--data=small.zip"], r"images of shape \[3, 8, 8\], the network makes \[3, 16, 16\]"),
    (["--detector=nowhere.pt"], r"nowhere\.pt can't be used.*feature_net\.py"),
    (["--detector=images.zip"], "images.zip is no feature net"),
    (["--network=nowhere.pkl"], "can't open nowhere.pkl"),
    (["--network=small-net.pt"], "small-net.pt"),
    (["--network=bare.pkl"], "bare.pkl does not say what it was trained on.*--data"),
    (["--network=conditional.pkl"], "labels of width 10, and the data set images has no labels"),
    ([], r"inception-2015-12-05.pt can't be used.*cache/downloads.*--detector=PATH"),
])
def test_mistakes_are_one_line(folder, args, pattern):
    save_images(folder / "small.zip", resolution=8)
    save_images(folder / "three.zip", count=3)
    if "--data=broken" in args:
        zipfile.ZipFile(folder / "images.zip").extractall(folder / "broken")
        os.truncate(folder / "broken" / "00000" / "img00000150.png", 100)
    save_network(folder / "bare.pkl")
    save_network(folder / "conditional.pkl", c_dim=10, training_set_kwargs={"path": str(folder / "images.zip")})
    detector = ["--detector=small-net.pt"] if args else []
    result = run(folder, "--network=run/network-snapshot-000200.pkl", *detector, *args)
    if not args:  # what the attempt to download says comes first
        result.stderr = "".join(line for line in result.stderr.splitlines(True) if not line.startswith("Downloading"))
    assert_one_line_error(result, pattern)
    assert not list(folder.rglob("*.jsonl")) and not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("args,pattern", [
    ([], "Missing option '--network'"),
    (["--network=a.pkl", "--batch=0"], "--batch"),
    (["--network=a.pkl", "--gpus=2", "--device=cuda:1"], "--device=cuda:1 is not for --gpus=2"),
    (["--network=a.pkl", "--colour=red"], "No such option"),
])
def test_usage_errors_exit_with_2(folder, args, pattern):
    assert_one_line_error(run(folder, *args), pattern, code=2)


def test_unknown_metrics_are_refused_before_pytorch_is_imported(folder):
    (folder / "torch.py").write_text("raise SystemExit('torch is imported')")
    call = command(folder, "--network=a.pkl", "--metrics=fid50k_ful")
    call["env"]["PYTHONPATH"] = str(folder)
    assert_one_line_error(subprocess.run(**call, capture_output=True), r"unknown metric fid50k_ful: .*fid<N>k_full")


def test_help_shows_defaults(folder):
    result = run(folder, "--help")
    assert result.returncode == 0 and "fid50k_full" in result.stdout and "--detector" in result.stdout


def test_too_little_memory_is_a_mistake_that_says_what_to_change(folder, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore of that")

    monkeypatch.chdir(folder)
    monkeypatch.setattr(metric_main, "calc_metric", fail)
    result = CliRunner().invoke(calc_metrics.main, [
        "--network=run/network-snapshot-000200.pkl", "--detector=small-net.pt", "--device=cpu", "--batch=32"])
    assert result.exit_code == 1 and result.stderr.startswith(
        "Error: CUDA out of memory. Tried to allocate 2 GiB.: give a --batch below 32")


def test_long_work_on_a_cpu_is_announced_in_one_line(capsys):
    scoring.warn_if_long(599, warn=cli.warn)
    assert capsys.readouterr().err == ""
    scoring.warn_if_long(50_000, warn=cli.warn)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Warning: on the CPU this will take about 14 hours: a GPU is much faster (--device=cuda)")
