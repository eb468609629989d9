"""The papers' tables beside networks that were trained here: which network is for which row, and printing.

A network is a single pickle, or a run directory. Of the latter, the best pickle by the first metric counts, as in the
papers. If a row has several trainings with different seeds, their mean and standard deviation are printed.
"""

import csv
import io
import json
import os
import statistics
from pathlib import Path
from typing import Any, Callable, Literal, Mapping, NamedTuple, Sequence

from tabulate import tabulate

from dnnlib.util import UserError, read_yaml
from metrics.published import DATASETS, TABLES, PublishedTable, find_dataset, score_of
from training.config.presets import PUBLISHED_DATA
from training.config.rivals import RIVALS, names_in
from training.config.schema import TrainingConfig, from_json
from training.runs.resume import differing_fields

TableFormat = Literal["text", "markdown", "latex", "csv", "json"]
_TABULATE = {"text": "simple", "markdown": "github", "latex": "latex_booktabs"}
_METHODS = {"stylegan2": "StyleGAN2", "ggdr": "GGDR", "glead": "GLeaD", "glead+ggdr": "GLeaD+GGDR"}
_NAMES = {  # Starts of the sources in published.json.
    "glead-1": "GLeaD (CVPR 2023), Table 1", "glead-2": "GLeaD (CVPR 2023), Table 2",
    "glead-3": "GLeaD (CVPR 2023), Table 3", "ggdr-1": "GGDR (ECCV 2022), Table 1",
    "ggdr-2": "GGDR (ECCV 2022), Table 2", "ggdr-3": "GGDR (ECCV 2022), Table 3",
    "ggdr-4": "GGDR (ECCV 2022), Table 4", "ggdr-ablation": "GGDR (ECCV 2022), ablation",
}
NAMES = tuple(_NAMES)
_LAMBDAS = 10, 3    # GLeaD's weights on real and on generated images, in all tables but the second.
_GGDR_RES = 64      # Resolution of GGDR's target for images of 256x256 and larger, in all tables but the ablation.


class TrainedModel(NamedTuple):
    """A network, and the row that it is for."""

    table: PublishedTable
    row: str
    network: str            # A run directory or a network file.
    data: str | None        # Real images; None = those that it was trained on.
    config: TrainingConfig | None   # None = not known.
    note: str               # How its images differ from the published ones; "" = they don't.


class TableRow(NamedTuple):
    """A line of a printed table."""

    table: PublishedTable
    name: str
    networks: list[str]                     # Empty = nothing was trained for this row.
    measured: dict[str, list[float]]        # By column, a value for each network.
    note: str                               # How networks or measurements differ from the published ones.


def published_tables(name: str) -> list[PublishedTable]:
    """The published tables for one of `NAMES`, one for each data set."""
    return [table for table in TABLES if table.source.startswith(_NAMES[name])]


# ----------------------------------------------------------------------------------------------------------------------
# Which network is for which row.


def find_models(name: str, source: str, *, stand_in: str | None = None) -> list[TrainedModel]:
    """The networks for a table, from a folder of run directories or from a manifest.

    Args:
        name:     One of `NAMES`.
        source:   A folder with run directories at any depth, or a manifest. That is a YAML or JSON file with a list of
                  objects with the keys `row`, `dataset`, `network` and perhaps `data`. Paths in it are relative to its
                  folder.
        stand_in: A data set of the table. Runs on images that the table is not about count as runs on this data set.

    Raises:
        UserError: There is no network for this table, files are missing, or two networks of a row differ in more than
            the seed.
    """
    tables = published_tables(name)
    if stand_in is not None and stand_in not in {table.dataset for table in tables}:
        raise UserError(f"--stand-in is {stand_in!r}, and {name} is about "
                        f"{', '.join(sorted({table.dataset for table in tables}))}")
    if not os.path.exists(source):
        raise UserError(f"can't read {source}: there is no such folder or manifest")
    models = _from_runs(tables, source, stand_in) if os.path.isdir(source) else _from_manifest(tables, source)
    if not models:
        raise UserError(f"{source} holds no network for {name}" + (
            "" if stand_in else ": for runs on other images than the papers', say which ones they stand for, such as "
            f"--stand-in={tables[0].dataset!r}"))
    cells: dict[tuple[str, str | None, str], list[TrainedModel]] = {}
    for model in models:
        cell = cells.setdefault((model.table.source, model.table.dataset, model.row), [])
        for other in cell:
            _check_cell(other, model)
        cell.append(model)
    return models


def _check_cell(a: TrainedModel, b: TrainedModel) -> None:
    """Raise UserError unless two networks of one row differ in the seed of their training, and in nothing relevant."""
    known = a.config is not None and b.config is not None
    if known and a.config.random_seed != b.config.random_seed:
        differing = differing_fields(a.config, b.config) + ([] if a.note == b.note else ["their images"])
        if not differing:
            return
        why = f"differ not only in --seed, but in {', '.join(differing)}"
    else:
        why = "don't differ in --seed"
    raise UserError(f"{a.network} and {b.network} are both for {b.row} on {b.table.dataset}, and {why}: move one of "
                    "them away")


def _from_runs(tables: Sequence[PublishedTable], folder: str, stand_in: str | None) -> list[TrainedModel]:
    models = []
    for options in sorted(Path(folder).glob("**/training_options.json")):
        try:
            config = from_json(json.loads(options.read_text()))
        except (OSError, ValueError, RecursionError):   # Another program or version wrote it.
            continue
        resolution = config.dataset.resolution
        stem = Path(config.dataset.path).stem
        dataset = find_dataset(stem, resolution)
        if dataset not in {table.dataset for table in tables}:
            dataset = None
        note = "" if dataset else f"on {stem} at {resolution}x{resolution}"
        for table in tables:
            if (dataset or stand_in) == table.dataset and _is_of_size(config, table):
                models += [TrainedModel(table, row, str(options.parent), None, config, note)
                           for row in table.rows if row in rows_of(config, dataset)]
    return models


def rows_of(config: TrainingConfig, dataset: str | None) -> set[str]:
    """The names of the rows, in any table, that a run is for.

    A run is for a row only if the options that the row does not vary have their published values for this data set.

    Args:
        dataset: The published data set of the run; None = other images, for which there are no published values.
    """
    D, real, fake = config.D, config.loss.real_task, config.loss.fake_task
    method, added = _METHODS[config.method], names_in(vars(config.loss))
    if added:
        alone = len(added) == 1 and config.method == "stylegan2" and config.augment is None
        return {RIVALS[name].row for name in added if alone and name in RIVALS} - {""}
    if config.augment is not None and config.augment.mode == "ada":
        return {"ADA" if config.method == "stylegan2" else f"ADA+{method}"}
    published = PUBLISHED_DATA.get(dataset)
    fits = {method: True}   # Whether the run is for a row, by the name of the row.
    if config.method == "stylegan2":
        fits |= {"lambda 0, 0": True, "no f": True, "no target": True}
    if config.method == "glead":
        lambdas = real.weight if real else 0, fake.weight if fake else 0
        usual_res, usual_lambdas = published is None or D.res_g == published.res_g, lambdas == _LAMBDAS
        fits = {method: usual_res and usual_lambdas, f"lambda {lambdas[0]:g}, {lambdas[1]:g}": usual_res,
                f"f at {D.res_g}x{D.res_g}": usual_lambdas}
    if config.method == "ggdr":
        res, kernel = config.loss.feature_res, D.decoder_kernel
        act = {"linear": "linear", "lrelu": "leaky ReLU"}[D.decoder_act]
        usual_res = config.dataset.resolution < 256 or res == _GGDR_RES
        usual_decoder = act == "linear" and kernel == 1
        fits = {method: usual_res and usual_decoder, f"target at {res}x{res}": usual_decoder,
                f"{act} decoder": usual_res and kernel == 1,
                f"{kernel}x{kernel} decoder kernel": usual_res and act == "linear"}
    return {row for row, fit in fits.items() if fit}


def _is_of_size(config: TrainingConfig, table: PublishedTable) -> bool:
    """Whether a run has as many images as the table. Table 1 of GGDR has subsets of FFHQ; 140k are all, mirrored."""
    sizes = {"2k training": 2000, "10k training": 10_000, "140k training": None}
    size = next((size for text, size in sizes.items() if text in table.source), config.dataset.max_size)
    return config.dataset.max_size == size


def _from_manifest(tables: Sequence[PublishedTable], path: str) -> list[TrainedModel]:
    folder, entries = Path(path).parent, read_yaml(path)
    if not isinstance(entries, list):
        raise UserError(f"{path} is no list of networks: each with row, dataset, network and perhaps data")
    models = []
    for number, entry in enumerate(entries, 1):
        where = f"{path}, entry {number}"
        if not isinstance(entry, dict) or not {"row", "dataset", "network"} <= entry.keys() or not all(
                isinstance(value, str) for value in entry.values()):
            raise UserError(f"{where}: expected row, dataset, network and perhaps data, each a text")
        fitting = [table for table in tables if table.dataset == entry["dataset"] and entry["row"] in table.rows]
        if not fitting:
            known = "; ".join(f"{table.dataset}: {', '.join(table.rows)}" for table in tables)
            raise UserError(f"{where}: the table has no row {entry['row']!r} for {entry['dataset']!r}, but {known}")
        paths = {key: str(folder / entry[key]) for key in ("network", "data") if key in entry}
        for key, file in paths.items():
            if not os.path.exists(file):
                raise UserError(f"{where}: {key} is {file}, which does not exist")
        models.append(TrainedModel(fitting[0], entry["row"], paths["network"], paths.get("data"), None, ""))
    return models


# ----------------------------------------------------------------------------------------------------------------------
# Printing.


def fill(
    name: str, models: Sequence[TrainedModel], scores: Callable[[TrainedModel], Mapping[str, float]]
) -> list[TableRow]:
    """All rows of the tables, with the measured scores.

    Args:
        name:   One of `NAMES`.
        models: From `find_models`.
        scores: Gives the scores of a network, by name.
    """
    rows = []
    for table in published_tables(name):
        for row in table.rows:
            cell = [model for model in models if (model.table, model.row) == (table, row)]
            results = [scores(model) for model in cell]
            measured = {column: [value for result in results for key, value in result.items()
                                 if score_of(key) == column] for column in table.columns}
            notes = {_note(model, result) for model, result in zip(cell, results)} - {""}
            rows.append(TableRow(table, row, [model.network for model in cell], measured, "; ".join(sorted(notes))))
    return rows


def _note(model: TrainedModel, results: Mapping[str, float]) -> str:
    """How the images and the measurement of a network differ from the published ones; "" = they don't."""
    names = sorted({key.partition("@")[0].rsplit("_", 1)[0] if score_of(key) in ("precision", "recall", "is")
                    else key.partition("@")[0] for key in results if score_of(key) in model.table.columns})
    nets = sorted({key.partition("@")[2] for key in results} - {""})
    others = [name for name in names if name not in DATASETS[model.table.dataset].metrics]
    notes = [model.note, f"by {', '.join(others)}" if others else "", f"feature net {', '.join(nets)}" if nets else ""]
    return ", ".join(filter(None, notes))


def render(rows: Sequence[TableRow], *, form: TableFormat) -> str:
    """The tables as text in one of the formats."""
    if form == "json":
        return json.dumps([_as_dict(row) for row in rows], indent=1)
    if form == "csv":
        out = io.StringIO()
        dicts = [_as_dict(row) for row in rows]
        writer = csv.DictWriter(out, list(dict.fromkeys(key for row in dicts for key in row)), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | {"networks": " ".join(row["networks"])} for row in dicts)
        return out.getvalue().rstrip("\n")
    parts = []
    for table in dict.fromkeys(row.table for row in rows):
        columns = [column for column in table.columns if not column.endswith("_std")]
        cells = [[row.name, *(text for column in columns for text in _texts(row, column)),
                  row.note if row.networks else "no run"] for row in rows if row.table is table]
        head = ["method", *(text for column in columns for text in (f"{column} published", "measured", "difference")),
                "remark"]
        grid = tabulate(cells, head, tablefmt=_TABULATE[form], disable_numparse=True)
        parts.append(f"{table.source}: {table.dataset}\n\n{grid}")
    return "\n\n".join(parts)


def _texts(row: TableRow, column: str) -> list[str]:
    """The published value, the measured one, and their difference."""
    published, spread = row.table.score(row.name, column), row.table.score(row.name, f"{column}_std")
    mean, std = _mean_and_std(row.measured.get(column, []))
    difference = "-" if None in (mean, published) else f"{mean - published:+.2f}"
    return [_text(published, spread), _text(mean, std), difference]


def _text(value: float | None, std: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" + ("" if std is None else f" +-{std:.2f}")


def _mean_and_std(values: Sequence[float]) -> tuple[float | None, float | None]:
    return statistics.fmean(values) if values else None, statistics.stdev(values) if len(values) > 1 else None


def _as_dict(row: TableRow) -> dict[str, Any]:
    result: dict[str, Any] = {"source": row.table.source, "dataset": row.table.dataset, "method": row.name}
    for column in row.table.columns:
        if not column.endswith("_std"):
            mean, std = _mean_and_std(row.measured.get(column, []))
            result |= {f"{column}_published": row.table.score(row.name, column), f"{column}_measured": mean,
                       f"{column}_measured_std": std}
    return result | {"networks": row.networks, "remark": row.note}
