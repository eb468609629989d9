"""Sweeps: the same training with several settings and seeds, and the scores of the last networks.

An *arm* is a setting, and a *cell* is one run: an arm and a seed. The folder of a sweep has a folder for each cell. It
holds the run directory, the output of train.py and calc_metrics.py, and the scores. What is there is not done again, so
that a sweep that was stopped resumes.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import pydantic

from dnnlib.util import UserError, atomic_write, num_cores, read_yaml, termination_as_interrupt

from . import resume
from .run_log import read_records
from .training_state import list_pickles

_ROOT = Path(__file__).resolve().parents[2]
_PROBE_KIMG = 2         # Length of the run that measures how fast an arm trains.
_POLL_SEC = 2
ArmOptions = dict[str, Any]     # Options of train.py by name, with - or _.


class Plan(pydantic.BaseModel):
    """The arms of a sweep, and how they are scored."""

    model_config = pydantic.ConfigDict(extra="forbid")

    data: str
    arms: dict[str, ArmOptions] = pydantic.Field(min_length=1)     # The option `seeds` overrides the number of seeds.
    train: ArmOptions = {}                  # Options of all arms, which those of an arm override.
    seeds: int = pydantic.Field(3, ge=1)    # The number of seeds: first_seed, first_seed + 1, ...
    first_seed: int = pydantic.Field(0, ge=0)
    minutes: float | None = pydantic.Field(None, gt=0)  # Runs are as long as their arm can train in this time.
    reference: str | None = None            # The arm that others are compared with.
    judges: dict[str, str] = {}             # Paths or URLs of feature nets, by name.
    metrics: str = "kid10k,fid10k,pr10k3,dc10k5"

    @pydantic.model_validator(mode="after")
    def _check(self) -> "Plan":
        for name in (*self.arms, *self.judges):
            if not re.fullmatch(r"\w[\w+.-]*", name):
                raise ValueError(f"{name!r} names a folder or a file: take letters, digits and _ + . -")
        if self.reference is not None and self.reference not in self.arms:
            raise ValueError(f"reference is {self.reference!r}, which is none of the arms")
        for name, options in self.arms.items():
            if {"trust-net", "trust_net"} & {*self.train, *options}:
                raise ValueError("trust-net is no option of a plan, which may come from a stranger: say --trust-net")
            count = options.get("seeds", self.seeds)
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"arms.{name}.seeds is {count!r}, expected a number from 1")
        return self


class Cell(NamedTuple):
    """A run of a sweep."""

    arm: str
    seed: int
    folder: Path
    options: ArmOptions     # All options of train.py but --outdir and --outcome.

    @property
    def run_dir(self) -> Path | None:
        """The run directory; None if there is none yet."""
        found = sorted(path for path in self.folder.glob("[0-9]*-*") if path.is_dir())
        return found[0] if found else None

    @property
    def is_trained(self) -> bool:
        with contextlib.suppress(OSError):
            return (self.folder / "outcome.txt").read_text().strip() == "finished"
        return False

    def scores_file(self, judge: str) -> Path:
        return self.folder / f"scores-{judge}.json"

    @property
    def kimg(self) -> float:
        """Thousands of images that it has trained on so far."""
        records = read_records(self.run_dir / "stats.jsonl") if self.run_dir is not None else []
        with contextlib.suppress(IndexError, KeyError, TypeError):
            return float(records[-1]["Progress/kimg"]["mean"])
        return 0.0


def read_plan(path: str | os.PathLike) -> Plan:
    """A plan from a YAML or JSON file. $NAME in its texts stands for an environment variable.

    Raises:
        UserError: It can't be read, is no plan, or names a variable that is not set.
    """
    return make_plan(read_yaml(path), source=str(path))


def make_plan(content: Any, *, source: str) -> Plan:
    """A plan from the content of a file, as `read_plan`. Messages name it by `source`."""
    try:
        return Plan.model_validate(_expand(content, source))
    except pydantic.ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{source}: {place + ': ' if place else ''}{first['msg'].removeprefix('Value error, ')}") from e


def _expand(value: Any, source: str) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item, source) for key, item in value.items()}
    if not isinstance(value, str):
        return value
    expanded = os.path.expandvars(value)
    if left := re.search(r"\$\{?(\w+)", expanded):
        raise UserError(f"{source} names ${left[1]}, which is not set: export {left[1]}=FOLDER")
    return expanded


def list_cells(plan: Plan, folder: str | os.PathLike) -> list[Cell]:
    """All runs of a sweep in the order in which they are started.

    Arms with the most seeds come first. Among arms with equally many seeds, all run one seed before any runs a second.
    """
    counts = {arm: options.get("seeds", plan.seeds) for arm, options in plan.arms.items()}
    cells = [Cell(arm, seed, Path(folder, arm, f"seed{seed}"), _options_of(plan, arm) | {"seed": seed})
             for arm, count in counts.items() for seed in range(plan.first_seed, plan.first_seed + count)]
    return sorted(cells, key=lambda cell: (-counts[cell.arm], cell.seed))   # Sorting keeps the order of arms.


def _options_of(plan: Plan, arm: str) -> ArmOptions:
    """The options of an arm for train.py, without the seed."""
    own = {name: value for name, value in plan.arms[arm].items() if name != "seeds"}
    return plan.train | own | {"data": plan.data}


# ----------------------------------------------------------------------------------------------------------------------
# Running.


class Sweep:
    """Trains and scores the cells of a plan, several at a time.

    Args:
        folder: Folder of the sweep.
        jobs:   Programs that run at a time. Each gets its share of the cores.
        say:    Called with lines about the progress.
        device: Device of calc_metrics.py; None = its default.
        trust:  Let the programs open TorchScript nets, which may run any code.
    """

    def __init__(self, plan: Plan, folder: str | os.PathLike, *, jobs: int, say: Callable[[str], None],
                 device: str | None = None, trust: bool = False) -> None:
        self.plan, self.folder, self.say, self.device = plan, Path(folder), say, device
        self.jobs, self._trust = jobs, ["--trust-net"] if trust else []
        self.failed: list[str] = []
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, num_cores() // jobs))}
        self._stopping = threading.Event()
        self._programs: set[subprocess.Popen] = set()

    def run(self, progress: Callable[[float, float], None]) -> None:
        """Train and score the cells that are not finished. Cells that fail are listed in `failed`.

        Args:
            progress: Called every few seconds with thousands of images: trained so far, and in all.

        Raises:
            UserError:         Options are wrong, or another program works on the sweep.
            KeyboardInterrupt: Ctrl-C or SIGTERM came. The runs that were training have saved their states.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with resume.locked(str(self.folder)), termination_as_interrupt():
            cells = list_cells(self.with_kimg(), self.folder)
            self.check(cells)
            with ThreadPoolExecutor(self.jobs) as pool:
                work = [pool.submit(self._do, cell) for cell in cells]
                try:
                    while not all(task.done() for task in work):
                        progress(sum(cell.kimg for cell in cells), sum(map(_length, cells)))
                        time.sleep(_POLL_SEC)
                except BaseException:
                    self._stop(pool)
                    raise
            for task in work:
                task.result()

    def with_kimg(self) -> Plan:
        """The plan, with the length of each arm's runs in place of its minutes.

        A short run of each arm measures its speed, from which the length follows. Lengths are kept in a file.
        """
        if self.plan.minutes is None:
            return self.plan
        lengths: dict[str, float] = {}
        path = self.folder / "lengths.json"
        with contextlib.suppress(OSError, ValueError):
            lengths = json.loads(path.read_text())
        for arm in self.plan.arms:
            if arm not in lengths:
                probe = Cell(arm, 0, self.folder / "probes" / arm, _options_of(self.plan, arm) | {
                    "seed": 0, "kimg": _PROBE_KIMG, "tick": _PROBE_KIMG / 2, "metrics": "none"})
                self.say(f"{arm}: measuring its speed")
                self._train(probe)
                assert probe.run_dir is not None
                speed = read_records(probe.run_dir / "stats.jsonl")[-1]["Timing/sec_per_kimg"]["mean"]
                lengths[arm] = round(60 * self.plan.minutes / speed, 1)
                with atomic_write(path) as f:
                    f.write(json.dumps(lengths, indent=1).encode())
        arms = {arm: options | {"kimg": lengths[arm]} for arm, options in self.plan.arms.items()}
        return self.plan.model_copy(update={"arms": arms})

    def check(self, cells: Sequence[Cell]) -> None:
        """Check the options of arms that were not started yet, by dry runs of train.py.

        Raises:
            UserError: train.py refuses the options of an arm.
        """
        new = {cell.arm: cell for cell in cells if cell.seed == self.plan.first_seed and cell.run_dir is None}
        for number, (arm, cell) in enumerate(new.items(), 1):
            self.say(f"Checking the options of {arm}: {number} of {len(new)}")
            done = subprocess.run([*self._command(cell, self.folder / "unused"), "--dry-run"], text=True,
                                  env=self._environment, errors="replace", stdin=subprocess.DEVNULL,
                                  capture_output=True)
            if done.returncode:
                raise UserError(f"arm {arm}: {_last_line(done.stderr)}")
            if problem := re.search(r"(?m)a run would stop here: (.*)$", done.stderr):
                raise UserError(f"arm {arm}: {problem[1]}")

    def _do(self, cell: Cell) -> None:
        """Train and score a cell, as far as that is not done."""
        try:
            if not cell.is_trained:
                self.say(f"{cell.arm}, seed {cell.seed}: training on {_length(cell):g} thousand images")
                self._train(cell)
            for judge, net in self.plan.judges.items():
                if not cell.scores_file(judge).exists():
                    self.say(f"{cell.arm}, seed {cell.seed}: scored by {judge}")
                    self._score(cell, judge, net)
        except UserError as e:
            if not self._stopping.is_set():
                self.failed.append(f"{cell.arm}, seed {cell.seed}: {e}")
                self.say(f"Warning: {self.failed[-1]}")

    def _train(self, cell: Cell) -> None:
        if cell.run_dir is not None and resume.is_busy(cell.run_dir):
            raise UserError(f"{cell.run_dir} is still being trained by a program of an earlier command: wait for "
                            "it, or stop it, then start again")
        self._call(self._command(cell, cell.folder), cell.folder / "train.txt")
        if not cell.is_trained:
            raise UserError(f"train.py did not finish: see {cell.folder / 'train.txt'}")

    def _score(self, cell: Cell, judge: str, net: str) -> None:
        assert cell.run_dir is not None
        command = [sys.executable, str(_ROOT / "calc_metrics.py"), f"--network={list_pickles(cell.run_dir)[-1].path}",
                   f"--data={self.plan.data}", f"--metrics={self.plan.metrics}", f"--detector={net}",
                   "--workers=1", *self._trust, *([f"--device={self.device}"] if self.device else [])]
        out = self._call(command, cell.folder / f"scores-{judge}.txt")
        results: dict[str, float] = {}
        for line in out.splitlines():
            with contextlib.suppress(ValueError, KeyError, AttributeError):
                results |= {name.partition("@")[0]: value for name, value in json.loads(line)["results"].items()}
        with atomic_write(cell.scores_file(judge)) as f:
            f.write((json.dumps(results, indent=1) + "\n").encode())

    def _call(self, command: Sequence[str], log: Path) -> str:
        """Run a program, and append its output to `log`. Returns what it printed on stdout.

        Raises:
            UserError: The program failed, or the sweep is being stopped.
        """
        if self._stopping.is_set():
            raise UserError("stopped")
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as f, subprocess.Popen(
            command, env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=f,
            start_new_session=True,
        ) as program:
            self._programs.add(program)
            assert program.stdout is not None
            out = bytearray()
            try:
                if self._stopping.is_set():     # `_stop` may have missed this program.
                    program.terminate()
                for line in program.stdout:
                    out += line
                    f.write(line)
                    f.flush()
            except BaseException:   # `with` waits for the program, so it has to end.
                program.terminate()
                raise
        self._programs.discard(program)
        if program.returncode:
            raise UserError(f"{Path(command[1]).name} failed with status {program.returncode}: "
                            f"{_last_line(log.read_text(errors='replace'))} (see {log})")
        return out.decode(errors="replace")

    def _stop(self, pool: ThreadPoolExecutor) -> None:
        """Ask all programs to stop. Training saves its state first."""
        self._stopping.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for program in list(self._programs):
            program.terminate()

    def _command(self, cell: Cell, outdir: Path) -> list[str]:
        return [sys.executable, str(_ROOT / "train.py"), f"--outdir={outdir}", f"--outcome={outdir / 'outcome.txt'}",
                *self._trust, *_arguments(cell.options)]


def _arguments(options: Mapping[str, Any]) -> list[str]:
    """Options as arguments of a command line."""
    return [f"--{name.replace('_', '-')}={str(value).lower() if isinstance(value, bool) else value}"
            for name, value in options.items()]


def _length(cell: Cell) -> float:
    """Thousands of images that a cell is to be trained on."""
    return float(cell.options.get("kimg", 0))


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"
