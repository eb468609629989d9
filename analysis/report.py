"""Run reports: an HTML page about one or more training runs. It needs no other file and no network."""

import base64
import functools
import html
import io
import math
import re
import secrets
import shlex
import time
import warnings
from pathlib import Path
from typing import Any, Iterable, Mapping, NamedTuple, Sequence

import PIL.Image

from dnnlib.util import UserError, atomic_write, format_time
from metrics import published, registry
from sampling.story import kimg_of
from training.config import comparison
from training.config.schema import from_json
from training.runs.previews import preview
from training.runs.resume import flat, is_busy, is_finished
from training.runs.run_dir import find_options
from training.runs.training_state import list_states

from .curves import Curve, method_of, read_curves, unique_labels

NAME = "report.html"
_MAX_SNAPSHOTS = 100        # For all runs together. With the next limit, fakes and reconstructions take 8 MB at most.
_MAX_PICTURE_BYTES = 30_000
_MAX_POINTS = 1000          # Points of a curve.
_MAX_TEXT = 300             # Characters of a value or a line of the log.
_MAX_WARNINGS = 20
_PICTURES = {   # Prefix of the file name -> caption.
    "fakes": "Generated images",
    "reconstructions": "Reconstructions. Rows: real images, reconstructions, generated images, reconstructions",
    "attention": "D's attention (Grad-CAM of its score). Rows: real images, attention, generated images, attention",
}
_PANELS = {     # Title of a chart -> its statistics. Every other statistic has its own chart.
    "D's realness scores": ("Loss/scores/real", "Loss/scores/fake"),
    "Signs of D's realness scores": ("Loss/signs/real", "Loss/signs/fake"),
    "Losses": ("Loss/G/loss", "Loss/D/loss"),
    "Tasks of D, weighted": ("Loss/D/real_reconstruction", "Loss/D/fake_reconstruction", "Loss/D/fake_feature"),
    "Regularisers": ("Loss/r1_penalty", "Loss/pl_penalty"),
    "Strength p of augmentation": ("Progress/augment",),
    "Learning rates": ("Progress/G_lr", "Progress/D_lr"),
    "Seconds per kimg": ("Timing/sec_per_kimg",),
    "Memory (GB)": ("Resources/cpu_mem_gb", "Resources/peak_gpu_mem_gb"),
}
_DASHES = ("solid", "dash", "dot", "dashdot")
_LEFT_OUT = ("Progress/tick", "Progress/kimg", "Timing/total_sec", "Timing/total_hours", "Timing/total_days",
             "Timing/sec_per_tick")


class Picture(NamedTuple):
    kimg: float
    src: str            # A data: URI.


class ScoreLine(NamedTuple):
    """A line of the table of scores."""

    run: str
    name: str
    last: float
    last_kimg: float
    best: float
    best_kimg: float
    remark: str         # How its protocol differs from that of published scores.


class ReportedRun(NamedTuple):
    """What the files of a run say. Any text may come from strangers: the template escapes it."""

    label: str
    facts: dict[str, str]
    resume: str                         # Command that resumes the run, or trains it longer.
    notes: list[str]                    # What is missing or damaged.
    warnings: list[str]                 # The last ones in log.txt.
    options: dict[str, str]
    environment: dict[str, str]
    curves: dict[str, Curve]
    pictures: dict[str, list[Picture]]  # By kind, a key of `_PICTURES`.
    dataset: "Dataset | None"


class Dataset(NamedTuple):
    """The training images, as `published.compare` takes them."""

    name: str
    resolution: int
    xflip: bool


def write_report(run_dirs: Sequence[str | Path], path: str | Path, *, attention: bool = False) -> None:
    """Write the page, completely or not at all.

    Args:
        run_dirs:  One or more run directories. Runs may still be training.
        path:      HTML file, which is replaced if it exists.
        attention: Write the pictures of D's attention first. If that fails, the page says so.

    Raises:
        UserError: A folder is no run directory.
        OSError:   The page can't be written.
    """
    import jinja2
    from plotly.offline import get_plotlyjs

    paths = [Path(run_dir) for run_dir in run_dirs]
    for run_dir in paths:
        if not Path(run_dir, "training_options.json").is_file() and not Path(run_dir, "stats.jsonl").is_file():
            raise UserError(f"{run_dir} is no run directory: it holds neither training_options.json nor stats.jsonl")
    no_attention = {run_dir: _write_attention(run_dir) if attention else [] for run_dir in paths}
    runs = [_read_run(run_dir, label, no_attention[run_dir], most=max(_MAX_SNAPSHOTS // len(paths), 1))
            for run_dir, label in zip(paths, unique_labels(paths))]
    scores = [line for run in runs for line in _score_lines(run)]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
                                     autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=_number, kimg="{:.10g}".format)
    environment.globals.update(score_text=published.score_text, datasets=published.DATASETS)
    charts = _charts(runs)
    page = environment.get_template("report.html.j2").render(
        runs=runs, charts=charts, scores=scores, published=_published(runs), tables=_option_tables(runs),
        captions=_PICTURES, written=time.strftime("%Y-%m-%d %H:%M:%S %z"), nonce=secrets.token_urlsafe(16),
        plotly_js=get_plotlyjs(), data={"charts": charts, "slides": _slides(runs)},
    )
    with atomic_write(path) as f:
        f.write(page.encode(errors="backslashreplace"))


def _write_attention(run_dir: Path) -> list[str]:
    """Write the picture of attention for the newest snapshot. Returns errors as notes."""
    from .attention import write_picture  # imports PyTorch and Matplotlib, which most pages don't need

    try:
        write_picture(run_dir)
    except (UserError, OSError) as e:
        return [f"No picture of D's attention: {e}"]
    return []


def _read_run(run_dir: Path, label: str, notes: Sequence[str], *, most: int) -> ReportedRun:
    options = find_options(run_dir)
    try:
        config = options["config"] if isinstance(options.get("config"), dict) else options
        listed = _as_text(flat(config))
    except RecursionError:
        options, config, listed = {}, {}, {}
    notes = [*notes] if options else [*notes, "training_options.json is missing or damaged: the options are not known."]
    curves: dict[str, Curve] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        try:
            curves = read_curves(run_dir)
        except UserError as e:
            notes.append(f"No curves: {e}")
    curves = _learning_rates(curves, config) | curves
    notes += [str(warning.message) for warning in caught if warning.category is UserWarning]
    environment = options.get("environment")
    dataset = _dataset(options)
    pictures = _read_pictures(run_dir, dataset, most, notes)
    facts, resume = _facts(run_dir, options, curves, config)
    return ReportedRun(label, facts, resume, notes, _log_warnings(run_dir), listed,
                       _as_text(environment if isinstance(environment, dict) else {}), curves, pictures, dataset)


def _facts(
    run_dir: Path, options: Mapping[str, Any], curves: Mapping[str, Curve], config: Any
) -> tuple[dict[str, str], str]:
    """The summary of a run, and the command that resumes it or trains it longer."""
    total, states = options.get("total_kimg"), list_states(run_dir)
    total = total if isinstance(total, int | float) and math.isfinite(total) else None
    ticks = curves.get("Progress/kimg", Curve([], [])).kimg
    kimg = max([*ticks, *(state.nimg / 1000 for state in states[:1])], default=0)
    finished = total is not None and is_finished(str(run_dir), total)
    state = "finished" if finished else "training" if is_busy(run_dir) else "stopped"
    facts = {"directory": str(run_dir), "method": method_of(run_dir) or "unknown", "state": state,
             "images shown to D": f"{kimg:,.10g} kimg" + ("" if total is None else f" of {total:,.10g}")}
    seconds = curves.get("Timing/total_sec", Curve([], [])).values[-1:]
    if seconds:
        facts["time so far"] = format_time(seconds[0])
        if not finished and total is not None and kimg > 0:
            facts["time left"] = f"about {format_time(max(total - kimg, 0) * seconds[0] / kimg)}"
    try:
        facts["compared with the papers"] = comparison.departures_line(from_json(config))
    except UserError:  # the options are those of another version or program
        pass
    if not finished and not states:
        return facts, "No training state is left to resume from."
    command = f"python train.py --resume={shlex.quote(str(run_dir))}"
    return facts, f"{command} --kimg={2 * total:g}" if finished else command


def _learning_rates(curves: Mapping[str, Curve], config: Mapping[str, Any]) -> dict[str, Curve]:
    """Constant curves of the learning rates in the options, for runs without such statistics."""
    kimg = curves.get("Progress/kimg", Curve([], [])).kimg
    rates = {name: flat(dict(config)).get(f"{name}_opt.lr") for name in ("G", "D")}
    return {f"Progress/{name}_lr": Curve([kimg[0], kimg[-1]], [rate, rate])
            for name, rate in rates.items() if kimg and isinstance(rate, int | float)}


def _dataset(options: Mapping[str, Any]) -> Dataset | None:
    kwargs = options.get("training_set_kwargs")
    if not isinstance(kwargs, dict) or not isinstance(kwargs.get("path"), str):
        return None
    resolution = kwargs.get("resolution")
    known = isinstance(resolution, int) and resolution > 0
    return Dataset(Path(kwargs["path"]).stem, resolution, bool(kwargs.get("xflip"))) if known else None


def _log_warnings(run_dir: Path) -> list[str]:
    try:
        lines = Path(run_dir, "log.txt").read_text(errors="replace").splitlines()
    except OSError:
        return []
    return [line[:_MAX_TEXT] for line in lines if line.startswith(("Warning:", "Error:"))][-_MAX_WARNINGS:]


def _as_text(values: Mapping[Any, Any]) -> dict[str, str]:
    return {str(name)[:_MAX_TEXT]: str(value)[:_MAX_TEXT] for name, value in values.items()}


# ----------------------------------------------------------------------------------------------------------------------
# Pictures.


def _read_pictures(run_dir: Path, dataset: Dataset | None, most: int, notes: list[str]) -> dict[str, list[Picture]]:
    """At most `most` pictures of each kind, evenly spaced, with the first and the last one. Problems go to `notes`."""
    found: dict[str, list[tuple[float, Path]]] = {}
    for path in run_dir.glob("*.png"):
        match = re.fullmatch(rf"({'|'.join(_PICTURES)})\d{{6,}}(_\d{{3}})?", path.stem)
        if match:
            found.setdefault(match[1], []).append((kimg_of(path), path))
    if not found:
        notes.append("No snapshots yet: there are no pictures.")
    pictures: dict[str, list[Picture]] = {}
    for kind in sorted(found, key=list(_PICTURES).index):
        for kimg, path in _thinned(sorted(found[kind]), most):
            try:
                stat = path.stat()
                src = _encode(path, dataset.resolution if dataset else None, stat.st_mtime_ns, stat.st_size)
            except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as e:
                notes.append(f"{path.name} can't be shown: {e}")
                continue
            pictures.setdefault(kind, []).append(Picture(kimg, src))
        if len(found[kind]) > most:
            notes.append(f"{most} of {len(found[kind])} pictures of {kind} are shown.")
    return pictures


@functools.lru_cache(maxsize=4 * _MAX_SNAPSHOTS)
def _encode(path: Path, resolution: int | None, *_version: int) -> str:
    """The top left part of a grid as a data: URI of a WebP. It is cached until the file's time or size changes."""
    img = preview(path, resolution)
    for quality, scale in (80, 1), (50, 1), (20, 1), (20, 2):   # with the last one, even noise is small enough
        buffer = io.BytesIO()
        img.reduce(scale).save(buffer, format="WEBP", quality=quality)
        if buffer.tell() <= _MAX_PICTURE_BYTES:
            break
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _slides(runs: Sequence[ReportedRun]) -> dict[str, Any]:
    """The positions of the slider in kimg, and the snapshots of each picture on the page."""
    rows = [pictures for run in runs for pictures in run.pictures.values()]
    return {"kimg": sorted({picture.kimg for pictures in rows for picture in pictures}), "pictures": rows}


def _thinned(items: Sequence[Any], most: int) -> list[Any]:
    """At most `most` items, evenly spaced, with the first and the last one; of one item, the last."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


# ----------------------------------------------------------------------------------------------------------------------
# Charts and tables.


def _charts(runs: Sequence[ReportedRun]) -> list[dict[str, Any]]:
    """The title and the lines of each chart. Colours distinguish runs, or the statistics of a single run."""
    names = sorted({name for run in runs for name in run.curves} - set(_LEFT_OUT))
    grouped = {name for group in _PANELS.values() for name in group}
    panels: dict[str, tuple[str, ...]]
    panels = {name.removeprefix("Metrics/"): (name,) for name in names if name.startswith("Metrics/")}
    panels |= _PANELS | {name: (name,) for name in names if name not in grouped and not name.startswith("Metrics/")}
    charts = []
    for title, group in panels.items():
        lines = []
        for number, run in enumerate(runs):
            for style, name in enumerate(name for name in group if name in run.curves):
                short = name.partition("/")[2] or name
                label = short if len(runs) == 1 else run.label if len(group) == 1 else f"{run.label}: {short}"
                lines.append(_line(run.curves[name], label, number if len(runs) > 1 else style, _DASHES[style]))
        if lines:
            charts.append({"title": title, "lines": lines})
    return charts


def _line(curve: Curve, label: str, colour: int, dash: str) -> dict[str, Any]:
    points = [(x, float(f"{y:.5g}")) for x, y in zip(*curve) if math.isfinite(x) and math.isfinite(y)]
    values = [y for _, y in points] or [math.nan]
    kimg, thinned = map(list, zip(*_thinned(points, _MAX_POINTS))) if points else ([], [])
    return {
        "label": label, "name": html.escape(label), "colour": colour, "dash": dash, "kimg": kimg, "values": thinned,
        "summary": [_number(x) for x in (values[0], values[-1], min(values), max(values))],
    }


def _score_lines(run: ReportedRun) -> Iterable[ScoreLine]:
    for name, curve in sorted(run.curves.items()):
        result = name.removeprefix("Metrics/")
        score = published.score_of(result) if name.startswith("Metrics/") else None
        points = [(y, x) for x, y in zip(*curve) if math.isfinite(y)]
        if score is None or not points:
            continue
        metric = published.metric_of(result)
        higher = registry.is_valid_metric(metric) and registry.higher_is_better(metric)
        best, best_kimg = (max if higher else min)(points)
        remark = "" if run.dataset is None else published.compare([result], dataset=run.dataset).remarks[result]
        yield ScoreLine(run.label, result, *points[-1], best, best_kimg, remark)


def _published(runs: Sequence[ReportedRun]) -> list[published.Comparison]:
    """Published scores on the data sets of the runs, by the metrics that the runs were scored by."""
    measured: dict[Dataset, list[str]] = {}
    for run in runs:
        if run.dataset is not None:
            measured.setdefault(run.dataset, []).extend(line.name for line in _score_lines(run))
    found = [published.compare(names, dataset=dataset) for dataset, names in measured.items()]
    return list({entry.known: entry for entry in found if entry.rows}.values())


def _option_tables(runs: Sequence[ReportedRun]) -> dict[str, dict[str, list[str]]]:
    """Tables of options and of environments, by title. A table holds rows by name, with a cell for each run."""
    def rows(columns: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
        names = dict.fromkeys(name for column in columns for name in column)
        return {name: [column.get(name, "-") for column in columns] for name in names}

    options = rows([run.options for run in runs])
    differing = {name: values for name, values in options.items() if len(set(values)) > 1}
    return {"Options that differ": differing, "All options": options,
            "Environment": rows([run.environment for run in runs])}


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "-"
