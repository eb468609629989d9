"""`legacy.py --source --dest`, StyleGAN2-ADA's command for old pickles, run as users run it."""

import os
import pickle
import subprocess
import sys

import click.testing
import numpy as np
import pytest
import torch

import legacy
from paths import ROOT
from tests.torch_utils.formats import tf_networks
from tests.torch_utils.formats.pickle_makers import as_foreign, make_generator, make_networks
from torch_utils.formats.network_pickle import save_network_pkl


@pytest.fixture
def sources(tmp_path):
    """Old pickles: of TensorFlow, of another checkout, ours."""
    rng = np.random.RandomState(0)
    G, D = tf_networks.make_generator(rng)[0], tf_networks.make_discriminator(rng)[0]
    (tmp_path / "tf.pkl").write_bytes(tf_networks.dumps((G, D, G)))
    G = make_generator().eval().requires_grad_(False)
    foreign = as_foreign(G, **G.init_kwargs, **dict(zip(("z_dim", "c_dim", "w_dim"), G.init_args)))
    (tmp_path / "foreign.pkl").write_bytes(pickle.dumps({"G": foreign, "D": None, "G_ema": foreign}))
    save_network_pkl(tmp_path / "ours.pkl", make_networks())
    (tmp_path / "text.pkl").write_text("not networks")
    return tmp_path


def run_here(folder, *args):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return click.testing.CliRunner().invoke(legacy.main, args)


def test_real_command(sources):
    command = [sys.executable, str(ROOT / "legacy.py"), "--source=tf.pkl", "--dest=~/new/net.pkl"]
    env = {**os.environ, "HOME": str(sources), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=sources, env=env, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{sources}/new/net.pkl: G, D, G_ema\n", "")
    check_same(sources / "tf.pkl", sources / "new/net.pkl")


def check_same(source, dest, *, half=False):
    old, new = legacy.load_network_pkl(source), legacy.load_network_pkl(dest)
    for key in ("G", "D", "G_ema"):
        assert (old[key] is None) == (new[key] is None)
        if new[key] is not None:
            tensors = new[key].state_dict()
            assert tensors and all(torch.equal(tensors[name], value) for name, value in old[key].state_dict().items())
            assert getattr(new[key], "synthesis", new[key]).b8.use_fp16 == half
    assert old["training_set_kwargs"] == new["training_set_kwargs"]


@pytest.mark.parametrize("name", ["foreign", "ours"])
def test_old_pickles_of_pytorch(sources, name):
    result = run_here(sources, f"--source={name}.pkl", "--dest=new.pkl", "--force_fp16=true")
    assert result.exit_code == 0 and result.stdout.startswith("new.pkl: G, "), result.stderr
    check_same(sources / f"{name}.pkl", sources / "new.pkl", half=True)
    again = run_here(sources, f"--source={name}.pkl", "--dest=new.pkl", "--overwrite")
    assert again.exit_code == 0
    check_same(sources / f"{name}.pkl", sources / "new.pkl")


@pytest.mark.parametrize("args, status, message", [
    (["--source=ours.pkl"], 2, "Missing option '--dest'"),
    (["--source=ours.pkl", "--dest=foreign.pkl"], 1, "--dest=foreign.pkl exists: --overwrite replaces it"),
    (["--source=ours.pkl", "--dest=text.pkl/a.pkl"], 1, "text.pkl is not a folder"),
    (["--source=ours.pkl", "--dest="], 1, "--dest is empty"),
    (["--source=text.pkl", "--dest=a/b.pkl"], 1, "text.pkl: the file is something else; a network pickle was expected"),
    (["--source=nothing.pkl", "--dest=a.pkl"], 1, "can't open nothing.pkl: No such file"),
])
def test_mistakes_are_one_line(sources, args, status, message):
    before = {path: path.read_bytes() for path in sources.iterdir()}
    result = run_here(sources, *args)
    lines = result.stderr.splitlines()
    assert result.exit_code == status and lines[-1].startswith("Error: ") and message in lines[-1], result.stderr
    assert len(lines) == 1 or status == 2
    assert {path: path.read_bytes() for path in sources.iterdir()} == before
