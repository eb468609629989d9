"""Model cards in Markdown: the networks in a file, where they come from, and what is not known about them."""

import json
import os
import re
import shlex
from pathlib import Path
from typing import Any, Mapping, NamedTuple, Sequence

import torch

from training.config.rivals import RIVALS, names_in

from .run_dir import OPTIONS_NAME, find_options
from .run_log import read_scores
from .training_state import pickle_kimg

_UNKNOWN = "unknown"
_METHODS = {
    "stylegan2": "StyleGAN2 (Karras et al., CVPR 2020)",
    "ggdr": "StyleGAN2 with GGDR (Lee et al., ECCV 2022)",
    "glead": "StyleGAN2 with GLeaD (Bai et al., CVPR 2023)",
    "glead+ggdr": "StyleGAN2 with GLeaD on real and GGDR on fake images (Bai et al., CVPR 2023, \"Ours*\")",
}
_OPTIONS = {  # Label => place in training_options.json. Other projects have some of these, too.
    "batch": "batch_size",
    "GPUs": "num_gpus",
    "length of the run (kimg)": "total_kimg",
    "half-life of the averaged weights (kimg)": "ema_kimg",
    "R1 gamma": "loss_kwargs.r1_gamma",
    "path length weight": "loss_kwargs.pl_weight",
    "learning rate of G": "G_opt_kwargs.lr",
    "learning rate of D": "D_opt_kwargs.lr",
    "task on real images": "loss_kwargs.reg_target_real",
    "its distance": "loss_kwargs.reg_loss_real",
    "its weight": "loss_kwargs.reg_weight_real",
    "task on fake images": "loss_kwargs.reg_target_fake",
    "its distance ": "loss_kwargs.reg_loss_fake",
    "its weight ": "loss_kwargs.reg_weight_fake",
    "target of adaptive augmentation": "ada_target",
    "started from": "resume_pkl",
    "seed": "random_seed",
    "preset": "config.preset",
    "recipe": "config.recipe",
}
_DATA_OPTIONS = {
    "resolution": "resolution", "labels": "use_labels", "mirrored copies": "xflip", "at most": "max_size",
}
_MAX_CELL = 200


class ModelFile(NamedTuple):
    name: str
    num_bytes: int
    sha256: str


class RecordedScore(NamedTuple):
    name: str
    value: float
    detector: str       # Name of the feature net.


class Origin(NamedTuple):
    """The run that a network comes from, as its run directory describes it."""

    options: dict[str, Any] | None      # Content of training_options.json; None = it is damaged.
    kimg: float | None                  # From the name of the snapshot; None = the name does not say it.
    scores: list[RecordedScore]         # The scores of this snapshot.


def read_origin(network: str | os.PathLike) -> Origin | None:
    """The run in whose directory a network lies; None if its folder is no run directory."""
    path = Path(network)
    if not (path.parent / OPTIONS_NAME).is_file():
        return None
    kimg = pickle_kimg(f"{path.stem}.pkl")  # Files of other formats keep the name, except for the suffix.
    return Origin(find_options(path.parent) or None, kimg, _read_scores(path))


def render(
    networks: Mapping[str, Any],
    files: Sequence[ModelFile],
    *,
    origin: ModelFile | str,
    run: Origin | None,
    difference: float | None,
    noise_mode: str = "const",
) -> str:
    """The text of a model card.

    Args:
        networks:   The content of the first of `files`, by `network_pickle.KEYS`.
        files:      The files that were written. The first one holds the networks.
        origin:     The file or the URL that the first of `files` was converted from.
        run:        From `read_origin`.
        difference: The largest difference between images of the original and the converted generator; None = there is
                    no generator.
        noise_mode: The noise mode of an ONNX graph.
    """
    options = (run.options if run else None) or {}
    trained_on = networks.get("training_set_kwargs") or options.get("training_set_kwargs")
    name = files[0].name
    sections = [
        f"# {_cell(Path(name).stem)}",
        f"Generative adversarial network: {_cell(_method(options))}. "
        "*(To fill in: what it draws, who trained it, and what it is meant for.)*",
        "## Training", _training(options, run), "## Data", _data(trained_on), "## Scores", _scores(run),
        "## Architecture", _architecture(networks),
        "## Files", _files(files, origin, difference), "## Sampling", _sampling(networks, name, noise_mode),
        "## Licence", _LICENCE, "## Not known", _not_known(options, run, trained_on),
    ]
    return "\n\n".join(sections) + "\n"


_LICENCE = """\
The weights are under the licence that their maker gives them. *(To fill in: which one, and whom to cite.)*

The images that they were trained on keep their own licence, which may limit what the weights and what they draw may be
used for. *(To fill in: the licence of the data, and how it was collected.)*"""


def _training(options: Mapping[str, Any], run: Origin | None) -> str:
    kimg = _UNKNOWN if run is None or run.kimg is None else f"{run.kimg:,.10g}"
    rows = [("method", _method(options)), ("images shown to D until this snapshot (kimg)", kimg)]
    rows += [(label, value) for label, where in _OPTIONS.items() if (value := _find(options, where)) is not None]
    return _table(("option", "value"), rows)


def _data(trained_on: Any) -> str:
    if not isinstance(trained_on, Mapping) or not isinstance(trained_on.get("path"), str):
        return f"{_UNKNOWN.capitalize()}. *(To fill in: images, their number, source and preparation.)*"
    rows = [("name", Path(trained_on["path"]).name)]  # The folder would be of no use elsewhere.
    rows += [(label, trained_on[key]) for label, key in _DATA_OPTIONS.items() if trained_on.get(key) is not None]
    return _table(("dataset", ""), rows)


def _scores(run: Origin | None) -> str:
    if run is None or not run.scores:
        return f"{_UNKNOWN.capitalize()}: none was recorded for this snapshot."
    table = _table(("metric", "value", "features"), [(s.name, f"{s.value:.5g}", s.detector) for s in run.scores])
    note = "" if all("@" not in s.name for s in run.scores) else (
        "\n\nScores with `@` were computed in the features of another net than the standard one: they compare runs "
        "with one another, and are no published FID."
    )
    return table + note


def _architecture(networks: Mapping[str, Any]) -> str:
    rows = []
    for key, net in networks.items():
        if isinstance(net, torch.nn.Module) and key != "augment_pipe":
            count = sum(p.numel() for p in net.parameters())
            shape = f"{net.img_channels}x{net.img_resolution}x{net.img_resolution}"
            rows.append((f"`{key}`", type(net).__name__, shape, f"{count:,}", _details(net)))
    table = _markdown_table(("network", "class", "images (channels x height x width)", "parameters", "details"), rows)
    pipe = "\n\nThe augmentation pipe of its training, `augment_pipe`, is in the file."
    return table + (pipe if "augment_pipe" in networks else "")


def _details(net: torch.nn.Module) -> str:
    labels = f"labels: {net.c_dim} numbers" if net.c_dim > 0 else "unconditional"
    architecture = getattr(getattr(getattr(net, "synthesis", net), f"b{net.img_resolution}", None), "architecture", "")
    if not architecture:    # It is no network of StyleGAN2.
        return labels
    if hasattr(net, "synthesis"):
        return f"{architecture}, z {net.z_dim}, w {net.w_dim}, {net.mapping.num_layers} mapping layers, {labels}"
    levels = getattr(net, "decoder_resolutions", [])
    decoder = f", decoder to {levels[-1]}x{levels[-1]}" if levels else ""
    return f"{architecture}, {labels}{decoder}{', heads for G' if getattr(net, 'has_heads', False) else ''}"


def _files(files: Sequence[ModelFile], origin: ModelFile | str, difference: float | None) -> str:
    rows = [(_code(f.name), f"{f.num_bytes:,}", f"`{f.sha256}`") for f in files]
    table = _markdown_table(("file", "bytes", "sha256"), rows)
    if isinstance(origin, str):
        source = f"what lay at {_code(origin)}"
    else:
        source = f"{_code(origin.name)} ({origin.num_bytes:,} bytes, sha256 `{origin.sha256}`)"
    images = "" if difference is None else f" Images of both were compared: they differ by {difference:.2g} at most."
    return f"{table}\n\nConverted by `convert.py` from {source}.{images}"


def _sampling(networks: Mapping[str, Any], name: str, noise_mode: str) -> str:
    G = networks.get("G_ema") or networks.get("G")
    if G is None:
        return "The file holds no generator."
    key = "G_ema" if "G_ema" in networks else "G"
    label = f"torch.eye({G.c_dim})[:1]" if G.c_dim > 0 else "None"
    quoted = json.dumps(_printable(name), ensure_ascii=False)
    parts = []
    if key == "G_ema":
        label_option = " --class=0" if G.c_dim > 0 else ""
        noise = " --noise-mode=none" if noise_mode == "none" else ""
        parts.append("With this project:\n\n```bash\npython generate.py --outdir=out "
                     f"--network={shlex.quote(_printable(name))} "
                     f"--seeds=0-15 --trunc=0.7{label_option}{noise}\n```")
    parts.append("In Python, images as float32 [N, C, height, width], about [-1, 1]:\n\n```python\n"
                 "import legacy, torch\n"
                 f'G = legacy.load_network_pkl({quoted})["{key}"]\n'
                 f"img = G(torch.randn([1, {G.z_dim}]), {label}, truncation_psi=0.7)\n```")
    if name.endswith(".onnx"):
        label = f', "c": numpy.eye({G.c_dim}, dtype="float32")[:1]' if G.c_dim > 0 else ""
        parts.append('Without PyTorch:\n\n```python\nimport numpy, onnxruntime\nsession = onnxruntime.InferenceSession('
                     f'{quoted})\nz = numpy.random.randn(1, {G.z_dim}).astype("float32")\n'
                     f'psi = numpy.array(0.7, "float32")\n'
                     f'img = session.run(["img"], {{"z": z{label}, "truncation_psi": psi}})[0]\n```')
    if name.endswith(".pt"):
        parts.append(_in_rosinality(G))
    return "\n\n".join(parts)


def _in_rosinality(G: torch.nn.Module) -> str:
    """How to build G in rosinality's program, where the numbers of channels follow from a multiplier."""
    size, layers = f"{G.img_resolution}, {G.w_dim}, {G.mapping.num_layers}", G.synthesis
    channels = {res: getattr(layers, f"b{res}").conv1.out_channels for res in layers.block_resolutions}
    for multiplier in (1, 2):
        if all(n == (512 if res < 64 else multiplier * 16384 // res) for res, n in channels.items()):
            return f"In rosinality's stylegan2-pytorch: `Generator({size}, channel_multiplier={multiplier})`."
    return (f"In rosinality's stylegan2-pytorch: `Generator({size})`, after setting `channels` in its constructor to "
            f"`{channels}`.")


def _not_known(options: Mapping[str, Any], run: Origin | None, trained_on: Any) -> str:
    lines = []
    if run is None:
        lines.append("how it was trained: the source lay in no run directory")
    elif run.options is None:
        lines.append("how it was trained: `training_options.json` beside the source is damaged")
    if options and _method(options) == _UNKNOWN:
        lines.append("the method: the options of the run don't name it")
    if run is not None and run.kimg is None:
        lines.append("how many images D saw: the name of the source doesn't tell")
    if not trained_on:
        lines.append("what it was trained on")
    if run is None or not run.scores:
        lines.append("its quality: no scores were recorded")
    lines.append("whether it has memorised training images, and which groups of people or things it favours")
    return "\n".join(f"* {line}" for line in lines)


def _method(options: Mapping[str, Any]) -> str:
    method = _find(options, "config.method") or (_find(options, "reg_type") if options else None)
    if method is None:
        return _UNKNOWN
    loss = options["config"].get("loss") if isinstance(options.get("config"), Mapping) else None
    added = [name for name in names_in(loss if isinstance(loss, Mapping) else {}) if name in RIVALS]
    return " + ".join([_METHODS.get(method, str(method)), *(f"{name} ({RIVALS[name].source})" for name in added)])


def _find(options: Mapping[str, Any], where: str) -> Any:
    """A value in nested dicts by its dotted name; None if it isn't there, or is a dict or list."""
    value: Any = options
    for part in where.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return None if isinstance(value, (Mapping, list)) else value


def _read_scores(path: Path) -> list[RecordedScore]:
    """The latest value of each score that was recorded for this snapshot."""
    found: dict[str, RecordedScore] = {}
    for record in read_scores(path.parent):
        if record["snapshot_pkl"] == path.name:
            detector = record.get("detector")
            detector = detector.get("name") if isinstance(detector, dict) else None
            found |= {name: RecordedScore(name, value, str(detector or "not recorded"))
                      for name, value in record["results"].items()}
    return list(found.values())


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    return _markdown_table(head, [[_cell(value) for value in row] for row in rows])


def _markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _printable(text: str) -> str:
    return "".join(ch if ch.isprintable() else " " for ch in text)[:_MAX_CELL].strip()


def _cell(value: Any) -> str:
    """The value as text on one line. Markdown and HTML are escaped, because many values come from files."""
    text = {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
    text = _printable(text).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"[\\`*\[\]|~$!]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=www)\.", r"\\\g<0>", text)


def _code(name: str) -> str:
    """A file's name as code in Markdown, or as text if it has characters that may end the code."""
    return f"`{name}`" if re.fullmatch(r"[\w.:/?=#%@+, -]{1,200}", name) else _cell(name)
