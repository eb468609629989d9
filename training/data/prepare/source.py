"""The interface of a source of images, and what all sources share."""

import abc
import dataclasses
import itertools
from collections import Counter
from typing import Any, ClassVar, Iterator, Literal, Mapping, NamedTuple, Sequence

from PIL import Image

from dnnlib.util import UserError

Label = int | list[float] | None
Labels = Literal["auto", "folders", "none"]
_MAX_CLASSES_SHOWN = 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What the user says about the source. Each kind of source uses only some of it."""

    labels: Labels = "auto"        # "folders" insists on sub-folders as classes; "none" leaves labels out.
    split: str | None = None       # Take only the images below a folder of this name, if there is one.
    num_images: int | None = None  # Synthetic images: how many are drawn, ...
    resolution: int | None = None  # ... their side, ...
    seed: int = 0                  # ... and which ones.


class Record(NamedTuple):
    """One image of a source, before it is read."""

    key: Any      # The argument of `load`: a position, a database key, ... It is small, and sent to workers.
    label: Label


class LabelSet(NamedTuple):
    """The kind of the labels of a source."""

    origin: str = ""              # "from sub-folders", ...
    classes: Sequence[str] = ()   # Their names, by number.
    width: int | None = None      # Length of the label vectors; None = labels are classes.

    def describe(self, counts: Mapping[int, int]) -> str:
        """A text such as `2 classes from sub-folders: cat (12), dog (3)`, from the number of images of each class."""
        origin = f" {self.origin}" if self.origin else ""
        if self.width is not None:
            return f"vectors of {self.width}{origin}"
        present = [number for number in range(len(self.classes)) if counts.get(number)]
        shown = [f"{self.classes[number]} ({counts[number]})" for number in present[:_MAX_CLASSES_SHOWN]]
        more = f" and {len(present) - len(shown)} more" if len(present) > len(shown) else ""
        total = f"{len(self.classes)} class{'es' * (len(self.classes) != 1)}"
        some = total if len(present) == len(self.classes) else f"{len(present)} of {total}"
        return f"{some}{origin}: {', '.join(shown)}{more}"


class Source(abc.ABC):
    """A place that images come from. The main process calls `records`; any process may call `load`.

    A new kind of source is a subclass with an entry in `training.data.prepare.sources.SOURCES`.

    Attributes:
        accepts: What users can give as this kind of source, for help and messages.
        labels:  The kind of the labels; None = the images have none.
        notes:   Lines for the user about which images are taken.
    """

    accepts: ClassVar[str]
    labels: LabelSet | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    @abc.abstractmethod
    def matches(cls, path: str) -> bool:
        """Whether `path` is of this kind, judging by its name and first bytes. `open` may still find it damaged."""

    @classmethod
    @abc.abstractmethod
    def open(cls, path: str, options: SourceOptions) -> "Source":
        """Open the source. Raises UserError if it is damaged, or can't do what the options ask for."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of records."""

    @abc.abstractmethod
    def records(self) -> Iterator[Record]:
        """All images, in the order of the dataset. Raises UserError if the source is damaged."""

    @abc.abstractmethod
    def load(self, key: Any) -> Image.Image:
        """One image, decoded. Raises BadImage, naming it, if that fails."""

    @abc.abstractmethod
    def describe(self, key: Any) -> str:
        """The name of an image in messages."""


def count_classes(source: Source, max_images: int | None = None) -> Counter[int]:
    """Number of images of each class among the first `max_images`; empty if there are no classes."""
    labels = (record.label for record in itertools.islice(source.records(), max_images))
    return Counter(label for label in labels if type(label) is int)


def images_at_once(side: int) -> int:
    """How many images of this side a worker gets at a time: about a million pixels, 1 to 64 images."""
    return min(max((1 << 20) // side**2, 1), 64)


def refuse_folders(path: str, options: SourceOptions) -> None:
    """Raise UserError if the options ask for sub-folders as classes, of a source that has no folders."""
    if options.labels == "folders":
        raise UserError(f"--labels=folders takes classes from sub-folders, which {path} has not: leave it out")
