"""Write a page about training runs: progress, options, curves, pictures of each snapshot, scores, environment."""

import os
import time

import click

import cli
from dnnlib.util import made_folder


@click.command(cls=cli.Command)
@click.argument("runs", type=cli.Path(), nargs=-1, required=True, metavar="RUN_DIR...")
@click.option("--outdir", type=cli.Path(file_okay=False), metavar="DIR",
              help="Where to write report.html.  [default: the run directory; for several runs, the current folder]")
@click.option("--watch", is_flag=True, help="Update the page regularly as long as one of the runs is training.")
@click.option("--every", "interval", type=cli.FiniteFloat(min=0.1), default=30, show_default=True, metavar="SEC",
              help="With --watch: seconds between updates.")
@click.option("--attention", is_flag=True,
              help="Show where the D of each run's newest network pickle looks; writes attentionKKKKKK.png in the run.")
def main(runs: tuple[str, ...], outdir: str | None, watch: bool, interval: float, attention: bool) -> None:
    """Write report.html, a page about one or several training runs. It needs no other file and no network.

    The runs may still be training. train.py itself writes the page of a run that is finished.

    \b
    python report.py runs/00000-church256-glead runs/00001-church256-stylegan2 --outdir=compared
    """
    from analysis import report
    from training.runs.resume import is_busy

    if outdir is not None:
        cli.check_outdir(outdir)
    path = os.path.join(outdir or (runs[0] if len(runs) == 1 else ""), report.NAME)
    busy = watch and any(map(is_busy, runs))
    with made_folder(os.path.dirname(path) or "."):
        report.write_report(runs, path, attention=attention)
    while busy:
        print(f"{path}: written at {time.strftime('%H:%M:%S')}, again in {interval:g} s", flush=True)
        time.sleep(interval)
        busy = any(map(is_busy, runs))  # before the page is written, which then holds the last results of the run
        report.write_report(runs, path, attention=attention)
    print(path)


if __name__ == "__main__":
    main()
