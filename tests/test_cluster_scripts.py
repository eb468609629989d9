"""The scripts for torchrun and Slurm: what they start and how they pass on signals; programs are recorded, not run."""

import os
import re
import shutil
import signal
import subprocess
import time

import pytest

from paths import ROOT

CLUSTER = ROOT / "train_scripts" / "cluster"
TRAIN = str(ROOT / "train.py")

# Stands in for Python, as torchrun: prints its arguments and, with TRAINING=1, has a child that saves when asked to.
TORCHRUN = """#!/usr/bin/env bash
printf '%s\\n' "$@"
if [[ -n ${TRAINING:-} ]]; then
    bash -c 'trap "echo saved; exit" USR1; trap "echo killed; exit 9" TERM
             echo training; while :; do sleep 0.05; done' &
    trap 'kill $!' TERM
    wait $!; wait $!
    exit
fi
exit "${STATUS:-0}"
"""

# Stands in for srun: runs the command once for each node, one after the other.
SRUN = """#!/usr/bin/env bash
printf 'srun %s\\n' "$1"
shift
case ${STEP:-} in
    "") for ((node = 0; node < SLURM_JOB_NUM_NODES; node++)); do SLURM_NODEID=$node "$@" || exit; done ;;
    hangs) trap '' USR1; echo training; sleep 30 ;;
    *) for argument; do [[ $argument == --outcome=* ]] && outcome=${argument#*=}; done
       trap 'echo "Done in a moment"; [[ $STEP == silent ]] || echo "$STEP" >"$outcome"; exit 0' USR1
       echo training; while :; do sleep 0.05; done ;;
esac
"""
SCONTROL = """#!/usr/bin/env bash
printf 'scontrol %s\\n' "$*" >>"$LOG"
if [[ $2 == hostnames ]]; then printf 'node7\\nnode8\\n'; fi
"""


@pytest.fixture
def programs(tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("python", TORCHRUN), ("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def start(programs, tmp_path):
    """Start a script; its environment is that of a job of two nodes."""

    def start(name, *arguments, **environment):
        shutil.copy(CLUSTER / "slurm.sbatch", tmp_path)  # Slurm runs a copy
        script = tmp_path / name if name.endswith("sbatch") else CLUSTER / name
        env = {**os.environ, "GLEAD_PYTHON": str(programs / "python"), "PATH": f"{programs}:{os.environ['PATH']}",
               "LOG": str(tmp_path / "log"), "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_JOB_ID": "123456",
               "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2", "SLURM_GPUS_ON_NODE": "4", **environment}
        return subprocess.Popen(["bash", script, *arguments], env=env, cwd=tmp_path, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, text=True)

    return start


@pytest.fixture
def run(start):
    def run(name, *arguments, **environment):
        process = start(name, *arguments, **environment)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.splitlines(), err

    return run


def wait_for_training(process):
    for line in process.stdout:
        if line == "training\n":
            return
    pytest.fail(process.stderr.read())


def finish(process):
    out, err = process.communicate(timeout=60)
    return process.returncode, out.splitlines(), err


def scontrol_calls(tmp_path):
    return [line for line in (tmp_path / "log").read_text().splitlines() if "hostnames" not in line]


def test_scripts_parse_and_name_no_places_of_this_machine():
    files = sorted(CLUSTER.iterdir())
    assert [f.name for f in files] == ["launch.sh", "one-node.sh", "several-nodes.sh", "slurm.sbatch"]
    for file in files:
        subprocess.run(["bash", "-n", file], check=True)
        assert not re.search(r"/home|/root|/work|~/|\$HOME", file.read_text()), file


@pytest.mark.parametrize("said, per_node, rest", [
    ([], "gpu", [f"--outdir={ROOT}/runs"]),
    (["--per-node=2", "--data=a b", "--gpus", "2"], "2", [f"--outdir={ROOT}/runs", "--data=a b", "--gpus", "2"]),
    (["--per-node=2", "--outdir=here", "--per-node", "4"], "4", ["--outdir=here"]),
])
def test_one_node(run, said, per_node, rest):
    status, out, err = run("one-node.sh", *said)
    assert status == 0, err
    assert out == ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={per_node}", TRAIN, *rest]
    assert err.startswith("$ ")  # the command is shown


def test_several_nodes_by_number_and_by_c10d(run):
    both = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=gpu"]
    said = ["--nodes=2", "--master=node1", "--outdir=o", "--data=d"]
    status, out, _ = run("several-nodes.sh", *said, "--node=1")
    assert status == 0
    assert out == [*both, "--node-rank=1", "--master-addr=node1", "--master-port=29500", TRAIN, *said[2:]]
    status, out, _ = run("several-nodes.sh", *said, "--master=node2:7", "--torchrun=--max-restarts=1", "--torchrun",
                         "--local-addr=10.0.0.1")
    assert status == 0
    assert out == [*both, "--rdzv-backend=c10d", "--rdzv-endpoint=node2:7", "--rdzv-id=glead", "--max-restarts=1",
                   "--local-addr=10.0.0.1", TRAIN, "--outdir=o", "--data=d"]


def test_the_status_is_that_of_torchrun(run):
    assert run("one-node.sh", STATUS="3")[0] == 3


@pytest.mark.parametrize("name, said, message", [
    ("one-node.sh", ["--per-node=0"], "--per-node=0: expected a whole number, at least 1"),
    ("one-node.sh", ["--per-node"], "--per-node needs a value"),
    ("several-nodes.sh", [], "--nodes is missing: say how many machines there are"),
    ("several-nodes.sh", ["--nodes=2"], "--master is missing: say at which machine they meet, as HOST or HOST:PORT"),
    ("several-nodes.sh", ["--nodes=two", "--master=a"], "--nodes=two: expected a whole number, at least 1"),
    ("several-nodes.sh", ["--nodes=2", "--master=a", "--node=2"],
     "--node=2: expected a number from 0 to 1, below --nodes"),
    ("slurm.sbatch", ["--grace=soon"], "--grace=soon: expected a whole number, at least 1"),
])
def test_mistakes(run, name, said, message):
    assert run(name, *said) == (1, [], message + "\n")


@pytest.mark.parametrize("name", ["one-node.sh", "several-nodes.sh", "slurm.sbatch"])
def test_help_is_the_comment_on_top(run, name):
    status, out, err = run(name, "--help")
    assert (status, err) == (0, "") and any("Usage" in line for line in out)
    assert "GLEAD_PYTHON" in out[-1] and not any("set -euo" in line for line in out)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_reach_training_which_saves(start, number):
    process = start("one-node.sh", TRAINING="1")
    wait_for_training(process)
    process.send_signal(number)
    status, out, err = finish(process)
    assert (status, out) == (0, ["saved"])
    assert "asked to save" in err


def test_the_second_signal_reaches_torchrun(start, programs):
    (programs / "python").write_text(TORCHRUN.replace('"echo saved; exit" USR1', '"" USR1'))
    process = start("one-node.sh", TRAINING="1")
    wait_for_training(process)
    for _ in range(2):
        process.send_signal(signal.SIGUSR1)
        time.sleep(0.5)
    status, out, _ = finish(process)
    assert (status, out) == (9, ["killed"])


def test_slurm_starts_every_node(run, tmp_path):
    outdir = tmp_path / "runs"
    status, out, err = run("slurm.sbatch", "--data=a b.zip", "--torchrun=--max-restarts=1", "--grace=5",
                           f"--outdir={outdir}")
    assert status == 0, err
    nodes = [["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=4", f"--node-rank={node}",
              "--master-addr=node7", "--master-port=23456", "--max-restarts=1", TRAIN,
              f"--outdir={outdir}", f"--outcome={outdir}/outcome-123456.txt", "--data=a b.zip", f"--outdir={outdir}"]
             for node in (0, 1)]
    assert out == ["srun --kill-on-bad-exit=1", *nodes[0], *nodes[1]]
    assert scontrol_calls(tmp_path) == []


def test_slurm_job_fails_with_training(run, tmp_path):
    assert run("slurm.sbatch", f"--outdir={tmp_path}", STATUS="3")[0] == 3
    assert scontrol_calls(tmp_path) == []


@pytest.mark.parametrize("step, requeued", [
    ("stopped", True),
    ("silent", True),   # whatever it prints
    ("hangs", True),    # its last training state is good
    ("finished", False),
])
def test_slurm_warning(start, tmp_path, step, requeued):
    (tmp_path / "outcome-123456.txt").write_text("finished")  # of another time
    process = start("slurm.sbatch", "--grace=1", f"--outdir={tmp_path}", STEP=step)
    wait_for_training(process)
    process.send_signal(signal.SIGUSR1)
    begin = time.monotonic()
    process.wait(timeout=60)
    assert process.returncode == 0
    assert time.monotonic() - begin < 25
    assert scontrol_calls(tmp_path) == (["scontrol requeue 123456"] if requeued else [])
    assert not list(tmp_path.glob("outcome*"))


def test_a_torchrun_that_waits_for_lost_machines_is_ended(start, programs):
    (programs / "python").write_text("#!/usr/bin/env bash\nsleep 0.5\necho alone\nexec sleep 30\n")
    process = start("several-nodes.sh", "--nodes=2", "--master=a", "--linger=1")
    begin = time.monotonic()
    status, out, err = finish(process)
    assert (status, out) == (128 + signal.SIGKILL, ["alone"]) and 1 < time.monotonic() - begin < 25
    assert "ending torchrun, because its last process ended 1 seconds ago" in err


def test_slurm_directives_ask_for_what_requeueing_needs():
    directives = re.findall(r"^#SBATCH (--\S+)$", (CLUSTER / "slurm.sbatch").read_text(), re.MULTILINE)
    assert {"--requeue", "--open-mode=append", "--signal=B:USR1@120", "--ntasks-per-node=1"} <= set(directives)


def test_slurm_elsewhere(run, tmp_path):
    status, out, err = run("slurm.sbatch", SLURM_SUBMIT_DIR=str(tmp_path))
    assert (status, out) == (1, [])
    assert err == f"{tmp_path} is no repository of this program: submit from there, or set GLEAD_REPO\n"
    assert run("slurm.sbatch", SLURM_JOB_ID="")[2] == "This is a job for Slurm: start it by sbatch, or see --help.\n"
