"""Writing videos frame by frame: MP4 by ffmpeg, WebP and GIF by Pillow."""

import contextlib
import itertools
import os
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any, Iterable, Iterator

import numpy as np
import PIL.Image

from dnnlib.util import UserError, atomic_path

SUFFIXES = (".mp4", ".webp", ".gif")
MAX_GIF_FPS = 50
MAX_GIF_PIXELS = 1 << 30    # Pillow holds all frames of a GIF, a byte per pixel.
MAX_WEBP_SIDE = 16383
_X264 = ("-c:v", "libx264", "-preset", "medium", "-crf", "16", "-pix_fmt", "yuv420p", "-movflags", "+faststart")


def find_ffmpeg() -> str | None:
    """The path of ffmpeg, from the package imageio-ffmpeg or from the system; None if there is none."""
    with contextlib.suppress(ImportError, RuntimeError):  # RuntimeError: the package has no binary for this system
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    return shutil.which("ffmpeg")


def resolve_path(path: str | os.PathLike) -> Path:
    """The path to write to: `path`, or without ffmpeg, a .webp in place of an .mp4, with a warning.

    Raises:
        UserError: The suffix is not that of a video.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"video {str(path) or repr(str(path))}: expected a name that ends in {', '.join(SUFFIXES)}")
    if path.suffix.lower() == ".mp4" and find_ffmpeg() is None:
        other = path.with_suffix(".webp")
        warnings.warn(f"no ffmpeg (pip install imageio-ffmpeg): writing {other} in place of {path}", stacklevel=2)
        return other
    return path


def check_video(
    path: str | os.PathLike, *, size: tuple[int, int], num_frames: int, fps: float, lossless: bool = False
) -> None:
    """Check that the format can hold a video of `size` (height, width), before long work starts.

    Raises:
        UserError: The format can't hold it.
    """
    suffix = Path(path).suffix.lower()
    if lossless and suffix != ".webp":
        raise UserError(f"{path} can't be lossless: give a name that ends in .webp")
    if suffix == ".gif" and fps > MAX_GIF_FPS:
        raise UserError(f"{path}: {fps:g} frames per second; GIF has at most {MAX_GIF_FPS}")
    if suffix == ".gif" and num_frames * size[0] * size[1] > MAX_GIF_PIXELS:
        raise UserError(f"{path}: {num_frames} frames of {size[1]}x{size[0]} are too much for a GIF: choose .mp4 or "
                        ".webp, or fewer frames")
    if suffix == ".webp" and max(size) > MAX_WEBP_SIDE:
        raise UserError(f"{path}: frames of {size[1]}x{size[0]}; WebP has at most {MAX_WEBP_SIDE} pixels a side")


def write_video(
    path: str | os.PathLike,
    frames: Iterable[np.ndarray],
    *,
    num_frames: int,
    fps: float,
    lossless: bool = False,
) -> None:
    """Write a video. WebP and GIF repeat for ever. The file appears at `path` when it is complete.

    Args:
        path:       The result of `resolve_path`.
        frames:     uint8 [H, W, C], C = 1 or 3, all of one shape. They are taken one at a time.
        num_frames: Number of frames.
        fps:        Frames per second.
        lossless:   Keep every pixel (WebP only). Otherwise, WebP is compressed with quality 90.

    Raises:
        UserError: ffmpeg fails, or the format can't hold the video.
    """
    path = Path(path)
    frames = iter(frames)
    first = next(frames)
    check_video(path, size=first.shape[:2], num_frames=num_frames, fps=fps, lossless=lossless)
    frames = itertools.chain([first], frames)
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".mp4":
            _write_mp4(path, temporary, frames, size=first.shape[:2], fps=fps)
        else:
            _write_animation(path, temporary, frames, num_frames=num_frames, fps=fps, lossless=lossless)


def _write_mp4(path: Path, temporary: Path, frames: Iterable[np.ndarray], *, size: tuple[int, int], fps: float) -> None:
    # imageio-ffmpeg's own writer doesn't tell the exit status, which says whether the video is complete.
    ffmpeg = find_ffmpeg()
    if ffmpeg is None:
        raise UserError(f"{path} needs ffmpeg: pip install imageio-ffmpeg, or choose .webp")
    even = [f"pad={size[1] + size[1] % 2}:{size[0] + size[0] % 2}"]  # 4:2:0 has a colour for each 2x2 pixels
    command = [ffmpeg, "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[1]}x{size[0]}",
               "-r", str(fps), "-i", "-", "-vf", *even, *_X264, "-f", "mp4", str(temporary)]
    with tempfile.TemporaryFile() as log:
        # A new session keeps Ctrl-C, which is meant for this program, from ffmpeg.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True)
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin:  # if ffmpeg ends early, the status tells it below
                for frame in frames:
                    process.stdin.write(np.ascontiguousarray(np.broadcast_to(frame, [*size, 3])))
            status = process.wait()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if status != 0:
            log.seek(0)
            lines = log.read().decode(errors="replace").strip().splitlines()
            raise UserError(f"can't write {path}: ffmpeg failed with status {status}"
                            f"{': ' + lines[-1][:200] if lines else ''}; .webp needs no ffmpeg")


def _write_animation(
    path: Path, temporary: Path, frames: Iterator[np.ndarray], *, num_frames: int, fps: float, lossless: bool
) -> None:
    unit = 10 if path.suffix.lower() == ".gif" else 1  # of durations, in milliseconds
    times = np.rint(np.arange(num_frames + 1) * 1000 / fps / unit).astype(int) * unit  # rounding errors don't add up
    options: dict[str, Any] = dict(save_all=True, loop=0, duration=np.diff(times).tolist())
    if unit == 1:
        options |= dict(format="WEBP", lossless=lossless, quality=90, method=2)
    else:
        options |= dict(format="GIF")
    with open(temporary, "wb") as f:
        _LazyFrames(frames, num_frames).save(f, **options)
    assert next(frames, None) is None, f"more than the {num_frames} frames that were announced"


class _LazyFrames(PIL.Image.Image):
    """An image whose frames are taken from an iterator, one by one, to save memory: Pillow would take a list."""

    def __init__(self, frames: Iterator[np.ndarray], num_frames: int) -> None:
        super().__init__()
        self.n_frames = num_frames
        self.is_animated = True
        self._frames = frames
        self._position = -1
        self.seek(0)

    def tell(self) -> int:
        return self._position

    def seek(self, frame: int) -> None:
        if frame == self.n_frames:
            raise EOFError  # tells Pillow that there are no more frames
        if frame == self._position + 1:
            pixels = next(self._frames)
            content = PIL.Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
            self.__dict__.update(vars(content))
            self._position = frame


