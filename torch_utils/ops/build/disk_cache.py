"""Compiled kernels on disk: written whole or not at all, checked when read, locked while they are built."""

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Iterator, NamedTuple

from dnnlib.util import atomic_write, say_once

_MAGIC = b"\nGLeaD compiled kernel, SHA-256 of what stands before: "
_TRAILER_BYTES = len(_MAGIC) + 64  # at the end, where neither the loader of libraries nor CUDA minds it
_POLL_SEC = 0.1


class Usage(NamedTuple):
    entries: int
    num_bytes: int


class DiskCache:
    """A folder of compiled kernels.

    Where it can't be written, `write` says so once and what was compiled serves this process alone.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        return self.folder / name

    def read(self, name: str) -> bytes | None:
        """An entry; None if there is none, or it is damaged, which is said."""
        try:
            data = self.path(name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as e:
            say_once("cache", f"Compiled kernels can't be read from {self.folder}: {e.strerror or e}")
            return None
        body, trailer = data[:-_TRAILER_BYTES], data[-_TRAILER_BYTES:]
        if trailer != _trailer(body):
            say_once(name, f"Compiled kernel {self.path(name)} is damaged: building it anew.")
            return None
        return body

    def write(self, name: str, body: bytes) -> bool:
        """Keep an entry. False: it can't be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path(name)) as f:
                f.write(body)
                f.write(_trailer(body))
        except OSError as e:
            self._say_unusable(e)
            return False
        return True

    def _say_unusable(self, e: OSError) -> None:
        say_once("cache", f"Compiled kernels can't be kept in {self.folder} ({e.strerror or e}): "
                          "they are compiled again in each process.")

    def usage(self) -> Usage:
        with contextlib.suppress(OSError):
            sizes = [p.stat().st_size for p in self.folder.iterdir() if p.suffix in (".cubin", ".ptx", ".so")]
            return Usage(len(sizes), sum(sizes))
        return Usage(0, 0)

    @contextlib.contextmanager
    def lock(self, seconds: float) -> Iterator[bool]:
        """Keep other processes from building the same. The system frees the lock when its holder ends, however it does.

        Args:
            seconds: How long another holder is waited for.

        Yields:
            False where there is no lock to be had: in time, in a folder that can't be written, on a file system that
            knows none. To build without it is double work, but no harm.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fd = os.open(self.path("lock"), os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as e:
            self._say_unusable(e)
            yield False
            return
        try:
            yield self._wait(fd, seconds)
        finally:
            os.close(fd)

    def _wait(self, fd: int, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() >= end:
                    say_once("lock", f"Another process has held {self.path('lock')} for {seconds:.0f} s: "
                                     "compiling CUDA kernels without waiting for it.")
                    return False
                time.sleep(_POLL_SEC)
            except OSError as e:  # no locks on this file system
                say_once("lock", f"{self.path('lock')} can't be locked ({e.strerror or e}): "
                                 "several processes may compile the same CUDA kernels.")
                return False

    @contextlib.contextmanager
    def build_folder(self, *, locked: bool) -> Iterator[Path]:
        """An empty folder to build in, removed afterwards.

        Who holds the lock is the only one who builds in the cache, so that folders of others, with the lock files of
        PyTorch's extension builder in them, are left from builds that were interrupted: they are removed.
        """
        if locked:
            for stale in self.folder.glob("build-*"):
                say_once(str(stale), f"Removing {stale}, which an interrupted build left.")
                shutil.rmtree(stale, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix="build-" if locked else "glead-build-",
                                       dir=self.folder if locked else None))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _trailer(body: bytes) -> bytes:
    return _MAGIC + hashlib.sha256(body).hexdigest().encode()
