"""Comparisons: paired intervals against SciPy's, verdicts, and tables that a Markdown file asks for."""

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from analysis import comparison
from analysis.comparison import Difference, Result
from analysis.curves import Curve
from analysis.drawing import add_legend, plot_band
from dnnlib.util import UserError
from paths import ROOT


def make_result(arm, seed, kid, **changes):
    return dataclasses.replace(Result(
        arm=arm, seed=seed, kimg=60, sec_per_kimg=5, real_score=1, fake_score=-1, judgement=None,
        scores={judge: {"kid10k": value, "fid10k": 9} for judge, value in kid.items()}), **changes)


def test_intervals_are_those_of_a_paired_t_test():
    rng = np.random.RandomState(0)
    a, b = rng.randn(2, 6)
    found = comparison.paired_difference(dict(enumerate(a)), dict(enumerate(b)) | {6: 100.0})
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    np.testing.assert_allclose(found[:3], [np.mean(a - b), expected.low, expected.high], rtol=1e-12)
    assert found.pairs == 6 and comparison.paired_difference({0: 1.0}, {0: 2.0}) is None


def test_arms_differ_only_where_all_judges_agree():
    assert [Difference(0, low, high, 3).sign for low, high in ((-2, -1), (-1, 1), (1, 2))] == [-1, 0, 1]
    drop = (1.0, 1.1, 0.9)
    results = [make_result("base", seed, {"x": 5.0, "y": 5.0}) for seed in range(3)]
    results += [make_result("both", seed, {"x": 5 - drop[seed], "y": 5 - drop[seed]}) for seed in range(3)]
    results += [make_result("one", seed, {"x": 5 - drop[seed], "y": 5 + drop[seed]}) for seed in range(3)]
    lines = comparison.difference_table(results, "kid10k", "base").splitlines()
    assert "-1.00 [-1.25, -0.75]" in lines[2] and "**nearer to the data**" in lines[2]
    assert "+1.00 [+0.75, +1.25]" in lines[3] and "too small to tell" in lines[3]
    assert "fewer than two pairs" in comparison.difference_table(results[:4], "kid10k", "base")     # "both" has one run


def test_curves_of_many_arms_can_be_told_apart():
    figure = Figure(layout="constrained")
    axis = figure.subplots()
    for number in range(12):
        plot_band(axis, [Curve([0, 1], [0, number])], number, label=str(number))
    assert len({(line.get_color(), line.get_linestyle()) for line in axis.lines}) == 12
    add_legend(axis)
    figure.canvas.draw()
    assert axis.get_legend().get_window_extent().x0 >= axis.get_window_extent().x1, "it hides no curve"


def test_tables_of_a_file_are_made_anew(tmp_path):
    judgement = dict(held_out_accuracy=0.5, fake_accuracy=0.75, gap=0.125)
    results = [make_result(arm, seed, {"x": seed + 1.0}, judgement=judgement) for arm in "ab" for seed in range(2)]
    comparison.save_results(tmp_path / "found.json", results)
    assert comparison.load_results(tmp_path / "found.json") == results
    text = "before\n<!-- comparison: kid of found.json arms b -->\nold\n<!-- end -->\nafter\n"
    page = tmp_path / "page.md"
    page.write_text(text + "<!-- comparison: fairness of found.json against a -->\n<!-- end -->\n"
                    "<!-- comparison: kid-differences of found.json against a arms b -->\n<!-- end -->\n")
    new = comparison.fill_tables(page)
    assert "before\n" in new and "\nafter\n" in new and "old" not in new
    assert "1500.00 ± 707.11" in new and "| a " not in new.partition("after")[0]
    assert "0.12 ± 0.00; +0.00 [+0.00, +0.00]" in new
    assert "| +0.00 [+0.00, +0.00] |" in new.partition("kid-differences")[2]    # the reference need not be named
    page.write_text(new)
    assert comparison.fill_tables(page) == new
    for mark, words in ("kidd of found.json", "'kidd'"), ("kid of other.json", "other.json holds no results"):
        page.write_text(f"<!-- comparison: {mark} -->\n<!-- end -->")
        with pytest.raises(UserError, match=words):
            comparison.fill_tables(page)


def test_tables_in_the_repository_are_those_of_its_results():
    for name in ("RESULTS.md", "README.md"):
        path = ROOT / name
        assert comparison.fill_tables(path) == path.read_text(), f"run: python compare.py --tables={name}"
