"""Compare runs on 1, 2 and 4 processes: gradients of the first iteration, seconds per iteration, scores of a metric.

    python benchmarks/processes.py [--sizes=1,2,4] [--method=glead+ggdr] [--iterations=8] [--detector=FILE.pt]
        [--out=FILE.json]

All runs have the same batch, which they share, and the same --batch-gpu, so that nothing but the order of summation
differs. Runs on the CPU.
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks.measuring import print_table, save_results  # noqa: E402
from benchmarks.soak import small_config, write_images  # noqa: E402
from cli import trust_net_option  # noqa: E402
from torch_utils.formats import feature_nets  # noqa: E402
from training.jobs import launch  # noqa: E402

WORKER = "import sys; sys.path[0] = sys.argv[1]; from benchmarks.processes import work; work(*sys.argv[2:])"


def run_sizes(
    data: str, folder: str, *, sizes: list[int], options: list[str], iterations: int, detector: str | None = None
) -> list[dict[str, Any]]:
    """One row for each number of processes."""
    rows = []
    for size in sizes:
        out = Path(folder, f"{size}.pt")
        job = Path(folder, "job.json")
        job.write_text(json.dumps(dict(data=data, options=options, iterations=iterations, detector=detector)))
        launch.run_together([sys.executable, "-c", WORKER, str(ROOT), str(job), str(out)], size=size)
        result = torch.load(out, weights_only=True)
        if not rows:
            first = result
        error = max(float((a - b).norm() / b.norm().clamp(min=1e-30))
                    for name, b in first["gradients"].items() for a in [result["gradients"][name]])
        rows.append(dict(processes=size, sec_per_iteration=result["sec_per_iteration"],
                         largest_gradient_difference=error, gradients=len(result["gradients"]),
                         scores=result["scores"]))
    return rows


def work(job_path: str, out: str) -> None:
    """In each process: a metric, the gradients of one iteration, and the time of some."""
    from torch_utils import distributed
    from training.training_loop import Trainer

    job = json.loads(Path(job_path).read_text())
    distributed.join(device="cpu", timeout_sec=60)
    config = dataclasses.replace(small_config(job["data"], *job["options"]), num_gpus=distributed.world_size())
    run_dir = Path(out).with_suffix("")
    run_dir.mkdir(exist_ok=True)
    trainer = Trainer(config, str(run_dir))
    scores = _score(trainer, job["detector"]) if job["detector"] else {}
    start = time.perf_counter()
    for _ in range(job["iterations"]):
        trainer.step(trainer.next_batch())
    sec = (time.perf_counter() - start) / max(job["iterations"], 1)
    trainer.close()
    gradients = _gradients(config, run_dir)
    if distributed.rank() == 0:
        torch.save(dict(gradients=gradients, sec_per_iteration=sec, scores=scores), out)
    distributed.leave()
    os._exit(0)


def _score(trainer: Any, detector: str) -> dict[str, float]:
    from metrics import metric_main

    return dict(metric_main.calc_metric(
        "fid1k", G=trainer.G_ema, dataset=trainer.dataset, detector=detector, batch_size=64, workers=0, cache=False,
    ).results)


def _gradients(config: Any, run_dir: Path) -> dict[str, torch.Tensor]:
    """Of all phases of the first iteration, after the all-reduce, without a step of the optimisers."""
    from training.training_loop import Trainer

    trainer = Trainer(config, str(run_dir))
    found = {}
    images, labels = next(trainer.loader)
    real_img = images.float() / 127.5 - 1
    for index, phase in enumerate(trainer.phases):
        phase.opt.step = lambda: None
        trainer._run_phase(index, phase, real_img, labels)
        found |= {f"{phase.name} {name}": p.grad.double().clone() for name, p in phase.module.named_parameters()
                  if p.grad is not None and p.grad.abs().max() > 0}
    trainer.close()
    return found


@click.command()
@click.option("--sizes", default="1,2,4", show_default=True)
@click.option("--method", default="glead+ggdr", show_default=True)
@click.option("--iterations", default=8, show_default=True)
@click.option("--detector", type=click.Path(exists=True), help="Compare a metric with this feature net, too.")
@trust_net_option
@click.option("--out", type=click.Path(dir_okay=False), help="Write the figures as JSON.")
def main(sizes: str, method: str, iterations: int, detector: str | None, trust_net: bool, out: str | None) -> None:
    if detector and trust_net:
        feature_nets.trust_net(detector)
    with tempfile.TemporaryDirectory() as folder:
        data = os.path.join(folder, "images.zip")
        write_images(Path(data), resolution=32)
        options = [f"--method={method}", "--aug=ada", "--batch=16", "--batch-gpu=4", "--cbase=512", "--cmax=32"]
        rows = run_sizes(data, folder, sizes=[int(size) for size in sizes.split(",")], options=options,
                         iterations=iterations, detector=detector and os.path.abspath(detector))
    print_table([row | {"largest_gradient_difference": f"{row['largest_gradient_difference']:.2e}"} for row in rows])
    save_results(out, rows=rows)


if __name__ == "__main__":
    main()
