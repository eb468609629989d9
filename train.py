"""Train StyleGAN2 with a discriminator that has a task of its own: GLeaD, GGDR, both, or none."""

import contextlib
import dataclasses
import difflib
import functools
import json
import os
import sys
from typing import TYPE_CHECKING, Any, Callable, NamedTuple

import click

import cli
from dnnlib.util import UserError, check_all, check_writable, is_url
from training import estimate
from training.config import comparison, presets
from training.config import schema as configs
from training.config.schema import DatasetConfig, TrainingConfig
from training.runs import resume, run_dir

if TYPE_CHECKING:  # PyTorch takes seconds to import: --help and wrong usage don't wait for it
    from training import launch

PREPARING_SEC = 3600    # The others wait at most this long for the first process, which checks data and downloads nets.
NETWORK_SUFFIXES = (".pkl", ".safetensors", ".onnx")


class Arguments(NamedTuple):
    """The command line, in our own words."""

    outdir: str
    data: str
    cond: bool
    subset: int | None
    mirror: bool
    device: str                     # "auto", "cpu" or "cuda".
    timeout_sec: float
    keep: str
    dry_run: bool
    options: presets.Options
    notes: list[str]                # What was said without effect.


class Inspected(NamedTuple):
    dataset: DatasetConfig
    source: Any                     # ImageFolderDataset, open, of all images.


def _group(title: str) -> Callable[..., Any]:
    return functools.partial(click.option, cls=cli.Option, group=title)


general, data, basic, augmentation, method, nets, transfer, speed, released = map(
    _group,
    (
        "General options",
        "Data",
        "Training settings",
        "Augmentation",
        "Tasks for the discriminator",
        "Networks",
        "Resuming and transfer learning",
        "Performance",
        "Names that the released GLeaD and GGDR programs use",
    ),
)
BOOL = {"type": bool, "metavar": "BOOL"}


@click.command(
    cls=cli.Command,
    context_settings={"show_default": True, "max_content_width": 120},
)
@general("--outdir", type=cli.Path(), metavar="DIR",
         help="Where to make the run directory.  [required, except to resume a run by its directory]")
@general("--gpus", type=int, metavar="INT", show_default="1, under torchrun as many as it started processes",
         help="Number of GPUs, or of processes with --device=cpu; a power of two.")
@general("--snap", type=int, metavar="TICKS", show_default="50", help="Ticks between snapshots; 0 = one at the end.")
@general("--tick", type=float, metavar="KIMG", show_default="4", help="Length of a tick in thousands of images.")
@general("--grid-size", type=int, metavar="PIXELS", default=4096, help="How wide and high grids of images are at most.")
@general("--metrics", type=cli.CommaList(), metavar="NAMES", show_default="fid50k_full",
         help="Metrics of every snapshot, comma-separated, or none.")
@general("--detector", type=cli.Path(), metavar="PATH|URL",
         help="Feature net of the metrics.  [default: each metric's standard one]")
@general("--trust-net", is_flag=True,
         help="Open --detector and --perceptual even if they are TorchScript files from elsewhere, which are programs; "
              "remembered for each file.")
@general("--seed", type=int, metavar="INT", default=0, help="Random seed.")
@general("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", help="Where to train.")
@general("--keep", metavar="RULES", default="all",
         help="Network pickles that stay: all, or those that a list names, such as last:3,best,every:10. The best is "
              "that by the first of --metrics.")
@general("--timeout", type=cli.FiniteFloat(min=0, min_open=True, max=1e6), metavar="SEC", default=600,
         help="How long processes wait for one that hangs.")
@general("--outcome", type=cli.Path(), metavar="FILE",
         help="In the end, write the word finished or stopped to this file; what fails leaves none.")
@general("-n", "--dry-run", is_flag=True,
         help="Print the options, parameter counts and memory, and stop; nothing is downloaded.")
@data("--data", type=cli.Path(), metavar="PATH",
      help="Training data: folder, zip, or folder of zips.  [required, except to resume a run by its directory]")
@data("--cond", **BOOL, default=False, help="Train with the labels of the data set.")
@data("--subset", type=int, metavar="N", show_default="all", help="Train with N images, drawn by --seed.")
@data("--mirror", **BOOL, default=False, help="Add mirrored copies of the images.")
@basic("--cfg", type=click.Choice(list(presets.PRESETS)), default="auto", help="Published settings to start from.")
@basic("--gamma", type=float, metavar="FLOAT", show_default="by --cfg", help="Weight of R1.")
@basic("--kimg", type=float, metavar="KIMG", show_default="by --cfg", help="Length of training in thousands of images.")
@basic("--batch", type=int, metavar="INT", show_default="by --cfg", help="Images per iteration, over all GPUs.")
@basic("--batch-gpu", type=int, metavar="INT", show_default="by --cfg", help="Images that a GPU sees at once.")
@augmentation("--aug", type=click.Choice(["noaug", "ada", "fixed"]), show_default="ada",
              help="Augment what D sees: never, as strongly as overfitting asks for, or with probability --p.")
@augmentation("--p", type=float, metavar="FLOAT", help="Probability of each transform; needed for --aug=fixed.")
@augmentation("--target", type=float, metavar="FLOAT", show_default=f"{presets.ADA_TARGET:g}",
              help="What ADA brings the mean sign of D's real scores to.")
@augmentation("--augpipe", type=click.Choice(list(presets.PIPES)), show_default="bgc", help="Transforms.")
@augmentation("--recon-target", type=click.Choice(["input", "clean"]),
              show_default="input; clean for --recipe=released",
              help="What G rebuilds: what D was shown, or the image before augmentation.")
@method("--method", type=click.Choice(list(presets.METHODS)), show_default="glead", help="Which tasks D has.")
@method("--recipe", type=click.Choice(["paper", "released"]), show_default="paper; released for --reg_type=glead",
        help="Follow GLeaD's paper, or what its released program does.")
@method("--lambda-real", type=float, metavar="FLOAT", show_default="10", help="Weight of the task for real images.")
@method("--lambda-fake", type=float, metavar="FLOAT", show_default="3; 10 for feature maps",
        help="Weight of the task for generated images.")
@method("--res-g", type=int, metavar="RES",
        show_default="as published for the data sets of the paper; else 32, 64 for glead+ggdr, at most a quarter of "
                     "the image",
        help="Resolution at which G takes over from D; 1 = D gives w alone.")
@method("--res-decoder", type=int, metavar="RES", show_default="64; at most half of the image",
        help="Resolution of D's decoder.")
@method("--ggdr-res", type=int, metavar="RES", show_default="64; a quarter of images below 64",
        help="Resolution of the features that GGDR compares.")
@method("--decoder-kernel", type=int, metavar="INT", show_default="1", help="Side of the decoder's convolutions.")
@method("--decoder-act", type=click.Choice(["linear", "lrelu"]), show_default="linear",
        help="Activation of the decoder.")
@method("--perceptual", type=cli.Path(), metavar="NAME|PATH|URL",
        show_default="lpips-vgg; lpips-alex for --recipe=released", help="Perceptual net that compares images.")
@nets("--cbase", type=int, metavar="INT", show_default="by --cfg", help="Channels at resolution r are cbase / r ...")
@nets("--cmax", type=int, metavar="INT", show_default="by --cfg", help="... but at most cmax.")
@nets("--map-depth", type=int, metavar="INT", show_default="by --cfg", help="Layers of the mapping network.")
@nets("--mbstd-group", type=int, metavar="INT", show_default="by --cfg", help="Images per minibatch deviation.")
@transfer("--resume", type=cli.Path(), metavar="auto|noresume|PATH|URL|NAME", show_default="auto",
          help="Go on with a run (its directory, or one of its training states; auto: the unfinished one in --outdir "
               "that the same command started, if there is one), or start from a network pickle, or one of "
               f"{', '.join(presets.RESUME_SOURCES)}.")
@transfer("--resume-anyway", is_flag=True, help="Go on with a run although this command changes what is learnt.")
@transfer("--freezed", type=int, metavar="INT", default=0, help="FreezeD: leave so many of D's layers as they are.")
@speed("--fp32", **BOOL, default=False, help="No half precision.")
@speed("--half", type=click.Choice(["float16", "bfloat16"]), show_default="float16",
       help="Type of half precision; float16 is for GPUs alone, a CPU takes float32 in its place.")
@speed("--lpips-fp32", **BOOL, default=False, help="No half precision in the perceptual net.")
@speed("--nhwc", **BOOL, default=False, help="Channels-last memory format for half precision on GPUs.")
@speed("--nobench", **BOOL, default=False, help="No cuDNN benchmarking.")
@speed("--allow-tf32", **BOOL, default=False, help="Let PyTorch use TF32.")
@speed("--workers", type=int, metavar="INT", default=3, help="Processes that load images; 0 = none of their own.")
@released("--reg_type", type=click.Choice(["none", "ggdr", "glead"]),
          help="Implies --method; glead: --recipe=released.")
@released("--glead_res_g", type=int, metavar="RES", help="--res-g")
@released("--glead_res_d", type=int, metavar="RES", help="--res-decoder")
@released("--reg_target_real", type=click.Choice(["gfwimage", "gfeat", "None"]), help="gfwimage: G rebuilds them.")
@released("--reg_target_fake", type=click.Choice(["gfwimage", "gfeat", "None"]),
          help="gfwimage: G rebuilds generated images; gfeat: D reproduces G's features (implies glead+ggdr).")
@released("--reg_loss_real", type=click.Choice(["lpips", "mse", "cos"]), help="How real images are compared.")
@released("--reg_loss_fake", type=click.Choice(["lpips", "mse", "cos"]), help="How generated ones are compared.")
@released("--reg_weight_real", type=float, metavar="FLOAT", help="--lambda-real")
@released("--reg_weight_fake", type=float, metavar="FLOAT", help="--lambda-fake")
@released("--decoder_conv_kernel_size", type=int, metavar="INT", help="--decoder-kernel")
def main(**said: Any) -> None:
    """Train a GAN on a folder or zip of images; make one with dataset_tool.py.

    \b
    Examples:
      # GLeaD on LSUN Church, as published: 8 GPUs, no augmentation, f at 32x32.
      python train.py --outdir=runs --data=church256.zip --cfg=paper256 --gpus=8 --aug=noaug --kimg=50000
    \b
      # The baseline with ADA, and settings that follow from the resolution and the number of GPUs.
      python train.py --outdir=runs --data=images.zip --method=stylegan2
    \b
      # What would be run, without running it.
      python train.py --outdir=runs --data=images.zip --dry-run
    """
    command = _said_explicitly(click.get_current_context())
    if _is_under_torchrun():
        run_under_torchrun(command, said)
        return
    job = prepare(command, said)
    if job is not None:
        from training import launch

        with resume.locked(job.run_dir):
            launch.run(job)


def _said_explicitly(context: click.Context) -> dict[str, Any]:
    """The options that stand on the command line, without those at their defaults."""
    sources = click.core.ParameterSource.COMMANDLINE
    return {name: value for name, value in context.params.items() if context.get_parameter_source(name) == sources}


def _is_under_torchrun() -> bool:
    """Whether this is one of several processes that something else started.

    Raises:
        UserError: Some of the variables that tell are missing, or are no numbers.
    """
    given = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")}
    if given["RANK"] is None or given["WORLD_SIZE"] is None:
        return False
    if given["WORLD_SIZE"] == "1" and given["MASTER_ADDR"] is None:  # of a cluster's job of one process, or a notebook
        return False
    numbers = [given[name] for name in given if name != "MASTER_ADDR"]
    if None in given.values() or not all(map(str.isdecimal, numbers)) or int(numbers[0]) >= int(numbers[1]):
        found = [f"{name} is not set" if value is None else f"{name} is {value!r}" for name, value in given.items()]
        raise UserError("these variables tell the processes of a run apart, and don't fit together: "
                        f"{', '.join(found)}. Start with torchrun, which sets them all, or unset RANK and WORLD_SIZE")
    return True


def prepare(command: dict[str, Any], said: dict[str, Any]) -> "launch.Job | None":
    """Check everything that a run needs, and make its directory or find the one to go on in; None after a dry run.

    Args:
        command: What was said, by option.
        said:    The same, and the defaults of all other options.

    Raises:
        UserError: The first thing that is wrong.
    """
    run, busy = find_run(command)
    if run is not None:  # resolved as at its start, when the batch size may have followed from the number of GPUs
        said = {**said, **run.command, **command, "gpus": run.command.get("gpus"), "resume": run.command.get("resume")}
    if said["resume"] == "auto":
        said = {**said, "resume": None}
    for name in ("outdir", "data"):
        if said[name] is None and not (name == "outdir" and run is not None):
            raise click.MissingParameter(param_type="option", param_hint=f"'--{name}'")
    arguments = parse(resume.absolute_paths(said))
    _check_apart(arguments.data, arguments.outdir if run is None else run.path, new=run is None)
    if run is not None:
        for option in sorted(set(run.relative) - {"resume", *command}):
            print(f"Warning: {run.path} names its --{option} by a relative path: taking {run.command[option]}",
                  file=sys.stderr)
    dataset, source = inspect_dataset(arguments)
    problems: list[str] = []
    options = size_like_source(arguments, dataset, run, problems)
    config = presets.resolve(options, dataset, device=choose_device(arguments))
    config = dataclasses.replace(config, timeout_sec=arguments.timeout_sec, keep=arguments.keep)
    if run is not None:
        num_gpus = command.get("gpus", run.config.num_gpus)
        config = resume.changed(run, config, num_gpus=num_gpus, anyway="resume_anyway" in command)
        configs.validate(config)
    if busy is not None:
        print(f"Warning: {busy}, which the same command started, is being trained by another program: this is a second "
              "run", file=sys.stderr)
    for line in arguments.notes + presets.warnings(arguments.options, config):
        print(f"Warning: {line}", file=sys.stderr)
    # Trust is of this command alone: what a run's options say may come from a stranger.
    problems = validate(config, arguments, run=run, trust=command.get("trust_net", False), of_source=problems)
    description = comparison.describe(arguments.options, config, source.name)
    if arguments.dry_run:
        if run is not None:
            print(f"Would resume in {run.path}{_how_not_to(command)}\n")
        print_options(config, description)
        warn_of_long_work(config, source, run)
        print_verdict(config if run is None else dataclasses.replace(config, resume=None), problems)
        return None
    from training import launch

    launch.clear_outcome(said["outcome"])
    source.check()
    if run is None:
        job = start_run(config, command, arguments.outdir, description)
    else:
        job = go_on(run, config, command)
    warn_of_long_work(config, source, run)
    return job._replace(outcome=said["outcome"])


def warn_of_long_work(config: TrainingConfig, source: Any, run: resume.Run | None) -> None:
    from training.runs.training_state import list_states

    states = list_states(run.path) if run is not None else []
    line = estimate.describe_long_work(config, source, done_kimg=states[0].nimg / 1000 if states else 0)
    if line is not None:
        print(f"Warning: {line}", file=sys.stderr, flush=True)


def _automatic(command: dict[str, Any]) -> bool:
    return command.get("resume", "auto") == "auto"


def _how_not_to(command: dict[str, Any]) -> str:
    return "; --resume=noresume starts a new run" if _automatic(command) else ""


def find_run(command: dict[str, Any]) -> resume.Found:
    """The run that --resume names, or that the same command left unfinished, or none for a new one."""
    if _automatic(command):
        return resume.find_run(command["outdir"], command) if command.get("outdir") else resume.Found(None)
    wanted = command["resume"]
    if wanted == "noresume" or wanted in presets.RESUME_SOURCES or is_url(wanted):
        return resume.Found(None)
    if os.path.splitext(wanted)[1] in NETWORK_SUFFIXES:     # it is checked with the other networks
        return resume.Found(None)
    _check_exists(wanted)
    if not resume.is_run(wanted):
        return resume.Found(None)
    try:
        return resume.Found(resume.open_run(wanted))
    except UserError as e:
        raise UserError(f"--resume: {e}") from e


def _check_exists(source: str) -> None:
    """Raise UserError where there is nothing at the path that --resume names."""
    if not is_url(source) and not os.path.exists(source):
        raise UserError(f"--resume: {_describe_missing(source)}; give the folder of a run, one of its training states, "
                        f"a network pickle (path or URL), or one of {', '.join(presets.RESUME_SOURCES)}")


def _describe_missing(path: str) -> str:
    """That there is nothing at a path, and what is there instead under a name like that."""
    folder, name = os.path.split(os.path.normpath(path))
    if not os.path.isdir(folder or "."):
        return f"there is no folder {folder}"
    there = [*sorted(os.listdir(folder or ".")), *presets.RESUME_SOURCES]
    names = difflib.get_close_matches(name, there) or [n for n in there if n.split("-")[0] == name.split("-")[0]][:3]
    near = [name if name in presets.RESUME_SOURCES else os.path.join(folder, name) for name in names]
    return f"there is no {path or repr(path)}" + (f" (there is {', '.join(near)})" if near else "")


def _check_apart(data: str, place: str, *, new: bool) -> None:
    """Raise UserError if a run would lie in the folder of its images: its own pictures would join them."""
    folder = os.path.realpath(data)
    if os.path.isdir(folder) and place and os.path.commonpath([folder, os.path.realpath(place)]) == folder:
        do = (f"choose an --outdir outside {folder}" if new else
              "move the images elsewhere, and give that folder with --data")
        raise UserError(f"{place} lies inside {data}, so the pictures of the run would join the images that it learns "
                        f"from: {do}")


def parse(said: dict[str, Any]) -> Arguments:
    """Translate the command line; the released programs' options become ours.

    Raises:
        UserError: Two options contradict each other.
    """
    said = dict(said)
    _merge_released_names(said)
    notes: list[str] = []
    said["recipe"] = said["recipe"] or ("released" if said["reg_type"] == "glead" else "paper")
    said["method"] = _choose_method(said, notes)
    for images in ("real", "fake"):
        _translate_target(said, images, notes)
    names = {"preset": "cfg", "decoder_res": "res_decoder", "channel_base": "cbase", "channel_max": "cmax",
             "mbstd_group_size": "mbstd_group", "r1_gamma": "gamma", "total_kimg": "kimg", "batch_size": "batch",
             "kimg_per_tick": "tick", "snapshot_ticks": "snap", "random_seed": "seed",
             "freeze_layers": "freezed", "channels_last": "nhwc"}
    same = ("method", "recipe", "aug", "p", "target", "augpipe", "recon_target", "lambda_real", "lambda_fake",
            "distance_real", "distance_fake", "res_g", "decoder_kernel", "decoder_act", "ggdr_res", "perceptual",
            "map_depth", "batch_gpu", "grid_size", "detector", "workers", "resume", "fp32", "half", "lpips_fp32",
            "allow_tf32")
    options = presets.Options(
        **{ours: said[theirs] for ours, theirs in names.items()},
        **{name: said[name] for name in same},
        metrics=None if said["metrics"] is None else tuple(said["metrics"]),
        cudnn_benchmark=not said["nobench"],
        num_gpus=1 if said["gpus"] is None else said["gpus"],
    )
    rest = {name: said[name] for name in ("outdir", "data", "cond", "subset", "mirror", "device", "keep", "dry_run")}
    return Arguments(options=options, notes=notes, timeout_sec=said["timeout"], **rest)


def _merge_released_names(said: dict[str, Any]) -> None:
    pairs = (("lambda_real", "reg_weight_real"), ("lambda_fake", "reg_weight_fake"), ("res_g", "glead_res_g"),
             ("res_decoder", "glead_res_d"), ("decoder_kernel", "decoder_conv_kernel_size"))
    for ours, theirs in pairs:
        value = said.pop(theirs)
        if value is not None and said[ours] is not None:
            option = "--" + ours.replace("_", "-")
            raise UserError(f"{option} and --{theirs} are two names of one option: give one of them")
        said[ours] = said[ours] if value is None else value


def _choose_method(said: dict[str, Any], notes: list[str]) -> str:
    """The method that --method, --reg_type and --reg_target_fake agree on; GLeaD where none of them says anything.

    Where --reg_type=glead says nothing of generated images, they get the task that the released program gives them.
    """
    given, reg_type = said["method"], said["reg_type"]
    targets = [f"--{name}={said[name]}" for name in ("reg_target_real", "reg_target_fake") if said[name] is not None]
    if reg_type is None and not targets:
        return given or "glead"
    if reg_type in ("none", "ggdr"):
        implied = "stylegan2" if reg_type == "none" else "ggdr"
        notes += [f"{target} has no effect with --reg_type={reg_type}" for target in targets]
    elif said["reg_target_fake"] in ("gfwimage", "gfeat"):
        implied = "glead" if said["reg_target_fake"] == "gfwimage" else "glead+ggdr"
    else:
        unsaid = said["reg_target_fake"] is None and said["reg_loss_fake"] in (None, "cos")
        of_recipe = "glead+ggdr" if said["recipe"] == "released" and unsaid else "glead"
        implied = given if given in ("glead", "glead+ggdr") else of_recipe
    if given not in (None, implied):
        why = ([f"--reg_type={reg_type}"] if reg_type else []) + (targets if reg_type not in ("none", "ggdr") else [])
        raise UserError(f"--method={given} contradicts {' '.join(why)}, which mean --method={implied}")
    return implied


def _translate_target(said: dict[str, Any], images: str, notes: list[str]) -> None:
    """What the released programs compare, and how, as weights and distances; a target of None is a weight of 0."""
    distances = {theirs: ours for ours, theirs in configs.LEGACY_DISTANCES.items()}
    said[f"distance_{images}"] = distances.get(said[f"reg_loss_{images}"])
    target = said[f"reg_target_{images}"]
    if said["method"] not in ("glead", "glead+ggdr") or target is None:
        return
    if images == "real" and target == "gfeat":
        raise UserError("--reg_target_real is gfeat, but real images have no feature map of G: say gfwimage or None")
    if target == "None":
        if said[f"lambda_{images}"]:
            notes.append(f"--lambda-{images} (--reg_weight_{images}) has no effect with --reg_target_{images}=None")
        said[f"lambda_{images}"] = 0.0


def inspect_dataset(arguments: Arguments) -> Inspected:
    """Open the data set and say how it is to be used.

    Raises:
        UserError: It can't be opened, has no labels for --cond, or fewer images than --subset.
    """
    from training.data.dataset import ImageFolderDataset

    source = ImageFolderDataset(arguments.data, use_labels=arguments.cond)
    if arguments.cond and not source.has_labels:
        raise UserError(f"--cond=true needs labels, and {arguments.data} has none in its dataset.json")
    size, subset = len(source), arguments.subset
    if source.label_dim > max(size, 1000) and source.has_onehot_labels:
        raise UserError(f"the classes of {arguments.data} go up to {source.label_dim - 1} for {size} images, and each "
                        "costs memory: number them from 0 without gaps")
    if subset is not None and not 1 <= subset <= size:
        raise UserError(f"--subset is {subset}, expected 1 to {size}, the number of images in {arguments.data}")
    dataset = DatasetConfig(
        path=arguments.data,
        resolution=source.resolution,
        num_channels=source.num_channels,
        label_dim=source.label_dim if arguments.cond else 0,
        use_labels=arguments.cond,
        max_size=subset if subset != size else None,
        xflip=arguments.mirror,
        random_seed=arguments.options.random_seed,
    )
    return Inspected(dataset, source)


def choose_device(arguments: Arguments) -> str:
    """--device, where "auto" is CUDA if there is a GPU, or if several were asked for."""
    if arguments.device != "auto":
        return arguments.device
    import torch

    return "cuda" if arguments.options.num_gpus > 1 or torch.cuda.is_available() else "cpu"


def size_like_source(
    arguments: Arguments, dataset: DatasetConfig, run: resume.Run | None, problems: list[str]
) -> presets.Options:
    """The options; sizes that were left out are those of the network that the run starts from, so that it begins alike.

    A dry run downloads nothing, so it leaves the sizes of networks from elsewhere open. What is wrong with the source
    is added to `problems`, to be told together with what is wrong with other nets.
    """
    options = arguments.options
    source = presets.source_network(options)
    if source is None or run is None and arguments.dry_run and _is_downloaded(source):
        return options
    if run is not None:     # the source may be gone
        G = run.config.G
        sizes = (G.map_depth, G.channel_base, G.channel_max)
    else:
        try:
            sizes = _sizes_of_source(source, options, dataset)
        except UserError as e:
            problems += e.args
            return options
    names = ("map_depth", "channel_base", "channel_max")
    left_out = {name: size for name, size in zip(names, sizes) if getattr(options, name) is None}
    return dataclasses.replace(options, **left_out)


def _sizes_of_source(source: str, options: presets.Options, dataset: DatasetConfig) -> tuple[int, int, int]:
    """Layers of the mapping network, channel base and limit of a network file; a URL is downloaded, once."""
    from legacy import load_network_pkl

    _check_exists(source)
    try:
        networks = load_network_pkl(source, only=("G", "G_ema"))
    except UserError as e:
        raise UserError(f"--resume: {e}") from e
    G = networks["G"] or networks["G_ema"]
    if G is None:
        raise UserError(f"--resume: {source} holds neither G nor G_ema")
    sizes = configs.sizes_of(G)
    if sizes.map_widths != (configs.GeneratorConfig.w_dim,):
        theirs = " and ".join(map(str, sizes.map_widths))
        raise UserError(f"--resume: z, w and the mapping layers of {source} have {theirs} numbers, those of this run "
                        f"{configs.GeneratorConfig.w_dim}")
    if options.map_depth not in (None, sizes.map_depth):
        raise UserError(f"--map-depth is {options.map_depth}, but the mapping network of {source} has "
                        f"{sizes.map_depth} layers: leave out --map-depth to take it over")
    theirs, ours = (G.img_channels, G.img_resolution), (dataset.num_channels, dataset.resolution)
    if theirs != ours:
        print(f"Warning: {source} makes images of {theirs[0]}x{theirs[1]}x{theirs[1]}, this run "
              f"{ours[0]}x{ours[1]}x{ours[1]}: only layers of the same name and shape are taken over", file=sys.stderr)
    return sizes.map_depth, sizes.channel_base, sizes.channel_max


def validate(
    config: TrainingConfig, arguments: Arguments, *, run: resume.Run | None, trust: bool, of_source: list[str]
) -> list[str]:
    """Find out now what would otherwise stop the run later, a new one or `run` going on.

    A dry run downloads nothing, so networks from elsewhere go unchecked.

    Returns:
        Of a dry run, what this machine lacks; else it is empty.

    Args:
        trust:     Open unknown TorchScript nets, now and from now on.
        of_source: What is wrong with the network that the run starts from.

    Raises:
        UserError: The first thing that is wrong, or all that is wrong with the nets that the run needs.
    """
    from torch_utils.ops.build import custom_ops
    from training import launch
    from training.tasks import validate_tasks

    custom_ops.kernels_wanted()
    validate_tasks(config)
    _check_metric_names(config)
    _check_keep(config)
    gpus_here = int(os.environ.get("LOCAL_WORLD_SIZE", config.num_gpus) if _is_under_torchrun() else config.num_gpus)
    checks = [functools.partial(launch.check_gpus, config.device, gpus_here)]
    checks += [functools.partial(_check_outdir, arguments.outdir)] if run is None else []
    nets = [
        functools.partial(check, config, trust=trust)
        for net, check in ((config.perceptual, _check_perceptual), (_detector(config), _check_detector))
        if net is not None and not (arguments.dry_run and _is_downloaded(net))
    ]
    problems: list[str] = []
    for check in [*checks, functools.partial(check_all, functools.partial(_raise_all, of_source), *nets)]:
        try:
            check()
        except UserError as e:
            if not arguments.dry_run:
                raise
            problems += e.args
    return problems


def _raise_all(problems: list[str]) -> None:
    if problems:
        raise UserError(*problems)


def _check_metric_names(config: TrainingConfig) -> None:
    if not config.metrics:
        return
    from metrics.metric_main import check_metrics

    check_metrics(config.metrics)


def _check_keep(config: TrainingConfig) -> None:
    from training.runs.checkpoints import Keep

    Keep.parse(config.keep)


def _check_outdir(outdir: str) -> None:
    """A run directory must find its place; nothing is made yet."""
    if not outdir:
        raise UserError("--outdir is empty: give the name of a folder")
    try:
        check_writable(os.path.join(outdir, "run"))
    except UserError as e:
        raise UserError(f"--outdir: {e}") from e


def _check_perceptual(config: TrainingConfig, *, trust: bool) -> None:
    from training.perceptual import check_perceptual

    check_perceptual(config.perceptual, resolution=config.dataset.resolution, trust=trust)


def _check_detector(config: TrainingConfig, *, trust: bool) -> None:
    from metrics.metric_main import check_detector

    try:
        check_detector(config.metrics, config.detector, trust=trust)
    except UserError as e:
        raise UserError(*(f"{line}; --metrics=none trains without scores" for line in e.args)) from e


def _trust_nets(config: TrainingConfig) -> None:
    """What `validate` does for the first machine of a run, on another one: the cache may be its own."""
    from torch_utils.formats.feature_nets import trust_net

    for net in (config.perceptual, config.detector):
        if net is not None and (is_url(net) or os.path.isfile(net)):
            trust_net(net)


def _detector(config: TrainingConfig) -> str | None:
    """Which feature net the metrics need: a path, a URL, "standard", or none."""
    return (config.detector or "standard") if config.metrics else None


def _is_downloaded(net: str) -> bool:
    return is_url(net) or net == "standard" or net in presets.PERCEPTUAL.values()


def print_options(config: TrainingConfig, description: str) -> None:
    """What the run is, on stdout: the options as in `training_options.json`, then in words and numbers."""
    print("Training options:")
    print(json.dumps({k: v for k, v in configs.to_legacy_kwargs(config).items() if k != "config"}, indent=2))
    print()
    parameters = estimate.count_parameters(config)
    memory = estimate.estimate_memory(config, parameters)
    lines = {
        "Run": description,
        "Data": _describe_data(config.dataset),
        "Method": _describe_method(config),
        "Real images": _describe_task(config.loss.real_task, config),
        "Generated images": _describe_task(config.loss.fake_task, config),
        "Decoder of D": _describe_decoder(config),
        "Augmentation": _describe_augment(config),
        "Start": _describe_start(config),
        "Length": f"{config.total_kimg:g} kimg (thousand images), in ticks of {config.kimg_per_tick:g} kimg",
        "Snapshots": f"every {config.snapshot_ticks} ticks" if config.snapshot_ticks else "at the end",
        "Metrics": ", ".join(config.metrics) or "none",
        "Batch": _describe_batch(config),
        "R1 gamma": f"{config.loss.r1_gamma:g}",
        "Learning rate": f"{config.G_opt.lr:g} of G, {config.D_opt.lr:g} of D",
        "Parameters": f"{parameters.G:,} of G, {parameters.D:,} of D",
        "Memory per device": f"about {sum(memory) / 1e9:.1f} GB: {memory.weights / 1e9:.1f} for weights and "
                             f"optimisers, {memory.activations / 1e9:.1f} for activations",
    }
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name + ':':{width + 1}} {text}")
    print(comparison.departures_line(config))


def print_verdict(config: TrainingConfig, problems: list[str]) -> None:
    """The end of a dry run: what stands in the way of a run."""
    unseen = [net for net in (config.resume, config.perceptual, _detector(config)) if net and _is_downloaded(net)]
    names = ", ".join("the metrics' standard nets" if net == "standard" else net for net in unseen)
    sys.stdout.flush()
    for problem in problems:
        print(f"Warning: a run would stop here: {problem}", file=sys.stderr)
    if not problems:
        print("\nNothing stands in the way of this run here"
              + (f", unless one of these is missing, which were not looked for: {names}" if names else ""))


def _describe_data(dataset: DatasetConfig) -> str:
    size = "all images" if dataset.max_size is None else f"{dataset.max_size} images"
    labels = f"labels of {dataset.label_dim}" if dataset.use_labels else "no labels"
    shape = f"{dataset.num_channels}x{dataset.resolution}x{dataset.resolution}"
    return f"{dataset.path}, {size}, {shape}, {labels}, {'mirrored too' if dataset.xflip else 'not mirrored'}"


def _describe_task(task: configs.TaskConfig | None, config: TrainingConfig) -> str:
    from training.tasks import TASKS

    return "no task" if task is None else TASKS[task.kind].describe(task, config)


def _describe_decoder(config: TrainingConfig) -> str:
    res, size = config.D.decoder_res, config.D.decoder_kernel
    return "none" if res is None else f"up to {res}x{res}, {size}x{size} convolutions, {config.D.decoder_act}"


def _describe_method(config: TrainingConfig) -> str:
    text = f"{config.method}, settings of --cfg={config.preset}"
    if config.recipe == "released":
        text += ", as GLeaD's released program does it; --recipe=paper follows the paper"
    return text


def _describe_start(config: TrainingConfig) -> str:
    """The network to start from, and which sizes of it took the place of those of --cfg."""
    if config.resume is None:
        return "new networks"
    cfg = presets.auto_preset(presets.PRESETS[config.preset], config.dataset.resolution, config.num_gpus)
    text, depth = config.resume, config.G.map_depth
    if depth != cfg.map_depth:
        text += f"; mapping network: {depth} layers, from the source instead of {cfg.map_depth}"
    cbase = cfg.cbase if config.method == "stylegan2" else cfg.cbase_task
    if (config.G.channel_base, config.G.channel_max) != (cbase, cfg.cmax):
        text += f"; cbase {config.G.channel_base} and cmax {config.G.channel_max} instead of {cbase} and {cfg.cmax}"
    return text


def _describe_batch(config: TrainingConfig) -> str:
    """Such as `64 images = 8 steps of 8 on 1 GPU`."""
    steps, gpus = config.batch_size // config.num_gpus // config.batch_gpu, config.num_gpus
    where = "1 GPU" if gpus == 1 else f"each of {gpus} GPUs"
    if config.device == "cpu":
        where = "the CPU" if gpus == 1 else f"the CPU in each of {gpus} processes"
    return f"{config.batch_size} images = {steps} step{'s' if steps > 1 else ''} of {config.batch_gpu} on {where}"


def _describe_augment(config: TrainingConfig) -> str:
    augment = config.augment
    if augment is None:
        return "none"
    if augment.mode == "fixed":
        return f"{augment.pipe}, each transform with probability {augment.p:g}"
    return f"{augment.pipe}, adapted to a mean sign of {augment.target:g} over {augment.ada_kimg:g} kimg"


def start_run(config: TrainingConfig, command: dict[str, Any], outdir: str, description: str) -> "launch.Job":
    """Make the run directory, and keep the options and a log in it."""
    from training import launch

    path = run_dir.create_run_dir(outdir, description)
    job = launch.Job(config, path, resume=None, command=resume.absolute_paths(command))
    launch.write_options(job)
    with run_dir.tee_output(os.path.join(path, "log.txt")):
        print_options(config, os.path.basename(path))
        print(f"\nTraining in {path}", flush=True)
    return job


def go_on(run: resume.Run, config: TrainingConfig, command: dict[str, Any]) -> "launch.Job":
    """The options as they are now are kept once the state is restored; until then nothing is changed."""
    from training import launch

    passing = ("resume", "resume_anyway", "gpus", "trust_net")
    kept = {**run.command, **{name: value for name, value in command.items() if name not in passing}}
    with resume.locked(run.path):
        print(f"Resuming in {run.path}{_how_not_to(command)}")
        print(comparison.departures_line(config), flush=True)
    return launch.Job(config, run.path, resume=run.state, command=resume.absolute_paths(kept),
                      anyway="resume_anyway" in command)


def run_under_torchrun(command: dict[str, Any], said: dict[str, Any]) -> None:
    """Train as one of the processes that torchrun started, on any number of machines; the first prepares the run."""
    import torch

    from torch_utils import distributed
    from training import launch

    size, rank = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    if command.get("gpus") not in (None, size):
        raise UserError(f"--gpus is {command['gpus']}, but torchrun started {size} processes: leave out --gpus")
    device = said["device"]
    if device == "auto":  # all processes have to find the same one, also those that don't know the run to go on with
        device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {"gpus": size, "device": device}
    job = prepare({**command, **found}, {**said, **found}) if rank == 0 else None
    if said["dry_run"]:
        return
    try:
        distributed.join(device=device, timeout_sec=said["timeout"], rank0_sec=max(said["timeout"], PREPARING_SEC))
        job = launch.Job.from_json(distributed.from_rank0(job and job.to_json()))
        if "trust_net" in command:
            _trust_nets(job.config)
        with resume.locked(job.run_dir) if rank == 0 else contextlib.nullcontext():
            launch.run_rank(job)
    except UserError as e:
        if distributed.first_to_report(str(e)):
            print(f"Error: {e}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # what is in flight to lost processes can't be waited for
    distributed.leave()


if __name__ == "__main__":
    main()
