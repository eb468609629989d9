"""Compare methods or settings over paired seeds: train, score by several feature nets, write tables and figures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from tqdm import tqdm

import cli
from dnnlib.util import UserError, atomic_write, check_writable, format_time

if TYPE_CHECKING:  # PyTorch takes seconds to import: --help and usage errors don't wait for it
    import torch

    from analysis.comparison import Result
    from analysis.fairness import Sample
    from training.runs.sweep import Cell, Plan

_JUDGED_IMAGES = 1000   # Images of each kind (training, unseen, generated) that the D of each run scores.


@click.command(cls=cli.Command, context_settings={"max_content_width": 120, "ignore_unknown_options": True,
                                                  "allow_extra_args": True})
@click.option("--outdir", type=cli.Path(file_okay=False), metavar="DIR", help="Where runs and results go")
@click.option("--plan", "plan_file", type=cli.Path(), metavar="FILE",
              help="What to compare, as YAML or JSON  [default: --methods]")
@click.option("--methods", type=cli.CommaList(), metavar="LIST",
              help="Methods to compare, separated by commas, as train.py --method")
@click.option("--seeds", type=click.IntRange(min=1), help="Runs of each arm, with seeds from 0 on  [default: 3]")
@click.option("--data", type=cli.Path(), metavar="FOLDER|ZIP", help="Images, instead of those of the plan")
@click.option("--minutes", type=cli.FiniteFloat(min=0, min_open=True),
              help="Train each run on as many images as its arm manages in this time, which is measured beforehand; "
              "--kimg instead gives all runs the same number")
@click.option("--detector", "judges", type=cli.CommaList(), metavar="LIST",
              help="Feature nets in which the last network of each run is scored  [default: those of the plan]")
@click.option("--metrics", metavar="LIST", help="Metrics to score by  [default: kid10k,fid10k,pr10k3,dc10k5]")
@click.option("--jobs", type=click.IntRange(min=1),
              help="Runs to train at the same time  [default: one for each core, or 1 on a GPU]")
@cli.trust_net_option
@click.option("--results-only", is_flag=True, help="Train nothing: write the results of the runs that are finished")
@click.option("--tables", type=cli.Path(exists=True, dir_okay=False), multiple=True, metavar="FILE.md",
              help="Only update the tables in this Markdown file; may be given several times")
@click.pass_context
def main(
    context: click.Context, plan_file: str | None, methods: list[str] | None, tables: tuple[str, ...],
    outdir: str | None, jobs: int | None, trust_net: bool, results_only: bool, **changes: Any,
) -> None:
    """Train several methods or settings with several seeds on the same data, and compare them.

    All other options are passed to train.py for every run. The same command resumes. Runs with the same seed see the
    same images in the same order, and have the same latents and initial weights.

    \b
    bash train_scripts/compare.sh --methods=stylegan2,glead --seeds=5 --kimg=60 --data=cifar10.zip --cfg=cifar \\
        --detector=net.safetensors --outdir=compared
    bash train_scripts/compare.sh --plan=results/cifar10/plan.yaml --outdir=compared --trust-net
    """
    if tables:
        from analysis.comparison import fill_tables

        for path in tables:
            text = fill_tables(path)
            with atomic_write(path) as f:
                f.write(text.encode())
        return
    if outdir is None:
        raise click.UsageError("Missing option '--outdir'.")
    cli.check_outdir(outdir)
    check_writable(Path(outdir, "results.json"))
    plan = make_plan(plan_file, methods, read_train_options(context.args), **changes)
    device = plan.train.get("device")
    if not results_only:
        train(plan, outdir, jobs, device, trust_net)
    with cli.shown_warnings():
        write_results(plan, Path(outdir), device)


def make_plan(
    plan_file: str | None, methods: list[str] | None, train_options: dict[str, str], *, seeds: int | None,
    data: str | None, minutes: float | None, judges: list[str] | None, metrics: str | None,
) -> Plan:
    """The plan from --plan, changed by the other options, or a plan of --methods."""
    from training.runs.sweep import make_plan, read_plan

    if (plan_file is None) == (methods is None):
        raise click.UsageError("Give --plan or --methods" + ("." if methods is None else ", not both."))
    if methods is not None:
        if data is None:
            raise click.UsageError("Missing option '--data'.")
        content = {
            "data": data, "arms": {method: {"method": method} for method in methods}, "seeds": seeds or 3,
            "train": train_options, "minutes": minutes, "reference": methods[0],
            "metrics": metrics or "kid10k,fid10k,pr10k3,dc10k5",
            "judges": {Path(net).stem: net for net in judges or ()},
        }
        return make_plan(content, source="--methods")
    plan = read_plan(plan_file)
    changes = {"data": data, "seeds": seeds, "minutes": minutes, "metrics": metrics,
               "judges": judges and {Path(net).stem: net for net in judges}}
    return plan.model_copy(update={name: value for name, value in changes.items() if value is not None}
                           | {"train": plan.train | train_options})


def read_train_options(arguments: list[str]) -> dict[str, str]:
    """Values of `--name=value` and `--name value` by name. A flag, which has no value, is "true"."""
    options: dict[str, str] = {}
    name = None
    for argument in arguments:
        if argument.startswith("--"):
            name, _, value = argument[2:].replace("_", "-").partition("=")
            options[name] = value or "true"
        elif name is None or options[name] != "true":
            raise click.UsageError(f"Got unexpected argument ({argument})")
        else:
            options[name] = argument
    return options


def train(plan: Plan, outdir: str, jobs: int | None, device: str | None, trust: bool) -> None:
    """Train and score the runs that are not finished. A progress bar counts images."""
    import torch

    from dnnlib.util import num_cores
    from training.runs.sweep import Sweep

    on_gpu = device != "cpu" and torch.cuda.is_available()
    sweep = Sweep(plan, outdir, jobs=jobs or (1 if on_gpu else num_cores()), device=device, trust=trust,
                  say=lambda line: tqdm.write(line, file=sys.stderr))
    with tqdm(unit="kimg", file=sys.stderr, desc="Training", dynamic_ncols=True) as bar:
        def show(done: float, total: float) -> None:
            if bar.total is None:   # the first images: time for checks and probes doesn't count
                bar.reset(total=round(total, 1))
                bar.initial = round(done, 1)    # images of earlier commands don't count for the rate
            bar.n = min(round(done, 1), bar.total)  # the last batch may exceed the total
            bar.refresh()

        try:
            sweep.run(show)
        except KeyboardInterrupt:
            raise UserError("stopped: the same command resumes") from None
    if sweep.failed:
        raise UserError(f"{len(sweep.failed)} runs are not finished; the first: {sweep.failed[0]}")


def write_results(plan: Plan, outdir: Path, device: str | None) -> None:
    """Write results.json, RESULTS.md, figures and report.html about the runs that are finished."""
    from analysis import comparison, report
    from analysis.curves import Group, read_curves
    from analysis.drawing import Row, draw_rows, save_figure
    from analysis.fairness import draw_scores, judge
    from analysis.reconstructions import reconstruction_rows
    from training.runs.sweep import list_cells

    cells = [cell for cell in list_cells(plan, outdir)
             if cell.is_trained and all(cell.scores_file(judge).exists() for judge in plan.judges)]
    if not cells:
        raise UserError(f"no run in {outdir} is trained and scored yet: leave out --results-only")
    results: list[Result] = []
    rebuilt: dict[str, list[Row]] = {}      # By arm; of its first run.
    for cell in tqdm(cells, desc="D on unseen images", unit="run", file=sys.stderr):
        case = open_case(cell, device)
        results.append(comparison.read_cell(cell, list(plan.judges), None if case is None else judge(*case)))
        if case is not None and cell.arm not in rebuilt:
            has_heads = getattr(case.D, "has_heads", False)
            rebuilt[cell.arm] = reconstruction_rows(cell.arm, case.G, case.D, case.unseen) if has_heads else []
    comparison.save_results(outdir / "results.json", results)
    runs: dict[str, list[Path]] = {}
    for cell in cells:
        assert cell.run_dir is not None
        runs.setdefault(cell.arm, []).append(cell.run_dir)
    curves = {path: read_curves(path) for paths in runs.values() for path in paths}
    metrics = {name: curve for name, curve in next(iter(curves.values())).items() if name.startswith("Metrics/")}
    if metrics:     # draw the metric that training measured most often; judges score only the last network
        name = max(metrics, key=lambda name: (len(metrics[name].kimg), name.startswith("Metrics/kid")))
        save_figure(comparison.draw_curves(runs, name), outdir / "curves.png")
    groups = [Group(arm, paths) for arm, paths in runs.items()]
    save_figure(draw_scores(groups, curves, {}, weight=0.9), outdir / "scores.png")
    if rows := [row for rows in rebuilt.values() for row in rows]:
        save_figure(draw_rows(rows), outdir / "reconstructions.png")
    report.write_report([paths[0] for paths in runs.values()], outdir / report.NAME)
    reference = plan.reference or next(iter(plan.arms))
    with atomic_write(outdir / "RESULTS.md") as f:
        f.write(comparison.describe(results, reference).encode())
    seconds = sum(result.kimg * result.sec_per_kimg for result in results)
    click.echo(f"{len(cells)} of {len(list_cells(plan, outdir))} runs, {format_time(seconds)} of training: "
               f"RESULTS.md, results.json, report.html and figures in {outdir}")


class Case(NamedTuple):
    """The last networks of a run, in eval mode on one device, and real images with their labels."""

    G: torch.nn.Module
    D: torch.nn.Module
    seen: Sample        # Images that D was trained on.
    unseen: Sample      # Images that `train.py --subset` left out.


def open_case(cell: Cell, device: str | None) -> Case | None:
    """The last networks of a run, with images to judge; None if no images are unseen, or D takes extra channels."""
    from analysis.fairness import draw_sample, left_out
    from torch_utils import misc
    from training.runs.run_dir import find_options
    from training.runs.run_scores import open_training_set, read_options
    from training.runs.training_state import list_pickles

    assert cell.run_dir is not None
    trained_on = read_options(cell.run_dir).training_set_kwargs
    if trained_on.get("max_size") is None or find_options(cell.run_dir)["config"]["D"]["extra_channels"]:
        return None
    path = str(list_pickles(cell.run_dir)[-1].path)
    G, D = cli.load_pair(path, trust=False, purpose="a comparison")
    where = misc.pick_device(device)
    train = open_training_set(path, trained_on, use_labels=bool(trained_on.get("use_labels")))
    unseen = draw_sample(train.replace(max_size=None), left_out(train), count=_JUDGED_IMAGES, seed=0)
    return Case(G.to(where), D.to(where), draw_sample(train, count=_JUDGED_IMAGES, seed=0), unseen)


if __name__ == "__main__":
    main()
