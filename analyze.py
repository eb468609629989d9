"""Draw the figures of GLeaD's paper for your own runs and networks, and write the numbers behind them."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, Sequence

import click
from tqdm import tqdm

import cli
from dnnlib.util import UserError, check_writable, made_folder

if TYPE_CHECKING:  # PyTorch takes seconds to import: --help and usage errors don't wait for it
    import numpy as np
    import torch

    from analysis.drawing import Row
    from analysis.fairness import Judgements
    from analysis.reconstructions import Quality
    from training.data.dataset import ImageFolderDataset


runs_argument = click.argument("runs", type=cli.Path(), nargs=-1, required=True, metavar="RUN_DIR...")
networks_option = click.option("--network", "networks", type=cli.Path(), multiple=True, required=True,
                               metavar="PATH|URL", help="Network pickle with G and D; may be given several times")
outdir_option = click.option("--outdir", type=cli.Path(file_okay=False), required=True, help="Where to write")
labels_option = click.option("--labels", type=cli.CommaList(), metavar="LIST",
                             help="Names in the figure  [default: method]")
images_option = click.option("--data", type=cli.Path(), multiple=True, metavar="IMAGES",
                             help="Images: file, folder, zip or pattern like 'a/*.png'; may be given several times")
seeds_option = click.option("--seeds", type=cli.IntRanges(), default="0-7", show_default=True,
                            help="Seeds of generated images, as in generate.py")
max_images_option = click.option("--max-images", type=click.IntRange(min=1), default=64, show_default=True,
                                 metavar="N", help="Take only the first N images of --data")
batch_option = click.option("--batch", type=click.IntRange(min=1), default=16, show_default=True,
                            help="Images at a time")


def command(*decorators: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that makes a command with these options and the common ones. The function gets them as one object."""
    def decorate(function: Callable[[cli.Arguments], None]) -> Any:
        @functools.wraps(function)
        def run(**values: Any) -> None:
            data = values.get("data") or ()
            cli.check_outdir(values["outdir"], images=[data] if isinstance(data, str) else data)
            check_writable(Path(values["outdir"], "figure"))
            with cli.shown_warnings():
                function(cli.Arguments(**values))

        for decorator in reversed([*decorators, outdir_option, batch_option, cli.device_option, cli.trust_option]):
            run = decorator(run)
        return click.command(cls=cli.Command, context_settings={"max_content_width": 120})(run)

    return decorate


# ----------------------------------------------------------------------------------------------------------------------
# Scores over training: Figure 4.


@command(
    runs_argument,
    click.option("--data", type=cli.Path(), metavar="FOLDER|ZIP",
                 help="Real images that D was not trained on: the D of each snapshot scores them"),
    click.option("--left-out", is_flag=True,
                 help="Like --data, with the images that train.py --subset left out"),
    click.option("--num-images", type=click.IntRange(min=2), default=1000, show_default=True,
                 help="Images of each kind that D scores with --data and --left-out"),
    labels_option,
    click.option("--smooth", "weight", default=0.9, show_default=True, type=click.FloatRange(0, 1, max_open=True),
                 help="Weight of past values in the smoothed curves; 0 = no smoothing"),
)
def scores(opts: cli.Arguments) -> None:
    """Realness scores of real and fake images over training (GLeaD, Fig. 4).

    Runs whose options differ only in the seed are drawn as one curve with a band. With --data or --left-out, the D of
    every snapshot also scores unseen real images and newly generated ones. The figure then shows the share that D
    classifies correctly, and how much higher it scores the images that it was trained on.

    \b
    python analyze.py scores runs/00000-church256-glead runs/00001-church256-stylegan2 --outdir=figures
    python analyze.py scores runs/00002-cifar10-glead --left-out --outdir=figures
    """
    if opts.data is not None and opts.left_out:
        raise click.UsageError("give --data or --left-out, not both")
    from analysis.curves import group_runs, read_curves, unique_ends
    from analysis.drawing import save_figure, save_table
    from analysis.fairness import FAKE, REAL, draw_scores, score_rows

    runs = [Path(path) for path in dict.fromkeys(map(os.path.abspath, opts.runs))]
    curves = {run: read_curves(run) for run in runs}
    for run in runs:
        if not {REAL, FAKE} <= curves[run].keys():
            raise UserError(f"{run}/stats.jsonl holds no {REAL} and {FAKE}: give runs that train.py made")
    groups = group_runs(runs)
    names = pick_labels(opts.labels, [group.label for group in groups], "runs (those that differ in the seed alone are "
                        "one)")
    groups = [group._replace(label=name) for group, name in zip(groups, names)]
    judgements = judge_runs(opts, runs) if opts.data is not None or opts.left_out else {}
    with made_folder(opts.outdir):
        figure = draw_scores(groups, curves, judgements, weight=opts.weight)
        for suffix in ("png", "pdf", "svg"):
            save_figure(figure, Path(opts.outdir, f"scores.{suffix}"))
        columns = ["label", "run", "kimg", "statistic", "value", "smoothed"]
        save_table(Path(opts.outdir, "scores.csv"), columns,
                   score_rows(groups, curves, judgements, weight=opts.weight))
    for name, found in zip(unique_ends(list(judgements)), judgements.values()):
        kimg, last = max(found.items())
        click.echo(f"{name} at {kimg:g} kimg: accuracy {last.held_out_accuracy:.3f} on unseen real images, "
                   f"{last.train_accuracy:.3f} on training images, {last.fake_accuracy:.3f} on fake ones; gap "
                   f"{last.gap:.3f}")
    click.echo(f"scores.png, .pdf, .svg and .csv in {opts.outdir}")


def judge_runs(opts: cli.Arguments, runs: Sequence[Path]) -> Judgements:
    """Let the D of each snapshot score training images, unseen images and generated images."""
    from analysis.fairness import judge
    from torch_utils import misc
    from training.runs.training_state import list_pickles

    device = misc.pick_device(opts.device)
    pickles = {run: list_pickles(run) for run in runs}
    for run in runs:
        if not pickles[run]:
            raise UserError(f"{run} holds no network pickles, whose D could score images: leave out "
                            f"--{'left-out' if opts.left_out else 'data'}")
    samples = {run: real_samples(opts, run) for run in runs}
    result: Judgements = {run: {} for run in runs}
    with tqdm(total=sum(map(len, pickles.values())), unit="snapshot", file=sys.stderr) as progress:
        for run in runs:
            for pickle in pickles[run]:
                G, D = load_pair(opts, str(pickle.path))
                train, held_out = samples[run]
                if D.c_dim != train.labels.shape[1] or D.c_dim != held_out.labels.shape[1]:
                    raise UserError(f"{pickle.path}: D takes labels of {D.c_dim} numbers; those of the images have "
                                    f"{train.labels.shape[1]} (training) and {held_out.labels.shape[1]} (unseen)")
                result[run][pickle.kimg] = judge(G.to(device), D.to(device), train, held_out, batch=opts.batch)
                progress.update()
    return result


def real_samples(opts: cli.Arguments, run: Path) -> tuple[Any, Any]:
    """Samples of the training images of a run, and of real images that its D has not seen."""
    from analysis.fairness import draw_sample, left_out
    from training.data.dataset import ImageFolderDataset
    from training.runs.run_scores import open_training_set, read_options

    trained_on = read_options(run).training_set_kwargs
    with_labels = {"use_labels": bool(trained_on.get("use_labels"))}
    train = open_training_set(str(run), trained_on, **with_labels)
    if opts.left_out:
        unseen, indices = train.replace(max_size=None), left_out(train)
    else:
        if os.path.exists(opts.data) and os.path.samefile(opts.data, train.path):
            raise UserError(f"--data={opts.data} is what {run} was trained on: give images that D has not seen, or say "
                            "--left-out")
        unseen, indices = ImageFolderDataset(opts.data, resolution=train.resolution, **with_labels), None
    return (draw_sample(train, count=opts.num_images, seed=0),
            draw_sample(unseen, indices, count=opts.num_images, seed=1))


# ----------------------------------------------------------------------------------------------------------------------
# Networks and images that the other commands share.


class Pair(NamedTuple):
    """G and D of a --network, on their device."""

    label: str              # In figures and tables.
    path: str
    G: torch.nn.Module
    D: torch.nn.Module


def pick_labels(said: list[str] | None, default: list[str], what: str) -> list[str]:
    if said and len(said) != len(default):
        raise UserError(f"--labels has {len(said)} names for {len(default)} {what}")
    return said or default


def load_pair(opts: cli.Arguments, path: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    return cli.load_pair(path, trust=opts.trust_pickle, purpose="this figure")


def load_models(opts: cli.Arguments) -> list[Pair]:
    """Load the networks of --network. They must be for images of one size."""
    from analysis.curves import unique_labels
    from torch_utils import misc

    device = misc.pick_device(opts.device)
    labels = pick_labels(opts.labels, unique_labels(opts.networks), "networks")
    models = []
    for label, path in zip(labels, opts.networks):
        G, D = load_pair(opts, path)
        models.append(Pair(label, path, G.to(device), D.to(device)))
    cli.check_one_size([(model.path, net) for model in models for net in (model.G, model.D)])
    return models


def seeds_to_ws(opts: cli.Arguments, G: torch.nn.Module, seeds: Sequence[int]) -> torch.Tensor:
    """The ws of seeds, float32 [N, num_ws, w_dim]."""
    from sampling.images import map_latents, seed_latents

    return map_latents(G, seed_latents(seeds, G.z_dim), label=cli.pick_label(G, opts.class_idx, opts.label))


def fake_images(opts: cli.Arguments, G: torch.nn.Module, seeds: Sequence[int]) -> np.ndarray:
    """The images that G makes of seeds, uint8 [N, R, R, C]."""
    from sampling.images import synthesize

    cli.check_seeds("--seeds", seeds)
    return synthesize(G, seeds_to_ws(opts, G, seeds), batch=opts.batch)


def real_images(opts: cli.Arguments, G: torch.nn.Module) -> tuple[list[str], np.ndarray]:
    """Names and pixels, uint8 [N, R, R, C], of the images of --data, cropped and scaled to fit the networks."""
    import numpy as np

    from sampling.input_images import InputImages

    images = InputImages(opts.data, resolution=G.img_resolution, channels=G.img_channels, max_images=opts.max_images)
    found = list(images)
    return [image.name for image in found], np.stack([image.pixels for image in found])


def in_batches(opts: cli.Arguments, pixels: np.ndarray) -> list[torch.Tensor]:
    """Batches of images uint8 [N, R, R, C], as D sees them: float32 [n, C, R, R] in [-1, 1]."""
    from sampling.images import to_tensor

    return list(to_tensor(pixels).split(opts.batch))


def labels_for(opts: cli.Arguments, model: Pair, count: int) -> torch.Tensor:
    """The label of --class or --label, repeated for each image: float32 [count, c_dim]."""
    import torch

    label = cli.pick_label(model.D, opts.class_idx, opts.label)
    return torch.zeros(count, 0) if label is None else torch.from_numpy(label).expand(count, -1)


def write_figure(
    opts: cli.Arguments, name: str, rows: Sequence[Row], columns: Sequence[str] = (), table: Sequence[list[Any]] = ()
) -> None:
    """Write NAME.png with rows of images, and NAME.csv with the table if there is one."""
    from analysis.drawing import draw_rows, save_figure, save_table

    with made_folder(opts.outdir):
        save_figure(draw_rows(rows), Path(opts.outdir, f"{name}.png"))
        if columns:
            save_table(Path(opts.outdir, f"{name}.csv"), columns, table)
    click.echo(f"{name}.png{' and .csv' if columns else ''} in {opts.outdir}")


# ----------------------------------------------------------------------------------------------------------------------
# Reconstructions: Figure 5.


@command(
    networks_option, images_option, max_images_option, seeds_option, labels_option,
    click.option("--perceptual", type=cli.Path(), default="lpips-vgg", show_default=True, metavar="NAME|PATH|URL",
                 help="Perceptual distance, as train.py --perceptual"),
    cli.class_option, cli.label_option, cli.trust_net_option,
)
def reconstruct(opts: cli.Arguments) -> None:
    """Reconstructions, by D and G, of unseen real images and of generated ones (GLeaD, Fig. 5): LPIPS, PSNR and SSIM.

    \b
    python analyze.py reconstruct --network=glead.pkl --data=unseen.zip --outdir=figures
    """
    from analysis import reconstructions
    from analysis.drawing import SHOWN, Row
    from sampling.reconstruction import find_res_g
    from training.perceptual import build_perceptual

    models = load_models(opts)
    for model in models:
        find_res_g(model.G, model.D, name=model.path)
    G = models[0].G
    reconstructions.check_size(G.img_resolution)
    device = next(G.parameters()).device
    net = build_perceptual(opts.perceptual, device=device, img_channels=G.img_channels, trust=opts.trust_net)
    real = real_images(opts, G) if opts.data else None
    net_name = "LPIPS" if opts.perceptual.startswith("lpips") else Path(opts.perceptual).stem
    rows, table = [], []
    kinds = ["real", "generated"] if real is not None else ["generated"]
    for kind in kinds:
        for model in models:
            names, images = real if kind == "real" else (
                [f"seed{seed:04d}" for seed in opts.seeds], fake_images(opts, model.G, opts.seeds))
            rebuilt = rebuild_all(opts, model, images)
            found = reconstructions.compare(images, rebuilt, net)
            table += [[model.label, kind, name, *quality] for name, quality in zip(names, found)]
            mean = reconstructions.mean_quality(found)
            table.append([model.label, kind, "mean", *mean])
            click.echo(f"{model.label}, mean of {len(found)} {kind} images: {net_name} {mean.perceptual:.4f}, "
                       f"psnr {mean.psnr:.2f} dB, ssim {mean.ssim:.4f}")
            if kind == "generated" or model is models[0]:
                label = "unseen real" if kind == "real" else f"generated\n{model.label}"
                rows.append(Row(label, images[:SHOWN], gap=bool(rows)))
            distance = "LPIPS" if net_name == "LPIPS" else "perceptual"
            label = f"rebuilt\n{model.label}\n{distance} | PSNR | SSIM\nmean {format_quality(mean)}"
            rows.append(Row(label, rebuilt[:SHOWN], list(map(format_quality, found[:SHOWN]))))
    write_figure(opts, "reconstructions", rows, ["label", "kind", "image", net_name, "psnr", "ssim"], table)


def format_quality(quality: Quality) -> str:
    return f"{quality.perceptual:.2f} | {quality.psnr:.1f} | {quality.ssim:.2f}"


def rebuild_all(opts: cli.Arguments, model: Pair, images: np.ndarray) -> np.ndarray:
    """The reconstructions of images uint8 [N, R, R, C], of the same shape and type."""
    import numpy as np

    from sampling.reconstruction import find_res_g, rebuild

    res_g = find_res_g(model.G, model.D, name=model.path)
    return np.concatenate([rebuild(model.G, model.D, img, res_g=res_g).pixels for img in in_batches(opts, images)])


# ----------------------------------------------------------------------------------------------------------------------
# Attention: Figure 6.


@command(
    networks_option, images_option, max_images_option,
    click.option("--worst", type=click.IntRange(min=1), default=8, show_default=True, metavar="N",
                 help="Without --data: take the N generated images with the lowest scores by the first network's D"),
    click.option("--seeds", type=cli.IntRanges(), default="0-255", show_default=True,
                 help="Seeds of the generated images that --worst chooses from"),
    click.option("--fakes-of", type=cli.Path(), metavar="PATH|URL",
                 help="Network whose G makes the images  [default: the first --network]"),
    click.option("--res", type=click.IntRange(min=4),
                 help="Resolution of D's features to look at  [default: 64, or the highest below]"),
    labels_option, cli.class_option, cli.label_option,
)
def attention(opts: cli.Arguments) -> None:
    """Where D looks: Grad-CAM of its realness score (GLeaD, Fig. 6), for given images or the worst generated ones.

    Below each map are D's score, and the share of the image area that holds 80 % of the attention.

    \b
    python analyze.py attention --network=glead.pkl --network=stylegan2.pkl --fakes-of=ggdr.pkl --outdir=figures
    """
    import numpy as np
    import torch

    from analysis.attention import Attention, attend, attended_area, overlay, pick_resolution
    from analysis.drawing import SHOWN, Row

    models = load_models(opts)
    res = pick_resolution(models[0].D, opts.res)
    names, images = real_images(opts, models[0].G) if opts.data else worst_fakes(opts, models[0])
    rows, table = [Row("image", images[:SHOWN])], []
    for model in models:
        parts = [attend(model.D, img, labels_for(opts, model, len(img)), res=res)
                 for img in in_batches(opts, images)]
        found = Attention(*map(np.concatenate, zip(*parts)))
        areas = list(map(attended_area, found.maps))
        table += [[model.label, name, float(score), area] for name, score, area in zip(names, found.scores, areas)]
        some = torch.tensor(areas).nanmean().item()
        click.echo(f"{model.label}: 80 % of the attention is on {some:.3f} of the image area (mean of "
                   f"{np.isfinite(areas).sum()} images that have some, of {len(areas)}; {res}x{res})")
        label = f"{model.label}\nscore | area of 80 %\nmean {found.scores.mean():.2f} | {some:.1%}"
        rows.append(Row(label, list(map(overlay, images, found.maps))[:SHOWN],
                        [f"{score:.2f} | {area:.1%}" if area == area else f"{score:.2f} | none"
                         for score, area in zip(found.scores, areas)][:SHOWN]))
    write_figure(opts, "attention", rows, ["label", "image", "score", "area_of_80_percent"], table)


def worst_fakes(opts: cli.Arguments, judge: Pair) -> tuple[list[str], np.ndarray]:
    """Names and pixels, uint8 [N, R, R, C], of the generated images with the lowest scores by the D of `judge`."""
    import numpy as np

    from analysis.fairness import realness

    G = judge.G
    if opts.fakes_of is not None:
        G = cli.load_generator(opts.fakes_of, trust=opts.trust_pickle).to(next(judge.D.parameters()).device)
        cli.check_one_size([(judge.path, judge.D), (opts.fakes_of, G)])
    images = fake_images(opts, G, opts.seeds)
    found = np.concatenate([realness(judge.D, img, labels_for(opts, judge, len(img)))
                            for img in in_batches(opts, images)])
    chosen = np.argsort(found, kind="stable")[:opts.worst].tolist()
    return [f"seed{opts.seeds[index]:04d}" for index in chosen], images[chosen]


# ----------------------------------------------------------------------------------------------------------------------
# Feature maps.


@command(
    networks_option, images_option, max_images_option, seeds_option, labels_option, cli.class_option,
    cli.label_option,
)
def features(opts: cli.Arguments) -> None:
    """Feature maps of G and of D's decoder side by side, drawn as colours, as in GGDR's paper.

    Red, green and blue are the first three principal components. All maps of a network share one basis, so equal
    features have equal colours.

    \b
    python analyze.py features --network=ggdr.pkl --seeds=0-7 --data=photos --outdir=figures
    """
    from analysis import feature_maps
    from analysis.drawing import SHOWN, Row
    from sampling.images import to_pixels, to_tensor

    models = load_models(opts)
    resolutions = [feature_maps.find_resolution(model.D, name=model.path) for model in models]
    cli.check_seeds("--seeds", opts.seeds)
    seeds = opts.seeds[:SHOWN]
    rows = []
    for model, res in zip(models, resolutions):
        fakes, of_g = feature_maps.generator_features(model.G, seeds_to_ws(opts, model.G, seeds), res=res)
        maps = [of_g, feature_maps.decoder_features(model.D, fakes, res=res)]
        feature_maps.check_channels(*maps, name=model.path)
        real = real_images(opts, model.G)[1][:SHOWN] if opts.data else None
        if real is not None:
            maps.append(feature_maps.decoder_features(model.D, to_tensor(real), res=res))
        colours = feature_maps.to_colours(maps)
        rows += [Row(f"{model.label}\ngenerated", to_pixels(fakes), gap=bool(rows)),
                 Row(f"G at {res}x{res}", colours[0]), Row("D's decoder", colours[1])]
        if real is not None:
            rows += [Row("real", real), Row("D's decoder", colours[2])]
    write_figure(opts, "features", rows)


# ----------------------------------------------------------------------------------------------------------------------
# Nearest neighbours.


@command(
    cli.network_option,
    click.option("--data", type=cli.Path(), metavar="FOLDER|ZIP",
                 help="Training images  [default: those of the network's run]"),
    click.option("--detector", type=cli.Path(), metavar="PATH|URL",
                 help="Feature net, as for calc_metrics.py  [default: Inception]"),
    seeds_option,
    click.option("--neighbours", "k", type=click.IntRange(1, 32), default=5, show_default=True,
                 help="Training images to show for each generated one"),
    cli.class_option, cli.label_option, cli.trust_net_option,
)
def neighbours(opts: cli.Arguments) -> None:
    """The training images nearest to generated images, by the features of a detector: does G memorise?

    The relative distance below each neighbour is the distance from the generated image, divided by the typical distance
    of a training image from the nearest other one. It is near 1 for new images, and near 0 for copies.

    \b
    python analyze.py neighbours --network=net.pkl --detector=net.pt --seeds=0-7 --outdir=figures
    """
    import torch

    from analysis.drawing import Row
    from analysis.neighbours import find_neighbours, typical_distance
    from metrics import detectors
    from torch_utils import misc

    device = misc.pick_device(opts.device)
    G = cli.load_generator(opts.network_pkl, trust=opts.trust_pickle).to(device)
    train = training_images(opts, resolution=G.img_resolution)
    net = detectors.load_feature_net(opts.detector or detectors.INCEPTION_URL, "features", device=device,
                                     trust=opts.trust_net)
    images = fake_images(opts, G, opts.seeds)
    known = training_features(opts, net, G, train, device)
    if len(known) <= opts.k:
        raise UserError(f"--neighbours is {opts.k}, and there are {len(known)} training images")
    with torch.inference_mode():
        parts = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).split(opts.batch)
        own = torch.cat([net(part.to(device)).cpu() for part in parts])
    found, usual = find_neighbours(own, known, k=opts.k), typical_distance(known)
    rows, table = [], []
    for seed, image, indices, distances in zip(opts.seeds, images, found.indices.tolist(), found.distances.tolist()):
        near = [train[index][0].transpose(1, 2, 0) for index in indices]
        relative = [distance / usual if usual > 0 else float("nan") for distance in distances]
        rows.append(Row(f"seed {seed}", [image, *near], ["generated", *(f"{x:.2f}" for x in relative)]))
        table += [[f"seed{seed:04d}", rank, train.get_name(index), distance, ratio] for rank, (index, distance, ratio)
                  in enumerate(zip(indices, distances, relative), 1)]
    nearest = float(found.distances[:, 0].median())
    click.echo(f"median distance by {net.name} from the nearest training image: generated {nearest:.4g}, training "
               f"images from one another {usual:.4g}")
    write_figure(opts, "neighbours", rows[:16], ["image", "rank", "neighbour", "distance", "relative"], table)


def training_images(opts: cli.Arguments, *, resolution: int) -> ImageFolderDataset:
    """The images of --data, or those that the network was trained on, without mirrored copies."""
    import legacy
    from training.data.dataset import ImageFolderDataset
    from training.runs.run_scores import open_training_set

    if opts.data is not None:
        return ImageFolderDataset(opts.data, resolution=resolution)
    keys = ("training_set_kwargs",)
    trained_on = legacy.load_network_pkl(opts.network_pkl, trust=opts.trust_pickle, only=keys)[keys[0]] or {}
    return open_training_set(opts.network_pkl, trained_on, instead="--data", resolution=resolution)


def training_features(
    opts: cli.Arguments, net: Any, G: torch.nn.Module, train: ImageFolderDataset, device: torch.device
) -> torch.Tensor:
    """Features [N, F] of the training images, in their order. They are kept in the cache."""
    from metrics.features import real_stats
    from metrics.options import ImageSet, MetricOptions

    evaluation = MetricOptions(metric="neighbours", G=G, dataset=train, device=device, batch_size=opts.batch)
    return real_stats(evaluation, net, ImageSet("given"), keep_features=True).features()


if __name__ == "__main__":
    click.Group(help=__doc__, commands=[scores, reconstruct, attention, features, neighbours])()
