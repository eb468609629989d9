"""Published results, to be printed beside measured ones, and the table that does it.

All are the authors' own figures, measured with the standard Inception and VGG16 nets on 50,000 generated images; those
measured otherwise are not comparable with them.
"""

import re
from typing import Iterable, Literal, NamedTuple

Score = Literal["fid", "kid", "precision", "recall", "is", "ppl"]

GLEAD_TABLE_1 = "GLeaD (arXiv 2212.03752), Table 1"
GLEAD_TABLE_2 = "GLeaD (arXiv 2212.03752), Table 2"
GLEAD_TABLE_3 = "GLeaD (arXiv 2212.03752), Table 3"
GGDR_RESULTS = "GGDR (ECCV 2022), results"
GGDR_ABLATION = "GGDR (ECCV 2022), ablations"


class Published(NamedTuple):
    dataset: str
    method: str
    scores: dict[Score, float]
    source: str


def _table_1(method: str, **columns: tuple[float, float, float]) -> list[Published]:
    names = {"ffhq": "FFHQ", "bedroom": "LSUN Bedroom", "church": "LSUN Church"}
    return [
        Published(names[dataset], method, {"fid": fid, "precision": precision, "recall": recall}, GLEAD_TABLE_1)
        for dataset, (fid, precision, recall) in columns.items()
    ]


def _fids(source: str, dataset: str, rows: dict[str, float]) -> list[Published]:
    return [Published(dataset, method, {"fid": fid}, source) for method, fid in rows.items()]


PUBLISHED: tuple[Published, ...] = (
    # Method, then FID, precision, recall.
    *_table_1("UT",          ffhq=(6.11, 0.73, 0.48), church=(4.07, 0.71, 0.45)),
    *_table_1("Polarity",    church=(3.92, 0.61, 0.39)),
    *_table_1("StyleGAN2",   ffhq=(3.79, 0.68, 0.44), bedroom=(4.30, 0.59, 0.25), church=(4.04, 0.58, 0.40)),
    *_table_1("GLeaD",       ffhq=(3.24, 0.69, 0.47), bedroom=(2.55, 0.62, 0.39), church=(2.82, 0.62, 0.43)),
    *_table_1("GGDR",        ffhq=(3.25, 0.66, 0.51), bedroom=(3.71, 0.62, 0.33), church=(2.81, 0.61, 0.46)),
    *_table_1("GLeaD+GGDR",  ffhq=(2.90, 0.69, 0.50), bedroom=(2.72, 0.62, 0.37), church=(2.15, 0.61, 0.48)),
    *_fids(GLEAD_TABLE_2, "LSUN Church", {
        "lambda 0, 0": 4.04, "lambda 100, 0": 3.31, "lambda 10, 0": 3.10, "lambda 1, 0": 3.27,
        "lambda 0, 10": 3.32, "lambda 10, 10": 3.15, "lambda 10, 3": 2.82, "lambda 10, 1": 2.85,
    }),
    *_fids(GLEAD_TABLE_3, "LSUN Church", {
        "no f": 4.04, "f at 1x1": 4.68, "f at 8x8": 3.27, "f at 16x16": 3.01, "f at 32x32": 2.82, "f at 64x64": 2.88,
    }),
    *_fids(GGDR_RESULTS, "FFHQ", {"GGDR": 3.14}),
    *_fids(GGDR_RESULTS, "LSUN Cat", {"GGDR": 5.28}),
    *_fids(GGDR_RESULTS, "LSUN Horse", {"GGDR": 2.50}),
    *_fids(GGDR_RESULTS, "LSUN Church", {"GGDR": 3.15}),
    *_fids(GGDR_RESULTS, "AFHQ Cat", {"ADA+GGDR": 2.76}),
    *_fids(GGDR_RESULTS, "AFHQ Dog", {"ADA+GGDR": 4.59}),
    *_fids(GGDR_RESULTS, "AFHQ Wild", {"ADA+GGDR": 2.06}),
    *_fids(GGDR_RESULTS, "Landscape", {"ADA+GGDR": 10.38}),
    Published("CIFAR-10", "ADA", {"fid": 2.92, "is": 9.83}, GGDR_RESULTS),
    Published("CIFAR-10", "ADA+GGDR", {"fid": 2.15, "is": 10.02}, GGDR_RESULTS),
    *_fids(GGDR_ABLATION, "LSUN Cat", {
        "no target": 7.98, "target at 8x8": 7.57, "target at 16x16": 6.56, "target at 32x32": 5.98, "target at 64x64": 5.28,
        "linear decoder": 5.28, "leaky ReLU decoder": 5.43, "1x1 decoder kernel": 5.28, "3x3 decoder kernel": 5.25,
    }),
)


def score_of(result_name: str) -> Score | None:
    """Which column a result such as `pr50k3_full_recall@net` belongs to; None for a standard deviation."""
    name = result_name.partition("@")[0]
    for ending in ("precision", "recall"):
        if name.endswith(f"_{ending}"):
            return ending
    if name.endswith("_std"):
        return None
    return re.match(r"[a-z]+", name)[0]


def published_for(dataset_name: str) -> tuple[Published, ...]:
    """Rows whose data set has a name that occurs in `dataset_name`, as in `church256x256` or `cifar10`; else all rows."""
    given = re.sub(r"[^a-z0-9]", "", dataset_name.lower())
    matching = tuple(row for row in PUBLISHED if _plain_name(row.dataset) in given)
    return matching or PUBLISHED


def format_table(results: dict[str, float], *, dataset_name: str) -> str:
    """Measured results, one to a line, and below them the published rows that have one of their scores."""
    columns = list(dict.fromkeys(score for name in results if (score := score_of(name)) is not None))
    lines = [f"Measured on {dataset_name}"]
    width = max(map(len, results), default=0)
    lines += [f"  {name:<{width}}  {value:.4f}" for name, value in results.items()]
    rows = [row for row in published_for(dataset_name) if any(score in row.scores for score in columns)]
    if rows:
        lines += ["", "Published"]
        header = ["data set", "method", *columns, "source"]
        body = [[row.dataset, row.method, *(f"{row.scores[s]:.2f}" if s in row.scores else "-" for s in columns), row.source]
                for row in rows]
        widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]
        lines += ["  " + "  ".join(f"{cell:<{w}}" for cell, w in zip(line, widths)).rstrip() for line in [header, *body]]
    if any("@" in name for name in results):
        lines += ["", "Names with @ were measured with another feature net: they are not comparable with published figures."]
    return "\n".join(lines)


def _plain_name(dataset: str) -> str:
    """`LSUN Church` as `church`: the way it appears in file names."""
    return re.sub(r"[^a-z0-9]", "", dataset.lower().removeprefix("lsun "))
