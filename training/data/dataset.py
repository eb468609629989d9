"""Training images: items with labels from a folder, a zip or a folder of zips.

PyTorch is not imported here: processes that only read images stay small.
"""

import hashlib
import json
import os
import sys
import time
from typing import Any, NamedTuple, Sequence

import numpy as np
from tqdm import tqdm

from dnnlib.util import UserError, say_once
from training.data.image_files import (
    MAX_RESOLUTION,
    MIN_RESOLUTION,
    ImageFiles,
    ImageHeader,
    is_valid_side,
    open_image_files,
)
from training.data.image_names import shown
from training.data.labels import find_resize_filter, load_labels

NUM_CHANNELS = {"L": 1, "RGB": 3}  # By Pillow's mode.
_MAX_NAMED = 5                     # A report of bad images names at most this many.


class ItemDetails(NamedTuple):
    raw_idx: int            # Index among all images of the folder or zip.
    xflip: bool             # Mirrored?
    raw_label: np.ndarray   # int64 [] (a class) or float32 [D]; [0] without labels.


class Images(NamedTuple):
    """All that a process needs to read the images of a few items."""

    files: ImageFiles               # The files of these items only.
    flips: Sequence[bool]           # Mirrored?
    shape: tuple[int, int, int]     # [C, H, W] that they must have.
    like: str                       # The file whose shape all others must have: the first of the dataset.

    def read(self, position: int) -> np.ndarray:
        """One image: uint8 [C, H, W]. Raises UserError, naming it, if it can't be read or has another shape."""
        image = self.files.open_lazily(position)
        self._check_header(position, *image.size, image.mode)  # Before decoding: nothing of another size is decoded.
        pixels = self.files.pixels(position, image)
        if self.flips[position]:
            pixels = pixels[:, ::-1]
        # [H, W] or [H, W, C] => [C, H, W]
        return np.array(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1), order="C")

    def check_file(self, position: int) -> ImageHeader:
        """Read a file, and check its header and its end. It is decoded only if its end is odd.

        Raises:
            UserError: It can't be read, is damaged, or has another shape. The message names it.
        """
        header = self.files.probe(position)
        self._check_header(position, header.width, header.height, header.mode)
        if not header.complete:
            self.read(position)
        return header

    def _check_header(self, position: int, width: int, height: int, mode: str) -> None:
        channels, res, _ = self.shape
        if (width, height) == (res, res) and NUM_CHANNELS.get(mode) == channels:
            return
        what = self.files.describe(position)
        if mode not in NUM_CHANNELS:
            raise UserError(_bad_mode(what, mode))
        raise UserError(f"{what} is {width}x{height} with {NUM_CHANNELS[mode]} channel(s), expected {res}x{res} with "
                        f"{channels} like {shown(self.like)}: convert all with dataset_tool.py")


class ImageFolderDataset:
    """Square images of one size in a folder, zip or folder of zips, with optional labels from dataset.json.

    Items are in sorted order of file names. Mirrored copies come after all of the unmirrored images. Objects can be
    pickled and used in forked or spawned processes. They hold about 60 bytes for each image.

    A line on stderr counts the files that are not used, by reason.

    Args:
        path:        Folder, or zip (stored or deflated), of PNG, JPEG, WebP or BMP images, RGB or grayscale; or a
                     folder of such zips, each with a dataset.json of its own. Pixels are taken as they are stored: the
                     orientation in EXIF data is ignored, as in StyleGAN2-ADA.
        resolution:  Expected side; None = that of the first image.
        use_labels:  Give labels, if there are any; False = every label is empty.
        max_size:    Keep a random subset of at most max_size images; None = keep all.
        xflip:       Append a mirrored copy of each image.
        random_seed: Draws the subset.

    Raises:
        UserError: `path` holds no images, or the first image or the labels are not as they must be.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        resolution: int | None = None,
        use_labels: bool = False,
        max_size: int | None = None,
        xflip: bool = False,
        random_seed: int = 0,
    ):
        self._files = open_image_files(path)
        if self._files.left_out and os.environ.get("RANK", "0") == "0":  # Only one of several processes says it.
            say_once(f"left out of {self.path}", f"Left out of {self.path}: {self._files.left_out}")
        self._image_shape = self._find_shape()
        self._first_name = self._files.get_name(0)
        self._all_labels: np.ndarray | None = None
        self._configure(resolution, use_labels, max_size, xflip, random_seed)

    def _configure(
        self, resolution: int | None, use_labels: bool, max_size: int | None, xflip: bool, random_seed: int
    ) -> None:
        if resolution is not None and resolution != self.resolution:
            raise UserError(f"images in {self.path} are {self.resolution}x{self.resolution}, expected {resolution}x"
                            f"{resolution}: change the resolution asked for, or resize with dataset_tool.py")
        if max_size is not None and max_size < 1:
            raise UserError(f"max_size is {max_size}, expected 1 or more images")
        if use_labels and self._all_labels is None:
            labels = load_labels(self._files)
            self._all_labels = np.zeros([len(self._files), 0], dtype=np.float32) if labels is None else labels
        self._options = dict(
            resolution=resolution, use_labels=use_labels, max_size=max_size, xflip=xflip, random_seed=random_seed
        )
        self._subset: np.ndarray | None = None  # Indices of files; None = all.
        if max_size is not None and max_size < len(self._files):
            everything = np.arange(len(self._files), dtype=np.int64)
            np.random.RandomState(random_seed).shuffle(everything)
            self._subset = np.sort(everything[:max_size])
        self._num_unflipped = len(self._files) if self._subset is None else len(self._subset)
        self._raw_labels = self._all_labels if use_labels else np.zeros([len(self._files), 0], dtype=np.float32)
        self._label_dim = (
            int(self._raw_labels.max()) + 1 if self._raw_labels.ndim == 1 else self._raw_labels.shape[1]
        )

    def replace(self, **options: Any) -> "ImageFolderDataset":
        """The same files with some options changed, e.g. `dataset.replace(max_size=None, xflip=False)`."""
        unknown = set(options) - set(self._options)
        if unknown:
            raise TypeError(f"no such option of ImageFolderDataset: {', '.join(sorted(unknown))}")
        other = object.__new__(ImageFolderDataset)
        other._files, other._image_shape, other._all_labels = self._files, self._image_shape, self._all_labels
        other._first_name = self._first_name
        other._configure(**{**self._options, **options})
        return other

    def _find_shape(self) -> tuple[int, int, int]:
        image = self._files.open_lazily(0)
        what = self._files.describe(0)
        if image.mode not in NUM_CHANNELS:
            raise UserError(_bad_mode(what, image.mode))
        width, height = image.size
        if width != height:
            raise UserError(f"{what} is {width}x{height}, expected a square: crop with dataset_tool.py "
                            "--transform=center-crop")
        if not is_valid_side(width):
            raise UserError(f"{what} is {width}x{height}, expected a power of two from {MIN_RESOLUTION} to "
                            f"{MAX_RESOLUTION}: resize with dataset_tool.py --resolution")
        return NUM_CHANNELS[image.mode], height, width

    # --- Properties.

    @property
    def path(self) -> str:
        return self._files.path

    @property
    def name(self) -> str:
        return self._files.name

    @property
    def image_shape(self) -> list[int]:
        """[C, H, W]."""
        return list(self._image_shape)

    @property
    def num_channels(self) -> int:
        return self._image_shape[0]

    @property
    def resolution(self) -> int:
        return self._image_shape[1]

    @property
    def xflip(self) -> bool:
        """Whether mirrored copies are among the items."""
        return bool(self._options["xflip"])

    @property
    def label_shape(self) -> list[int]:
        return [self.label_dim]

    @property
    def label_dim(self) -> int:
        """Length of the labels. For classes, it is the largest class of *all* files + 1, even if a subset is kept."""
        return self._label_dim

    @property
    def has_labels(self) -> bool:
        return self.label_dim > 0

    @property
    def has_onehot_labels(self) -> bool:
        return self._raw_labels.ndim == 1

    @property
    def labels(self) -> np.ndarray:
        """Labels of all files, even if a subset is kept: float32 [number of files, label_dim]."""
        return self._as_vectors(self._raw_labels)

    @property
    def fingerprint(self) -> str:
        """Hexadecimal digest of the items: names, sizes and checksums of files, labels, options.

        It does not depend on where the files are, when they were written, or how they are divided among zips. Files of
        a folder are read for it: all of them, or a sample if there are many (`ImageFiles.identity`). This is done once.
        If it takes more than a second, the result is kept in the cache.
        """
        options = {key: self._options[key] for key in ("use_labels", "xflip")}
        labels = self._raw_labels.astype(np.int64) if self.has_onehot_labels else self._raw_labels
        digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
        for part in (self._files.identity(), self._raw_indices(), labels.ravel()):
            digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()

    @property
    def resize_filter(self) -> str | None:
        """The filter by which dataset_tool.py scaled the images; None = it did not scale or did not make them."""
        return find_resize_filter(self._files)

    # --- Items.

    def __len__(self) -> int:
        return self._num_unflipped * (2 if self._options["xflip"] else 1)

    def _locate(self, index: int) -> tuple[int, bool]:
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"index {index} of a dataset of {size}")
        flip, position = divmod(int(index) % size, self._num_unflipped)
        return position if self._subset is None else int(self._subset[position]), bool(flip)

    def _raw_indices(self) -> np.ndarray:
        return np.arange(len(self._files)) if self._subset is None else self._subset

    def images(self, indices: Sequence[int]) -> Images:
        """All that a process needs to read the images of some items. Its size doesn't depend on that of the dataset."""
        located = [self._locate(index) for index in indices]
        files = self._files.select([raw_idx for raw_idx, _ in located])
        return Images(files, [flip for _, flip in located], self._image_shape, self._first_name)

    def get_labels(self, indices: Sequence[int]) -> np.ndarray:
        """Labels of some items: float32 [N, label_dim]."""
        return self._as_vectors(self._raw_labels[[self._locate(index)[0] for index in indices]])

    def _as_vectors(self, raw_labels: np.ndarray) -> np.ndarray:
        """A copy of label vectors, or one-hot vectors of classes: float32 [N, label_dim]."""
        if not self.has_onehot_labels:
            return raw_labels.copy()
        labels = np.zeros([len(raw_labels), self.label_dim], dtype=np.float32)
        labels[np.arange(len(labels)), raw_labels] = 1
        return labels

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """One item: image uint8 [C, H, W], label float32 [label_dim].

        Raises:
            UserError: The image can't be read or has another shape than the first one. The message names it.
        """
        return self.images([index]).read(0), self.get_label(index)

    def get_label(self, index: int) -> np.ndarray:
        """The label of one item, float32 [label_dim]."""
        return self.get_labels([index])[0]

    def get_details(self, index: int) -> ItemDetails:
        raw_idx, flip = self._locate(index)
        raw_label = np.array(self._raw_labels[raw_idx], dtype=np.int64 if self.has_onehot_labels else np.float32)
        return ItemDetails(raw_idx=raw_idx, xflip=flip, raw_label=raw_label)

    def get_name(self, index: int) -> str:
        """The file name of one item, relative to the path of the dataset."""
        return self._files.get_name(self._locate(index)[0])

    # --- Checks before training.

    def check(self, *, progress: bool = True, budget_sec: float = 20) -> None:
        """Read every image file, so that damage is found now and not in the middle of training.

        Only files whose end looks odd are decoded. The order of images is random, but always the same. When the time is
        over, the remaining images are skipped, and a line on stderr says so. Another line counts images that EXIF data
        rotates. The fingerprint is computed too, which may take longer than the budget.

        Args:
            progress:   Show a progress bar on stderr.
            budget_sec: Stop after this many seconds.

        Raises:
            UserError: Images are unreadable, damaged or of another size or kind. The message names some of them.
        """
        order = np.random.RandomState(0).permutation(self._raw_indices())
        images = Images(self._files, [False] * len(self._files), self._image_shape, self._first_name)
        problems: list[tuple[int, str]] = []
        turned: list[int] = []
        num_checked = 0
        stop = time.monotonic() + budget_sec
        with tqdm(total=len(order), desc=f"Checking {shown(self.name)}", unit="img", disable=not progress, leave=False,
                  file=sys.stderr) as bar:
            for raw_idx in map(int, order):
                if time.monotonic() > stop:
                    break
                try:
                    if images.check_file(raw_idx).turned:
                        turned.append(raw_idx)
                except UserError as e:
                    problems.append((raw_idx, str(e)))
                num_checked += 1
                bar.update()
        if problems:
            raise UserError(self._describe_problems(problems))
        if turned:
            _say(f"{len(turned)} of {num_checked} images are to be turned as EXIF says, such as "
                 f"{self._files.describe(min(turned))}: training takes pixels as they are stored, as StyleGAN2-ADA "
                 "does; dataset_tool.py turns them upright")
        if num_checked < len(order):
            _say(f"Checked {num_checked} of {len(order)} images of {self.path} in {budget_sec:g} s: no damage found; "
                 "the others were not looked at.")
        self._files.identity()

    def _describe_problems(self, problems: list[tuple[int, str]]) -> str:
        problems = sorted(problems)
        if len(problems) == 1:
            return problems[0][1]
        others = [shown(self._files.get_name(raw_idx)) for raw_idx, _ in problems[1:_MAX_NAMED]]
        more = len(problems) - 1 - len(others)
        named = ", ".join(others) + (f" and {more} more" if more else "")
        return f"{problems[0][1]} ({len(problems)} bad images, also {named})"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _bad_mode(what: str, mode: str) -> str:
    return f"{what} has pixels of kind {mode}, expected RGB or grayscale (L): convert with dataset_tool.py"
