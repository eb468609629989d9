"""Published results, to be printed beside measured ones, and the table that does it.

`published.json` holds the authors' own figures: all rows of the tables of GLeaD (Bai et al., CVPR 2023, arXiv
2212.03752) and GGDR (Lee et al., ECCV 2022). For each data set it has the names in file names, the resolution, and the
metrics that were used, with the standard Inception and VGG16 nets. Scores that were measured otherwise are not
comparable with them.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Iterable, Literal, Mapping, NamedTuple, Sequence, cast

Score = Literal["fid", "fidinf", "fdd", "kid", "swd", "precision", "recall", "density", "coverage", "is", "ppl"]
_SHOWN: tuple[Score, ...] = ("fid", "is", "precision", "recall")    # In tables, in this order.


class PublishedDataset(NamedTuple):
    names: list[str]        # As in file names, lower case, letters and digits only, without the resolution.
    resolution: int
    metrics: list[str]      # Their names state the protocol.


class Published(NamedTuple):
    dataset: str | None             # None: figures that belong to no data set.
    method: str
    scores: dict[str, float]        # By `Score`; also "fid_std" over several trainings, and costs.
    source: str


@dataclasses.dataclass(frozen=True, eq=False)
class PublishedTable:
    """The part of a table that is about one data set."""

    source: str
    dataset: str | None
    columns: list[str]                      # Keys as in `Published.scores`.
    rows: dict[str, list[float | None]]     # By method, a value for each column.

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
    """Which column a result such as `pr50k3_full_recall@net` belongs to; None for a standard deviation or error."""
    name = result_name.partition("@")[0]
    for ending in ("precision", "recall", "density", "coverage"):
        if name.endswith(f"_{ending}"):
            return ending
    if name.endswith(("_std", "_se")):
        return None
    return cast(Score, re.match(r"[a-z]*", name)[0]) or None


def metric_of(result_name: str) -> str:
    """The metric that a result such as `pr50k3_full_recall@net` belongs to: `pr50k3_full`."""
    return re.sub(r"_(precision|recall|density|coverage|mean|std|se)$", "", result_name.partition("@")[0])


def find_dataset(name: str, resolution: int) -> str | None:
    """The published data set that a file name such as `lsun-church-256x256` or `cifar10-train` stands for, if any.

    The whole name counts: `afhqcat512` is not LSUN Cat, and `ffhq` at 1024x1024 not the FFHQ of the tables.
    """
    plain = re.sub(r"[^a-z0-9]", "", re.sub(rf"{resolution}(x{resolution})?$", "", name.lower()))
    plain = re.sub(r"(train)?(lmdb)?$", "", plain)
    return next((dataset for dataset, entry in DATASETS.items()
                 if plain in entry.names and resolution == entry.resolution), None)


class Comparison(NamedTuple):
    """Published figures of the data set that results were measured on."""

    known: str | None               # Name of the data set in the tables; None = they have none of this name and size.
    remarks: dict[str, str]         # By result: whether it was measured as the published ones.
    columns: list[Score]
    rows: list[Published]           # Those with a score of `columns`.


def compare(results: Iterable[str], *, dataset: Any) -> Comparison:
    """The published rows that belong beside results.

    Args:
        results: Their names.
        dataset: The real images, for `name`, `resolution`, and `xflip`: whether mirrored copies were added, in metrics
                 that are not `*_full`.
    """
    known = find_dataset(dataset.name, dataset.resolution)
    remarks = {name: _remark(name, known, mirrored=dataset.xflip) for name in results}
    scores = set(map(score_of, remarks))
    columns: list[Score] = [score for score in _SHOWN if score in scores]
    rows = [row for row in PUBLISHED if row.dataset == known and any(score in row.scores for score in columns)]
    return Comparison(known, remarks, columns, rows if known else [])


def format_table(results: dict[str, float], *, dataset: Any, std: Mapping[str, float] | None = None) -> str:
    """Measured results, one to a line, and below them the published rows of the same data set.

    A result that was not measured as the published ones says so in its line.

    Args:
        results: By name.
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
    """How a result was measured otherwise than the published ones of a data set."""
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
    """Such as `2.82` or `10.02 +-0.06`; `-` where the row has no such score."""
    if score not in row.scores:
        return "-"
    std = f" +-{row.scores[f'{score}_std']:.2f}" if f"{score}_std" in row.scores else ""
    return f"{row.scores[score]:.2f}{std}"


def _align(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths)).rstrip() for line in cells]
