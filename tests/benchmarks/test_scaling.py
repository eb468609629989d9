"""The model of docs/scaling.md: its text and its formulas agree; closed forms; fits."""

import dataclasses
import itertools
import json
import math

import pytest

import forking
from benchmarks import scaling
from paths import ROOT
from training.config.options import Options
from training.config.resolve import resolve
from training.config.schema import DatasetConfig
from training.estimate import count_parameters
from training.jobs import launch

DOC = (ROOT / "docs" / "scaling.md").read_text()


@pytest.fixture
def idle():
    """A machine on which everything but computing is free."""
    far = math.inf
    return scaling.Machine(t_img=0.01, launches=0, t_launch=0, per_node=8, beta_node=far, beta_net=far, alpha=0,
                           alpha_host=0, workers=1, r_worker=far, t_gen=0, t_score=0, beta_copy=far)


def test_text_shows_the_tables_of_the_formulas():
    for name, table in scaling.tables().items():
        assert f"*{name}. Modelled." in DOC and table in DOC, f"{name}: print it anew by benchmarks/scaling.py --model"


def test_text_shows_the_measured_sizes():
    rows = json.loads((ROOT / "benchmarks" / "results" / "scaling_sizes-cpu.json").read_text())["rows"]
    assert scaling.sizes_table(rows) in DOC


def test_text_shows_the_measured_processes_and_all_reduces():
    figures = json.loads((ROOT / "benchmarks" / "results" / "scaling-cpu.json").read_text())
    for row in figures["iterations"]:
        assert (f"| {row['processes']} | {row['cores']:.2f} | {1e3 * row['measured_sec']:.0f} | "
                f"{1e3 * row['model_sec']:.0f} | {row['ratio']:.2f} |") in DOC
    for size, name in ((1024, "1 KB"), (2**20, "1 MB"), (2**26, "64 MB")):
        two, four = (1e3 * figures["all_reduce_sec"][n][str(size)] for n in ("2", "4"))
        assert f"| {name} | {two:.2f} | {four:.2f} |" in DOC


def test_text_shows_the_values_that_went_in():
    s, m = scaling.PAPER256, scaling.ASSUMED
    for value in (f"{s.n_G:,}; {s.n_D:,}", f"{scaling.gradient_bytes(s) / 1e6:.1f} MB; {scaling.reduces(s):.2f}",
                  f"{scaling.state_bytes(s) / 1e6:.0f} MB; {m.beta_copy / 1e9:.0f} GB/s", f"{1e3 * m.t_img:.1f} ms",
                  f"{m.launches}; {1e6 * m.t_launch:.0f} µs",
                  f"{m.beta_node / 1e9:.0f} GB/s; {m.beta_net / 1e9:.0f} GB/s",
                  f"{1e6 * m.alpha:.0f} µs; {1e6 * m.alpha_host:.0f} µs", f"{m.workers}; {m.r_worker}",
                  f"{s.metric_images:,}; {1e3 * m.t_gen:.0f} ms; {m.t_score} s", f"| {s.tick_kimg}; {s.snap_ticks} |"):
        assert value in DOC, value


def test_setting_is_that_of_the_preset():
    options = Options(cfg="paper256", method="stylegan2", gpus=8)
    config = resolve(options, DatasetConfig(path="d", resolution=256), device="cuda")
    s, parameters = scaling.PAPER256, count_parameters(config)
    assert (s.n_G, s.n_D, s.B, s.g) == (parameters.G, parameters.D, config.batch_size, config.batch_gpu)
    assert (s.k_G, s.k_D) == (config.g_reg_interval, config.d_reg_interval)
    assert (s.tick_kimg, s.snap_ticks) == (config.kimg_per_tick, config.snapshot_ticks)


def test_calibration_gives_the_published_time():
    assert scaling.cost(scaling.PAPER256, scaling.ASSUMED, 8).iteration * 1000 / 64 == pytest.approx(2.47)


def test_perfect_scaling_where_the_rest_is_free(idle):
    for N in (1, 2, 64):
        assert scaling.cost(scaling.PAPER256, idle, N).sec_per_kimg == pytest.approx(10 / N)


def test_each_term_by_itself(idle):
    s = scaling.Setting(n_G=100, n_D=200, B=64, g=8, k_G=4, k_D=16, tick_kimg=2, snap_ticks=5, metric_images=1000)

    def cost(N, **machine):
        return scaling.cost(s, dataclasses.replace(idle, **machine), N)

    assert scaling.gradient_bytes(s) == 4 * (100 + 25 + 200 + 12.5)
    assert cost(4, beta_node=1350, beta_net=1).all_reduce == pytest.approx(1.5)             # 2 * 3/4 * 1350 / 1350
    assert cost(16, beta_node=1350, beta_net=135).all_reduce == pytest.approx(18.75)
    assert cost(8, alpha=1).all_reduce == pytest.approx((3 + 0.25 + 0.0625 + 0.25) * 2 * 3)
    assert cost(1, beta_node=1, alpha=1, alpha_host=1).iteration == pytest.approx(0.64)
    assert cost(4, launches=10, t_launch=0.1).iteration == pytest.approx(2)                 # two parts
    assert cost(64, launches=10, t_launch=0.1).iteration == pytest.approx(1)
    assert cost(8, workers=2, r_worker=4).iteration == pytest.approx(1)
    assert cost(8, alpha_host=1).agreement == pytest.approx(6)
    assert cost(10, t_gen=0.1, t_score=5).upkeep == pytest.approx((10 + 5) / 10)
    assert cost(1, beta_copy=4 * (200 + 200 + 600)).upkeep == pytest.approx(0.5)


def test_fits_find_what_made_the_times():
    times = {size: 1e-4 + size / 5e8 for size in (1000, 10**5, 10**7)}
    assert scaling.fit_reduce(times) == pytest.approx((1e-4, 5e8))
    s = scaling.Setting(n_G=1000, n_D=0, B=16)
    one = {8: 0.1 + 8 * 0.01, 16: 0.1 + 16 * 0.01}
    reduce = scaling.reduces(s) * 1e-4 + 5000 / 5e8
    assert scaling.predict(one, {}, s, gpus=1, cores=2) == pytest.approx(one[16])
    assert scaling.predict(one, {2: times}, s, gpus=2, cores=2) == pytest.approx(0.18 + reduce)
    assert scaling.predict(one, {4: times}, s, gpus=4, cores=2) == pytest.approx(2 * 0.14 + reduce)


def test_small_measurements(tiny_dataset, tmp_path):
    reduce = scaling.measure_all_reduce(2, folder=tmp_path, repeats=1)
    assert len(reduce) == 7 and all(sec > 0 for sec in reduce.values())
    rows = scaling.measure_sizes([8, 16], [2, 4], baseline="straightforward", repeats=1)
    assert [row["side"] for row in rows] == [8, 16] and all(row["batch 2"] > 0 and row["batch 4"] > 0 for row in rows)
    assert all(row["to_baseline"].keys() == {"batch 2", "batch 4"} for row in rows)
    assert "to_baseline" not in scaling.sizes_table(rows)
    scaling.plot_sizes(rows, [2, 4], str(tmp_path / "plot.png"))
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert scaling.measure_loader(str(tiny_dataset), workers=0, batches=2) > 10


def test_an_iteration_has_each_phase_as_often_as_training():
    config = scaling.small_config(8, 2)
    times = scaling.time_steps({"a": config}, "straightforward", repeats=2, clock=itertools.count().__next__)
    each = 1 + 1 / 4 + 1 + 1 / 16 + 1   # seconds, where every part takes one
    assert times == {("a", path): ([each, each], each) for path in ("ours", "straightforward")}


def test_processes_take_turns_with_the_baseline(tmp_path, monkeypatch):
    forking.fork_ranks(launch, monkeypatch.setattr)
    times = scaling.measure_steps("straightforward", gpus=2, batch=4, repeats=2, folder=tmp_path)
    assert times.keys() == {"ours", "straightforward"}
    assert all(len(turns) == 2 and min(turns) > 0 for turns in times.values())
