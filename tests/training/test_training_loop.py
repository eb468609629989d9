"""Training runs, small but whole: what they leave behind, that they repeat exactly, and how they stop."""

import dataclasses
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from dnnlib.util import UserError
from paths import ROOT
from torch_utils.formats.network_pickle import save_network_pkl
from training import snapshot, training_loop
from training.config.schema import from_json
from training.data.dataset import ImageFolderDataset
from training.jobs import launch
from training.networks import Discriminator, Generator
from training.runs.interrupt import StopRequest

METHODS = ["stylegan2", "ggdr", "glead", "glead+ggdr"]


def arguments(tiny_dataset, tiny_net, outdir, *more):
    return [
        f"--outdir={outdir}", f"--data={tiny_dataset}", "--cfg=auto", "--cbase=128", "--cmax=8", "--map-depth=1",
        "--batch=8", "--mbstd-group=4", "--kimg=0.064", "--tick=0.032", "--snap=0", "--device=cpu", "--workers=0",
        f"--perceptual={tiny_net}", f"--detector={tiny_net}", "--metrics=none", "--aug=noaug", *more,
    ]


def environment(tmp_path):
    return dict(os.environ, OMP_NUM_THREADS="1", GLEAD_CACHE_DIR=str(tmp_path / "cache"))


def train(args, tmp_path, **kwargs):
    return subprocess.run([sys.executable, str(ROOT / "train.py"), *args], capture_output=True, text=True, timeout=300,
                          env=environment(tmp_path), **kwargs)


def only_run(outdir):
    (run_dir,) = [p for p in Path(outdir).iterdir() if p.is_dir()]
    return run_dir


def weights(run_dir, name="network-snapshot-000000.pkl", key="G_ema"):
    with open(run_dir / name, "rb") as f:
        return pickle.load(f)[key].state_dict()


@pytest.mark.parametrize("method", METHODS)
def test_a_run_of_each_method(tiny_dataset, tiny_net, tmp_path, method):
    result = train(arguments(tiny_dataset, tiny_net, tmp_path / "runs", f"--method={method}", "--cond=true",
                             "--mirror=true", "--metrics=fid1k_full" if method == "glead" else "--metrics=none"),
                   tmp_path)
    assert result.returncode == 0, result.stderr
    run_dir = only_run(tmp_path / "runs")
    names = {p.name for p in run_dir.iterdir()}
    assert {"training_options.json", "log.txt", "stats.jsonl", "reals.png", "fakes_init.png", "fakes000000.png",
            "network-snapshot-000000.pkl", "attention000000.png", "report.html"} <= names
    (events,) = run_dir.glob("events.out.tfevents.*")
    shown = {value.tag for event in EventFileLoader(str(events)).Load() for value in event.summary.value}
    assert {"reals", "fakes", "Loss/scores/real"} <= shown and ("reconstructions" in shown) == ("glead" in method)
    assert ("reconstructions000000.png" in names) == ("glead" in method)
    assert not [name for name in names if name.endswith(".tmp")]
    assert re.search(r"^tick 0 +kimg 0\.0 +time .* left .* sec/tick .* sec/kimg .* augment 0\.000", result.stdout, re.M)
    assert result.stdout.strip() in (run_dir / "log.txt").read_text()

    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    # A first tick of one iteration, then one for each 32 images, and the last one.
    assert [round(line["Progress/kimg"]["mean"], 3) for line in lines] == [0.008, 0.04, 0.064]
    first = lines[0]
    terms = {"Loss/scores/fake", "Loss/scores/real", "Loss/signs/real", "Loss/G/loss", "Loss/D/loss",
             "Loss/r1_penalty", "Loss/pl_penalty", "Progress/nonfinite_gradients"}
    real = {"glead": {"Loss/D/real_reconstruction"}, "glead+ggdr": {"Loss/D/real_reconstruction"}}
    fake = {"glead": {"Loss/D/fake_reconstruction"}, "glead+ggdr": {"Loss/D/fake_feature"},
            "ggdr": {"Loss/D/fake_feature"}}
    terms |= real.get(method, set()) | fake.get(method, set())
    assert terms <= set(first)
    assert not {name for name in first if name.startswith(("Loss/D/real_", "Loss/D/fake_"))} - terms
    assert all(np.isfinite(line[name]["mean"]) for line in lines for name in line if name != "timestamp")
    assert first["Loss/scores/real"]["num"] == 16  # 8 in Dmain and 8 in Dreg

    with PIL.Image.open(run_dir / "reals.png") as img:
        assert img.size == (32 * 16, 32 * 16) and img.mode == "RGB"
    with open(run_dir / "network-snapshot-000000.pkl", "rb") as f:
        networks = pickle.load(f)
    assert set(networks) == {"G", "D", "G_ema", "augment_pipe", "training_set_kwargs", "method"}
    assert networks["method"] == method
    assert networks["training_set_kwargs"]["xflip"] is True and networks["G_ema"].c_dim == 3
    if method == "glead":
        record = json.loads((run_dir / "metric-fid1k_full.jsonl").read_text().splitlines()[-1])
        assert list(record["results"]) == ["fid1k_full@tiny-net"]
        assert record["snapshot_pkl"] == "network-snapshot-000000.pkl"


@pytest.mark.parametrize("method, pipe", [("ggdr", "bgc"), ("glead", "bgcfnc")])
def test_adaptive_augmentation_follows_the_signs(tiny_dataset, tiny_net, tmp_path, method, pipe):
    """Every fourth iteration p moves by batch * interval / 500 kimg, as the reported signs of real scores say."""
    result = train(arguments(tiny_dataset, tiny_net, tmp_path, f"--method={method}", "--aug=ada", "--target=0.1",
                             f"--augpipe={pipe}", "--kimg=0.16", "--tick=0.008"), tmp_path)
    assert result.returncode == 0, result.stderr
    run_dir = only_run(tmp_path)
    assert json.loads((run_dir / "training_options.json").read_text())["command"]["augpipe"] == pipe
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    assert len(lines) == 20  # one for each iteration
    p = num = total = 0
    for iteration, line in enumerate(lines, 1):
        signs = line["Loss/signs/real"]
        num, total = num + signs["num"], total + signs["num"] * signs["mean"]
        if iteration % 4 == 0:
            p = max(p + np.sign(total / num - 0.1) * 8 * 4 / 500e3, 0)
            num = total = 0
        assert line["Progress/augment"]["mean"] == pytest.approx(p, abs=1e-8)
    assert max(line["Progress/augment"]["mean"] for line in lines) > 0
    with open(run_dir / "network-snapshot-000000.pkl", "rb") as f:
        saved = pickle.load(f)["augment_pipe"]
    assert float(saved.p) == pytest.approx(p) and saved.cutout == (pipe == "bgcfnc")


def test_runs_repeat_exactly_and_seeds_matter(tiny_dataset, tiny_net, tmp_path):
    runs = {}
    for name, more in dict(a=[], b=["--workers=2"], c=["--seed=1"]).items():
        more = [*more, "--metrics=none"]
        assert train(arguments(tiny_dataset, tiny_net, tmp_path / name, *more), tmp_path).returncode == 0
        runs[name] = weights(only_run(tmp_path / name))
    assert all(torch.equal(runs["a"][k], runs["b"][k]) for k in runs["a"])
    assert not torch.equal(runs["a"]["mapping.fc0.weight"], runs["c"]["mapping.fc0.weight"])


def generator(map_depth=8, **channels):
    torch.manual_seed(3)
    G = Generator(512, 0, 512, 16, 3, mapping_kwargs={"num_layers": map_depth}, synthesis_kwargs=channels)
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.2)
    return G


def test_starting_from_a_pickle_gives_its_images(tiny_dataset, tiny_net, tmp_path):
    """Of another depth and width than --cfg has, both of which are taken over."""
    G = generator(channel_base=256, channel_max=16).eval()
    D = Discriminator(0, 16, 3, channel_base=256, channel_max=16)
    save_network_pkl(tmp_path / "source.pkl", {"G": generator(channel_base=256, channel_max=16), "D": D, "G_ema": G})
    sizes = ("--cbase", "--cmax", "--map-depth", "--kimg")
    args = [arg for arg in arguments(tiny_dataset, tiny_net, tmp_path / "b") if not arg.startswith(sizes)]
    result = train([*args, f"--resume={tmp_path / 'source.pkl'}", "--kimg=0.008"], tmp_path)
    assert result.returncode == 0, result.stderr
    grid = snapshot.choose_grid(ImageFolderDataset(str(tiny_dataset)), z_dim=512, seed=0, size=4096)
    snapshot.save_image_grid(tmp_path / "expected.png", snapshot.draw_fakes(G, grid, batch_gpu=8), columns=grid.columns)
    fakes = np.array(PIL.Image.open(only_run(tmp_path / "b") / "fakes_init.png"))
    assert np.array_equal(fakes, np.array(PIL.Image.open(tmp_path / "expected.png")))
    text = "; mapping network: 8 layers, from the source instead of 2; cbase 256 and cmax 16 instead of 16384 and 512\n"
    assert text in result.stdout
    assert ": b8_dec, img_proj, feat_proj1, feat_proj2\n" in result.stdout
    assert result.stdout.count("  new in this run") == 1 and "  left out" not in result.stdout


def test_all_that_is_not_copied_is_said(capsys):
    snapshot.copy_matching(generator(channel_base=64), generator(2, channel_base=32), label="G of a.pkl")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Copied ") and lines[0].endswith("tensors from G of a.pkl")
    assert lines[1:2] == ["  left out, because this run has none: mapping.fc2 to mapping.fc7 (6 layers)"]
    assert lines[2].startswith("  new in this run, because of another shape: synthesis.b4.const, synthesis.b4.conv1.")
    snapshot.copy_matching(generator(2, channel_base=64), generator(channel_base=64), label="G of a.pkl")
    assert capsys.readouterr().out.splitlines()[1:] == [
        "  new in this run, because the source has none: mapping.fc2 to mapping.fc7 (6 layers)"]


def test_starting_from_a_pickle_without_some_networks(short_run, config, capsys):
    config, run_dir = config
    with open(short_run / "network-snapshot-000000.pkl", "rb") as f:
        networks = pickle.load(f)
    save_network_pkl(run_dir / "half.pkl", dict(networks, D=None, G=None))
    trainer = training_loop.Trainer(dataclasses.replace(config, resume=str(run_dir / "half.pkl")), str(run_dir))
    trainer.close()
    for name, value in networks["G_ema"].state_dict().items():
        assert torch.equal(trainer.G.state_dict()[name], value) and torch.equal(trainer.G_ema.state_dict()[name], value)
    assert "no D" in capsys.readouterr().out


@pytest.fixture(scope="module")
def short_run(tiny_dataset, tiny_net, tmp_path_factory):
    """The directory of a run of one iteration."""
    folder = tmp_path_factory.mktemp("short")
    assert train(arguments(tiny_dataset, tiny_net, folder / "runs", "--kimg=0.008"), folder).returncode == 0
    return only_run(folder / "runs")


@pytest.fixture
def config(short_run, tmp_path):
    """A configuration as the command line resolves it, and a run directory."""
    (tmp_path / "run").mkdir()
    options = json.loads((short_run / "training_options.json").read_text())
    return dataclasses.replace(from_json(options), total_kimg=1000.0), tmp_path / "run"


def test_accumulating_parts_equals_the_mean_over_parts(config):
    """Two parts of a batch: the gradient is the mean of the gradients that each part has."""
    config, run_dir = config
    halves = dataclasses.replace(config, batch_gpu=4)
    trainer = training_loop.Trainer(halves, str(run_dir))
    images, labels = next(trainer.loader)
    real = images.float() / 127.5 - 1
    phase = trainer.phases[0]
    seen = []
    trainer.guard.process = lambda module: seen.append([p.grad.clone() for p in module.parameters()])
    phase.opt.step = lambda: None
    trainer._run_phase(0, phase, real, labels)
    calls = []
    phase_loss = phase.loss

    def one_part(batch, wanted):
        calls.append(0)
        return phase_loss(batch) if (len(calls) - 1) % 2 == wanted else iter(())

    for wanted in (0, 1):
        object.__setattr__(phase, "loss", lambda batch, wanted=wanted: one_part(batch, wanted))
        trainer._run_phase(0, phase, real, labels)
    for both, first, second in zip(*seen):
        torch.testing.assert_close(both, first + second, rtol=1e-4, atol=1e-7)
    trainer.close()


def test_gradients_that_stay_non_finite_stop_the_run(config, monkeypatch, capsys):
    config, run_dir = config
    monkeypatch.setattr(training_loop.StyleGAN2Loss, "g_main",
                        lambda self, batch: iter([self.G(batch.gen_z, batch.gen_c).mean() * float("nan")]))
    with pytest.raises(UserError, match="non-finite for 1[0-9]0 iterations"):
        training_loop.run_training(dataclasses.replace(config, loss=dataclasses.replace(config.loss, pl_weight=0)),
                                   str(run_dir))
    assert "saved" in capsys.readouterr().out
    state = weights(run_dir)
    assert all(v.isfinite().all() for v in state.values())
    lines = [json.loads(line) for line in (run_dir / "stats.jsonl").read_text().splitlines()]
    assert lines[-1]["Progress/nonfinite_gradients"]["mean"] > 0


def test_too_little_memory_of_a_gpu_is_said_in_one_line(config, monkeypatch):
    config, run_dir = config

    def step(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...\nSee ...")

    monkeypatch.setattr(training_loop.Trainer, "step", step)
    with pytest.raises(UserError, match=r"^CUDA out of memory\. Tried[^\n]*: give a --batch-gpu below 8, or free"):
        launch.run_rank(launch.Job(config, str(run_dir)))


def test_a_few_non_finite_gradients_do_no_harm(config, monkeypatch):
    config, run_dir = config
    original, calls = training_loop.StyleGAN2Loss.g_main, []

    def sometimes_bad(self, batch):
        calls.append(0)
        factor = float("inf") if len(calls) == 2 else 1.0
        return iter([term * factor for term in original(self, batch)])

    monkeypatch.setattr(training_loop.StyleGAN2Loss, "g_main", sometimes_bad)
    training_loop.run_training(dataclasses.replace(config, total_kimg=0.032), str(run_dir))
    assert all(v.isfinite().all() for v in weights(run_dir).values())


def test_unreadable_image_during_training_saves_and_names_it(config, monkeypatch, capsys):
    config, run_dir = config
    trainer_next = training_loop.BatchLoader.__next__
    calls = []

    def broken(self):
        calls.append(0)
        if len(calls) > 3:
            raise UserError("00000/img00000007.png can't be read")
        return trainer_next(self)

    monkeypatch.setattr(training_loop.BatchLoader, "__next__", broken)
    with pytest.raises(UserError, match="img00000007"):
        training_loop.run_training(config, str(run_dir))
    assert "saved" in capsys.readouterr().out and (run_dir / "network-snapshot-000000.pkl").is_file()


@pytest.mark.parametrize("number,when,expected", [
    (signal.SIGINT, "tick 0", "Stopped at"), (signal.SIGTERM, "tick 0", "Stopped at"),
    (signal.SIGINT, "Training for", "Stopped at"), (signal.SIGTERM, "Networks on", None),
])
def test_interrupted_runs_stay_usable(tiny_dataset, tiny_net, tmp_path, number, when, expected):
    args = arguments(tiny_dataset, tiny_net, tmp_path / "runs", "--kimg=1000", "--snap=0", "--workers=1")
    with subprocess.Popen([sys.executable, "-u", str(ROOT / "train.py"), *args], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True, env=environment(tmp_path)) as process:
        for line in process.stdout:
            if line.startswith(when):
                break
        time.sleep(0.05)
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0 and "Traceback" not in err, err
    run_dir = only_run(tmp_path / "runs")
    assert not list(run_dir.glob("*.tmp")) and not list(run_dir.glob(".*"))
    stopped = re.search(r"Stopped at [0-9.]+ kimg, saved (\S+)\. To resume", out)
    if stopped:
        weights(run_dir, Path(stopped[1]).name)
    else:
        assert expected is None and "nothing was trained" in out


def test_stop_request_asks_first_and_breaks_off_second():
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), stop.at_once():
            pass
    with StopRequest() as stop, pytest.raises(KeyboardInterrupt), stop.at_once():
        signal.raise_signal(signal.SIGTERM)
