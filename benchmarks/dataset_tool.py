"""Time dataset_tool.py on one core and on several: 512x512 images to 256x256; runs take turns, medians, speed-up.

    python benchmarks/dataset_tool.py [--images=1000] [--cores=1,2] [--out=benchmarks/results/dataset_tool-cpu.json]
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.measuring import medians, print_table, ratio, save_results  # noqa: E402
from cli import IntRanges  # noqa: E402
from dnnlib.util import num_cores  # noqa: E402
from training.data.scenes import draw_scenes  # noqa: E402


def draw(folder: Path, count: int) -> None:
    """Scenes with grain, as photographs have it; PNG and JPEG in turns."""
    rng = np.random.default_rng(0)
    for i in tqdm(range(count), desc="Drawing", unit="img", leave=False):
        (scene,), _ = draw_scenes(np.array([i]), resolution=256)
        large = np.asarray(Image.fromarray(scene).resize((512, 512), Image.Resampling.BICUBIC))
        image = Image.fromarray(np.clip(large + rng.normal(0, 4, large.shape), 0, 255).astype(np.uint8))
        image.save(folder / f"{i:06d}.{'jpg' if i % 2 else 'png'}", **({"quality": 95} if i % 2 else {}))


def convert(source: Path, dest: Path, cores: int) -> float:
    """Seconds that the command takes, from its start to its end, on so many cores with as many workers."""
    def pin() -> None:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])

    command = [sys.executable, str(ROOT / "dataset_tool.py"), f"--source={source}", f"--dest={dest}", "--overwrite",
               "--resolution=256", f"--workers={cores}"]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, preexec_fn=pin)
    return time.perf_counter() - start


@click.command()
@click.option("--images", default=1000, show_default=True, type=click.IntRange(min=2))
@click.option("--cores", default="1,2", show_default=True, type=IntRanges(), help="Numbers of cores to compare.")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(min=1))
@click.option("--out", type=click.Path(dir_okay=False), help="Write the figures as JSON.")
def main(images: int, cores: list[int], repeats: int, out: str | None) -> None:
    if not hasattr(os, "sched_setaffinity") or max(cores) > num_cores() or min(cores) < 1:
        raise click.ClickException(f"--cores={cores}: expected 1 to {num_cores()}, on a system that can pin processes")
    times: dict[str, list[float]] = {str(n): [] for n in cores}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "images")
        source.mkdir()
        draw(source, images)
        for _ in tqdm(range(repeats), desc="Converting", leave=False):
            for n in cores:
                times[str(n)].append(convert(source, Path(folder, f"{n}.zip"), n))
        if len({Path(folder, f"{n}.zip").read_bytes() for n in cores}) != 1:
            raise click.ClickException("the number of workers changed the result")
    rows = [dict(cores=int(n), sec=sec, images_per_sec=images / sec, speed_up=1 / ratio(times, n, str(cores[0])))
            for n, sec in medians(times).items()]
    print_table(rows)
    save_results(out, images=images, pillow=PIL.__version__, conversion="512x512 PNG and JPEG to 256x256 PNG",
                 rows=rows, all_sec=times)


if __name__ == "__main__":
    main()
