"""Calculate quality metrics of a network pickle."""

import os
from typing import Any

import click
import torch

import cli
from dnnlib.util import UserError, is_url, open_url
from metrics import metric_main
from metrics.published import format_table
from training.dataset import ImageFolderDataset


@click.command(cls=cli.Command, context_settings={"max_content_width": 120})
@click.option("--network", "network_pkl", metavar="PATH|URL", required=True, help="Network pickle.")
@click.option("--metrics", type=cli.CommaList(), default="fid50k_full", show_default=True, metavar="LIST",
              help="Metrics, separated by commas: fid50k_full, kid50k_full, pr50k3_full, is50k, ppl2_wend, ...; "
                   "smaller ones such as fid5k_full for a quick look.")
@click.option("--data", metavar="FOLDER|ZIP", help="Real images.  [default: those that the network was trained on]")
@click.option("--mirror", type=bool, metavar="BOOL", help="Add mirrored copies of the real images, in metrics that are not "
                                                          "*_full.  [default: as in training]")
@click.option("--detector", metavar="PATH|URL", help="TorchScript feature net. Results are then named after it.  "
                                                     "[default: the standard net of each metric]")
@click.option("--device", default="cuda" if torch.cuda.is_available() else "cpu", show_default=True, metavar="NAME")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images per forward pass.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="Number of GPUs.")
@click.option("--workers", type=click.IntRange(min=0), default=3, show_default=True,
              help="Processes that decode real images.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of latents, labels and subsets.")
@click.option("--cache", type=bool, default=True, show_default=True, metavar="BOOL",
              help="Keep the statistics of real images on disk.")
@click.option("--trust-pickle", is_flag=True, help="Run the source code that the pickle carries.")
@click.option("--table", is_flag=True, help="Print the results beside published ones too.")
@click.option("--verbose", type=bool, default=True, show_default=True, metavar="BOOL", help="Show progress on stderr.")
def main(**options: Any) -> None:
    """Calculate quality metrics of a network pickle.

    One JSON line per metric goes to stdout; if the pickle lies in a run directory, it is added to metric-NAME.jsonl there.

    \b
    python calc_metrics.py --network=runs/00000-church/network-snapshot-025000.pkl --metrics=fid50k_full,pr50k3_full
    python calc_metrics.py --network=net.pkl --data=church256.zip --metrics=fid5k_full --table
    """
    run(**options)


def run(
    *, network_pkl: str, metrics: list[str], data: str | None, mirror: bool | None, detector: str | None, device: str,
    batch: int, gpus: int, workers: int, seed: int, cache: bool, trust_pickle: bool, table: bool, verbose: bool,
) -> None:
    if not metrics:
        raise UserError("--metrics names no metric: give one, such as fid50k_full")
    metric_main.check_metrics(metrics)
    if gpus > 1:
        raise UserError(f"--gpus={gpus}: metrics of a pickle are calculated on one GPU; leave it out")
    check_device(device)
    G, training_set_kwargs = load_generator(network_pkl, trust=trust_pickle)
    dataset = open_dataset(G, training_set_kwargs, data=data, mirror=mirror, network_pkl=network_pkl)
    metric_main.check_match(G, dataset)
    metric_main.check_detector(metrics, detector)

    run_dir = None if is_url(network_pkl) else os.path.dirname(os.path.abspath(network_pkl))
    if run_dir is not None and not os.path.isfile(os.path.join(run_dir, "training_options.json")):
        run_dir = None
    results = {}
    for metric in metrics:
        result = metric_main.calc_metric(
            metric, G=G, dataset=dataset, detector=detector, device=device, batch_size=batch, seed=seed, workers=workers,
            cache=cache, progress=verbose,
        )
        metric_main.report_metric(result, run_dir=run_dir, snapshot_pkl=network_pkl)
        results |= result.results
    if table:
        print(format_table(results, dataset_name=dataset.name))


def check_device(device: str) -> None:
    """Raises UserError for a device that PyTorch does not know or that is not there."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as e:  # a build without CUDA asserts
        raise UserError(f"--device={device} can't be used: {str(e).splitlines()[0][:120]}") from e


def load_generator(network_pkl: str, *, trust: bool) -> tuple[torch.nn.Module, dict[str, Any] | None]:
    """G_ema of a network pickle and what the pickle says of its training set."""
    import legacy  # here, so that --help does not wait for it

    with open_url(network_pkl) as f:
        networks = legacy.load_network_pkl(f, trust=trust)
    return networks["G_ema"], networks.get("training_set_kwargs")


def open_dataset(
    G: torch.nn.Module,
    training_set_kwargs: dict[str, Any] | None,
    *,
    data: str | None,
    mirror: bool | None,
    network_pkl: str,
) -> ImageFolderDataset:
    """The training set, or the one in `data` with the options of the training set where they carry over."""
    trained_on = dict(training_set_kwargs or {})
    if data is None and not trained_on.get("path"):
        raise UserError(f"{network_pkl} does not say what it was trained on: give the real images with --data")
    options = {name: trained_on[name] for name in ("max_size", "random_seed") if data is None and name in trained_on}
    xflip = mirror if mirror is not None else bool(trained_on.get("xflip", False))
    return ImageFolderDataset(data or trained_on["path"], use_labels=G.c_dim > 0, xflip=xflip, **options)


if __name__ == "__main__":
    main()
