"""What a source of images is, and what all sources share."""

import abc
import dataclasses
from typing import Any, ClassVar, Iterator, Literal, NamedTuple

from PIL import Image

from dnnlib.util import UserError

Label = int | list[float] | None
Labels = Literal["auto", "folders", "none"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """What the user says about the source; each kind takes what concerns it."""

    labels: Labels = "auto"        # "folders" insists on sub-folders as classes; "none" leaves labels out.
    split: str | None = None       # Take only the images below a folder of that name, where there is one.
    num_images: int | None = None  # Of images that are drawn: how many, ...
    resolution: int | None = None  # ... how large, ...
    seed: int = 0                  # ... and which.


class Record(NamedTuple):
    """One image that a source has, before it is read."""

    key: Any      # What `load` takes: a position, a database key, ...; small, since it travels between processes.
    label: Label


class Source(abc.ABC):
    """Where images come from. `records` runs in the main process, `load` in any.

    A new kind of source is one subclass with a line in `training.data_prep.sources.SOURCES`.

    Attributes:
        accepts: The kind, as the list of accepted sources shows it.
        labels:  What the labels are, in words; None = the images have none.
        notes:   What the user should know about what is taken and what is not, one line each.
    """

    accepts: ClassVar[str]
    labels: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    @abc.abstractmethod
    def matches(cls, path: str) -> bool:
        """Whether `path`, by name and first bytes, is of this kind; `open` may still find it damaged."""

    @classmethod
    @abc.abstractmethod
    def open(cls, path: str, options: SourceOptions) -> "Source":
        """Raises UserError where the source is damaged, or can't do what the options ask for."""

    @abc.abstractmethod
    def __len__(self) -> int:
        """Number of records."""

    @abc.abstractmethod
    def records(self) -> Iterator[Record]:
        """All images, in the order of the dataset. Raises UserError where the source is damaged."""

    @abc.abstractmethod
    def load(self, key: Any) -> Image.Image:
        """One image, decoded. Raises BadImage, naming it, where that fails."""

    @abc.abstractmethod
    def describe(self, key: Any) -> str:
        """How messages name an image."""


def images_at_once(side: int) -> int:
    """How many images of a size make a good portion of work: about a million pixels, at most 64 images."""
    return min(max((1 << 20) // side**2, 1), 64)


def refuse_folders(path: str, options: SourceOptions) -> None:
    if options.labels == "folders":
        raise UserError(f"--labels=folders takes classes from sub-folders, which {path} has not: leave it out")
