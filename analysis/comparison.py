"""What a sweep found: scores of its arms with their spread, paired differences with intervals, curves.

Results are kept as a small JSON file, from which all tables follow, so that they can be made without the runs.
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

from .curves import Band, Curve, band, read_curves
from .drawing import COLOURS
from .fairness import FAKE, REAL, Judgement

CONFIDENCE = 0.95
LAST_KIMG = 10          # D's scores are averaged over as many thousands of images at the end.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """Of a run that is trained and scored."""

    arm: str
    seed: int
    kimg: float
    sec_per_kimg: float                     # Median over ticks.
    real_score: float                       # D's mean score of real images at the end of training.
    fake_score: float
    scores: dict[str, dict[str, float]]     # By judge, then by name of the result.
    judgement: dict[str, float] | None      # Fields of `Judgement`: D on images that it was not trained on.


class Difference(NamedTuple):
    """Mean of paired differences, with its t-interval."""

    mean: float
    low: float
    high: float
    pairs: int

    @property
    def sign(self) -> int:
        """-1 or 1 if the interval leaves out zero, else 0."""
        return -1 if self.high < 0 else 1 if self.low > 0 else 0


def read_cell(cell: Cell, judges: Sequence[str], judgement: Judgement | None) -> Result:
    """What is known of a run that is trained and scored by these judges."""
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
    """A JSON list with a line for each run."""
    lines = [json.dumps(_rounded(dataclasses.asdict(result))) for result in results]
    with atomic_write(path) as f:
        f.write(("[\n" + ",\n".join(lines) + "\n]\n").encode())


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def load_results(path: str | os.PathLike) -> list[Result]:
    """What `save_results` wrote.

    Raises:
        UserError: It can't be read, or is something else.
    """
    try:
        return [Result(**entry) for entry in json.loads(Path(path).read_text())]
    except (OSError, ValueError, TypeError, RecursionError) as e:
        raise UserError(f"{path} holds no results of a comparison: {e}") from e


# ----------------------------------------------------------------------------------------------------------------------
# Statistics.


Value = Callable[[Result], float | None]


def values_of(results: Sequence[Result], arm: str, value: Value) -> dict[int, float]:
    """By seed; runs without such a value are left out."""
    found = {result.seed: value(result) for result in results if result.arm == arm}
    return {seed: number for seed, number in found.items() if number is not None and math.isfinite(number)}


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """Of values less those of the reference with the same seed; None if fewer than two seeds have both.

    Source: Student (1908). The interval covers the mean with a probability of `CONFIDENCE` if the differences are
    normal and independent.
    """
    found = [values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())]
    if len(found) < 2:
        return None
    mean, error = statistics.fmean(found), statistics.stdev(found) / math.sqrt(len(found))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(found) - 1)) * error
    return Difference(mean, mean - half, mean + half, len(found))


def score(judge: str, name: str) -> Value:
    """A score by its name, such as `kid10k`, whatever follows: `kid10k`, but not `kid10k_se`."""
    return lambda result: result.scores.get(judge, {}).get(name)


def judged(name: str) -> Value:
    return lambda result: None if result.judgement is None else result.judgement.get(name)


def judges_of(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(judge for result in results for judge in result.scores))


def arms_of(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(result.arm for result in results))


# ----------------------------------------------------------------------------------------------------------------------
# Tables, in Markdown.


def score_table(results: Sequence[Result], name: str, *, factor: float = 1, digits: int = 2) -> str:
    """Mean ± standard deviation over seeds of a score, by arm and judge."""
    judges = judges_of(results)
    rows = [[arm, *_size(results, arm), *(_spread(values_of(results, arm, score(judge, name)), factor, digits)
                                          for judge in judges)] for arm in arms_of(results)]
    return tabulate(rows, ["arm", "seeds", "kimg", *judges], tablefmt="github", disable_numparse=True)


def difference_table(
    results: Sequence[Result], name: str, reference: str, *, factor: float = 1, digits: int = 2
) -> str:
    """Paired differences of a score to those of the reference, and what all judges agree on. Lower is better."""
    judges = judges_of(results)
    rows = []
    for arm in arms_of(results):
        if arm == reference:
            continue
        found = [paired_difference(values_of(results, arm, score(judge, name)),
                                   values_of(results, reference, score(judge, name))) for judge in judges]
        pairs = max((difference.pairs for difference in found if difference is not None), default=0)
        rows.append([arm, pairs, *(_interval(difference, factor, digits) for difference in found), _verdict(found)])
    return tabulate(rows, ["arm", "pairs", *judges, f"against {reference}"], tablefmt="github", disable_numparse=True)


def _verdict(found: Sequence[Difference | None]) -> str:
    signs = {0 if difference is None else difference.sign for difference in found}
    return {frozenset({-1}): "**nearer to the data**", frozenset({1}): "**farther from the data**"}.get(
        frozenset(signs), "too small to tell")


def fairness_table(results: Sequence[Result], reference: str) -> str:
    """D's scores at the end of training, and what it makes of images that it was not trained on."""
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
            text = _spread(values, 1, 2)
            difference = paired_difference(values, values_of(results, reference, value)) if arm != reference else None
            cells.append(text if difference is None else f"{text}; {_interval(difference, 1, 2)}")
        rows.append([arm, *cells])
    return tabulate(rows, ["arm", *columns], tablefmt="github", disable_numparse=True)


def _size(results: Sequence[Result], arm: str) -> tuple[int, str]:
    runs = [result for result in results if result.arm == arm]
    return len(runs), f"{statistics.fmean(run.kimg for run in runs):.0f}"


def _spread(values: Mapping[int, float], factor: float, digits: int) -> str:
    found = [factor * value for value in values.values()]
    if not found:
        return "-"
    text = f"{statistics.fmean(found):.{digits}f}"
    return f"{text} ± {statistics.stdev(found):.{digits}f}" if len(found) > 1 else text


def _interval(difference: Difference | None, factor: float, digits: int) -> str:
    if difference is None:
        return "-"
    mean, low, high = (f"{factor * number:+.{digits}f}" for number in difference[:3])
    return f"{mean} [{low}, {high}]"


_TABLES: dict[str, Callable[[Sequence[Result], str], str]] = {  # By name in a file: of results and a reference.
    "kid": lambda results, _: score_table(results, "kid10k", factor=1000),
    "kid-differences": lambda results, reference: difference_table(results, "kid10k", reference, factor=1000),
    "fid": lambda results, _: score_table(results, "fid10k"),
    "recall": lambda results, _: score_table(results, "pr10k3_recall", digits=3),
    "coverage": lambda results, _: score_table(results, "dc10k5_coverage", digits=3),
    "fairness": fairness_table,
}
_TITLES = {
    "kid": "Kernel distance (KID) times 1,000, 10,000 images: lower is better",
    "kid-differences": "Paired differences in KID times 1,000, with 95 % t-intervals",
    "fid": "Fréchet distance, 10,000 images: lower is better",
    "recall": "Recall, 10,000 images: higher is better",
    "coverage": "Coverage, 10,000 images: higher is better",
    "fairness": f"D's scores over the last {LAST_KIMG} kimg, and on images that it was not trained on; behind a "
                "semicolon, paired differences to the reference",
}
_MARK = re.compile(r"(<!-- comparison: (\S+) of (\S+)(?: against (\S+))?(?: arms (\S+))? -->\n).*?(<!-- end -->)", re.S)


def fill_tables(path: str | os.PathLike) -> str:
    """The text of a Markdown file with its tables made anew.

    A table stands between `<!-- comparison: NAME of FILE.json against ARM arms ARM,ARM -->` and `<!-- end -->`. NAME is
    one of `kid`, `kid-differences`, `fid`, `recall`, `coverage` and `fairness`; FILE is relative to the Markdown file;
    `against` and `arms` may be left out.

    Raises:
        UserError: A mark names no table, or results that are not there.
    """
    def fill(match: re.Match[str]) -> str:
        begin, name, source, reference, arms, end = match.groups()
        if name not in _TABLES:
            raise UserError(f"{path} asks for the table {name!r}, expected one of {', '.join(_TABLES)}")
        results = load_results(Path(path).parent / source)
        if arms is not None:
            results = [result for arm in arms.split(",") for result in results if result.arm == arm]
        return f"{begin}{_TABLES[name](results, reference or 'stylegan2')}\n{end}"

    return _MARK.sub(fill, Path(path).read_text())


def describe(results: Sequence[Result], reference: str) -> str:
    """All tables, as Markdown; the marks let `fill_tables` make them anew beside `results.json`."""
    tables = [f"## {_TITLES[name]}\n\n<!-- comparison: {name} of results.json against {reference} -->\n"
              f"{table(results, reference)}\n<!-- end -->\n" for name, table in _TABLES.items()]
    return "\n".join(["# Comparison\n", *tables])


# ----------------------------------------------------------------------------------------------------------------------
# Figure.


def draw_curves(runs: Mapping[str, Sequence[Path]], name: str) -> Figure:
    """A statistic over images and over seconds of training, by arm: mean over seeds, and the range as a band.

    Args:
        runs: Run directories by arm.
        name: Of the statistic, such as `Metrics/kid2k@net`.
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
            drawn: Band = band([Curve([kimg * scale for kimg in curve.kimg], curve.values) for curve in found])
            colour = COLOURS[number % len(COLOURS)]
            axis.plot(drawn.kimg, drawn.mean, "-o", color=colour, markersize=3, label=f"{arm} ({len(found)})")
            if len(found) > 1:
                axis.fill_between(drawn.kimg, drawn.low, drawn.high, color=colour, alpha=0.15, linewidth=0)
    top = np.nanmax([line.get_ydata()[1:].max() for line in axes[0].lines if len(line.get_ydata()) > 1] or [1])
    for axis, label in zip(axes, ("kimg", "minutes of training, by the median speed of the arm")):
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
        axis.set_ylim(0, float(top) * 1.05)
    axes[0].set_ylabel(name.removeprefix("Metrics/"))
    axes[0].legend(fontsize=8)
    return figure
