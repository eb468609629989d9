"""Videos: what is in the files, that frames are taken one at a time, and what happens where ffmpeg fails."""

import subprocess
import sys
import weakref

import numpy as np
import PIL.Image
import pytest

from dnnlib.util import UserError
from sampling import video


def moving(num_frames, *, channels=3, height=18, width=32):
    """A bright square on a gradient that moves."""
    y, x = np.mgrid[:height, :width]
    for index in range(num_frames):
        frame = np.repeat((4 * x + 3 * y + 5 * index)[:, :, None], channels, axis=2).astype(np.uint8)
        frame[4:8, index % 20:index % 20 + 8] = 255
        yield frame


def read_frames(path):
    image = PIL.Image.open(path)
    frames, durations = [], []
    for index in range(image.n_frames):
        image.seek(index)
        image.load()
        frames.append(np.asarray(image.convert("RGB")))
        durations.append(image.info["duration"])
    assert image.info["loop"] == 0
    return np.stack(frames), durations


@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_webp_keeps_all_pixels_and_times(tmp_path, channels):
    video.write_video(tmp_path / "a.webp", moving(30, channels=channels), num_frames=30, fps=24, lossless=True)
    frames, durations = read_frames(tmp_path / "a.webp")
    assert np.array_equal(frames, np.broadcast_to(np.stack(list(moving(30, channels=channels))), [30, 18, 32, 3]))
    assert sum(durations) == 1250 and set(durations) == {41, 42}


def test_webp_and_gif_are_near_the_frames(tmp_path):
    expected = np.stack(list(moving(10))).astype(float)
    for name, bound in (("a.webp", 6), ("A.GIF", 3)):
        video.write_video(tmp_path / name, moving(10), num_frames=10, fps=15)
        frames, durations = read_frames(tmp_path / name)
        assert len(frames) == 10 and abs(sum(durations) - 667) <= 5
        assert np.abs(frames - expected).mean() < bound


needs_ffmpeg = pytest.mark.skipif(video.find_ffmpeg() is None, reason="no ffmpeg")


@needs_ffmpeg
@pytest.mark.parametrize("height, width", [(18, 32), (17, 31)])
def test_mp4_decodes_to_the_frames(tmp_path, height, width):
    path = tmp_path / "a.mp4"
    video.write_video(path, moving(25, height=height, width=width), num_frames=25, fps=12.5)
    command = [video.find_ffmpeg(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    result = subprocess.run(command, capture_output=True, check=True)
    frames = np.frombuffer(result.stdout, np.uint8).reshape(25, 18, 32, 3)[:, :height, :width]
    assert b"12.50 fps" in result.stderr and b"h264" in result.stderr
    expected = np.stack(list(moving(25, height=height, width=width))).astype(float)
    assert np.abs(frames - expected).mean() < 6


@pytest.mark.parametrize("name", ["a.webp", pytest.param("a.mp4", marks=needs_ffmpeg)])
def test_frames_are_held_one_at_a_time(tmp_path, name):
    alive, most = weakref.WeakSet(), []

    class Frame(np.ndarray):
        pass

    def frames():
        for frame in moving(40):
            frame = frame.view(Frame)
            alive.add(frame)
            most.append(len(alive))
            yield frame

    Frame.__hash__ = object.__hash__
    video.write_video(tmp_path / name, frames(), num_frames=40, fps=30)
    assert len(most) == 40 and max(most) <= 3


@pytest.mark.parametrize("name", ["a.webp", "a.gif", pytest.param("a.mp4", marks=needs_ffmpeg)])
def test_nothing_is_left_of_a_video_that_fails(tmp_path, name):
    def broken():
        yield from moving(5)
        raise KeyboardInterrupt

    (tmp_path / name).write_text("old")
    with pytest.raises(KeyboardInterrupt):
        video.write_video(tmp_path / name, broken(), num_frames=9, fps=30)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "old"


def test_failure_of_ffmpeg(tmp_path, monkeypatch):
    program = tmp_path / "ffmpeg"
    program.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('line\\nno libx264')")
    program.chmod(0o755)
    monkeypatch.setattr(video, "find_ffmpeg", lambda: str(program))
    with pytest.raises(UserError, match="a.mp4: ffmpeg failed with status 1: no libx264; .webp needs no ffmpeg"):
        video.write_video(tmp_path / "a.mp4", moving(3), num_frames=3, fps=30)
    assert [path.name for path in tmp_path.iterdir()] == ["ffmpeg"]


def test_where_there_is_no_ffmpeg(monkeypatch):
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)  # importing it fails
    monkeypatch.setenv("PATH", "")
    assert video.find_ffmpeg() is None
    with pytest.warns(UserWarning, match="no ffmpeg .*: writing out/a.webp in place of out/a.mp4"):
        assert str(video.resolve_path("out/a.mp4")) == "out/a.webp"
    assert str(video.resolve_path("out/a.gif")) == "out/a.gif"


def test_what_a_format_cannot_hold():
    small = dict(size=(256, 256), num_frames=100)
    video.check_video("a.webp", **small, fps=60, lossless=True)
    for name, options, message in [
        ("a.mp4", dict(**small, fps=30, lossless=True), "can't be lossless"),
        ("a.gif", dict(**small, fps=60), "GIF has at most 50"),
        ("a.gif", dict(size=(1024, 1024), num_frames=2000, fps=30), "too much for a GIF"),
        ("a.webp", dict(size=(1024, 20000), num_frames=20, fps=30), "at most 16383 pixels a side"),
    ]:
        with pytest.raises(UserError, match=message):
            video.check_video(name, **options)
    with pytest.raises(UserError, match="expected a name that ends in .mp4, .webp, .gif"):
        video.resolve_path("a.avi")
