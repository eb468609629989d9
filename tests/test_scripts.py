"""The shell scripts: options, skipped steps, failures; the commands that they call are recorded, not run."""

import os
import shutil
import subprocess
import sys

import pytest

from paths import ROOT

# Stands in for Python: notes the command and makes the files that it would make; fails where FAIL names the program.
RECORDER = """#!/usr/bin/env bash
program=$1
if [[ $program == -c ]]; then  # the question whether there is a GPU
    echo False
    exit
fi
printf '%s\\n' "$*" >>"$LOG"
if [[ $program == "${FAIL:-}" ]]; then exit 3; fi
for argument in "$@"; do
    case $argument in
        --dest=* | --out=*) echo "$program" >"${argument#*=}" ;;
        --outdir=*) outdir=${argument#*=} ;;
        --kimg=*) printf -v name 'network-snapshot-%06d.pkl' "${argument#*=}" ;;
    esac
done
if [[ $program == train.py ]]; then
    mkdir -p "$outdir"
    run_dir=$outdir/0000$(ls "$outdir" | wc -l | tr -d ' ')-set
    mkdir "$run_dir"
    touch "$run_dir/$name" "$run_dir/reals.png" "$run_dir/fakes"{_init,000018}.png
elif [[ $program == plot_runs.py ]]; then
    echo "score: 80.0 at 0 kimg, 20.0 at 90 kimg"
fi
"""


@pytest.fixture
def quickstart(tmp_path):
    python = tmp_path / "recorder"
    python.write_text(RECORDER)
    python.chmod(0o755)
    log = tmp_path / "log"

    def run(*arguments, fail=""):
        log.write_text("")
        env = {**os.environ, "GLEAD_PYTHON": str(python), "LOG": str(log), "FAIL": fail}
        done = subprocess.run(["bash", ROOT / "train_scripts" / "quickstart.sh", *arguments],
                              capture_output=True, text=True, cwd=tmp_path, env=env, timeout=60)
        return done, log.read_text().splitlines()

    return run


def programs(commands):
    return [command.split()[0] for command in commands]


def test_scripts_parse():
    for script in (*(ROOT / "train_scripts").rglob("*.sh"), ROOT / "tests" / "run.sh", ROOT / ".ci" / "run"):
        subprocess.run(["bash", "-n", script], check=True)


def test_quickstart_runs_every_step_once(quickstart, tmp_path):
    done, commands = quickstart("--dir=my dir")
    assert done.returncode == 0, done.stderr
    assert programs(commands) == ["dataset_tool.py", "feature_net.py", "train.py", "plot_runs.py"]
    assert f"--data={tmp_path}/my dir/shapes.zip" in commands[2]
    assert "--kimg=90" in commands[2] and "--res-g=8" in commands[2]
    run_dir = tmp_path / "my dir" / "runs" / "00000-set"
    assert len(done.stdout.splitlines()) <= 10 and done.stderr == ""
    for name in ("story.png", "network-snapshot-000090.pkl"):
        assert f"{run_dir}/{name}" in done.stdout and (run_dir / name).exists()
    assert "20.0 at 90 kimg" in done.stdout.splitlines()[-1]
    log = (tmp_path / "my dir" / "log.txt").read_text()
    assert all(f" {program} " in log for program in programs(commands))

    done, commands = quickstart("--dir=my dir")
    assert done.returncode == 0 and programs(commands) == ["plot_runs.py"]
    assert done.stdout.count("done before") == 3 and f"{run_dir}/story.png" in done.stdout


def test_quickstart_with_own_images(quickstart, tmp_path):
    (tmp_path / "photos").mkdir()
    done, commands = quickstart("--data=photos", "--dir=out", "--kimg=3")
    assert done.returncode == 0, done.stderr
    assert f"--source={tmp_path}/photos" in commands[1] and "--resolution=32" in commands[1]
    assert f"--data={tmp_path}/out/shapes.zip" in commands[2]  # which needs labels
    assert f"--data={tmp_path}/out/images.zip" in commands[3] and "--kimg=3" in commands[3]


@pytest.mark.parametrize("program, done_before", [("feature_net.py", 1), ("train.py", 2), ("plot_runs.py", 3)])
def test_quickstart_says_what_failed_and_goes_on(quickstart, tmp_path, program, done_before):
    done, commands = quickstart("--dir=out", fail=program)
    assert done.returncode == 3
    assert programs(commands)[-1] == program
    assert "This command failed with status 3" in done.stderr and "start" in done.stderr.splitlines()[-1]
    assert program in done.stderr.splitlines()[-2] and f"{tmp_path}/out/log.txt" in done.stderr
    assert "story.png" not in done.stdout
    done, commands = quickstart("--dir=out")
    assert done.returncode == 0 and len(commands) == 4 - done_before


def test_quickstart_trains_again_for_another_length(quickstart):
    quickstart("--dir=out")
    done, commands = quickstart("--dir=out", "--kimg=30")
    assert done.returncode == 0
    assert programs(commands) == ["train.py", "plot_runs.py"]
    assert "/00001-set " in commands[1] and "00001-set/network-snapshot-000030.pkl" in done.stdout


@pytest.mark.parametrize("arguments, status, message", [
    (["--help"], 0, ""),
    (["--kimg=much"], 2, "--kimg=much"),
    (["--kimg=0"], 2, "--kimg=0"),
    (["--dta=x"], 2, "--dta=x"),
    (["--data=nowhere"], 1, "nowhere"),
])
def test_quickstart_options(quickstart, tmp_path, arguments, status, message):
    done, commands = quickstart(*arguments)
    assert done.returncode == status and commands == []
    assert message in done.stderr
    assert ("Usage:" in done.stdout) == (status == 0)
    assert not (tmp_path / "quickstart").exists()


def checkout(tmp_path):
    """A repository of which only the scripts are there."""
    repo = tmp_path / "repo"
    (repo / "tests").mkdir(parents=True)
    shutil.copytree(ROOT / "train_scripts", repo / "train_scripts")
    shutil.copytree(ROOT / ".ci", repo / ".ci")
    shutil.copy(ROOT / "tests" / "run.sh", repo / "tests")
    (repo / "requirements.txt").write_text("")
    return repo


def setup_python(repo, **environment):
    command = ["bash", "-euo", "pipefail", "-c", "source train_scripts/common.sh; setup_python; echo $PYTHON"]
    env = {**os.environ, "GLEAD_PYTHON": "", **environment}
    return subprocess.run(command, cwd=repo, env=env, capture_output=True, text=True, timeout=120)


# Stands in for a Python that can make environments and install what is not named "missing".
INSTALLER = """#!/usr/bin/env bash
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    "-m pip install "*) ! grep -q missing "${@: -1}" ;;
esac
"""


def test_environment_is_made_once_and_follows_the_requirements(tmp_path):
    repo = checkout(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(INSTALLER)
    (tmp_path / "bin" / "python3").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    stamp = repo / ".venv" / "requirements.stamp"
    done = setup_python(repo, PATH=path)
    assert done.returncode == 0 and done.stdout.strip() == str(repo / ".venv" / "bin" / "python"), done.stderr
    assert "Making" in done.stderr and "Installing" in done.stderr

    assert setup_python(repo, PATH=path).stderr == ""

    (repo / "requirements.txt").write_text("another\n")
    first = stamp.read_text()
    done = setup_python(repo, PATH=path)
    assert "Making" not in done.stderr and "Installing" in done.stderr
    second = stamp.read_text()
    assert second != first

    (repo / "requirements.txt").write_text("missing\n")
    for _ in range(2):  # it is tried again each time
        done = setup_python(repo, PATH=path)
        assert done.returncode == 1 and "Installing requirements.txt failed" in done.stderr
    assert stamp.read_text() == second


def test_no_python(tmp_path):
    repo = checkout(tmp_path)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "cksum"):
        (tools / name).symlink_to(shutil.which(name))
    (tools / "python3").write_text("#!/bin/sh\nexit 1\n")  # one that is too old
    (tools / "python3").chmod(0o755)
    done = setup_python(repo, PATH=str(tools))
    assert done.returncode == 1
    assert "No Python 3.10 or later found" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (repo / ".venv").exists()

    done = setup_python(repo, GLEAD_PYTHON="no-such-python")
    assert done.returncode == 1 and "no-such-python is no program" in done.stderr


@pytest.mark.parametrize("tests, arguments, status, message", [
    ("def test_a(): pass\n", [], 0, "1 passed"),
    ("def test_a(): pass\ndef test_golden_b(): pass\n", ["-k", "golden"], 0, "1 passed"),
    ("def test_a(): assert 0\n", [], 1, "1 failed"),
    ("def test_a(): pass\n", ["-k", "golden"], 1, "no test fits these arguments: -k golden"),
    ("", [], 1, "no test fits"),
])
def test_run_sh(tmp_path, tests, arguments, status, message):
    done = run_tests(tmp_path, tests, "tests/run.sh", *arguments)
    assert done.returncode == status
    assert message in done.stdout + done.stderr


@pytest.mark.parametrize("tests, status", [
    ("def test_a(): pass\n", 0),
    ("def test_a(): assert 0\n", 1),
    ("", 1),
    ("import pytest\n@pytest.mark.skip\ndef test_a(): pass\n", 1),
    ("import pytest\n@pytest.mark.skip\ndef test_a(): pass\ndef test_b(): pass\n", 0),
])
def test_ci_needs_a_test_that_ran(tmp_path, tests, status):
    assert run_tests(tmp_path, tests, ".ci/run").returncode == status


def run_tests(tmp_path, tests, script, *arguments):
    repo = checkout(tmp_path)
    (repo / "tests" / "test_sample.py").write_text(tests)
    env = {**os.environ, "GLEAD_PYTHON": sys.executable}
    return subprocess.run(["bash", repo / script, *arguments], capture_output=True, text=True, env=env, timeout=60)
