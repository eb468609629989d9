"""Train StyleGAN2, alone or with GLeaD, GGDR or both."""

import dataclasses
import os
from typing import Any

import click

import cli
from metrics.registry import check_metrics
from training import estimate
from training.adversarial import ADVERSARIAL
from training.config import checks, comparison, released
from training.config.options import ONCE, SECOND_NAMES, on_command_line
from training.config.resolve import resolve, warnings
from training.config.rivals import name_of
from training.config.schema import TrainingConfig
from training.jobs import launch, prepare_run, summary, torchrun
from training.runs import resume, run_dir


@click.command(cls=cli.Command, context_settings={"show_default": True, "max_content_width": 120})
@cli.add_options(on_command_line(adversarial=ADVERSARIAL))
def main(**values: Any) -> None:
    """Train a GAN on a folder or zip of images; make one with dataset_tool.py.

    \b
    Examples:
      # GLeaD on LSUN Church, as published: 8 GPUs, no augmentation, f at 32x32.
      python train.py --outdir=runs --data=church256.zip --cfg=paper256 --gpus=8 --aug=noaug --kimg=50000
    \b
      # The baseline with ADA, and settings that follow from the resolution and the number of GPUs.
      python train.py --outdir=runs --data=images.zip --method=stylegan2
    \b
      # The options of another run, with another seed.
      python train.py --config=runs/00000-images-glead/training_options.json --seed=1
    \b
      # What would be run, without running it.
      python train.py --outdir=runs --data=images.zip --dry-run
    """
    context = click.get_current_context()
    command = cli.given_options(context)
    if values["config"] is not None:
        command = with_file(command, cli.read_option_file(values["config"], context, without=ONCE))
        values |= command
    if torchrun.is_used():
        job = torchrun.train(prepare, command, values)
    else:
        job = prepare(command, values)
        if job is not None:
            with resume.locked(job.run_dir):
                launch.run(job)
    if job is not None and resume.is_finished(job.run_dir, job.config.total_kimg):
        write_report(job.run_dir)


def write_report(path: str) -> None:
    """Write report.html of a finished run. An error is only a warning: training has succeeded."""
    try:
        from analysis import report

        report.write_report([path], os.path.join(path, report.NAME), attention=True)
    except (Exception, KeyboardInterrupt) as e:
        cli.warn(f"no {path}/report.html: {' '.join(str(e).split()) or type(e).__name__}; report.py {path} writes it")


def with_file(command: dict[str, Any], of_file: dict[str, Any]) -> dict[str, Any]:
    """The options of a file and of the command line. The command line wins, whichever name it gives an option by."""
    given = {SECOND_NAMES.get(name, name) for name in command}
    return {**{name: value for name, value in of_file.items() if SECOND_NAMES.get(name, name) not in given},
            **{name: value for name, value in command.items() if name != "config"}}


def prepare(command: dict[str, Any], values: dict[str, Any]) -> launch.Job | None:
    """Check everything that a run needs. Then make its directory, or find the run to resume.

    Args:
        command: The options that were given, by name.
        values:  The same options, and the defaults of all others.

    Returns:
        What to train; None after a dry run.

    Raises:
        UserError: Something is missing or wrong.
    """
    run, busy = resume.find(command)
    if run is not None:  # keep the number of GPUs at its start: the batch size may depend on it
        values = {**values, **run.command, **command,
                  "gpus": run.command.get("gpus"), "resume": run.command.get("resume")}
    for name in ("outdir", "data"):
        if values[name] is None and not (name == "outdir" and run is not None):
            raise click.MissingParameter(param_type="option", param_hint=f"'--{name}'")
    options, notes = released.parse(resume.absolute_paths(values))
    check_metrics(options.metrics or ())
    prepare_run.check_apart(options.data, options.outdir if run is None else run.path, new=run is None)
    if run is not None:
        for option in sorted(set(run.relative) - {"resume", *command}):
            cli.warn(f"{run.path} names its --{option} by a relative path: taking {run.command[option]}")
    dataset, source = prepare_run.inspect_dataset(options)
    problems: list[str] = []
    sized = prepare_run.size_like_source(options, dataset, run, problems)
    config = resolve(sized, dataset, device=prepare_run.choose_device(options))
    if run is not None:
        num_gpus = command.get("gpus", run.config.num_gpus)
        config = resume.changed(run, config, num_gpus=num_gpus, anyway="resume_anyway" in command)
        checks.validate(config)
    if busy is not None:
        cli.warn(f"{busy}, which the same command started, is being trained by another program: this is a second run")
    for line in notes + warnings(options, config):
        cli.warn(line)
    # Only this command can grant trust: the options of a run may come from a stranger.
    problems = prepare_run.check_machine(config, options, run=run, trust=command.get("trust_net", False),
                                         of_source=problems)
    description = comparison.run_name(source.name, name_of(config))
    if options.dry_run:
        show(config, command, description, run, source, problems)
        return None
    launch.clear_outcome(options.outcome)
    source.check()
    if run is None:
        job = start_run(config, command, options.outdir, description)
    else:
        job = resume_run(run, config, command)
    warn_of_long_work(config, source, run)
    return job._replace(outcome=options.outcome)


def show(
    config: TrainingConfig, command: dict[str, Any], description: str, run: resume.ResumableRun | None, source: Any,
    problems: list[str],
) -> None:
    """Print the options and the verdict of a dry run."""
    if run is not None:
        print(f"Would resume in {run.path}{_new_run_hint(command)}\n")
    summary.print_options(config, description)
    warn_of_long_work(config, source, run)
    summary.print_verdict(config if run is None else dataclasses.replace(config, resume=None), problems)


def start_run(config: TrainingConfig, command: dict[str, Any], outdir: str, description: str) -> launch.Job:
    """Make the run directory, and write the options and a log to it."""
    path = run_dir.create_run_dir(outdir, description)
    job = launch.Job(config, path, resume=None, command=resume.absolute_paths(command))
    launch.write_options(job)
    with run_dir.tee_output(os.path.join(path, "log.txt")):
        summary.print_options(config, os.path.basename(path))
        print(f"\nTraining in {path}", flush=True)
    return job


def resume_run(run: resume.ResumableRun, config: TrainingConfig, command: dict[str, Any]) -> launch.Job:
    """Prepare to resume a run. The run directory stays unchanged until the training state is restored."""
    passing = ("resume", "resume_anyway", "gpus", "trust_net")
    kept = {**run.command, **{name: value for name, value in command.items() if name not in passing}}
    with resume.locked(run.path):
        print(f"Resuming in {run.path}{_new_run_hint(command)}")
        print(comparison.departures_line(config), flush=True)
    return launch.Job(config, run.path, resume=run.state, command=resume.absolute_paths(kept),
                      anyway="resume_anyway" in command)


def warn_of_long_work(config: TrainingConfig, source: Any, run: resume.ResumableRun | None) -> None:
    """Warn if a run will take long."""
    from training.runs.training_state import list_states

    states = list_states(run.path) if run is not None else []
    line = estimate.describe_long_work(config, source, done_kimg=states[0].nimg / 1000 if states else 0)
    if line is not None:
        cli.warn(line)


def _new_run_hint(command: dict[str, Any]) -> str:
    return "; --resume=noresume starts a new run" if command.get("resume", "auto") == "auto" else ""


if __name__ == "__main__":
    main()
