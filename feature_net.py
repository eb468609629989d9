"""Train a small feature net on labelled images, for small computers and for data that published nets don't suit.

The result is one safetensors file, which holds no code. It serves as detector for metrics, and as perceptual net.
"""

import dataclasses
import os
from pathlib import Path
from typing import Any

import click

import cli
from dnnlib.util import UserError, check_writable


@click.command(cls=cli.Command)
@click.option("--data", type=cli.Path(), required=True, metavar="ZIP|DIR",
              help="Labelled images: classes in dataset.json.")
@click.option("--out", type=cli.Path(), required=True, metavar="FILE",
              help="File to write, in the safetensors format.")
@click.option("--epochs", default=5, show_default=True, type=click.IntRange(min=1), help="Passes over the images.")
@click.option("--width", default=24, show_default=True, type=click.IntRange(1, 1024),
              help="Channels of the first stage; there are 8 times as many features.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**63 - 1),
              help="Draws weights, held-out images and order.")
@click.option("--batch", default=128, show_default=True, type=click.IntRange(min=2), help="Images per step.")
@click.option("--lr", default=3e-3, show_default=True, type=cli.FiniteFloat(min=0, min_open=True),
              help="Highest learning rate.")
@cli.device_option
@click.option("--holdout", default=0.1, show_default=True, help="Share of the images to measure the accuracy on.",
              type=cli.FiniteFloat(min=0, max=0.5, min_open=True))
def main(**options: Any) -> None:
    """Train a small feature net on labelled images.

    The result is one file. It serves as --detector of calc_metrics.py and as --perceptual of train.py. Images of more
    than 64x64 pixels are scaled down to 64x64. Scores with such a net compare models on one data set. They can't be
    compared with published FIDs.

    \b
    Example:
      python feature_net.py --data=cifar10.zip --out=cifar10-net.safetensors
    """
    opts = cli.Arguments(**options)
    import torch  # takes seconds: --help and usage errors don't wait for it

    from torch_utils import misc
    from torch_utils.formats.feature_nets import save_classifier
    from training.jobs.classifier_training import TrainingOptions, accuracy, read_images, split, train

    out = Path(opts.out)
    if not opts.out or out.is_dir():
        raise UserError(f"--out={opts.out} is no file: give the name of one, such as "
                        f"{os.path.join(opts.out, 'net.safetensors')}")
    device = misc.pick_device(opts.device)
    check_writable(out)
    labelled = read_images(opts.data)
    settings = TrainingOptions(epochs=opts.epochs, width=opts.width, batch_size=opts.batch, lr=opts.lr, seed=opts.seed,
                               holdout=opts.holdout)
    train_indices, test_indices = split(len(labelled.images), opts.holdout, opts.seed)
    net = train(labelled, train_indices, settings, device)
    score = accuracy(net, labelled, test_indices, device)
    metadata = dict(name=out.stem, dataset=labelled.name, images=len(train_indices), accuracy=round(score, 4),
                    resolution=net.resolution, **dataclasses.asdict(settings))
    out.parent.mkdir(parents=True, exist_ok=True)
    save_classifier(net.cpu().to(memory_format=torch.contiguous_format), out, metadata=metadata)
    print(f"{opts.out}: held-out accuracy {100 * score:.1f} % on {len(test_indices)} images of {labelled.name} "
          f"({labelled.num_classes} classes)")


if __name__ == "__main__":
    main()
