"""Labels of a dataset: reading and checking dataset.json."""

import json
import os
import re
from collections import Counter
from typing import Any, NamedTuple, Sequence

import numpy as np

from dnnlib.util import UserError
from training.data.image_files import ImageFiles
from training.data.image_names import METADATA_NAME, shown

_MAX_CLASSES = 1_000_000
_RESIZE_FILTER = re.compile(rb'\s*\{\s*"resize_filter"\s*:\s*"(\w+)"')


class Matched(NamedTuple):
    """The result of comparing a dataset.json with the images of its folder or zip."""

    labels: list[Any]       # The valid labels, in the order of the entries.
    problems: list[str]     # One line each.


def load_labels(files: ImageFiles) -> np.ndarray | None:
    """Labels from dataset.json in the order of the files: classes int32 [N], or vectors float32 [N, D]; None = none.

    If there are several zips, each has a dataset.json of its own, and the kind of labels must be the same in all.

    Raises:
        UserError: A dataset.json is malformed, or its labels don't fit the images.
    """
    if has_stray_metadata(files):
        raise UserError(f"{METADATA_NAME} stands beside the zips in {files.path}, expected one in each: move it away")
    parts = [_load(files, number) for number in range(len(files.places))]
    for place, part in zip(files.places, parts):
        kinds = [_describe(labels) for labels in (parts[0], part)]
        if kinds[0] != kinds[1]:
            raise UserError(f"{place.path} has {kinds[1]}, but {files.places[0].path} has {kinds[0]}: expected "
                            "the same kind of labels in all zips")
    return None if parts[0] is None else np.concatenate(parts)


def has_metadata(files: ImageFiles) -> bool:
    """Whether there is a dataset.json, in at least one of the zips."""
    return any(files.read_metadata(number) is not None for number in range(len(files.places)))


def find_resize_filter(files: ImageFiles) -> str | None:
    """The filter by which dataset_tool.py scaled the images, which is the first entry of each dataset.json.

    None = there is no such entry, the zips differ in it, or a dataset.json can't be read.
    """
    found = set()
    for number in range(len(files.places)):
        try:
            match = _RESIZE_FILTER.match(files.read_metadata(number) or b"")
        except UserError:   # Training without labels doesn't need the file.
            match = None
        found.add(match[1].decode() if match else None)
    return found.pop() if len(found) == 1 else None


def has_stray_metadata(files: ImageFiles) -> bool:
    """Whether there is a dataset.json beside the zips in a folder of zips."""
    has_zips = all(place.path != files.path for place in files.places)
    return has_zips and os.path.exists(os.path.join(files.path, METADATA_NAME))


def _describe(labels: np.ndarray | None) -> str:
    if labels is None:
        return "no labels"
    return "classes as labels" if labels.ndim == 1 else f"vectors of {labels.shape[1]} as labels"


def read_entries(files: ImageFiles, number: int) -> list[Any]:
    """The list of `[name, label]` in the dataset.json of a place, empty if it has none. Its items are not checked.

    Raises:
        UserError: The file can't be read, is no JSON, or has no such list.
    """
    raw, where = files.read_metadata(number), f"{METADATA_NAME} of {files.places[number].path}"
    if raw is None:
        return []
    try:
        metadata = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where} is not valid JSON: {e}") from e
    if not isinstance(metadata, dict) or not isinstance(metadata.get("labels"), list | None):
        raise UserError(f'{where} is malformed: expected {{"labels": [["name.png", label], ...]}}, or null as labels')
    return metadata.get("labels") or []


def _load(files: ImageFiles, number: int) -> np.ndarray | None:
    entries = read_entries(files, number)
    if not entries:
        return None
    names, width = files.names_in(number), label_width(entries)
    problems = match_labels(names, entries, width).problems
    if problems:
        more = f" ({len(problems)} problems: dataset_tool.py check names all)" if len(problems) > 1 else ""
        raise UserError(f"{METADATA_NAME} of {files.places[number].path}: {problems[0]}{more}")
    by_name = dict(entries)
    return np.array([by_name[name] for name in names], dtype=np.int32 if width is None else np.float32)


def label_width(entries: list[Any]) -> int | None:
    """The length of most labels if they are lists of numbers; None if they are classes."""
    labels = (entry[1] for entry in entries if _is_entry(entry))
    kinds = Counter(len(label) if type(label) is list else None for label in labels if type(label) in (int, list))
    return kinds.most_common(1)[0][0] if kinds else None


def match_labels(names: Sequence[str], entries: list[Any], width: int | None) -> Matched:
    """Compare a dataset.json with the images that are there.

    Args:
        names:   Names of the images.
        entries: From `read_entries`.
        width:   From `label_width`.
    """
    expected, labelled = set(names), set()
    matched = Matched([], [])
    for entry in entries:
        if not _is_entry(entry):
            matched.problems.append(f'expected ["name.png", label], found {json.dumps(entry)[:80]}')
            continue
        name, label = entry
        if name in labelled:
            matched.problems.append(f"a second label for {shown(name)}, {json.dumps(label)[:80]}")
        elif name not in expected:
            matched.problems.append(f"a label for {shown(name)}, which is not there")
        elif problem := _label_problem(label, width):
            matched.problems.append(f"label of {shown(name)} is {json.dumps(label)[:80]}, {problem}")
        else:
            matched.labels.append(label)
        labelled.add(name)
    matched.problems.extend(f"no label for {shown(name)}" for name in sorted(expected - labelled))
    return matched


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)


def _label_problem(label: Any, width: int | None) -> str | None:
    """What was expected instead of this label; None if it is valid."""
    if width is None:
        good = type(label) is int and 0 <= label < _MAX_CLASSES
        return None if good else f"expected a class from 0 to {_MAX_CLASSES - 1} like the other labels"
    if type(label) is not list or len(label) != width or not width:
        return f"expected a list of {width or 'one or more'} numbers like the other labels"
    # This is the largest float32. The comparison is false for NaN, and exact for integers of any size.
    good = all(type(x) in (int, float) and abs(x) <= 3.4028234e38 for x in label)
    return None if good else "expected finite numbers"
