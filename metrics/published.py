"""Published results, and the table that shows them beside measured ones.

`published.json` holds the authors' own figures: all rows of the tables of GLeaD (Bai et al., CVPR 2023, arXiv
2212.03752) and GGDR (Lee et al., ECCV 2022). For each data set, it has the names that files may have, the resolution,
and the metrics that the authors used, with the standard Inception and VGG16 nets. Scores by another protocol can't be
compared with these figures.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Iterable, Literal, Mapping, NamedTuple, Sequence, cast

Score = Literal["fid", "fidinf", "fdd", "kid", "swd", "precision", "recall", "density", "coverage", "is", "ppl"]
_SHOWN: tuple[Score, ...] = ("fid", "is", "precision", "recall")    # Columns of tables, in this order.


class PublishedDataset(NamedTuple):
    names: list[str]        # Possible file names without resolution: only lower-case letters and digits.
    resolution: int
    metrics: list[str]      # Names of metrics, which state the protocol.


class Published(NamedTuple):
    dataset: str | None             # None = the figures belong to no data set.
    method: str
    scores: dict[str, float]        # By `Score`. Also "fid_std", over several training runs, and costs.
    source: str


@dataclasses.dataclass(frozen=True, eq=False)
class PublishedTable:
    """The part of a published table about one data set."""

    source: str
    dataset: str | None
    columns: list[str]                      # Keys of `Published.scores`.
    rows: dict[str, list[float | None]]     # Method -> a value for each column.

    def score(self, method: str, column: str) -> float | None:
        return dict(zip(self.columns, self.rows[method])).get(column)


_CONTENT = json.loads(Path(__file__).with_suffix(".json").read_text())
DATASETS = {name: PublishedDataset(**entry) for name, entry in _CONTENT["datasets"].items()}
TABLES = tuple(PublishedTable(**table) for table in _CONTENT["tables"])
PUBLISHED = tuple(
    Published(table.dataset, method, {k: v for k, v in zip(table.columns, row) if v is not None}, table.source)
    for table in TABLES for method, row in table.rows.items()
)


def score_of(result_name: str) -> Score | None:
    """The column of a result, such as "recall" for `pr50k3_full_recall@net`; None for a standard deviation or error."""
    name = result_name.partition("@")[0]
    for ending in ("precision", "recall", "density", "coverage"):
        if name.endswith(f"_{ending}"):
            return ending
    if name.endswith(("_std", "_se")):
        return None
    return cast(Score, re.match(r"[a-z]*", name)[0]) or None


def metric_of(result_name: str) -> str:
    """The metric of a result, such as `pr50k3_full` for `pr50k3_full_recall@net`."""
    return re.sub(r"_(precision|recall|density|coverage|mean|std|se)$", "", result_name.partition("@")[0])


def find_dataset(name: str, resolution: int) -> str | None:
    """The published data set of a file name such as `lsun-church-256x256` or `cifar10-train`; None if there is none.

    The whole name has to match: `afhqcat512` is not LSUN Cat. The resolution has to match, too: `ffhq` at 1024x1024 is
    not the FFHQ of the tables.
    """
    plain = re.sub(r"[^a-z0-9]", "", re.sub(rf"{resolution}(x{resolution})?$", "", name.lower()))
    plain = re.sub(r"(train)?(lmdb)?$", "", plain)
    return next((dataset for dataset, entry in DATASETS.items()
                 if plain in entry.names and resolution == entry.resolution), None)


class Comparison(NamedTuple):
    """Published figures for the data set on which results were measured."""

    known: str | None               # Name of the data set in the tables; None if they lack it.
    remarks: dict[str, str]         # By result: whether it was measured like the published ones.
    columns: list[Score]
    rows: list[Published]           # Rows with at least one of the `columns`.


def compare(results: Iterable[str], *, dataset: Any) -> Comparison:
    """The published rows to show beside results.

    Args:
        results: Names of results.
        dataset: The real images, with `name`, `resolution` and `xflip`. The latter says whether metrics that are not
                 `*_full` add mirrored copies.
    """
    known = find_dataset(dataset.name, dataset.resolution)
    remarks = {name: _remark(name, known, mirrored=dataset.xflip) for name in results}
    scores = set(map(score_of, remarks))
    columns: list[Score] = [score for score in _SHOWN if score in scores]
    rows = [row for row in PUBLISHED if row.dataset == known and any(score in row.scores for score in columns)]
    return Comparison(known, remarks, columns, rows if known else [])


def format_table(results: dict[str, float], *, dataset: Any, std: Mapping[str, float] | None = None) -> str:
    """Measured results, one per line, and below them the published rows of the same data set.

    The line of a result says whether it was measured like the published ones.

    Args:
        results: Values by name.
        dataset: As in `compare`.
        std:     Standard deviations over seeds, by name.
    """
    known, remarks, columns, rows = compare(results, dataset=dataset)
    lines = [f"Measured on {dataset.name} at {dataset.resolution}x{dataset.resolution}"]
    spread = {name: f" +-{value:.4f}" for name, value in (std or {}).items()}
    lines += _align([[name, f"{value:.4f}{spread.get(name, '')}", remarks[name]] for name, value in results.items()])
    if known is None:
        others = ", ".join(f"{name} ({entry.resolution}x{entry.resolution})" for name, entry in DATASETS.items())
        return "\n".join([*lines, "", "The papers have no results for a data set of this name and resolution, only for "
                          f"{others}."])
    if rows:
        lines += ["", f"Published for {known} at {DATASETS[known].resolution}x{DATASETS[known].resolution}, by "
                  f"{', '.join(DATASETS[known].metrics)}"]
        lines += _align([["method", *columns, "source"]] + [
            [row.method, *(score_text(row, score) for score in columns), row.source] for row in rows])
    return "\n".join(lines)


def _remark(result: str, dataset: str | None, *, mirrored: bool) -> str:
    """Whether a result was measured like the published ones of a data set, as text; empty if none is published."""
    metric, net = metric_of(result), result.partition("@")[2]
    kind = re.match("[a-z]*", metric)[0]
    published = next((m for m in DATASETS[dataset].metrics if kind and m.startswith(kind)), None) if dataset else None
    if published is None:
        return ""
    problems = [f"{metric}, not {published}"] if metric != published else []
    problems += ["mirrored real images"] if mirrored and kind != "is" and not metric.endswith("_full") else []
    problems += [f"feature net {net}"] if net else []
    return f"NOT COMPARABLE with published figures: {'; '.join(problems)}" if problems else "measured as published"


def score_text(row: Published, score: str) -> str:
    """A score as text, such as `2.82` or `10.02 +-0.06`; `-` if the row has no such score."""
    if score not in row.scores:
        return "-"
    std = f" +-{row.scores[f'{score}_std']:.2f}" if f"{score}_std" in row.scores else ""
    return f"{row.scores[score]:.2f}{std}"


def _align(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths)).rstrip() for line in cells]
