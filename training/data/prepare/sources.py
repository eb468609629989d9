"""All kinds of sources, and which of them a path is."""

import os

from dnnlib.util import UserError
from training.data.prepare.array_sources import CifarSource, MnistSource, SyntheticSource
from training.data.prepare.image_sources import FilesSource, LmdbSource
from training.data.prepare.source import Source, SourceOptions

# The first that matches is taken.
SOURCES: tuple[type[Source], ...] = (SyntheticSource, LmdbSource, FilesSource, MnistSource, CifarSource)


def open_source(path: str, options: SourceOptions = SourceOptions()) -> Source:
    """The images at a path, whatever kind of source it is.

    Raises:
        UserError: There is nothing at `path`, it is of no known kind, damaged, or can't do what the options ask for.
    """
    accepted = ", ".join(kind.accepts for kind in SOURCES)
    if not SyntheticSource.matches(path):
        if not os.path.exists(path):
            problem = "is a link to nothing" if os.path.islink(path) else "does not exist"
            raise UserError(f"--source={path} {problem}: expected {accepted}")
        if not os.path.isdir(path) and not os.path.isfile(path):  # Devices and pipes, some of which never end.
            raise UserError(f"--source={path} is neither a file nor a folder: expected {accepted}")
        if not os.access(path, os.R_OK):
            raise UserError(f"--source={path} can't be read: permission denied")
    for kind in SOURCES:
        if kind.matches(path):
            return kind.open(path, options)
    raise UserError(f"--source={path} is no known kind of source: expected {accepted}")
