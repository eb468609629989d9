"""Plot training runs side by side: scores, D's realness scores (as Fig. 4 of GLeaD's paper), reconstruction losses."""

from pathlib import Path

import click

import cli
from analysis.curves import method_of, read_curves, smooth
from dnnlib.util import UserError, atomic_write

PANELS_A_ROW = 4
REALNESS = {"Loss/scores/real": "-", "Loss/scores/fake": "--"}
TASKS = {"Loss/D/real_reconstruction": "-", "Loss/D/fake_reconstruction": "--", "Loss/D/fake_feature": ":"}


@click.command(cls=cli.Command)
@click.argument("runs", type=cli.Path(), nargs=-1, required=True, metavar="RUN_DIR...")
@click.option("--out", required=True, metavar="FILE", type=cli.Path(dir_okay=False), help="PNG file to write.")
@click.option("--labels", type=cli.CommaList(), metavar="LIST", help="Names of the runs.  [default: method]")
@click.option("--smooth", "weight", default=0.7, show_default=True, type=click.FloatRange(0, 1, max_open=True),
              help="Weight of past values when curves of losses are smoothed; 0 = no smoothing.")
@click.option("--pictures", is_flag=True, help="Draw images of one run instead of curves: real images, their "
              "reconstructions, and images generated at several moments of training.")
def main(runs: tuple[str, ...], out: str, labels: list[str] | None, weight: float, pictures: bool) -> None:
    """Plot training runs side by side.

    Scores come from training and from calc_metrics.py. Scores that were measured with another seed, other images or
    another feature net than in training have a panel of their own.

    \b
    python plot_runs.py runs/00000-cifar10-cifar runs/00001-cifar10-cifar-glead --out=curves.png
    python plot_runs.py runs/00001-cifar10-cifar-glead --pictures --out=story.png
    """
    if pictures:
        if len(runs) > 1:
            raise UserError(f"--pictures shows one run, {len(runs)} were given")
        draw_pictures(Path(runs[0]), out)
        return
    if labels and len(labels) != len(runs):
        raise UserError(f"--labels has {len(labels)} names for {len(runs)} runs")
    with cli.shown_warnings():
        curves = [read_curves(Path(run)) for run in runs]
    labels = labels or [method_of(run) or Path(run).name for run in runs]
    metrics = sorted({name for c in curves for name in c if name.startswith("Metrics/")})
    panels = [(name.removeprefix("Metrics/"), {name: "-o"}, 0.0) for name in metrics]
    if any(max(c["Progress/augment"].values) > 0 for c in curves if "Progress/augment" in c):
        panels.append(("strength p of augmentation", {"Progress/augment": "-"}, 0.0))
    panels.append(("realness: real (solid), fake (dashed)", REALNESS, weight))
    if any(name in c for c in curves for name in TASKS):
        title = "weighted tasks: real (solid), fake (dashed; features dotted)"
        panels.append((title, TASKS, weight))
    from matplotlib.figure import Figure  # takes a second to import: --help doesn't wait for it

    rows, columns = -(-len(panels) // PANELS_A_ROW), min(len(panels), PANELS_A_ROW)
    figure = Figure(figsize=(5 * columns, 3.6 * rows))
    axes = figure.subplots(rows, columns, squeeze=False)
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


def draw_pictures(run_dir: Path, out: str) -> None:
    """Draw the rows of `sampling.story`, with the scores of the run beside the generated images."""
    from sampling.story import read_story

    rows = read_story(run_dir)
    metrics = {name.removeprefix("Metrics/"): curve for name, curve in read_curves(run_dir).items()
               if name.startswith("Metrics/")}
    metric = min(metrics, default=None)
    scores = dict(zip(map(int, metrics[metric].kimg), metrics[metric].values)) if metric else {}
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.62 * len(rows) + 0.4))
    axes = figure.subplots(len(rows), 1, squeeze=False)
    for axis, row in zip(axes.flat, rows):
        generated = row.what == "generated" and row.kimg is not None
        score = scores.get(int(row.kimg)) if generated else None
        when = f" at {row.kimg:g} kimg" if generated else ""
        axis.imshow(row.pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axis.set_ylabel(row.what + when + (f"\nscore {score:.1f}" if score is not None else ""), rotation=0, ha="right",
                        va="center", fontsize=10)
        axis.set(xticks=[], yticks=[])
    figure.suptitle(f"{run_dir.name}" + (f"; score: {metric}, lower is better" if metric else ""), fontsize=9)
    figure.subplots_adjust(left=0.17, right=0.99, bottom=0.01, top=1 - 0.3 / figure.get_figheight(), hspace=0.08)
    with atomic_write(out) as f:
        figure.savefig(f, format="png", dpi=100)
    print(out)
    if scores:
        print(f"{metric}: " + ", ".join(f"{value:.1f} at {kimg} kimg" for kimg, value in sorted(scores.items())))


if __name__ == "__main__":
    main()
