"""The registry, feature extraction, the cache, names of results, reports."""

import dataclasses
import json
import os
import re
import shutil
import threading
import time
import types

import numpy as np
import pytest
import torch

from dnnlib.util import UserError, cache_dir, cached_path, sha256_of
from metrics import detectors, kernel_inception_distance, metric_main
from metrics.detectors import INCEPTION_URL, VGG16_URL, FeatureNet, load_feature_net
from metrics.feature_stats import FeatureStats
from metrics.features import _cache_lock, _cache_path, _save, generated_stats, real_stats
from metrics.options import ImageSet, MetricOptions, Shared
from metrics.progress import ScoreBar, Stage
from metrics.registry import METRICS
from metrics.sampling import draw, generate_uint8
from small_networks import save_torchscript
from tests.metrics.metric_fakes import ArrayDataset, ArrayImages, PerceptualOnly, SmallNet, random_images, save_net
from tests.metrics.reference_generator import random_generator
from torch_utils import distributed
from training.data.dataset import ImageFolderDataset

ALL = ImageSet("all real")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("GLEAD_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def detector(tmp_path):
    return save_net(tmp_path / "small-net.pt")


@pytest.fixture
def dataset():
    return ArrayDataset(random_images(1100))


@pytest.fixture
def G():
    return random_generator()


def options(G, dataset, **changes):
    defaults = {"metric": "m", "device": torch.device("cpu"), "workers": 0}
    return MetricOptions(G=G, dataset=dataset, **(defaults | changes))


def test_names_state_their_protocol():
    names = metric_main.list_valid_metrics()
    for name in ("fid50k_full", "fid50k", "kid50k_full", "kid50k", "pr50k3_full", "pr50k3", "is50k", "ppl2_wend",
                 "ppl_zfull", "ppl_wfull", "ppl_zend", "ppl_wend", "fid1k", "fid5k_full", "kid2k", "pr10k3", "is20k"):
        assert name in names and metric_main.is_valid_metric(name)
    for name in ("fid", "fid3k", "fid50k_Full", "pr50k", "is50k_full", "ppl"):
        assert not metric_main.is_valid_metric(name)
    with pytest.raises(UserError, match="unknown metric fid3k.*fid<N>k.*ppl2_wend"):
        metric_main.check_metrics(["fid1k", "fid3k"])


def test_draws_belong_to_the_index(G, dataset):
    together = draw(G, dataset, range(10), seed=5)
    apart = [draw(G, dataset, [i], seed=5) for i in range(10)]
    assert torch.equal(together.z, torch.cat([d.z for d in apart]))
    assert together.noise_seeds == tuple(d.noise_seeds[0] for d in apart)
    assert not torch.equal(together.z, draw(G, dataset, range(10), seed=6).z)
    many = draw(G, dataset, range(4000), seed=0)
    assert abs(float(many.z.mean())) < 0.03 and abs(float(many.z.std()) - 1) < 0.03
    assert len(set(many.noise_seeds)) == 4000


def test_labels_come_from_the_dataset(G):
    G.c_dim = 3
    classes = np.array([0] * 30 + [2] * 10)
    dataset = ArrayDataset(random_images(40), np.eye(3, dtype=np.float32)[classes])
    c = draw(G, dataset, range(2000), seed=0).c
    assert c.mean(dim=0).tolist() == pytest.approx([0.75, 0, 0.25], abs=0.03)


def test_generated_images_do_not_depend_on_the_batch(G, dataset):
    def images(batches):
        return torch.cat([
            generate_uint8(G, dataset, indices=b, seed=1, device=torch.device("cpu")) for b in batches
        ]).int()

    whole, parts = images([range(12)]), images([range(5), [5], range(6, 12)])
    assert (whole - parts).abs().max() <= 1  # matrix products of other sizes round differently
    assert whole.float().std() > 10
    torch.manual_seed(0)
    without = G(draw(G, dataset, range(12), seed=1).z[:, 0], noise_mode="none")
    assert ((without * 127.5 + 128).clamp(0, 255) - whole).abs().mean() > 1  # the noise is there


def test_results_do_not_depend_on_batch_size(G, dataset, detector):
    metrics = ("fid1k_full", "pr1k3_full", "dc1k5", "fidinf1k_full", "swd1k_full", "is1k")

    def results(batch_size):
        shared, results = Shared(metrics), {}
        for metric in metrics:
            results |= metric_main.calc_metric(metric, G=G, dataset=dataset, detector=detector, batch_size=batch_size,
                                               workers=0, cache=False, shared=shared).results
        return results

    a, b = results(64), results(37)
    assert a.keys() == b.keys()
    for name in a:
        assert a[name] == pytest.approx(b[name], rel=1e-3, abs=2e-3)


def test_metrics_of_one_network_look_at_images_once(G, dataset, detector, monkeypatch):
    """FID, KID and precision share real and generated features and the file in the cache; the scores are the same."""
    metrics, seen = ("fid1k_full", "kid1k_full", "pr1k3_full", "is1k"), []
    look = FeatureNet.__call__
    monkeypatch.setattr(kernel_inception_distance, "kernel_distances",  # which takes seconds
                        lambda real, gen, subsets, device: torch.stack([real.sum() - gen.sum()] * 2))
    monkeypatch.setattr(FeatureNet, "__call__", lambda self, img: seen.append(len(img)) or look(self, img))

    def score(*metrics, **given):
        seen.clear()
        results = {}
        for metric in metrics:
            results |= metric_main.calc_metric(metric, G=G, dataset=dataset, detector=detector, workers=0,
                                               **given).results
        return sum(seen), results

    real, generated = 1100, 1000
    alone = score(*metrics, cache=False)
    assert alone[0] == 3 * (real + generated) + generated
    together = score(*metrics, shared=Shared(metrics), kept_real={}, cache=False)
    assert together == (real + 2 * generated, alone[1]), "probabilities, for the last one, are other outputs"

    for metric, images in (("fid1k_full", real + generated), ("fid1k_full", generated),
                           ("kid1k_full", real + generated),
                           ("fid1k_full", generated), ("kid1k_full", generated), ("pr1k3_full", generated)):
        looked, results = score(metric)
        assert looked == images and results.items() <= alone[1].items(), metric
        assert len(list(cache_dir("features").iterdir())) == 1
    for path in cache_dir("features").iterdir():
        path.unlink()
    assert score("fid1k_full", shared=Shared(metrics))[0] == real + generated
    assert score("kid1k_full")[0] == generated, "FID kept what KID would need"

def test_evaluation_leaves_the_network_and_switches_alone(G, dataset, detector):
    G.train()
    before = {name: value.clone() for name, value in G.state_dict().items()}
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        metric_main.calc_metric("is1k", G=G, dataset=dataset, detector=detector, workers=0)
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert G.training and all(torch.equal(value, before[name]) for name, value in G.state_dict().items())


def test_results_are_named_after_a_detector_that_is_not_standard(G, dataset, detector):
    dataset.resize_filter = "box"
    result = metric_main.calc_metric("pr1k3_full", G=G, dataset=dataset, detector=detector, workers=0)
    assert result.real.resize_filter == "box" and result.real.num_images == 1100
    assert set(result.results) == {"pr1k3_full_precision@small-net", "pr1k3_full_recall@small-net"}
    assert result.detector.name == "small-net" and re.fullmatch("[0-9a-f]{64}", result.detector.sha256)
    assert result.metric == "pr1k3_full" and result.num_gpus == 1 and result.total_time > 0


def test_results_have_plain_names_with_the_standard_detector(G, dataset, tmp_path, monkeypatch):
    """Inception by its published SHA-256, VGG16 by what came first from its URL; small nets stand in for both."""
    elsewhere = tmp_path / "any-name"       # known by its content, although nobody said to trust it
    save_torchscript(elsewhere, SmallNet(0), trust=False)
    monkeypatch.setitem(detectors.PUBLISHED_SHA256, INCEPTION_URL, sha256_of(elsewhere))
    fid = metric_main.calc_metric("fid1k_full", G=G, dataset=dataset, detector=str(elsewhere), workers=0)
    assert list(fid.results) == ["fid1k_full"] and not cache_dir("known-nets.txt").exists()
    cached_path(INCEPTION_URL).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(elsewhere, cached_path(INCEPTION_URL))
    save_torchscript(cached_path(VGG16_URL), SmallNet(1), trust=False)
    metric_main.check_detector(["fid1k_full", "is1k", "pr1k3", "ppl2_wend"])
    again = metric_main.calc_metric("fid1k_full", G=G, dataset=dataset, workers=0)
    assert again.results == fid.results and again.detector.name == "inception-2015-12-05"
    assert list(metric_main.calc_metric("is1k", G=G, dataset=dataset, workers=0).results) == ["is1k_mean", "is1k_std"]
    other = metric_main.calc_metric("pr1k3", G=G, dataset=dataset, detector=INCEPTION_URL, workers=0)
    assert list(other.results) == ["pr1k3_precision@inception-2015-12-05", "pr1k3_recall@inception-2015-12-05"]
    shutil.copy(cached_path(VGG16_URL), elsewhere)
    assert metric_main.result_suffix("pr1k3", str(elsewhere), load_feature_net(elsewhere, "features")) == ""

    detectors._open_net.cache_clear()
    for url in (INCEPTION_URL, VGG16_URL):
        save_torchscript(cached_path(url), SmallNet(7), trust=False)
    with pytest.raises(UserError) as e:
        metric_main.check_detector(["fid1k_full", "pr1k3"])
    assert "inception-2015-12-05.pt has SHA-256" in e.value.args[0] and "delete it and try again" in e.value.args[0]
    assert re.search("vgg16.pt has SHA-256 .* when it first came: delete the file", e.value.args[1])


def test_a_download_with_another_digest_is_refused(monkeypatch):
    monkeypatch.setattr("dnnlib.util._download", lambda url, file: file.write(b"something else"))
    with pytest.raises(UserError, match="has SHA-256 .* expected f58cb9b6ec32.* try again"):
        metric_main.check_detector(["fid50k_full"])
    assert not list(cache_dir("downloads").iterdir())


def test_full_means_all_images_without_mirroring(G, detector):
    images = random_images(30)
    subset = ArrayDataset(images, max_size=10, xflip=True)
    net = load_feature_net(detector, "features")
    opts = options(G, subset, batch_size=8)
    kept = real_stats(opts, net, ALL, keep_features=True)
    assert kept.num_items == 30
    torch.testing.assert_close(kept.features(), net(torch.from_numpy(images)))
    assert real_stats(opts, net, ImageSet("real", 50), keep_features=True).num_items == 50
    mirrored = real_stats(opts, net, ImageSet("real"), keep_features=True).features()
    assert len(mirrored) == 60
    torch.testing.assert_close(mirrored[30:], net(torch.from_numpy(images[:, :, :, ::-1].copy())))


def test_workers_give_the_same_features_in_order(G, tiny_dataset, detector):
    net, dataset = load_feature_net(detector, "features"), ImageFolderDataset(tiny_dataset, xflip=True)
    alone, helped = (
        real_stats(options(G, dataset, workers=n, cache=False, batch_size=20), net, ImageSet("real"),
                   keep_features=True)
        for n in (0, 2))
    assert torch.equal(alone.features(), helped.features()) and len(alone.features()) == 96


def test_cache_is_used_and_keyed_by_content(G, dataset, detector, tmp_path, monkeypatch):
    net = load_feature_net(detector, "features")
    seen = []
    getitem = ArrayDataset.__getitem__
    monkeypatch.setattr(ArrayDataset, "__getitem__", lambda self, i: seen.append(i) or getitem(self, i))

    def count(data=dataset, net=net, images=ALL):
        seen.clear()
        moments = real_stats(options(G, data), net, images).moments()
        return len(seen), moments

    first, again = count(), count()
    assert (first[0], again[0]) == (1100, 0)
    assert torch.equal(first[1].mean, again[1].mean) and torch.equal(first[1].cov, again[1].cov)
    assert count(images=ImageSet("all real", 500))[0] == 500
    assert count(ArrayDataset(random_images(1100, seed=1)))[0] == 1100
    assert count(net=load_feature_net(save_net(tmp_path / "small-net.pt", PerceptualOnly()), "lpips"))[0] == 1100


def test_programs_do_not_compute_the_same_at_once(G, dataset, detector, capsys, monkeypatch):
    net, reads = load_feature_net(detector, "features"), []
    look = FeatureNet.__call__
    monkeypatch.setattr(FeatureNet, "__call__", lambda self, img: reads.append(len(img)) or look(self, img))
    monkeypatch.setattr("builtins.print", lambda *args, **kwargs: waiting.set())
    path, _ = _cache_path(options(G, dataset), net, ALL.resolved(dataset))
    waiting = threading.Event()
    second = threading.Thread(target=lambda: real_stats(options(G, dataset), net, ALL))
    with _cache_lock(path):
        second.start()
        assert waiting.wait(timeout=30) and not reads
        stats = FeatureStats(keep_moments=True)
        stats.append(torch.zeros(1100, 48))
        _save(path, _cache_path(options(G, dataset), net, ALL.resolved(dataset))[1], stats)
    second.join(timeout=30)
    assert not reads and not second.is_alive()


@pytest.mark.parametrize("damage", ["truncate", "flip", "garbage", "other_key"])
def test_a_damaged_cache_is_computed_anew(damage, G, dataset, detector, capsys):
    net = load_feature_net(detector, "features")

    def features():
        return real_stats(options(G, dataset), net, ALL, keep_features=True).features()

    good = features()
    [path] = cache_dir("features").iterdir()
    data = path.read_bytes()
    if damage == "truncate":
        path.write_bytes(data[:len(data) // 2])
    elif damage == "flip":
        path.write_bytes(data[:len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1:])
    elif damage == "garbage":
        path.write_bytes(b"not a file of arrays")
    else:
        with open(path, "wb") as f:
            np.savez(f, key=np.asarray("{}"), num_items=np.asarray(1), features=np.zeros([1, 48], np.float32))
    assert torch.equal(features(), good)
    assert capsys.readouterr().err.count("computing them anew") == 1
    assert torch.equal(features(), good)
    assert capsys.readouterr().err == ""
    assert len(list(cache_dir("features").iterdir())) == 1


def test_an_interrupted_run_leaves_no_cache(G, dataset, detector, monkeypatch):
    net = load_feature_net(detector, "features")

    def savez(f, **arrays):
        f.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", savez)
    with pytest.raises(KeyboardInterrupt):
        real_stats(options(G, dataset), net, ALL)
    assert list(cache_dir("features").iterdir()) == []


def test_path_length_of_a_network(G, dataset, tmp_path, monkeypatch):
    detector = save_net(tmp_path / "perceptual.pt", PerceptualOnly())
    monkeypatch.setitem(METRICS, "ppl2_wend", dataclasses.replace(METRICS["ppl2_wend"], num_gen=100))
    results = [metric_main.calc_metric("ppl2_wend", G=G, dataset=dataset, detector=detector, batch_size=b).results
               for b in (32, 7)]
    assert results[0]["ppl2_wend@perceptual"] == pytest.approx(results[1]["ppl2_wend@perceptual"], rel=0.05)
    assert results[0]["ppl2_wend@perceptual"] > 1


def test_grayscale_is_repeated(detector):
    net = load_feature_net(detector, "features")
    gray = torch.from_numpy(random_images(5, channels=1))
    assert torch.equal(net(gray), net(gray.repeat(1, 3, 1, 1)))


def test_progress_is_told_if_wanted(G, dataset, detector, capsys):
    for progress in (None, ScoreBar(show=False)):
        metric_main.calc_metric("is1k", G=G, dataset=dataset, detector=detector, workers=0, progress=progress)
        assert capsys.readouterr().err == ""
    metric_main.calc_metric("is1k", G=G, dataset=dataset, detector=detector, workers=0, progress=ScoreBar())
    captured = capsys.readouterr()
    assert re.search(r"is1k generated \d+/1000 \|", captured.err) and captured.out == ""


class Clock:
    """Time passes when images are read, generated or looked at, and not by itself."""

    def __init__(self, patch):
        from metrics import features, progress, timing

        self.now = 1000.0
        for module, name in ((progress, "monotonic"), (timing, "perf_counter")):
            patch.setattr(module, "time", types.SimpleNamespace(**{name: lambda: self.now}))
        patch.setattr("tqdm.std.time", lambda: self.now)
        for owner, name, sec in (
            (ArrayImages, "read", 0.2), (FeatureNet, "__call__", 0.3), (features, "generate_uint8", 2.0),
            (timing, "generate_uint8", 2.0),
        ):
            patch.setattr(owner, name, self.slowed(getattr(owner, name), sec))

    def slowed(self, function, sec):
        def replacement(*args, **kwargs):
            result = function(*args, **kwargs)
            self.now += sec * (1 if function.__name__ == "read" else len(result))
            return result

        return replacement


@pytest.mark.parametrize("cached", [None, "fid1k_full", "pr1k3_full"])
def test_what_is_left_is_known_from_the_start(G, dataset, detector, capsys, monkeypatch, cached):
    """One bar for all metrics: from 5 % of the time on, it is right; so is the time that is announced.

    What FID alone left in the cache are moments: precision and recall look at the images again.
    """
    metrics, announced = ("fid1k_full", "is2k", "pr1k3_full"), []
    is_cached = cached == "pr1k3_full"
    if cached is not None:
        metric_main.calc_metric(cached, G=G, dataset=dataset, detector=detector, workers=0)
    Clock(monkeypatch)
    bar, shared = ScoreBar(begun=announced.append), Shared(metrics)
    for metric in metrics:
        metric_main.calc_metric(metric, G=G, dataset=dataset, detector=detector, workers=0, shared=shared, progress=bar)
    frames = re.findall(r"\r(\S+ \w+) (\d+)/(\d+) \|[^\r]*\| +(\d+)%, ([\d:]+) so far, about ([\d:]+) left",
                        capsys.readouterr().err)
    assert list(dict.fromkeys(frame[0] for frame in frames)) == (
        [] if is_cached else ["fid1k_full real"]) + ["fid1k_full generated", "is2k generated", "pr1k3_full distances"]
    assert frames[-1][1:3] == ("3", "3")    # blocks of distances
    elapsed, left = (np.array([sum(60**i * int(part) for i, part in enumerate(reversed(frame[column].split(":"))))
                               for frame in frames], float) for column in (4, 5))
    total = 3000 * 2.3 + (0 if is_cached else 1100 * 0.5)
    assert announced == [pytest.approx(total, rel=0.01)]
    assert len(frames) > 40 and elapsed[-1] == pytest.approx(total, rel=0.02)
    late = elapsed > 0.05 * elapsed[-1]
    np.testing.assert_allclose(left[late], elapsed[-1] - elapsed[late], rtol=0.03, atol=2)


def test_a_bar_counts_in_what_comes_later():
    announced = []
    bar = ScoreBar(show=False, begun=announced.append)
    bar.plan([Stage("fid1k real", 100, 0.1), Stage("fid1k generated", 1000, 0.5)], times_later=2)
    bar.plan([Stage("fid1k generated", 1000, 0.5)], times_later=1)
    assert announced == [10 + 3 * 500]


def test_mismatches_are_the_users_mistakes(G, dataset, detector):
    with pytest.raises(UserError, match=r"\[3, 8, 8\], the network makes \[3, 16, 16\]"):
        metric_main.check_match(G, ArrayDataset(random_images(4, resolution=8)))
    G.c_dim = 10
    with pytest.raises(UserError, match="labels of width 10, .* has no labels"):
        metric_main.calc_metric("fid1k", G=G, dataset=dataset, detector=detector)


def test_detectors_are_checked_early(tmp_path, detector, monkeypatch):
    metric_main.check_detector(["fid5k_full", "is5k", "ppl2_wend"], detector)
    with pytest.raises(UserError, match="unknown metric"):
        metric_main.check_detector(["nope"], detector)
    with pytest.raises(UserError, match=r"missing\.pt can't be used.*--detector=PATH.*feature_net\.py"):
        metric_main.check_detector(["fid5k_full"], str(tmp_path / "missing.pt"))
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(UserError, match="text.pt is no feature net"):
        metric_main.check_detector(["fid5k_full"], str(tmp_path / "text.pt"))
    perceptual = save_net(tmp_path / "perceptual.pt", PerceptualOnly())
    metric_main.check_detector(["ppl_zfull"], perceptual)
    with pytest.raises(UserError, match="fid5k_full: .* can't be called with return_features=True"):
        metric_main.check_detector(["ppl_zfull", "fid5k_full"], perceptual)
    unknown = save_torchscript(tmp_path / "unknown.pt", SmallNet(9), trust=False)
    with pytest.raises(UserError, match="a program .* --trust-net"):
        metric_main.check_detector(["fid5k_full"], unknown)
    metric_main.check_detector(["fid5k_full"], unknown, trust=True)
    metric_main.check_detector(["fid5k_full"], unknown)


def test_a_standard_net_that_is_not_there_is_named_with_its_place(monkeypatch):
    def download(url, file):
        raise UserError(f"can't download {url}: no network")

    monkeypatch.setattr("dnnlib.util._download", download)
    with pytest.raises(UserError) as e:
        metric_main.check_detector(["fid50k_full", "pr5k3", "is5k", "kid5k"])
    for message, start in zip(e.value.args, (f"fid50k_full, kid5k: the feature net {INCEPTION_URL} can't be used",
                                             f"pr5k3: the feature net {VGG16_URL} can't be used"), strict=True):
        assert message.startswith(start) and "--detector=PATH" in message and "\n" not in message
        assert str(cache_dir("downloads")) in message


def test_a_detector_replaced_on_disk_is_read_again(tmp_path):
    path = tmp_path / "net.pt"
    digests = []
    for seed in (0, 1):
        save_net(path, SmallNet(seed))
        digests.append(load_feature_net(str(path), "features").digest)
    assert digests[0] != digests[1]


def test_reports_append_json_lines(tmp_path, capsys):
    result = {"results": {"fid1k@net": 1.5}, "metric": "fid1k", "detector": {"name": "net", "sha256": "00"},
              "total_time": 61.0, "total_time_str": "1m 01s", "num_gpus": 1}
    for kimg in (0, 200):
        snapshot_pkl = str(tmp_path / f"network-snapshot-{kimg:06}.pkl")
        metric_main.report_metric(result, run_dir=str(tmp_path), snapshot_pkl=snapshot_pkl)
    lines = (tmp_path / "metric-fid1k.jsonl").read_text().splitlines()
    assert lines == capsys.readouterr().out.splitlines()
    parsed = [json.loads(line) for line in lines]
    assert [p["snapshot_pkl"] for p in parsed] == ["network-snapshot-000000.pkl", "network-snapshot-000200.pkl"]
    assert list(parsed[0]) == ["results", "metric", "detector", "total_time", "total_time_str", "num_gpus",
                               "snapshot_pkl", "timestamp"]
    metric_main.report_metric(result)
    assert json.loads(capsys.readouterr().out)["snapshot_pkl"] is None


def test_which_way_scores_are_better():
    higher = {re.sub(r"\d.*|_.*", "", name) for name in metric_main.list_valid_metrics()
              if metric_main.higher_is_better(name)}
    lower = {re.sub(r"\d.*|_.*", "", name) for name in metric_main.list_valid_metrics()
             if not metric_main.higher_is_better(name)}
    assert higher == {"pr", "dc", "is"} and lower == {"fid", "fidinf", "fdd", "kid", "swd", "ppl"}


def test_real_images_are_looked_at_once(G, dataset, detector, monkeypatch):
    kept, options = {}, dict(G=G, detector=detector, workers=0, cache=False)
    first = metric_main.calc_metric("fid1k_full", dataset=dataset, kept_real=kept, **options)
    monkeypatch.setattr(ArrayDataset, "__getitem__", lambda self, i: pytest.fail("looked at"))
    again = metric_main.calc_metric("fid1k_full", dataset=dataset, kept_real=kept, **options)
    assert again.results == first.results
    with pytest.raises(pytest.fail.Exception):  # other images have other statistics
        metric_main.calc_metric("fid1k", dataset=dataset.replace(xflip=not dataset.xflip), kept_real=kept, **options)


class HalfReadable(ArrayDataset):
    """Images that one process can't read, and that the other one reads slowly."""

    def images(self, indices):
        if distributed.rank() == 1:
            raise UserError("can't read img00000003.png")
        time.sleep(0.05)
        return super().images(indices)


def _give_up(net):
    """What is said, and how long it takes."""
    start = time.monotonic()
    try:
        real_stats(options(None, HalfReadable(random_images(400)), batch_size=1, cache=False), net, ALL)
    except UserError as e:
        return str(e), time.monotonic() - start


def _score_all(G, dataset, detector):
    metrics = ("is1k", "dc1k5", "fidinf1k")
    shared, results = Shared(metrics), {}
    for metric in metrics:
        results |= metric_main.calc_metric(metric, G=G, dataset=dataset, detector=detector, shared=shared, cache=False,
                                           workers=0).results
    return results


def _in_process(rank, num_gpus, port, folder, queue):
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(num_gpus), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
                      TORCHELASTIC_USE_AGENT_STORE="True")
    distributed.join(device="cpu", timeout_sec=60)
    G, dataset = random_generator(), ArrayDataset(random_images(201))
    net = load_feature_net(f"{folder}/small-net.pt", "features")
    keep = {"keep_features": True}
    opts = options(G, dataset, batch_size=16, cache=False)
    stats = [real_stats(opts, net, ALL, **keep), generated_stats(opts, net, num_items=75, **keep),
             generated_stats(opts, net, num_items=1, **keep)]
    results = _score_all(G, dataset, f"{folder}/small-net.pt")
    cached = [real_stats(options(G, dataset), net, ALL, **keep).num_items for _ in range(2)]
    queue.put((rank, [(s.features().numpy(), s.moments().cov.numpy()) for s in stats], results, cached,
               _give_up(net)))
    distributed.any_rank(False)
    distributed.leave()


def test_a_process_without_memory_for_the_network_tells_the_others(G, dataset, detector, monkeypatch):
    """They would wait for it, or mistake what it does next."""
    told = []
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    monkeypatch.setattr(distributed, "first_given", lambda value: told.append(value) or value)

    def no_room(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory\nhere and there")

    monkeypatch.setattr(torch.nn.Module, "to", no_room)
    with pytest.raises(torch.OutOfMemoryError):
        metric_main.calc_metric("is1k", G=G, dataset=dataset, detector=detector)
    assert told == ["CUDA out of memory"]


def test_two_processes_give_what_one_gives(tmp_path, detector):
    context = torch.multiprocessing.get_context("spawn")
    queue = context.Queue()
    store = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    workers = [context.Process(target=_in_process, args=(rank, 2, store.port, str(tmp_path), queue))
               for rank in range(2)]
    for worker in workers:
        worker.start()
    gathered = {rank: rest for rank, *rest in (queue.get(timeout=120) for _ in workers)}
    for worker in workers:
        worker.join(timeout=60)
        assert worker.exitcode == 0

    G, dataset = random_generator(), ArrayDataset(random_images(201))
    net = load_feature_net(detector, "features")
    opts, keep = options(G, dataset, cache=False), {"keep_features": True}
    alone = [real_stats(opts, net, ALL, **keep), generated_stats(opts, net, num_items=75, **keep),
             generated_stats(opts, net, num_items=1, **keep)]
    for rank in range(2):
        for (features, cov), expected in zip(gathered[rank][0], alone, strict=True):
            np.testing.assert_allclose(features, expected.features(), atol=0.002)
            np.testing.assert_allclose(cov, expected.moments().cov, atol=1e-3)
    single = _score_all(G, dataset, detector)
    assert gathered[0][1] == gathered[1][1] == pytest.approx(single, rel=1e-3)
    assert gathered[0][2] == [201, 201] and gathered[1][2][0] == 201
    for rank in range(2):   # 200 images would take 10 s
        said, took = gathered[rank][3]
        assert said == "can't read img00000003.png" and took < 6
