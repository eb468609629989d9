"""From a source to a dataset: workers read, convert and encode images, and the main process writes them in order."""

import contextlib
import itertools
import os
import sys
from collections import Counter
from typing import Any, Iterator, Literal, NamedTuple

from tqdm import tqdm

from dnnlib.util import UserError, num_cores, termination_as_interrupt
from dnnlib.worker_pool import WorkerPool
from training.data.prepare.conversion import (
    BadImage,
    ConversionOptions,
    Converter,
    FirstImage,
    Remark,
    TooSmall,
    encode_png,
    is_gray,
)
from training.data.prepare.source import Label, Source, images_at_once
from training.data.prepare.writer import open_writer

_MAX_NAMED = 5   # For each remark, this many images are named.

_REMARKS = {
    "bad": "can't be read, and were skipped",
    "small": "are smaller than the size wanted, and were left out",
    "squeezed": "are not square, and were squeezed (--transform=center-crop cuts them instead)",
    "recolored": "are not RGB or grayscale like the first image, and were made so (--color=rgb or gray chooses)",
    "dark": "have 16 bits per channel but use the lower 12 only, and became nearly black: multiply their pixels by 16 "
            "first",
}
_SKIP_HINT = "; --skip-bad leaves such images out"
_KILLED = ("one of {} worker processes was killed: either memory ran out (give fewer with --workers), or the source is "
           "damaged")


class Summary(NamedTuple):
    """The dataset that was written."""

    num_images: int
    resolution: int
    channels: int
    counts: dict[str, int]   # Number of images with each remark, by the keys of `_REMARKS`.
    classes: Counter[int]    # Number of images of each class; empty if there are no classes.


class Outcome(NamedTuple):
    """The result of converting one image."""

    png: bytes | None       # None = the image is left out.
    remarks: tuple[Remark | Literal["bad", "small", "stop"], ...]   # "stop" ends the conversion.
    message: str            # Explains the remarks; "" = there are none.


def write_dataset(
    source: Source,
    dest: str | os.PathLike,
    *,
    options: ConversionOptions = ConversionOptions(),
    max_images: int | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    shard_size: int | None = None,
    overwrite: bool = False,
) -> Summary:
    """Convert the images of a source, and write them as a dataset that appears at `dest` once it is complete.

    Equal sources give equal bytes, at any time and with any number of workers. Remarks about images go to stderr.

    Args:
        source:     Where the images come from.
        dest:       A path that ends in .zip, or a folder.
        options:    How images are converted.
        max_images: Take only the first `max_images` images of the source; None = all.
        workers:    Processes that convert; None = one for each core.
        skip_bad:   Leave out images that can't be read, and make grayscale images RGB, or RGB ones grayscale, like the
                    first image; False = such images stop the conversion.
        shard_size: Write zips of `shard_size` images into the folder `dest`; None = one dataset.
        overwrite:  Replace the dataset that is there.

    Raises:
        UserError: An image is not as it must be, none is left, or `dest` can't be written.
    """
    options.check()
    count = min(len(source), max_images or len(source))
    workers = min(workers or num_cores(), count)
    remarks, classes = _Remarks(skip_bad), Counter[int]()
    with termination_as_interrupt(), open_writer(
        dest, labelled=source.labels is not None, most_images=count, shard_size=shard_size, overwrite=overwrite,
    ) as writer:
        with WorkerPool(workers, source, forked=True, killed=_KILLED.format(workers)) as pool:
            converter = Converter(options, _first_image(source, pool, count, skip_bad), recolors=skip_bad)
            writer.resize_filter = converter.resize_filter
            bar = tqdm(total=count, desc="Writing", unit="img", file=sys.stderr, leave=False)
            with contextlib.closing(_converted(source, pool, converter, count)) as results, bar:
                for label, outcome in results:
                    remarks.note(outcome)
                    if outcome.png is not None:
                        writer.add(outcome.png, label)
                        classes.update([label] if type(label) is int else [])
                    bar.update()
        if not writer.num_images:
            raise UserError(f"none of the {count} images can be used: {remarks.first}")
    remarks.report(count)
    return Summary(writer.num_images, converter.side, 1 if converter.gray else 3, remarks.counts, classes)


class _Remarks:
    """Counts the remarks about images, and prints the first ones of each kind."""

    def __init__(self, skip_bad: bool):
        self.counts = dict.fromkeys(_REMARKS, 0)
        self.first = ""
        self._skip_bad = skip_bad

    def note(self, outcome: Outcome) -> None:
        if "stop" in outcome.remarks:
            raise UserError(outcome.message)
        if "bad" in outcome.remarks and not self._skip_bad:
            raise UserError(outcome.message + _SKIP_HINT)
        self.first = self.first or outcome.message
        for remark in outcome.remarks:
            self.counts[remark] += 1
            if self.counts[remark] <= _MAX_NAMED:
                tqdm.write(f"{remark}: {outcome.message}", file=sys.stderr)

    def report(self, count: int) -> None:
        for remark, text in _REMARKS.items():
            if self.counts[remark]:
                print(f"{self.counts[remark]} of {count} images {text}", file=sys.stderr)


def _first_image(source: Source, pool: WorkerPool, count: int, skip_bad: bool) -> FirstImage:
    """The properties of the first image that can be read, or, without `skip_bad`, of the first image.

    Raises:
        UserError: It can't be read, or none of the images can.
    """
    with contextlib.closing(source.records()) as records:
        for record in itertools.islice(records, count):
            first = pool.result(pool.submit(_look, record.key))
            if isinstance(first, FirstImage):
                return first
            if not skip_bad:
                raise UserError(first.message + _SKIP_HINT)
    raise UserError(f"none of the {count} images can be read, such as the last: {first.message}")


def _look(source: Source, key: Any) -> FirstImage | Outcome:
    try:
        image = source.load(key)
        return FirstImage(source.describe(key), image.width, image.height, is_gray(image))
    except BadImage as e:
        return Outcome(None, ("bad",), str(e))


def _converted(source: Source, pool: WorkerPool, converter: Converter, count: int) -> Iterator[tuple[Label, Outcome]]:
    """The label and the outcome of each image, in the order of the source."""
    size = images_at_once(converter.side)
    with contextlib.closing(source.records()) as all_records:
        records = itertools.islice(all_records, count)
        portions = iter(lambda: list(itertools.islice(records, size)), [])
        tasks = ((converter, [r.key for r in portion], [r.label for r in portion]) for portion in portions)
        for (_, _, labels), outcomes in pool.map(_convert, tasks):
            yield from zip(labels, outcomes)


def _convert(source: Source, converter: Converter, keys: list[Any], _labels: list[Label]) -> list[Outcome]:
    return [_convert_one(source, converter, key) for key in keys]


def _convert_one(source: Source, converter: Converter, key: Any) -> Outcome:
    what = source.describe(key)
    try:
        original = source.load(key)
        image, remarks = converter(original, what)
        like = f"{what} is {original.width}x{original.height} {original.mode}"
        return Outcome(encode_png(image), remarks, like if remarks else "")
    except BadImage as e:
        return Outcome(None, ("bad",), str(e))
    except TooSmall as e:
        return Outcome(None, ("small",), str(e))
    except UserError as e:
        return Outcome(None, ("stop",), str(e))
