"""Numbers of run directories, the options file and the log."""

import json
import multiprocessing
import sys

import pytest

from dnnlib.util import UserError
from training.runs.run_dir import create_run_dir, tee_output, write_options


def test_numbers_go_on_behind_the_highest(tmp_path):
    out = tmp_path / "new" / "runs"
    assert create_run_dir(out, "a") == str(out / "00000-a")
    assert create_run_dir(out, "a") == str(out / "00001-a")
    (out / "00007-old").mkdir()
    (out / "00009.txt").touch()  # no run
    (out / "notes").mkdir()
    assert create_run_dir(out, "b") == str(out / "00008-b")


def _create(out, name, barrier, count):
    barrier.wait()
    for _ in range(count):
        create_run_dir(out, name)


def test_programs_at_the_same_time_get_different_numbers(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(4)
    programs = [context.Process(target=_create, args=(tmp_path, f"p{i}", barrier, 20)) for i in range(4)]
    for program in programs:
        program.start()
    for program in programs:
        program.join(30)
        assert program.exitcode == 0
    numbers = [int(path.name[:5]) for path in tmp_path.iterdir()]
    assert len(numbers) == len(set(numbers)) == 80


def test_options_are_readable_json(tmp_path):
    write_options(tmp_path, {"batch_size": 4, "metrics": []})
    assert json.loads((tmp_path / "training_options.json").read_text()) == {"batch_size": 4, "metrics": []}
    assert [path.name for path in tmp_path.iterdir()] == ["training_options.json"]


def test_log_has_lines_and_last_state_of_progress(tmp_path, capsys):
    log = tmp_path / "log.txt"
    with tee_output(log):
        print("one")
        assert log.read_text() == "one\n"  # readable while the run goes on
        for i in range(3):
            print(f"\r{i}0%", end="", file=sys.stderr)
        print("\r100%", file=sys.stderr)
        print("no newline", end="")
    print("outside")
    assert log.read_text() == "one\n100%\nno newline\n"
    captured = capsys.readouterr()
    assert captured.out == "one\nno newlineoutside\n"
    assert captured.err == "\r00%\r10%\r20%\r100%\n"


def test_log_has_what_ended_the_run(tmp_path):
    with pytest.raises(ZeroDivisionError), tee_output(tmp_path / "bug.txt"):
        1 / 0  # noqa: B018
    assert "ZeroDivisionError" in (tmp_path / "bug.txt").read_text()
    with pytest.raises(UserError), tee_output(tmp_path / "mistake.txt"):
        raise UserError("no such thing")
    assert (tmp_path / "mistake.txt").read_text() == "Error: no such thing\n"
