"""Training states: whole and unaltered, or not used."""

import hashlib
import os

import pytest
import torch

from dnnlib.util import UserError
from training.runs import training_state
from training.runs.training_state import clear_way, find_state, list_states, read_state, state_path, write_state


def content(nimg):
    torch.manual_seed(nimg)
    return {"progress": {"nimg": nimg}, "networks": {"G": {"w": torch.randn(40, 30), "n": torch.tensor(nimg)}},
            "list": [1.5, None, "x"]}


def test_what_was_written_is_read_and_pytorch_reads_it_too(tmp_path):
    path = state_path(tmp_path, 1234)
    write_state(path, content(1234))
    for back in (read_state(path), torch.load(path, weights_only=True)):
        assert torch.equal(back["networks"]["G"]["w"], content(1234)["networks"]["G"]["w"])
        assert back["list"] == [1.5, None, "x"] and back["progress"] == {"nimg": 1234}
    assert os.listdir(tmp_path) == ["training-state-000001234.pt"]


def test_two_are_kept(tmp_path):
    for nimg in (0, 8, 1_000_000_000, 16):
        write_state(state_path(tmp_path, nimg), content(nimg))
    assert [state.nimg for state in list_states(tmp_path)] == [1_000_000_000, 16]


def test_damage_at_any_place_is_noticed(tmp_path):
    path = state_path(tmp_path, 8)
    write_state(path, content(8))
    good = path.read_bytes()
    for place in [*range(0, len(good), 97), *range(len(good) - 90, len(good))]:
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x40]) + good[place + 1 :])
        with pytest.raises(UserError, match="damaged"):
            read_state(path)
    for length in [*range(0, len(good), 331), len(good) - 1]:
        path.write_bytes(good[:length])
        with pytest.raises(UserError, match="damaged"):
            read_state(path)
    path.write_bytes(good + b"\0")
    with pytest.raises(UserError, match="damaged"):
        read_state(path)
    path.write_bytes(good)
    assert read_state(path)["progress"]["nimg"] == 8


def test_the_one_before_is_used_and_leftovers_go(tmp_path, capsys):
    for nimg in (8, 16):
        write_state(state_path(tmp_path, nimg), content(nimg))
    state_path(tmp_path, 16).write_bytes(b"half")
    (tmp_path / ".training-state-000000024.pt.abc.tmp").write_bytes(b"what a killed program was writing")
    before = sorted(os.listdir(tmp_path))
    found = find_state(tmp_path, "newest")
    assert found["path"] == str(state_path(tmp_path, 8)) and found["progress"]["nimg"] == 8
    out = capsys.readouterr().out.splitlines()
    assert len([line for line in out if "Warning" in line]) == 1 and "trying the one before" in out[0]
    assert sorted(os.listdir(tmp_path)) == before, "nothing is changed before the state is restored"
    clear_way(tmp_path, 8)
    assert sorted(os.listdir(tmp_path)) == ["training-state-000000008.pt", "training-state-000000016.pt.unused"]
    state_path(tmp_path, 8).unlink()
    with pytest.raises(UserError, match="no good training state"):
        find_state(tmp_path, "newest")


def test_other_formats_and_missing_files_are_refused(tmp_path, monkeypatch):
    path = state_path(tmp_path, 8)
    with pytest.raises(UserError, match="can't read training state .*No such file"):
        read_state(path)
    monkeypatch.setattr(training_state, "FORMAT", 0)
    write_state(path, content(8))
    monkeypatch.undo()
    with pytest.raises(UserError, match="has format 0, expected 2"):
        read_state(path)


@pytest.mark.parametrize("unfinished, ada, last_nimg, snapshot_pkl", [
    (None, None, None, None), (False, None, None, None), (True, torch.ones(2), 2016, "network-snapshot-000002.pkl")])
def test_states_of_format_1_are_translated(tmp_path, monkeypatch, unfinished, ada, last_nimg, snapshot_pkl):
    """Of version 0.1, which named pickles by whole kimg alone; a later one wrote `plain_kimg` and `step_nimg`, too."""
    path, log = state_path(tmp_path, 2016), dict(elapsed_sec=1.5, tick_start_nimg=8, record={}, unwritten=[])
    kept = dict(config={}, dataset="x", progress=dict(nimg=2016), networks={}, optimizers={}, stats={})
    old = kept | dict(pl_mean=torch.ones([]), ada_signs=ada, bad_gradients=torch.tensor(3), report_sizes={"fid1k": 7},
                      unfinished_tick=unfinished, saved="network-snapshot-000002.pkl", log=log | dict(start_nimg=16))
    monkeypatch.setattr(training_state, "FORMAT", 1)
    write_state(path, old)
    monkeypatch.undo()
    expected = kept | dict(
        loss=dict(pl_mean=1), guard=dict(streak=3), log=log | dict(step_nimg=1000), format=2,
        pickles=dict(last="network-snapshot-000002.pkl", last_nimg=last_nimg, plain_kimg=2),
        tick=dict(pending=unfinished is not None, snapshot_pkl=snapshot_pkl, report_sizes={"fid1k": 7}))
    found = read_state(path)
    assert found.pop("ada", {}).keys() == ({"signs"} if unfinished else set()) and found == expected
    monkeypatch.setattr(training_state, "FORMAT", 1)
    write_state(path, kept)
    monkeypatch.undo()
    with pytest.raises(UserError, match="is not as versions with format 1 wrote it: KeyError"):
        read_state(path)


class Odd:
    """No tensor, and no plain data."""


@pytest.mark.parametrize("content", [{"a": Odd()}, {"a": os.path.join}, b"no archive" * 9, b""])
def test_what_is_signed_but_no_state_is_refused_in_one_line(tmp_path, content):
    path = state_path(tmp_path, 8)
    if isinstance(content, dict):
        write_state(path, content)
    else:
        path.write_bytes(content + hashlib.sha256(content).hexdigest().encode())
    with pytest.raises(UserError, match="^training state .* its checksum is right, but it does not hold tensors"):
        read_state(path)


def test_a_full_disk_leaves_what_was_there(tmp_path):
    resource = pytest.importorskip("resource")
    write_state(state_path(tmp_path, 8), content(8))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large.*training-state-000000016"):
            write_state(state_path(tmp_path, 16), content(16))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["training-state-000000008.pt"]
    assert read_state(state_path(tmp_path, 8))["progress"]["nimg"] == 8
