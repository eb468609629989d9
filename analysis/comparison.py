"""Results of a comparison: scores of its arms with their spread, paired differences with intervals, curves.

Results are kept in a small JSON file. All tables follow from it, so they can be made without the runs.
"""

import dataclasses
import json
import math
import os
import re
import statistics
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from tabulate import tabulate

from dnnlib.util import UserError, atomic_write
from training.runs.sweep import Cell

from .curves import Curve, read_curves
from .drawing import add_legend, plot_band
from .fairness import FAKE, REAL, Judgement

CONFIDENCE = 0.95
LAST_KIMG = 10          # D's scores are averaged over the last 10 kimg.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """The result of one run. An arm is a method or setting that is compared; a judge is a feature net."""

    arm: str
    seed: int
    kimg: float
    sec_per_kimg: float                     # Median over ticks.
    real_score: float                       # D's mean score of real images at the end of training ...
    fake_score: float                       # ... and of generated ones.
    scores: dict[str, dict[str, float]]     # Judge -> name of the score -> value.
    judgement: dict[str, float] | None      # A `Judgement` and its gap, by name; None = D saw all images.


class Difference(NamedTuple):
    """The mean of paired differences, with its t-interval."""

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def sign(self) -> int:
        """-1 or 1 if the interval excludes zero, else 0."""
        return -1 if self.high < 0 else 1 if self.low > 0 else 0


def read_cell(cell: Cell, judges: Sequence[str], judgement: Judgement | None) -> Result:
    """The result of a run that is trained, and scored by these judges."""
    assert cell.run_dir is not None
    curves = read_curves(cell.run_dir)
    last = max(curves[REAL].kimg)

    def at_end(name: str) -> float:
        curve = curves[name]
        return statistics.fmean(value for kimg, value in zip(*curve) if kimg > last - LAST_KIMG)

    return Result(
        arm=cell.arm, seed=cell.seed, kimg=last, sec_per_kimg=statistics.median(curves["Timing/sec_per_kimg"].values),
        real_score=at_end(REAL), fake_score=at_end(FAKE),
        scores={judge: json.loads(cell.scores_file(judge).read_text()) for judge in judges},
        judgement=None if judgement is None else judgement._asdict() | {"gap": judgement.gap})


def save_results(path: str | os.PathLike, results: Sequence[Result]) -> None:
    """Write a JSON list with a line for each run. Numbers have six significant digits."""
    lines = [json.dumps(_rounded(dataclasses.asdict(result))) for result in results]
    with atomic_write(path) as f:
        f.write(("[\n" + ",\n".join(lines) + "\n]\n").encode())


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def load_results(path: str | os.PathLike) -> list[Result]:
    """Read what `save_results` wrote.

    Raises:
        UserError: The file can't be read, or holds something else.
    """
    try:
        return [Result(**entry) for entry in json.loads(Path(path).read_text())]
    except (OSError, ValueError, TypeError, RecursionError) as e:
        raise UserError(f"{path} holds no results of a comparison: {e}") from e


# ----------------------------------------------------------------------------------------------------------------------
# Statistics.


Value = Callable[[Result], float | None]    # Takes a number from a result; None where it has none.


def values_of(results: Sequence[Result], arm: str, value: Value) -> dict[int, float]:
    """The finite values of an arm's runs, by seed."""
    found = {result.seed: value(result) for result in results if result.arm == arm}
    return {seed: number for seed, number in found.items() if number is not None and math.isfinite(number)}


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """The mean difference, value minus reference, of runs with the same seed.

    Source: Student (1908). The interval covers the mean with a probability of `CONFIDENCE` if the differences are
    normal and independent.

    Args:
        values, reference: Values by seed.

    Returns:
        None if fewer than two seeds have both values.
    """
    found = [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]
    if len(found) < 2:
        return None
    mean, error = statistics.fmean(found), statistics.stdev(found) / math.sqrt(len(found))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(found) - 1)) * error
    return Difference(mean, mean - half, mean + half, len(found))


def score(judge: str, name: str) -> Value:
    """A score by a judge, such as `kid10k`."""
    return lambda result: result.scores.get(judge, {}).get(name)


def judged(name: str) -> Value:
    """A field of the judgement, such as `gap`."""
    return lambda result: None if result.judgement is None else result.judgement.get(name)


def judges_of(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(judge for result in results for judge in result.scores))


def arms_of(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.arm for result in results))


# ----------------------------------------------------------------------------------------------------------------------
# Tables, in Markdown. Numbers are multiplied by `factor` and rounded to `digits` decimal places.


def score_table(results: Sequence[Result], name: str, *, factor: float = 1, digits: int = 2) -> str:
    """Mean ± standard deviation of a score over seeds, by arm and judge."""
    judges = judges_of(results)
    rows = [[arm, *_size(results, arm), *(_spread(values_of(results, arm, score(judge, name)), factor, digits)
                                          for judge in judges)] for arm in arms_of(results)]
    return tabulate(rows, ["arm", "seeds", "kimg", *judges], tablefmt="github", disable_numparse=True)


def difference_table(
    results: Sequence[Result], name: str, reference: str, *, factor: float = 1,
    lower: str = "nearer to the data", higher: str = "farther from the data",
) -> str:
    """Paired differences between the scores of each arm and the reference, and a verdict.

    Args:
        lower, higher: The verdict where the intervals of all judges are below zero, or all above.
    """
    judges = judges_of(results)
    rows = []
    for arm in arms_of(results):
        if arm == reference:
            continue
        found = [paired_difference(values_of(results, arm, score(judge, name)),
                                   values_of(results, reference, score(judge, name))) for judge in judges]
        pairs = max((difference.pairs for difference in found if difference is not None), default=0)
        signs = {0 if difference is None else difference.sign for difference in found}
        verdict = f"**{lower}**" if signs == {-1} else f"**{higher}**" if signs == {1} else "too small to tell"
        verdict = verdict if pairs else "fewer than two pairs"
        rows.append([arm, pairs, *(_interval(difference, factor) for difference in found), verdict])
    return tabulate(rows, ["arm", "pairs", *judges, f"against {reference}"], tablefmt="github", disable_numparse=True)


def fairness_table(results: Sequence[Result], reference: str) -> str:
    """D's scores at the end of training, and its judgement of images that it was not trained on."""
    columns: dict[str, Value] = {
        "score of real": lambda result: result.real_score,
        "score of fake": lambda result: result.fake_score,
        "real less fake": lambda result: result.real_score - result.fake_score,
        "unseen real taken for real": judged("held_out_accuracy"),
        "fresh fake taken for fake": judged("fake_accuracy"),
        "gap, training less unseen": judged("gap"),
    }
    rows = []
    for arm in arms_of(results):
        cells = []
        for value in columns.values():
            values = values_of(results, arm, value)
            text = _spread(values)
            difference = paired_difference(values, values_of(results, reference, value)) if arm != reference else None
            cells.append(text if difference is None else f"{text}; {_interval(difference)}")
        rows.append([arm, *cells])
    return tabulate(rows, ["arm", *columns], tablefmt="github", disable_numparse=True)


def cost_table(results: Sequence[Result], reference: str) -> str:
    """Seconds for 1,000 images and minutes for a run, as medians over runs, and the ratio of the former."""
    seconds = {arm: statistics.median(run.sec_per_kimg for run in results if run.arm == arm)
               for arm in arms_of(results)}
    minutes = {arm: statistics.median(run.sec_per_kimg * run.kimg / 60 for run in results if run.arm == arm)
               for arm in seconds}
    rows = [[arm, *_size(results, arm), f"{sec:.2f}", f"{minutes[arm]:.1f}",
             f"{sec / seconds[reference]:.2f}" if reference in seconds else "-"] for arm, sec in seconds.items()]
    headers = ["arm", "seeds", "kimg", "s / kimg", "minutes a run", f"s / kimg, relative to {reference}"]
    return tabulate(rows, headers, tablefmt="github", disable_numparse=True)


def _size(results: Sequence[Result], arm: str) -> tuple[int, str]:
    """The number of an arm's runs, and their mean length in kimg."""
    runs = [result for result in results if result.arm == arm]
    return len(runs), f"{statistics.fmean(run.kimg for run in runs):.0f}"


def _spread(values: Mapping[int, float], factor: float = 1, digits: int = 2) -> str:
    found = [factor * value for value in values.values()]
    if not found:
        return "-"
    text = f"{statistics.fmean(found):.{digits}f}"
    return f"{text} ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else text


def _interval(difference: Difference | None, factor: float = 1) -> str:
    if difference is None:
        return "-"
    mean, low, high = (f"{factor * number:+.2f}" for number in difference[:3])
    return f"{mean} [{low}, {high}]"


_TABLES: dict[str, Callable[[Sequence[Result], str], str]] = {  # Name -> function of results and the reference arm.
    "kid": lambda results, _: score_table(results, "kid10k", factor=1000),
    "kid-differences": lambda results, reference: difference_table(results, "kid10k", reference, factor=1000),
    "fid": lambda results, _: score_table(results, "fid10k"),
    "recall": lambda results, _: score_table(results, "pr10k3_recall", digits=3),
    "recall-differences": lambda results, reference: difference_table(
        results, "pr10k3_recall", reference, factor=100, lower="lower", higher="higher"),
    "coverage": lambda results, _: score_table(results, "dc10k5_coverage", digits=3),
    "fairness": fairness_table,
    "costs": cost_table,
}
_TITLES = {
    "kid": "Kernel distance (KID) times 1,000, 10,000 images: lower is better",
    "kid-differences": "Paired differences in KID times 1,000, with 95 % t-intervals",
    "fid": "Fréchet distance, 10,000 images: lower is better",
    "recall": "Recall, 10,000 images: higher is better",
    "recall-differences": "Paired differences in recall, in percentage points, with 95 % t-intervals",
    "coverage": "Coverage, 10,000 images: higher is better",
    "fairness": f"D's scores over the last {LAST_KIMG} kimg, and on images that it was not trained on; behind a "
                "semicolon, paired differences to the reference",
    "costs": "Costs of training on this machine, without scores",
}
_MARK = re.compile(r"(<!-- comparison: (\S+) of (\S+)(?: against (\S+))?(?: arms (\S+))? -->\n).*?(<!-- end -->)", re.S)


def fill_tables(path: str | os.PathLike) -> str:
    """The text of a Markdown file with its tables updated.

    A table stands between `<!-- comparison: NAME of FILE.json against ARM arms ARM,ARM -->` and `<!-- end -->`. NAME is
    one of the tables of `describe`: `kid`, `kid-differences`, `fid`, ... FILE is relative to the Markdown file.
    `against` and `arms` may be left out; the arm that others are compared with is always shown.

    Raises:
        UserError: There is no table of that name, or the results can't be read.
    """
    def fill(match: re.Match[str]) -> str:
        begin, name, source, reference, arms, end = match.groups()
        reference = reference or "stylegan2"
        if name not in _TABLES:
            raise UserError(f"{path} asks for the table {name!r}, expected one of {', '.join(_TABLES)}")
        results = load_results(Path(path).parent / source)
        if arms is not None:
            shown = dict.fromkeys([reference, *arms.split(",")])
            results = [result for arm in shown for result in results if result.arm == arm]
        return f"{begin}{_TABLES[name](results, reference)}\n{end}"

    return _MARK.sub(fill, Path(path).read_text())


def describe(results: Sequence[Result], reference: str) -> str:
    """All tables as Markdown, for a file beside `results.json`. Marks let `fill_tables` update them."""
    tables = [f"## {_TITLES[name]}\n\n<!-- comparison: {name} of results.json against {reference} -->\n"
              f"{table(results, reference)}\n<!-- end -->\n" for name, table in _TABLES.items()]
    return "\n".join(["# Comparison\n", *tables])


# ----------------------------------------------------------------------------------------------------------------------
# Figure.


def draw_curves(runs: Mapping[str, Sequence[Path]], name: str) -> Figure:
    """Draw a statistic over kimg and over minutes of training: for each arm, the mean over seeds and the range.

    Args:
        runs: Run directories by arm.
        name: Name of the statistic, such as `Metrics/kid2k@net`.
    """
    figure = Figure(figsize=(9.6, 3.8), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for number, (arm, paths) in enumerate(runs.items()):
        curves = [read_curves(path) for path in paths]
        found = [curve[name] for curve in curves if name in curve]
        if not found:
            continue
        speed = statistics.median(value for curve in curves for value in curve["Timing/sec_per_kimg"].values)
        for axis, scale in (axes[0], 1.0), (axes[1], speed / 60):
            scaled = [Curve([kimg * scale for kimg in curve.kimg], curve.values) for curve in found]
            plot_band(axis, scaled, number, label=f"{arm} ({len(found)})", marker="o")
    top = np.nanmax([line.get_ydata()[1:].max() for line in axes[0].lines if len(line.get_ydata()) > 1] or [1])
    for axis, label in zip(axes, ("kimg", "minutes of training, by the median speed of the arm")):
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.set_ylim(0, float(top) * 1.05)
    axes[0].set_ylabel(name.removeprefix("Metrics/"))
    add_legend(axes[-1])
    return figure
