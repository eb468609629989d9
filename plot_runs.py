"""Plot training runs side by side: scores, D's realness scores (as Fig. 4 of GLeaD's paper), reconstruction losses."""

import json
from pathlib import Path
from typing import NamedTuple

import click

import cli
from dnnlib.util import UserError, atomic_write
from training.config.rivals import full_name

PANELS_A_ROW = 4
REALNESS = {"Loss/scores/real": "-", "Loss/scores/fake": "--"}
TASKS = {"Loss/D/real_reconstruction": "-", "Loss/D/fake_reconstruction": "--", "Loss/D/fake_feature": ":"}


class Curve(NamedTuple):
    kimg: list[float]
    values: list[float]


def read_curves(run_dir: Path) -> dict[str, Curve]:
    """Every statistic of a run over kimg, from `stats.jsonl`, and the scores in `metric-*.jsonl`.

    Where a score is in both, `metric-*.jsonl` counts.

    Raises:
        UserError: `stats.jsonl` is missing or damaged.
    """
    path = run_dir / "stats.jsonl"
    if not path.is_file():
        raise UserError(f"{run_dir} holds no stats.jsonl: give run directories that train.py made")
    curves: dict[str, Curve] = {}
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            record = json.loads(line)
            kimg = record["Progress/kimg"]["mean"]
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise UserError(f"line {number} of {path} is no record of a tick") from e
        for name, value in record.items():
            if isinstance(value, dict):
                curve = curves.setdefault(name, Curve([], []))
                curve.kimg.append(kimg)
                curve.values.append(value["mean"])
    from training.runs.run_scores import read_all_scores  # PyTorch takes seconds to import

    for name, scores in read_all_scores(run_dir).items():
        before = curves.get(f"Metrics/{name}", Curve([], []))
        # Most pickles are named by whole kimg. Their scores belong to the first tick with a score in that kimg.
        places = {kimg: next((x for x in before.kimg if int(x) == kimg), kimg) for kimg in scores}
        points = dict(zip(before.kimg, before.values)) | {places[kimg]: value for kimg, value in scores.items()}
        curves[f"Metrics/{name}"] = Curve(*map(list, zip(*sorted(points.items()))))
    return curves


def smooth(values: list[float], weight: float) -> list[float]:
    """Exponentially weighted moving average, corrected for its bias at the start."""
    result, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + value, weight * norm + 1
        result.append(total / norm)
    return result


@click.command(cls=cli.Command)
@click.argument("runs", type=cli.Path(), nargs=-1, required=True, metavar="RUN_DIR...")
@click.option("--out", required=True, metavar="FILE", type=cli.Path(dir_okay=False), help="PNG file to write.")
@click.option("--labels", type=cli.CommaList(), metavar="LIST", help="Names of the runs.  [default: method]")
@click.option("--smooth", "weight", default=0.7, show_default=True, type=click.FloatRange(0, 1, max_open=True),
              help="Weight of the past in the curves of losses; 0 = as they are.")
def main(runs: tuple[str, ...], out: str, labels: list[str] | None, weight: float) -> None:
    """Plot training runs side by side.

    Scores come from training and from calc_metrics.py. Those with another seed, other images or another feature net
    than in training have a panel of their own.

    \b
    python plot_runs.py runs/00000-cifar10-cifar runs/00001-cifar10-cifar-glead --out=curves.png
    """
    if labels and len(labels) != len(runs):
        raise UserError(f"--labels has {len(labels)} names for {len(runs)} runs")
    curves = [read_curves(Path(run)) for run in runs]
    labels = labels or [method_of(Path(run)) for run in runs]
    metrics = sorted({name for c in curves for name in c if name.startswith("Metrics/")})
    panels = [(name.removeprefix("Metrics/"), {name: "-o"}, 0.0) for name in metrics]
    if any(max(c["Progress/augment"].values) > 0 for c in curves if "Progress/augment" in c):
        panels.append(("strength p of augmentation", {"Progress/augment": "-"}, 0.0))
    panels.append(("realness: real (solid), fake (dashed)", REALNESS, weight))
    if any(name in c for c in curves for name in TASKS):
        title = "weighted tasks: real (solid), fake (dashed; features dotted)"
        panels.append((title, TASKS, weight))
    import matplotlib  # takes a second, for which --help does not wait
    from matplotlib import pyplot

    matplotlib.use("Agg")  # works without a display
    rows, columns = -(-len(panels) // PANELS_A_ROW), min(len(panels), PANELS_A_ROW)
    figure, axes = pyplot.subplots(rows, columns, figsize=(5 * columns, 3.6 * rows), squeeze=False)
    for axis in axes.flat[len(panels):]:
        axis.set_axis_off()
    for axis, (title, names, past) in zip(axes.flat, panels):
        for number, (run, label) in enumerate(zip(curves, labels)):
            for name, style in names.items():
                if name in run:
                    first = name == next(iter(names))
                    axis.plot(run[name].kimg, smooth(run[name].values, past), style, color=f"C{number}", markersize=3,
                              label=label if first else None)
        axis.set(title=title, xlabel="kimg")
        axis.title.set_fontsize(10)
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    figure.tight_layout()
    with atomic_write(out) as f:
        figure.savefig(f, format="png", dpi=100)
    print(out)


def method_of(run_dir: Path) -> str:
    try:
        return full_name(json.loads((run_dir / "training_options.json").read_text())["config"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return run_dir.name


if __name__ == "__main__":
    main()
