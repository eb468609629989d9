"""Drawing: colours that most colour-blind people can tell apart, bands of curves, rows of images, and their files."""

import csv
import io
import os
from pathlib import Path
from typing import Any, NamedTuple, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dnnlib.util import atomic_write

from .curves import Curve, band

_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito, 2008.
SHOWN = 8                           # Images in a row.
_CELL, _LINE, _GAP, _LETTER = 1.05, 0.13, 0.05, 0.06     # Inches: an image, a line of text, space, a letter.


def colour(number: int) -> str:
    """The colour of the curve with this number. Colours repeat after seven."""
    return _COLOURS[number % len(_COLOURS)]


def plot_band(
    axis: Axes, curves: Sequence[Curve], number: int, *, label: str | None = None, style: str | None = None,
    marker: str = "",
) -> None:
    """Plot the mean of some curves as the curve `number`. Of several curves, the range is drawn as a band.

    Args:
        style: Of the line; None = solid for the first seven numbers, then, as colours repeat, dashed and dotted.
    """
    found = band(curves)
    style = style or ("-", "--", ":")[number // len(_COLOURS) % 3]
    axis.plot(found.kimg, found.mean, style + marker, color=colour(number), label=label, linewidth=1.6, markersize=3)
    if len(curves) > 1:
        axis.fill_between(found.kimg, found.low, found.high, color=colour(number), alpha=0.15, linewidth=0)


def add_legend(axis: Axes) -> None:
    """Add a legend: in the axes, or at their right if it is long and would hide curves."""
    if len(axis.get_legend_handles_labels()[1]) > 5:
        axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    else:
        axis.legend(fontsize=8)


class Row(NamedTuple):
    """Images side by side, with a label at their left and a caption below each."""

    label: str
    images: Sequence[np.ndarray]        # uint8 [H, W, C].
    captions: Sequence[str] = ()        # One for each image, or none.
    gap: bool = False                   # Leave space above the row.


def draw_rows(rows: Sequence[Row]) -> Figure:
    """Draw rows of images, which may differ in length."""
    lines = [max((caption.count("\n") + 1 for caption in row.captions), default=0) for row in rows]
    heights = [_CELL + n * _LINE + _GAP + row.gap * 2 * _LINE for row, n in zip(rows, lines)]
    labels = [row.label.replace("/", "/\n") for row in rows]
    left = 0.15 + _LETTER * max(len(line) for label in labels for line in label.splitlines())
    width = left + max(len(row.images) for row in rows) * (_CELL + _GAP)
    height = sum(heights) + _GAP
    figure = Figure(figsize=(width, height))
    top = height - _GAP
    for row, row_height, label in zip(rows, heights, labels):
        y = top - row.gap * 2 * _LINE - _CELL
        figure.text((left - 0.08) / width, (y + _CELL / 2) / height, label, ha="right", va="center", fontsize=7.5)
        for number, image in enumerate(row.images):
            x = left + number * (_CELL + _GAP)
            axis = figure.add_axes((x / width, y / height, _CELL / width, _CELL / height))
            axis.imshow(image[:, :, 0] if image.shape[2] == 1 else image, cmap="gray", vmin=0, vmax=255,
                        interpolation="nearest")
            axis.set_axis_off()
            if row.captions:
                figure.text((x + _CELL / 2) / width, (y - 0.02) / height, row.captions[number], ha="center", va="top",
                            fontsize=6.5)
        top -= row_height
    return figure


def save_figure(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure. The suffix of the path is the format: .png, .pdf or .svg."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=Path(path).suffix[1:], dpi=150)
    with atomic_write(path) as f:
        f.write(buffer.getvalue())


def save_table(path: str | os.PathLike, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Write a CSV file. None and NaN become empty cells."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[None if x != x else f"{x:.6g}" if isinstance(x, float) else x for x in row] for row in rows])
    with atomic_write(path) as f:
        f.write(buffer.getvalue().encode())
