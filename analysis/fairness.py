"""How fair the game between G and D is, by D's scores over training (GLeaD, arXiv 2212.03752, Fig. 4)."""

from pathlib import Path
from typing import Any, NamedTuple, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dnnlib.util import UserError
from sampling.images import to_tensor
from sampling.reconstruction import whole_groups
from training.data.dataset import ImageFolderDataset

from .curves import Curve, Group, smooth, unique_ends
from .drawing import add_legend, colour, plot_band

REAL, FAKE = "Loss/scores/real", "Loss/scores/fake"


class Judgement(NamedTuple):
    """Mean scores by the D of one snapshot, and the share of images that it classifies correctly."""

    train_score: float
    held_out_score: float
    fake_score: float
    train_accuracy: float       # Share of training images with a score above 0.
    held_out_accuracy: float    # Share of held-out images with a score above 0.
    fake_accuracy: float        # Share of generated images with a score below 0.

    @property
    def gap(self) -> float:
        """How much higher D scores training images than held-out ones."""
        return self.train_score - self.held_out_score


class Sample(NamedTuple):
    """Some images of a data set, with their labels."""

    pixels: np.ndarray      # uint8 [N, C, R, R].
    labels: torch.Tensor    # float32 [N, c_dim].


def draw_sample(
    dataset: ImageFolderDataset, indices: Sequence[int] | None = None, *, count: int, seed: int
) -> Sample:
    """At most `count` random items of a data set, without repetition; if `indices` are given, only of those."""
    indices = range(len(dataset)) if indices is None else indices
    chosen = np.random.RandomState(seed).permutation(indices)[:count].tolist()
    images, labels = zip(*[dataset[index] for index in chosen])
    return Sample(np.stack(images), torch.from_numpy(np.stack(labels)))


def left_out(train: ImageFolderDataset) -> list[int]:
    """Indices, in `train.replace(max_size=None)`, of the images that are not in a subset.

    Args:
        train: The subset, without mirrored copies.

    Raises:
        UserError: `train` holds all images.
    """
    taken = {train.get_details(index).raw_idx for index in range(len(train))}
    rest = [index for index in range(len(train.replace(max_size=None))) if index not in taken]
    if not rest:
        raise UserError(f"training on {train.path} left no images out: it had no --subset, or one as large as the data "
                        "set; give images that D has not seen with --data")
    return rest


@torch.no_grad()
def realness(D: torch.nn.Module, img: torch.Tensor, c: torch.Tensor, *, batch: int = 64) -> np.ndarray:
    """D's scores, float64 [N], of images float32 [N, C, R, R] with labels [N, c_dim], both on any device."""
    device = next(D.parameters()).device
    group = D.minibatch_group or batch
    batch = -(-batch // group) * group
    scores = []
    for part, label in zip(img.split(batch), c.split(batch)):
        order = whole_groups(D, len(part))
        scores.append(D(part[order].to(device), label[order].to(device))[:len(part), 0].double().cpu())
    return torch.cat(scores).numpy()


@torch.no_grad()
def judge(
    G: torch.nn.Module, D: torch.nn.Module, train: Sample, held_out: Sample, *, seed: int = 0, batch: int = 64
) -> Judgement:
    """Let D score training images, held-out images, and new images that G makes with the labels of the training images.

    Args:
        G, D:            Networks of one snapshot, in eval mode, on one device.
        train, held_out: The real images.
        seed:            Draws the latents and the noise.
        batch:           Images at a time.
    """
    device = next(G.parameters()).device
    z = torch.from_numpy(np.random.RandomState(seed).randn(len(train.labels), G.z_dim)).float()
    torch.manual_seed(seed)
    fakes = [G(part.to(device), c.to(device), noise_mode="random").float().cpu()
             for part, c in zip(z.split(batch), train.labels.split(batch))]
    real, unseen = (realness(D, to_tensor(sample.pixels.transpose(0, 2, 3, 1)), sample.labels, batch=batch)
                    for sample in (train, held_out))
    fake = realness(D, torch.cat(fakes), train.labels, batch=batch)
    return Judgement(float(real.mean()), float(unseen.mean()), float(fake.mean()), float((real > 0).mean()),
                     float((unseen > 0).mean()), float((fake < 0).mean()))


# ----------------------------------------------------------------------------------------------------------------------
# Figure and table.

Judgements = dict[Path, dict[float, Judgement]]     # Run directory -> kimg of the snapshot -> judgement.


def draw_scores(
    groups: Sequence[Group], curves: dict[Path, dict[str, Curve]], judgements: Judgements, *, weight: float
) -> Figure:
    """Draw the scores of real images above those of fake ones, and judgements, if there are any, beside them.

    Args:
        groups:     Each is drawn in one colour. Several runs are drawn as their mean and the range between them.
        curves:     The curves of each run, with `REAL` and `FAKE`.
        judgements: Judgements of each run; may be empty.
        weight:     Weight of past values in the smoothed curves. The original curves are drawn faintly behind them.
    """
    columns = 2 if judgements else 1
    figure = Figure(figsize=(4.6 * columns + 0.4, 5.6), layout="constrained")
    axes = figure.subplots(2, columns, sharex=True, squeeze=False)
    for axis, name, title in (axes[0, 0], REAL, "scores of real images"), (axes[1, 0], FAKE, "scores of fake images"):
        axis.set_title(title, fontsize=10)
        for number, group in enumerate(groups):
            found = [curves[run][name] for run in group.runs]
            for curve in found:
                axis.plot(curve.kimg, curve.values, color=colour(number), alpha=0.25, linewidth=0.8)
            smoothed = [Curve(curve.kimg, smooth(curve.values, weight)) for curve in found]
            plot_band(axis, smoothed, number, label=_label(group))
    if judgements:
        _draw_judgements(axes[:, 1], groups, judgements)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.axhline(0, color="black", linewidth=0.6)
    for axis in axes[1]:
        axis.set_xlabel("kimg")
    add_legend(axes[0, 0])
    return figure


def _draw_judgements(axes: Sequence[Axes], groups: Sequence[Group], judgements: Judgements) -> None:
    axes[0].set_title("share that D takes for what it is", fontsize=10)
    axes[0].set_ylim(-0.03, 1.03)
    axes[0].plot([], [], "-", color="black", label="unseen real images")
    axes[0].plot([], [], "--", color="black", label="fresh fake images")
    axes[0].legend(fontsize=8)
    axes[1].set_title("score of training images less that of unseen ones", fontsize=10)
    lines = [(axes[0], "held_out_accuracy", "-"), (axes[0], "fake_accuracy", "--"), (axes[1], "gap", "-")]
    for number, group in enumerate(groups):
        for axis, name, style in lines:
            found = [Curve(list(judgements[run]), [getattr(judgement, name) for judgement in judgements[run].values()])
                     for run in group.runs]
            plot_band(axis, found, number, style=style, marker="o")


def _label(group: Group) -> str:
    return group.label if len(group.runs) == 1 else f"{group.label} ({len(group.runs)} seeds)"


def score_rows(
    groups: Sequence[Group], curves: dict[Path, dict[str, Curve]], judgements: Judgements, *, weight: float
) -> list[list[Any]]:
    """Everything that `draw_scores` draws, as rows of label, run, kimg, statistic, value and smoothed value."""
    rows: list[list[Any]] = []
    names = dict(zip(curves, unique_ends(list(curves))))
    for group in groups:
        for run in group.runs:
            for name in (REAL, FAKE):
                curve = curves[run][name]
                rows += [[group.label, names[run], kimg, name, value, smoothed]
                         for kimg, value, smoothed in zip(*curve, smooth(curve.values, weight))]
            for kimg, judgement in judgements.get(run, {}).items():
                values = judgement._asdict() | {"gap": judgement.gap}
                rows += [[group.label, names[run], kimg, name, value, None] for name, value in values.items()]
    return rows
