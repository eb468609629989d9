"""Attribute dictionaries, messages for users, files that are written whole or not at all, cached downloads."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import signal
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any, BinaryIO, Callable, Iterator
from urllib.parse import urlparse


class UserError(ValueError):
    """A mistake that the user can mend: the message says what came, what was expected, and what to do.

    Each argument describes one mistake. Command lines print each on a line of its own, and exit with status 1. Every
    other exception is a bug.
    """

    def __str__(self) -> str:
        return "; ".join(map(str, self.args))


def check_all(*checks: Callable[[], object]) -> None:
    """Run all checks, and raise one UserError with all mistakes that they found, each once."""
    problems: dict[str, None] = {}
    for check in checks:
        try:
            check()
        except UserError as e:
            problems |= dict.fromkeys(e.args)
    if problems:
        raise UserError(*problems)


MAX_DOWNLOAD_BYTES = 4 << 30     # The largest published network pickles have a tenth of this.
_TIMEOUT_SEC = 30                # A download fails if the server is silent for longer.
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)  # The disk is full or broken.

_said: set[str] = set()


def say_once(topic: str, message: str) -> None:
    """Print a line on stderr, unless a line on the same topic was printed before."""
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


def to_easydict(value: Any) -> Any:
    """Copy a value. Its dicts, at any depth of dicts, lists and tuples, become EasyDicts."""
    if isinstance(value, dict):
        return EasyDict({key: to_easydict(item) for key, item in value.items()})
    if type(value) in (list, tuple):
        return type(value)(map(to_easydict, value))
    return value


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
    """Seconds as a rough estimate: `3 minutes`, `2 hours`, `4 days`. The least is `1 minute`."""
    units = {"day": 86400, "hour": 3600, "minute": 60}
    name = next((name for name, unit in units.items() if seconds >= 1.5 * unit), "minute")
    count = max(round(seconds / units[name]), 1)
    return f"{count} {name}{'s' if count > 1 else ''}"


def num_cores() -> int:
    """Number of cores that this process may use. More decoding processes than that only slow each other down."""
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
    """As `atomic_write`, but gives the name of the temporary file, for functions that take a path."""
    path = Path(path)
    with termination_as_interrupt(), _named_errors(path):
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(fd)
        try:
            yield Path(name)
            with open(name, "rb+") as f:
                os.fsync(f.fileno())
            make_public(name)
            os.replace(name, path)
            _sync_folder(path.parent)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise


@contextlib.contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Inside, SIGTERM raises KeyboardInterrupt, as Ctrl-C does. So a program that a job scheduler ends cleans up.

    It has no effect where the program handles SIGTERM already, nor outside the main thread, which alone can handle
    signals.
    """
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def check_regular(*paths: str | os.PathLike) -> None:
    """Raise UserError where a path is a device or pipe: reading it may never end. Paths that don't exist are fine."""
    for path in paths:
        if os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            raise UserError(f"can't open {path}: a device or pipe, not a file")


def lies_in(path: str | os.PathLike, folder: str | os.PathLike) -> bool:
    """Whether `path`, which need not exist, is `folder` or below it. False where `folder` is no folder."""
    return os.path.isdir(folder) and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def make_public(path: str | os.PathLike) -> None:
    """Give a temporary file or folder, which only its owner can read, the usual permissions: those of the umask."""
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(path, (0o777 if os.path.isdir(path) else 0o666) & ~umask)


def _sync_folder(path: Path) -> None:
    """Write the names in a folder to the disk, if the system can do that, so that they survive a power failure."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def append_text(path: str | os.PathLike, text: str) -> None:
    """Append `text` to a file: all of it, or nothing if there is an error.

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


def read_yaml(path: str | os.PathLike) -> Any:
    """The content of a YAML or JSON file, as plain data.

    Raises:
        UserError: The file can't be read, or is neither.
    """
    import yaml  # Here, because few commands need it.

    check_regular(path)
    try:
        text = Path(path).read_text(encoding="utf-8")
        try:
            return json.loads(text)     # YAML does not allow JSON that is indented by tabs.
        except ValueError:
            return yaml.safe_load(text)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as e:
        raise UserError(f"{path} can't be read as JSON or YAML: {' '.join(str(e).split())}") from e


@contextlib.contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    """Make errors name `path`. The system names no file when the disk is full, and else the temporary file."""
    try:
        yield
    except OSError as e:
        ours = e.filename is not None and Path(os.fsdecode(e.filename)).name.startswith(f".{path.name}.")
        if ours or e.filename is None and e.errno in DISK_ERRORS:
            raise OSError(e.errno, e.strerror, str(path)) from e
        raise


def cache_dir(*parts: str) -> Path:
    """Where downloads and computed features are kept: `$GLEAD_CACHE_DIR`, or the user's cache folder."""
    root = os.environ.get("GLEAD_CACHE_DIR") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.join(Path.home(), ".cache"), "glead"
    )
    return Path(root, *parts)


def check_writable(path: str | os.PathLike) -> None:
    """Check, before long work starts, that a file at `path` can be created. Nothing is left behind.

    Raises:
        UserError: The innermost parent that exists is no folder, or takes no files.
    """
    parent = os.path.dirname(os.path.abspath(path))
    while not os.path.lexists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent):
        raise UserError(f"can't write {path}: {parent} is not a folder")
    try:
        with tempfile.TemporaryFile(dir=parent):  # Permissions say nothing about /proc and read-only disks.
            pass
    except OSError as e:
        raise UserError(f"can't write {path}: {parent} takes no files ({e.strerror}); choose another place") from e


@contextlib.contextmanager
def made_folder(path: str | os.PathLike) -> Iterator[None]:
    """Make a folder and its parents. On an error inside the block, new folders that are empty are removed."""
    missing = [p for p in (Path(path), *Path(path).parents) if not p.exists()]
    Path(path).mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            for p in missing:
                p.rmdir()
        raise


def is_url(name: str | os.PathLike) -> bool:
    return urlparse(str(name)).scheme in ("http", "https")


def open_url(url: str | os.PathLike, *, sha256: str | None = None) -> BinaryIO:
    """Open a local path or an http(s) URL for reading. URLs are downloaded once and kept in the cache.

    Args:
        url:    Path or URL.
        sha256: Expected digest of a download, or its first characters. File names of torchvision hold eight of them.

    Raises:
        UserError: The file doesn't exist, the server can't be reached, the content is larger than
            `MAX_DOWNLOAD_BYTES`, breaks off, or has another digest. Then nothing is kept.
    """
    if not is_url(url):
        check_regular(url)
        try:
            return open(url, "rb")
        except OSError as e:
            raise UserError(f"can't open {url or repr(url)}: {e.strerror or e}") from e
    url = str(url)
    path = cached_path(url)
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        print(f"Downloading {url} to {path} ...", file=sys.stderr, flush=True)
        with atomic_path(path) as temporary:
            try:
                with open(temporary, "wb") as f:
                    _download(url, f)
            except UserError as e:
                raise UserError(f"{e}; if you have the file, put it at {path}") from e
            _check_digest(url, temporary, sha256)
    else:
        _check_digest(str(path), path, sha256)
    return open(path, "rb")


def cached_path(url: str) -> Path:
    """The file in the cache that holds, or will hold, what is at `url`."""
    name = os.path.basename(urlparse(url).path) or "download"
    return cache_dir("downloads", f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{name}")


def sha256_of(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


def _download(url: str, file: BinaryIO) -> None:
    """Write what the server sends to `file`, piece by piece. Raises UserError where a part of it doesn't come."""
    import requests  # Here, so that programs that only read local files start faster.
    from tqdm import tqdm

    size, answered = 0, False
    try:
        # If the server compressed the file, it would announce another length than the file's.
        headers = {"Accept-Encoding": "identity"}
        with requests.get(url, timeout=_TIMEOUT_SEC, stream=True, headers=headers) as response:
            response.raise_for_status()
            answered = True
            announced = response.headers.get("Content-Length", "")
            total = int(announced) if announced.isdecimal() and len(announced) < 20 else None
            with tqdm(total=total, unit="B", unit_scale=True, leave=False) as bar:
                for chunk in itertools.chain([b""], response.iter_content(1 << 20)):
                    size += len(chunk)
                    if max(size, total or 0) > MAX_DOWNLOAD_BYTES:
                        raise UserError(f"can't download {url}: it is larger than {MAX_DOWNLOAD_BYTES / 2**30:g} GiB")
                    file.write(chunk)
                    bar.update(len(chunk))
            if total not in (None, size) and "Content-Encoding" not in response.headers:
                raise UserError(f"can't download {url}: {size} bytes came, and {total} were announced")
    except requests.RequestException as e:
        if answered:
            reason = f"the connection broke after {size} bytes"
        elif isinstance(e, requests.HTTPError):
            reason = f"the server says {e.response.status_code} {e.response.reason}"
        else:
            reason = f"no connection to {urlparse(url).netloc} ({type(e).__name__})"
        raise UserError(f"can't download {url}: {reason}") from e


def _check_digest(name: str, path: Path, expected: str | None) -> None:
    if expected is not None and not (actual := sha256_of(path)).startswith(expected):
        raise UserError(f"{name} has SHA-256 {actual[:16]}..., expected {expected}: delete it and try again")
