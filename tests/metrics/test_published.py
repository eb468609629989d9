"""Published figures: whose they are, and what may stand beside them."""

import re
import types

import pytest

from metrics import metric_main
from metrics.published import DATASETS, PUBLISHED, find_dataset, format_table, score_of


def data(name, resolution, *, xflip=False):
    return types.SimpleNamespace(name=name, resolution=resolution, xflip=xflip)


def test_all_rows_of_both_papers_are_there():
    """How many each table has, and some of its figures."""
    counts = {}
    for row in PUBLISHED:
        counts[row.source] = counts.get(row.source, 0) + 1
    glead, ggdr = "GLeaD (CVPR 2023), Table ", "GGDR (ECCV 2022), "
    assert counts == {
        glead + "1": 5 + 4 + 6, glead + "2": 8, glead + "3": 6,
        **{f"{ggdr}Table 1, {n} training images": 8 for n in ("2k", "10k", "140k")}, ggdr + "Table 2": 8,
        ggdr + "Table 3": 3 + 3 + 2 + 4, ggdr + "Table 4": 4 + 4 + 4 + 3, ggdr + "ablation of the target size": 5,
        ggdr + "ablation of the decoder": 4, ggdr + "costs": 2}
    found = {(row.source, row.dataset, row.method): row.scores for row in PUBLISHED}
    assert len(found) == len(PUBLISHED)
    assert found[glead + "1", "LSUN Bedroom", "GLeaD"] == {"fid": 2.55, "precision": 0.62, "recall": 0.39}
    assert found[ggdr + "Table 1, 10k training images", "FFHQ", "ADA+GGDR"] == {"fid": 6.11, "fid_std": 0.15}
    assert found[ggdr + "Table 2", "CIFAR-10", "FSMR"] == {"fid": 2.9, "is": 9.68}
    assert found[ggdr + "Table 4", "Landscape", "ADA+GGDR"] == {"fid": 10.38, "precision": 0.69, "recall": 0.29}
    for entry in DATASETS.values():
        metric_main.check_metrics(entry.metrics)
    assert {row.dataset for row in PUBLISHED if row.dataset} == set(DATASETS)


@pytest.mark.parametrize("name, resolution, dataset", [
    ("church256", 256, "LSUN Church"), ("lsun-church-256x256", 256, "LSUN Church"), ("bedroom256", 256, "LSUN Bedroom"),
    ("church_outdoor_train_lmdb", 256, "LSUN Church"), ("FFHQ", 256, "FFHQ"), ("ffhq256", 256, "FFHQ"),
    ("cifar10-train-32x32", 32, "CIFAR-10"), ("cifar10", 32, "CIFAR-10"), ("afhqcat512", 512, "AFHQ Cat"),
    ("afhqcat256", 256, None), ("ffhq", 1024, None), ("ffhq256", 128, None), ("cat256", 256, None),
    ("churchill256", 256, None), ("my-church", 256, None), ("afhqv2cat512", 512, None), ("cifar100", 32, None),
    ("my-photos", 256, None),
])
def test_data_sets_are_known_by_whole_names_and_resolution(name, resolution, dataset):
    assert find_dataset(name, resolution) == dataset


def test_a_table_has_the_rows_of_its_data_set_alone():
    assert score_of("pr50k3_full_recall@net") == "recall" and score_of("fid5k_full") == "fid"
    assert score_of("is50k_std") is None and score_of("is50k_mean") == "is"
    table = format_table({"fid50k_full": 3.21, "pr50k3_full_recall": 0.4}, dataset=data("church256", 256))
    assert re.search(r"^  GLeaD +2\.82 +0\.43 +GLeaD \(CVPR 2023\), Table 1$", table, flags=re.M)
    assert re.search(r"^  lambda 10, 3 +2\.82 +- +GLeaD \(CVPR 2023\), Table 2$", table, flags=re.M)
    assert "Published for LSUN Church at 256x256, by fid50k_full, pr50k3_full" in table and "3.97" in table
    assert "3.24" not in table and "5.28" not in table, "FFHQ's, LSUN Cat's"
    table = format_table({"fid50k_full": 3, "is50k_mean": 9}, dataset=data("cifar10", 32))
    assert re.search(r"^  FSMR +2\.90 +9\.68 +GGDR", table, re.M) and "10.02 +-0.06" in table
    unknown = format_table({"fid50k_full": 3}, dataset=data("ffhq", 1024))
    assert "no results for a data set of this name and resolution, only for FFHQ (256x256)" in unknown
    assert "Table" not in unknown and "published" not in unknown
    assert "Published" not in format_table({"kid50k_full": 3}, dataset=data("church256", 256))


@pytest.mark.parametrize("result, name, remark", [
    ("fid50k_full", "church256", "measured as published"),
    ("pr50k3_precision", "bedroom256", "NOT COMPARABLE with published figures: mirrored real images"),
    ("fid5k_full", "church256", "NOT COMPARABLE with published figures: fid5k_full, not fid50k_full"),
    ("fid50k_full@net", "church256", "NOT COMPARABLE with published figures: feature net net"),
    ("fid50k", "ffhq256", "NOT COMPARABLE with published figures: fid50k, not fid50k_full; mirrored real images"),
    ("pr5k3_full_recall@net", "church256",
     "NOT COMPARABLE with published figures: pr5k3_full, not pr50k3_full; feature net net"),
    ("kid50k_full", "church256", None),
])
def test_another_protocol_is_marked_in_its_line(result, name, remark):
    line = format_table({result: 1.0}, dataset=data(name, 256, xflip=True)).splitlines()[1]
    assert line == f"  {result}  1.0000" + (f"  {remark}" if remark else "")
