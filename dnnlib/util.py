"""Attribute dictionaries, errors and remarks for users, atomic files, cached downloads."""

import contextlib
import errno
import hashlib
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO, Iterator
from urllib.parse import urlparse


class UserError(ValueError):
    """A mistake that the user can mend: the message says what came, what was expected, and what to do.

    Command lines print it as one line and exit with status 1. Everything else that is raised is a bug.
    """


_said: set[str] = set()


def say_once(topic: str, message: str) -> None:
    """A line on stderr, unless something was said on that topic before."""
    if topic not in _said:
        _said.add(topic)
        print(" ".join(message.split()), file=sys.stderr, flush=True)


class EasyDict(dict):
    """A dict whose keys are attributes too. Used only where JSON or pickle formats call for it."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __delattr__(self, name: str) -> None:
        try:
            del self[name]
        except KeyError:
            raise AttributeError(name) from None


def format_time(seconds: float) -> str:
    """Seconds as `12s`, `3m 05s`, `2h 07m 09s` or `4d 03h 12m`."""
    s = int(round(seconds))
    if s < 60:
        return f"{s}s"
    if s < 60 * 60:
        return f"{s // 60}m {s % 60:02}s"
    if s < 24 * 60 * 60:
        return f"{s // 3600}h {s // 60 % 60:02}m {s % 60:02}s"
    return f"{s // 86400}d {s // 3600 % 24:02}h {s // 60 % 60:02}m"


def rough_time(seconds: float) -> str:
    """Of an estimate: `3 minutes`, `2 hours`, `4 days`."""
    unit, name = next(((n, name) for n, name in ((86400, "day"), (3600, "hour"), (60, "minute")) if seconds >= 1.5 * n),
                      (60, "minute"))
    count = max(round(seconds / unit), 1)
    return f"{count} {name}{'s' if count > 1 else ''}"


def num_cores() -> int:
    """Cores that this process may use; more decoding processes than that get in each other's way."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a temporary file beside `path`; on success it is flushed to disk and takes the place of `path`.

    On any error the temporary file is removed and what stood at `path` before stays as it was.

    Raises:
        OSError: The file can't be written; its `filename` is `path`.
    """
    with atomic_path(path) as temporary, open(temporary, "wb") as f:
        yield f


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """As `atomic_write`, for those who write to a file by its name: gives that of the temporary file."""
    path = Path(path)
    with _named_errors(path):
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(fd)
    try:
        with _named_errors(path):
            yield Path(name)
            with open(name, "rb+") as f:
                os.fsync(f.fileno())
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(name, 0o666 & ~umask)  # mkstemp makes private files; results are ordinary ones
            os.replace(name, path)
            _sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise


def _sync_folder(path: Path) -> None:
    """Have the names in a folder survive a power failure, where the system can do that."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def append_text(path: str | os.PathLike, text: str) -> None:
    """Add to a file, all of `text` or nothing.

    Raises:
        OSError: It can't be written; its `filename` is `path`.
    """
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        size, data = os.fstat(fd).st_size, text.encode()
        try:
            while data:
                data = data[os.write(fd, data):]
        except OSError as e:
            os.ftruncate(fd, size)
            raise OSError(e.errno, e.strerror, str(path)) from e
    finally:
        os.close(fd)


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """A full disk is reported without a name, and other failures under the temporary one: users know neither."""
    try:
        yield
    except OSError as e:
        ours = e.filename is not None and Path(os.fsdecode(e.filename)).name.startswith(f".{path.name}.")
        if ours or e.filename is None and e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
            raise OSError(e.errno, e.strerror, str(path)) from e
        raise


def cache_dir(*parts: str) -> Path:
    """Where downloads and computed features are kept: `$GLEAD_CACHE_DIR`, or the user's cache folder."""
    root = os.environ.get("GLEAD_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join(Path.home(), ".cache"), "glead"
    )
    return Path(root, *parts)


def check_writable(path: str | os.PathLike) -> None:
    """See to it, before long work starts, that `path` can be made or replaced; nothing is made yet.

    Raises:
        UserError: The first part of the path that exists is no folder to write in, or `path` itself can't be replaced.
    """
    parent = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise UserError(f"can't write {path}: {parent} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=parent):  # permissions alone don't tell of /proc and read-only disks
            pass
    except OSError as e:
        raise UserError(f"can't write {path}: {parent} takes no files ({e.strerror}); choose another place") from e


@contextlib.contextmanager
def made_folder(path: str | os.PathLike) -> Iterator[None]:
    """Make a folder and those above it; on any error the new ones are removed again, unless something is in them."""
    missing = [p for p in (Path(path), *Path(path).parents) if not p.exists()]
    Path(path).mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for p in missing:
                p.rmdir()
        raise


def is_url(name: str) -> bool:
    return urlparse(str(name)).scheme in ("http", "https")


def open_url(url: str | os.PathLike, *, sha256: str | None = None, timeout_sec: float = 30) -> BinaryIO:
    """Open a local path or an http(s) URL for reading; URLs are downloaded once and kept in the cache.

    Args:
        url:         Path or URL.
        sha256:      Expected digest, or its first characters (torchvision's file names carry eight of them).
        timeout_sec: How long a silent server is waited for.

    Raises:
        UserError: The file is not there, the server can't be reached, or the content has another digest.
    """
    if not is_url(str(url)):
        if os.path.exists(url) and not os.path.isfile(url) and not os.path.isdir(url):
            raise UserError(f"can't open {url}: a device or pipe, not a file")  # some never end
        try:
            return open(url, "rb")
        except OSError as e:
            raise UserError(f"can't open {url or repr(url)}: {e.strerror or e}") from e
    url = str(url)
    path = cached_path(url)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"Downloading {url} to {path} ...", file=sys.stderr, flush=True)
        data = _download(url, timeout_sec)
        _check_digest(url, data, sha256)
        with atomic_write(path) as f:
            f.write(data)
        return io.BytesIO(data)
    data = path.read_bytes()
    _check_digest(str(path), data, sha256)
    return io.BytesIO(data)


def cached_path(url: str) -> Path:
    """The file in the cache that holds, or will hold, what is at `url`."""
    name = os.path.basename(urlparse(url).path) or "download"
    return cache_dir("downloads", f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}")


def _download(url: str, timeout_sec: float) -> bytes:
    import requests  # here, so that programs that only read local files start faster

    try:
        with requests.get(url, timeout=timeout_sec, stream=True) as response:
            response.raise_for_status()
            return _read_with_progress(response)
    except requests.Timeout as e:
        raise UserError(f"can't download {url}: no answer in {timeout_sec:g} s") from e
    except requests.HTTPError as e:
        raise UserError(f"can't download {url}: the server says {e.response.status_code} {e.response.reason}") from e
    except requests.ConnectionError as e:
        raise UserError(f"can't download {url}: no connection to {urlparse(url).netloc}") from e
    except requests.RequestException as e:
        raise UserError(f"can't download {url}: {type(e).__name__}: {str(e)[:200]}") from e


def _read_with_progress(response: Any) -> bytes:
    from tqdm import tqdm

    total = int(response.headers.get("Content-Length", 0)) or None
    buffer = io.BytesIO()
    with tqdm(total=total, unit="B", unit_scale=True, leave=False) as bar:
        for chunk in response.iter_content(1 << 20):
            buffer.write(chunk)
            bar.update(len(chunk))
    return buffer.getvalue()


def _check_digest(name: str, data: bytes, expected: str | None) -> None:
    actual = hashlib.sha256(data).hexdigest()
    if expected is not None and not actual.startswith(expected):
        raise UserError(f"{name} has SHA-256 {actual[:16]}..., expected {expected}: delete it and try again")
