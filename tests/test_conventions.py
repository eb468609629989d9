"""Rules of the source tree that keep it easy to change: who may import whom, sizes, no dummy terms."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

import cli
from paths import ROOT

ROOMS = [  # each may import from itself and from what stands before it
    "dnnlib", "torch_utils", "metrics", "training.config", "training.data", "training.runs", "training",
    "training.jobs", "sampling", "analysis",
]
PACKAGES = sorted(p for room in ROOMS if "." not in room for p in (ROOT / room).rglob("*.py"))
COMMANDS = sorted(ROOT.glob("*.py"))


def imports(path: Path, *, nested: bool = True) -> set[str]:
    """Full names of what is imported: `metrics.options`, `training.config.presets.resolve`.

    With `nested`, imports within functions and source in strings, such as that of programs to start, count.
    """
    parts = path.relative_to(ROOT).with_suffix("").parts[:-1]
    names = set()
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if nested else tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = list(parts[:len(parts) - node.level + 1]) if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= set(re.findall(r"\bfrom ([a-z_]+\.[a-z_.]+) import", node.value))
    return names


def room_of(name: str) -> str | None:
    return max((room for room in ROOMS if f"{name}.".startswith(f"{room}.")), key=len, default=None)


@pytest.mark.parametrize("path", PACKAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_what_is_below_them(path):
    room = room_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
    found = imports(path)
    above = ROOMS[ROOMS.index(room) + 1:]
    assert not {name for name in found if room_of(name) in above}
    top = {name.split(".")[0] for name in found}
    assert not top & {p.stem for p in COMMANDS}, "packages don't import command lines"
    assert "click" not in top, "only command lines know click"


def test_no_module_imports_itself_in_a_circle():
    """As soon as it is imported: imports within functions come later."""
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
               for path in (*PACKAGES, *COMMANDS)}
    needs = {name: {found for found in imports(path, nested=False) if found in modules} - {name}
             for name, path in modules.items()}
    while free := [name for name, needed in needs.items() if not needed & needs.keys()]:
        for name in free:
            del needs[name]
    assert not needs


def test_the_walk_sees_imports():
    assert {"dnnlib.util.UserError", "torch"} <= imports(ROOT / "training" / "perceptual.py")
    assert "training.config.schema.TrainingConfig" in imports(ROOT / "training" / "training_loop.py")
    assert "training.jobs.worker" in imports(ROOT / "training" / "jobs" / "launch.py")     # in a string
    assert room_of("training.data.prepare.writer") == "training.data" and room_of("training.loss") == "training"


@pytest.mark.parametrize("name,most", [("training/networks.py", 870), ("training/training_loop.py", 300)])
def test_files_stay_within_their_budgets(name, most):
    assert len((ROOT / name).read_text().splitlines()) <= most


def test_functions_of_the_loop_and_the_losses_are_short():
    for name in ("training_loop", "loss", "tasks", "phases"):
        for node in ast.walk(ast.parse((ROOT / "training" / f"{name}.py").read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{name}.{node.name}"


def test_no_term_is_multiplied_by_zero():
    for path in (ROOT / "training").glob("*.py"):
        assert not re.search(r"\*\s?0(\.0*)?(?![\w.])", path.read_text()), path


def test_one_class_of_each_kind():
    """A method is a composition: no second copy of a network or a loss."""
    names = [node.name for path in PACKAGES for node in ast.walk(ast.parse(path.read_text()))
             if isinstance(node, ast.ClassDef) and re.search(r"Generator$|Discriminator$|Loss$", node.name)]
    assert sorted(n for n in names if not n.startswith("_")) == [
        "AdversarialLoss", "Discriminator", "Generator", "PerceptualLoss", "StyleGAN2Loss"]


def test_bundled_golden_numbers_are_those_of_the_full_set(shared):
    bundled = sorted((ROOT / "tests/golden").rglob("*.npz"))
    assert bundled
    for path in bundled:
        ours, full = np.load(path), np.load(shared / "golden" / path.relative_to(ROOT / "tests/golden"))
        assert set(ours.files) <= set(full.files)
        for key in ours.files:
            np.testing.assert_array_equal(ours[key], full[key], err_msg=f"{path.name}: {key}")


@pytest.mark.parametrize("path", [path for path in COMMANDS if path.stem != "cli"], ids=lambda p: p.stem)
def test_help_and_wrong_usage_do_not_wait_for_pytorch(path, tmp_path):
    """Of a second, PyTorch alone would take two."""
    for slow in ("torch", "matplotlib", "scipy"):
        (tmp_path / f"{slow}.py").write_text(f"raise SystemExit('{slow} is imported')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for args, status in (["--help"], 0), ([], 2):
        result = subprocess.run([sys.executable, str(path), *args], env=env, capture_output=True, text=True)
        assert result.returncode == status and "Usage: " in result.stdout + result.stderr, result.stderr


def test_command_lines_treat_names_alike():
    """Of options, with `-` or `_`, and of files: `~` is expanded, and what is not UTF-8 is refused."""
    commands = [command for path in COMMANDS for command in vars(importlib.import_module(path.stem)).values()
                if isinstance(command, click.Command)]
    assert len(commands) >= 11 and all(isinstance(command, cli.Command) for command in commands)
    for param in (param for command in commands for param in command.params):
        named = re.search(r"PATH|DIR|FILE|FOLDER|ZIP|IMAGES", param.metavar or "")
        assert isinstance(param.type, cli.Path) == bool(named or isinstance(param.type, click.Path)), param.name


def test_names_of_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert [cli.Path().convert(name, None, None) for name in ("~/a.pkl", "~", "a~", "https://b/~c", "lpips-vgg")] == [
        f"{tmp_path}/a.pkl", str(tmp_path), "a~", "https://b/~c", "lpips-vgg"]
    with pytest.raises(click.BadParameter, match=r"'\\udce9.pkl' is not UTF-8: rename the file or folder"):
        cli.Path().convert(os.fsdecode(b"\xe9.pkl"), None, None)
    with pytest.raises(cli.UserError, match=r"'x \\udce9.png' holds the name of a file that is not UTF-8"):
        with cli.plain_errors():
            "x \udce9.png".encode()
