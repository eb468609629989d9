"""README, docs/ and other Markdown: links lead somewhere, commands are right, the reference is complete."""

import importlib
import re
import shlex
from pathlib import Path

import click
import pytest

import train
from metrics.metric_main import list_valid_metrics
from training.config import comparison, presets, released
from training.config.options import OPTIONS
from training.config.resolve import resolve
from training.config.schema import DatasetConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(page for folder in ("docs", "benchmarks", "train_scripts", "tests")
                                      for page in (ROOT / folder).rglob("*.md"))])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Those that GitHub makes of headings."""
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
            for heading in re.findall(r"^#+ (.*)$", prose(page), re.M)}


def commands(page: Path) -> list[list[str]]:
    """Shell commands in blocks of code, as words, without what stands before the program and without comments."""
    text = "\n".join(code for language, code in FENCE.findall(page.read_text()) if language == "bash")
    lines = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    return [[word for word in line if not re.match(r"[A-Z_]+=", word)] for line in lines if line]


def parse(program: str, args: list[str]) -> None:
    """As the program itself would; raises click.ClickException."""
    module = importlib.import_module(Path(program).stem)
    command = getattr(module, args[0], None) if args else None
    if isinstance(command, click.Command):  # dataset_tool.py check
        command.make_context(program, args[1:])
    else:
        module.main.make_context(program, args)


def test_links_lead_somewhere():
    broken, count = [], 0
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if target.startswith(("http://", "https://")):
                continue
            count += 1
            name, _, anchor = target.partition("#")
            path = (page.parent / name).resolve() if name else page
            if not path.exists() or anchor and anchor not in anchors(path):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert count > 100 and not broken


def test_paths_in_the_docs_exist():
    rooms = "training|metrics|torch_utils|dnnlib|sampling|analysis|tests|benchmarks|train_scripts|docs"
    count = 0
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for code in re.findall(r"`([^`\n]+)`", prose(page)):
            for path in re.findall(rf"(?<![\w/.-])(?:{rooms})/[\w/.-]*", code):
                count += 1
                assert (ROOT / path).exists(), f"{page.name}: {path}"
    assert count > 50


def test_commands_are_understood(tmp_path, monkeypatch):
    """By click where the program is one of ours; of others, the script is there and knows the options."""
    monkeypatch.chdir(tmp_path)
    ours = {option for param in train.main.params for option in param.opts}
    count = 0
    for page in PAGES:
        for launcher, *words in commands(page):
            line = f"{page.name}: {shlex.join([launcher, *words])}"
            while words[0].startswith("--"):    # the launcher's own options
                words.pop(0)
            program, *args = words
            if program == "train_scripts/compare.sh":   # it hands all options on
                launcher, program = "python", "compare.py"
            if launcher in ("python", "torchrun") and re.fullmatch(r"\w+\.py", program):
                try:
                    parse(program, [arg for arg in args if not arg.endswith("...")])
                except click.ClickException as e:
                    pytest.fail(f"{line}: {e.format_message()}")
            elif launcher in ("python", "bash", "sbatch") and program != "-m":
                text = (ROOT / program).read_text()
                options = {arg.partition("=")[0] for arg in args if arg.startswith("--")}
                assert all(option in ours or option in text for option in options), line
            else:
                known = ("python", "-m", "torch_utils.ops")
                assert (launcher, *words[:2]) == known or launcher in ("pip", "pre-commit"), line
            count += 1
    assert count > 60


def test_commands_for_published_experiments_are_the_published_ones():
    lines = [words[2:] for page in PAGES for words in commands(page)
             if words[:2] == ["python", "train.py"] and "--gpus=8" in words]
    assert len(lines) >= 9
    for line in lines:
        options, _ = released.parse(train.main.make_context("train.py", list(line)).params)
        dataset = DatasetConfig(path=options.data, resolution=512 if "afhq" in options.data else 256,
                                xflip=options.mirror)
        said = comparison.departures_line(resolve(options, dataset, device="cuda"))
        start = "Departs from the paper in: perceptual net (lpips-alex instead of lpips-vgg), phases with the task on"
        assert said.startswith(start if "--reg_type=glead" in line else "As published ("), line


def test_the_reference_has_every_option_of_training():
    reference = set(re.findall(r"`(--[\w-]+)", (ROOT / "docs" / "training.md").read_text()))
    released = {option for param in train.main.params if "released" in getattr(param, "group", "")
                for option in param.opts}
    assert {max(param.opts, key=len) for param in train.main.params} - released - reference == set()


def test_the_reference_says_what_may_differ_in_a_resumed_run():
    (text,) = re.findall(r"These options may differ: (.*?)\.", (ROOT / "docs" / "training.md").read_text(), re.DOTALL)
    free = {option.flag_name for option in OPTIONS.values() if option.free}
    assert set(re.findall(r"`(--[\w-]+)`", text)) == free - {"--resume", "--resume-anyway", "--dry-run"}


def test_the_reference_has_every_metric_and_preset():
    training, evaluation = ((ROOT / "docs" / f"{name}.md").read_text() for name in ("training", "evaluation"))
    assert [name for name in presets.PRESETS if f"`{name}`" not in training] == []
    metrics = [name for name in list_valid_metrics() if "50k" in name or "ppl" in name]
    assert [name for name in metrics if f"`{name}`" not in evaluation] == []
