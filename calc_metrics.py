"""Calculate quality metrics of a network pickle."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

import cli
from dnnlib.util import UserError, is_url, open_url

if TYPE_CHECKING:  # PyTorch takes seconds to import: --help and wrong usage don't wait for it
    import torch

    from training.dataset import ImageFolderDataset


@click.command(cls=cli.Command, context_settings={"max_content_width": 120})
@click.option("--network", "network_pkl", metavar="PATH|URL", required=True, help="Network: a pickle (TensorFlow's too), safetensors, .pt or .onnx file.")
@click.option("--metrics", type=cli.CommaList(), default="fid50k_full", show_default=True, metavar="LIST",
              help="Metrics, separated by commas: fid50k_full, kid50k_full, pr50k3_full, is50k, ppl2_wend, ...; "
                   "smaller ones such as fid5k_full for a quick look.")
@click.option("--data", metavar="FOLDER|ZIP", help="Real images.  [default: those that the network was trained on]")
@click.option("--mirror", type=bool, metavar="BOOL",
              help="Add mirrored copies of the real images, in metrics that are not *_full.  [default: as in training]")
@click.option("--detector", metavar="PATH|URL",
              help="TorchScript feature net. Results are named after it.  [default: the standard net of each metric]")
@click.option("--device", metavar="NAME", help="cpu, cuda or cuda:N  [default: cuda if there is one]")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images per forward pass.")
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="Number of GPUs.")
@click.option("--workers", type=click.IntRange(min=0), default=3, show_default=True,
              help="Processes that decode real images.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
              help="Of latents, labels, noise and subsets.")
@click.option("--cache", type=bool, default=True, show_default=True, metavar="BOOL",
              help="Keep the statistics of real images on disk.")
@click.option("--trust-pickle", is_flag=True, help="Run the source code that the pickle carries.")
@click.option("--table", is_flag=True, help="Print the results beside published ones too.")
@click.option("--verbose", type=bool, default=True, show_default=True, metavar="BOOL", help="Show progress on stderr.")
def main(**options: Any) -> None:
    """Calculate quality metrics of a network pickle.

    One JSON line per metric goes to stdout, and to metric-NAME.jsonl beside the pickle if that lies in a run directory.

    \b
    python calc_metrics.py --network=runs/00000-church/network-snapshot-025000.pkl --metrics=fid50k_full,pr50k3_full
    python calc_metrics.py --network=net.pkl --data=church256.zip --metrics=fid5k_full --table
    """
    run(**options)


def run(
    *, network_pkl: str, metrics: list[str], data: str | None, mirror: bool | None, detector: str | None,
    device: str | None, batch: int, gpus: int, workers: int, seed: int, cache: bool, trust_pickle: bool, table: bool,
    verbose: bool,
) -> None:
    if not metrics:
        raise UserError("--metrics names no metric: give one, such as fid50k_full")
    from metrics import metric_main
    from metrics.published import format_table
    from torch_utils import misc

    metric_main.check_metrics(metrics)
    if gpus > 1:
        raise UserError(f"--gpus={gpus}: metrics of a pickle are calculated on one GPU; leave it out")
    target = misc.pick_device(device)
    G, training_set_kwargs = load_generator(network_pkl, trust=trust_pickle)
    dataset = open_dataset(G, training_set_kwargs, data=data, mirror=mirror, network_pkl=network_pkl)
    metric_main.check_match(G, dataset)
    metric_main.check_detector(metrics, detector)

    run_dir = None if is_url(network_pkl) else os.path.dirname(os.path.abspath(network_pkl))
    if run_dir is not None and not os.path.isfile(os.path.join(run_dir, "training_options.json")):
        run_dir = None
    results = {}
    shared = {} if len(metrics) > 1 else None  # FID and KID look at the same generated images
    for metric in metrics:
        result = metric_main.calc_metric(
            metric, G=G, dataset=dataset, detector=detector, device=target, batch_size=batch, seed=seed,
            workers=workers, cache=cache, shared=shared, progress=verbose,
        )
        metric_main.report_metric(result, run_dir=run_dir, snapshot_pkl=network_pkl)
        results |= result.results
    if table:
        print(format_table(results, dataset_name=dataset.name))


def load_generator(network_pkl: str, *, trust: bool) -> tuple[torch.nn.Module, dict[str, Any] | None]:
    """G_ema of a network pickle and what the pickle says of its training set."""
    import legacy
    from torch_utils import misc

    with open_url(network_pkl) as f:
        networks = legacy.load_network_pkl(f, trust=trust, only=("G_ema", "training_set_kwargs"))
    if networks["G_ema"] is None:
        raise UserError(f"{network_pkl}: holds no G_ema")
    misc.check_finite(networks["G_ema"], f"{network_pkl}: G_ema")
    return networks["G_ema"], networks["training_set_kwargs"]


def open_dataset(
    G: torch.nn.Module,
    training_set_kwargs: dict[str, Any] | None,
    *,
    data: str | None,
    mirror: bool | None,
    network_pkl: str,
) -> ImageFolderDataset:
    """The training set; or the images in `data`, all of them, mirrored as in training."""
    from training.dataset import ImageFolderDataset

    trained_on = dict(training_set_kwargs or {})
    if data is None and not trained_on.get("path"):
        raise UserError(f"{network_pkl} does not say what it was trained on: give the real images with --data")
    options = {name: trained_on[name] for name in ("max_size", "random_seed") if data is None and name in trained_on}
    xflip = mirror if mirror is not None else bool(trained_on.get("xflip", False))
    if data is None and not (
        isinstance(trained_on["path"], str)
        and isinstance(options.get("max_size"), int | None)
        and isinstance(options.get("random_seed", 0), int)
    ):
        raise UserError(f"{network_pkl}: what it says of its training set is damaged: give the real images with --data")
    try:
        return ImageFolderDataset(data or trained_on["path"], use_labels=G.c_dim > 0, xflip=xflip, **options)
    except UserError as e:
        if data is not None:
            raise
        raise UserError(f"the images that {network_pkl} was trained on: {e}; or give others with --data") from e


if __name__ == "__main__":
    main()
