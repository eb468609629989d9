"""The benchmark of training steps: its paths compute the same, and its figures fit together."""

import importlib
import json
import statistics

import click
import pytest
import torch

from paths import ROOT


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    module = importlib.import_module("benchmarks.step")
    tiny = dict(cfg="auto", cbase=256, cmax=32, map_depth=2)
    monkeypatch.setitem(module.SIZES, "small", (32, tiny, 4))
    monkeypatch.setitem(module.MATMUL_SIDE, "cpu", 64)
    return module


@pytest.mark.parametrize("method", ["ggdr", "glead"])
def test_baselines_compute_the_same(bench, method):
    said = dict(size="small", device="cpu", batch=None, perceptual="random-alex")
    config, gradients = bench.configure(method, "float16", "nchw", **said), {}
    for path in ("float32", *(path for path in bench.BASELINES if path != bench.GRAPHS)):
        step = bench.Step(config, path)
        torch.manual_seed(1)
        step.run(next(phase for phase in step.phases if phase.name == "Dmain"))
        gradients[path] = torch.cat([p.grad.flatten() for p in step.D.parameters()])
    for path in set(gradients) - {"float32"}:
        difference = gradients[path] - gradients["float32"]
        assert difference.norm() < 1e-4 * gradients["float32"].norm()


def test_figures(bench, tmp_path, capsys):
    out = tmp_path / "step.json"
    threads = torch.get_num_threads()
    bench.main(["--methods=stylegan2,ggdr", "--half=float16,bfloat16", "--baseline=zero-insertion", "--repeats=2",
                f"--threads={threads}", f"--out={out}"], standalone_mode=False)
    assert "Time of each part relative to zero-insertion" in capsys.readouterr().out
    result = json.loads(out.read_text())
    rows = {(row["method"], row["path"]): row for row in result["rows"]}
    assert rows.keys() == {(method, path) for method in ("stylegan2", "ggdr")
                           for path in ("float32", "bfloat16", "zero-insertion")}
    for row in rows.values():
        sec = row["median_sec"]
        for turn in range(2):
            parts = {name: values[turn] for name, values in row["sec"].items()}
            total = parts["Gmain"] + parts["Greg"] / 4 + parts["Dmain"] + parts["Dreg"] / 16 + parts["average"]
            assert parts["iteration"] == pytest.approx(total)
        assert row["img_per_sec"] == pytest.approx(4 / sec["iteration"])
        assert row["sec_per_kimg"] == pytest.approx(250 * sec["iteration"])
        peak = result["matmul_tflops"]["bfloat16" if row["path"] == "bfloat16" else "float32"]
        assert row["utilisation"] == pytest.approx(row["gflop"]["iteration"] / sec["iteration"] / 1000 / peak)
        assert row["gflop"]["Dmain"] > row["gflop"]["Gmain"] > 0 and row["memory_gb"] is None
    zeros, ours = (rows["stylegan2", path]["gflop"]["iteration"] for path in ("zero-insertion", "float32"))
    assert zeros > ours
    assert rows["stylegan2", "float32"]["ratios"].keys() == {"to zero-insertion"}
    ggdr, stylegan2 = (rows[method, "bfloat16"]["sec"]["Dmain"] for method in ("ggdr", "stylegan2"))
    expected = statistics.median(a / b for a, b in zip(ggdr, stylegan2))
    assert rows["ggdr", "bfloat16"]["ratios"]["to stylegan2"]["Dmain"] == pytest.approx(expected)


def test_baselines_are_a_list(bench):
    def chosen(*arguments):
        return bench.main.make_context("main", list(arguments)).params["baselines"]

    assert [chosen(), chosen("--baseline", "--repeats=3"), chosen("--baseline=zero-insertion,native-convolutions")] == [
        [], ["straightforward"], ["zero-insertion", "native-convolutions"]]


def test_paths(bench):
    said = dict(size="small", batch=4, perceptual="random-alex", device="cpu")
    configs = bench.configurations(["glead"], ["float16", "bfloat16"], ("nchw", "nhwc"),
                                   ["native-convolutions", "straightforward"], **said)
    assert [path for _, path in configs] == ["float32 nchw", "float32 nhwc", "bfloat16 nchw", "bfloat16 nhwc",
                                             "native-convolutions", "straightforward"]
    assert [config.G.channels_last for config in configs.values()] == [False, True, False, True, False, False]


def test_what_a_path_computes(bench):
    for path, own, heuristics in (("float32", None, False), ("native-convolutions", False, False),
                                  ("cudnn-heuristics", None, True)):
        with bench.computing(path):
            assert bench.conv2d_gradfix.enabled is own
            assert torch.backends.cudnn.benchmark is not heuristics


@pytest.mark.parametrize("arguments, message", [
    (["--methods=gan"], "--methods is gan, expected some of stylegan2"),
    (["--format=nwhc"], "--format is nwhc, expected some of nchw, nhwc"),
    (["--baseline=none-such"], "--baseline is none-such, expected some of straightforward"),
    (["--half=none"], "--half is none at all, expected some of float16"),
    (["--baseline=cuda-graphs"], "cuda-graphs needs a GPU"),
])
def test_mistakes(bench, arguments, message):
    with pytest.raises(click.UsageError, match=message):
        bench.main(arguments, standalone_mode=False)


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["stylegan2", "glead"])
def test_cuda_graphs_compute_the_same(bench, method):
    config = bench.configure(method, "float32", "nchw", size="small", device="cuda", batch=4, perceptual="random-alex")
    step = bench.Step(config, bench.GRAPHS)
    for phase in step.phases:
        step.run(phase)
    assert set(step.replays) == {"Gmain", "Dmain"}
    for replay in step.replays.values():
        assert replay.graph is not None and replay.difference < 1e-3
