"""All kinds of sources, and which kind a path is."""

from dnnlib.util import UserError
from training.data.image_files import check_readable
from training.data.prepare.array_sources import CifarSource, MnistSource, SyntheticSource
from training.data.prepare.image_sources import FilesSource, LmdbSource
from training.data.prepare.source import Source, SourceOptions

# A path is of the first kind that matches it.
SOURCES: tuple[type[Source], ...] = (SyntheticSource, LmdbSource, FilesSource, MnistSource, CifarSource)


def open_source(path: str, options: SourceOptions = SourceOptions()) -> Source:
    """Open the source at a path by the first kind that matches.

    Raises:
        UserError: `path` does not exist, is of no known kind, is damaged, or can't do what the options ask for.
    """
    accepted = ", ".join(kind.accepts for kind in SOURCES)
    if not SyntheticSource.matches(path):
        check_readable(path, f"--source={path}", expected=accepted)
    for kind in SOURCES:
        if kind.matches(path):
            return kind.open(path, options)
    raise UserError(f"--source={path} is no known kind of source: expected {accepted}")
