"""Which network pickles stay, and what the writing of files does to training."""

import concurrent.futures
import gc
import json
import re
import threading
import weakref

import pytest
import torch

from dnnlib import util
from dnnlib.util import UserError
from training.runs import checkpoints
from training.runs.checkpoints import Checkpoints, Keep
from training.runs.training_state import list_pickles, pickle_path


@pytest.mark.parametrize("text, expected", [
    ("all", Keep()), ("last:3,best,every:10", Keep(last=3, best=True, every=10)), ("best", Keep(last=1, best=True)),
    ("every:2, last:5", Keep(last=5, every=2))])
def test_rules_are_parsed(text, expected):
    assert Keep.parse(text) == expected


@pytest.mark.parametrize("text", ["", "last", "last:0", "best:2", "newest:3", "last:3;best", "all,best"])
def test_other_rules_are_refused(text):
    with pytest.raises(UserError, match=re.escape(f"--keep is {text!r}, expected 'all' or a list")):
        Keep.parse(text)


def saved(tmp_path, *, keep, count=25, metric="fid50k_full", scores=()):
    """Kimg of the pickles that are left of `count` that were saved 4 kimg apart."""
    writer = Checkpoints(tmp_path, keep=Keep.parse(keep), metric=metric, snapshot_kimg=4)
    for i in range(count):
        path = writer.save_networks(pickle_path(tmp_path, i * 4000), networks={"G": torch.nn.Linear(1, 1), "D": None},
                                    training_set_kwargs={})
        if i in scores:
            with open(tmp_path / f"metric-{metric}.jsonl", "a") as f:
                f.write(json.dumps({"results": {metric: scores[i]}, "snapshot_pkl": path.name}) + "\n")
            writer.prune()
    assert writer.wait() == []
    writer.close()
    return sorted(int(p.stem[-6:]) for p in tmp_path.glob("*.pkl"))


def test_all(tmp_path):
    assert saved(tmp_path, keep="all") == list(range(0, 100, 4))


def test_last_best_and_every(tmp_path):
    scores = dict(zip(range(25), [50, 40, 30, 20, 9, 8, 12] + [10] * 18))
    assert saved(tmp_path, keep="last:3,best,every:10", scores=scores) == [0, 20, 40, 80, 88, 92, 96]


def test_pickles_within_a_kimg(tmp_path):
    """Snapshots are 0.2 kimg apart; one name of two kimg is by whole kimg."""
    names = ["000000", "000000_200", "000000_400", "000000_600", "000000_800", "000001", "000001_200", "1000000",
             "1000000_400"]
    for name in names:
        (tmp_path / f"network-snapshot-{name}.pkl").touch()
    assert [p.name[17:-4] for p in list_pickles(tmp_path)] == names and [p.kimg for p in list_pickles(tmp_path)] == [
        0, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1_000_000, 1_000_000.4]
    assert sorted(p.name for p in tmp_path.iterdir() if "1000000" not in p.name) == [
        f"network-snapshot-{name}.pkl" for name in names[:7]], "the same as text"
    writer = Checkpoints(tmp_path, keep=Keep.parse("last:2,every:3"), metric=None, snapshot_kimg=0.2)
    writer.prune()
    assert writer.wait() == []
    writer.close()
    assert [p.name[17:-4] for p in list_pickles(tmp_path)] == ["000000", "000000_600", "000001_200", *names[-2:]]


def test_of_some_metrics_the_highest_score_is_the_best(tmp_path):
    assert saved(tmp_path, keep="best", metric="is50k", scores={2: 3.0, 5: 9.0, 7: 4.0}) == [20, 96]


def test_scores_by_another_protocol_do_not_count(tmp_path):
    """Those of other images, or another seed, can't be compared with training's own."""
    record = {"results": {"fid50k_full": 1}, "protocol": {"seed": 1}, "snapshot_pkl": "network-snapshot-000000.pkl"}
    (tmp_path / "metric-fid50k_full.jsonl").write_text(json.dumps(record) + "\n")
    assert saved(tmp_path, keep="best", scores={2: 30, 5: 20, 7: 40}) == [20, 96]


def test_half_a_line_of_scores_does_no_harm(tmp_path):
    (tmp_path / "metric-fid50k_full.jsonl").write_text('{"results": {"fid50k_full": 1}, "snap')
    assert saved(tmp_path, keep="best", count=3) == [8]


def test_training_waits_for_a_write_only_if_another_one_of_its_kind_is_due(tmp_path, monkeypatch):
    gate = threading.Event()
    monkeypatch.setattr(checkpoints, "write_state", lambda path, content: gate.wait(60))
    writer = Checkpoints(tmp_path, keep=Keep(), metric=None, snapshot_kimg=4)
    writer.save_state({}, nimg=0)
    writer.save_networks(pickle_path(tmp_path, 0), networks={"G": torch.nn.Linear(1, 1)}, training_set_kwargs={})
    assert not list(tmp_path.iterdir()), "both are handed over, none is written"
    third = threading.Thread(target=writer.save_state, args=({},), kwargs={"nimg": 8})
    third.start()
    third.join(0.3)
    assert third.is_alive(), "no third copy in memory"
    gate.set()
    third.join(60)
    assert writer.wait() == [] and len(list(tmp_path.iterdir())) == 1
    writer.close()


def test_a_write_that_fails_while_it_is_looked_at_is_said(tmp_path):
    class Finishing(concurrent.futures.Future):
        """Finished between two calls of `done`."""

        was_asked = False

        def done(self):
            done, self.was_asked = self.was_asked, True
            return done

    writer, write = Checkpoints(tmp_path, keep=Keep(), metric=None, snapshot_kimg=4), Finishing()
    write.set_exception(OSError(28, "No space left on device"))
    writer._writes.append((tmp_path / "a.png", write))
    writer.report()
    assert len(writer.wait()) == 1 and writer.wait() == []
    writer.close()


def test_what_fails_is_said_once_and_makes_a_pickle_overdue(tmp_path, capsys):
    writer = Checkpoints(tmp_path / "gone", keep=Keep(), metric=None, snapshot_kimg=4)
    writer.save_networks(pickle_path(writer.run_dir, 0), networks={"G": None}, training_set_kwargs={})
    (problem,) = writer.wait()
    assert "can't save" in problem and "network-snapshot-000000.pkl" in problem and writer.overdue
    writer.save_state({}, nimg=0)
    while not writer._writes[0][1].done():
        pass
    writer.report()
    writer.report()
    out = capsys.readouterr().out
    assert out.count("training continues, and tries again with the next tick") == 1
    writer.close()


def test_files_are_written_in_order_and_one_that_fails_is_reported(tmp_path):
    order = []

    def write(path, *, failing):
        order.append((path.name, threading.current_thread() is threading.main_thread()))
        if failing:
            raise OSError(28, "No space left on device")

    writer = Checkpoints(tmp_path, keep=Keep(), metric=None, snapshot_kimg=4)
    writer.save_file(tmp_path / "a.png", write, failing=False)
    writer.save_file(tmp_path / "b.png", write, failing=True)
    writer.save_networks(pickle_path(tmp_path, 0), networks={"G": None}, training_set_kwargs={})
    (problem,) = writer.wait()
    assert problem == f"can't save {tmp_path / 'b.png'}: No space left on device" and writer.overdue
    assert order == [("a.png", False), ("b.png", False)] and (tmp_path / "network-snapshot-000000.pkl").exists()
    writer.close()


class OnGPU(torch.Tensor):
    """A tensor of the host that passes for one of a GPU."""

    is_cuda = True


class Stream:
    """Of the GPU, which has come to the copies when its event is waited for."""

    waits = 0

    def record_event(self):
        return self

    def synchronize(self):
        self.waits += 1


@pytest.fixture
def stream(monkeypatch):
    stream, empty = Stream(), torch.empty
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **kwargs: empty(*size, **kwargs))
    return stream


def gpu_tensors():
    layouts = {"matrix": torch.randn(3, 5), "last": torch.randn(2, 4, 3, 3).to(memory_format=torch.channels_last),
               "number": torch.tensor(7), "half": torch.randn(9).to(torch.bfloat16), "none": torch.zeros(0, 4),
               "flags": torch.tensor([True, False, True]), "view": torch.randn(6, 8).t()}
    return {name: x.as_subclass(OnGPU) for name, x in layouts.items()} | {"host": torch.ones(2)}


def check_copies(tensors, stream):
    stream.waits = 0
    copies = checkpoints.host_copy({"all": tensors, "again": [tensors["view"]]})
    assert stream.waits == 0
    content = copies.wait()
    assert stream.waits == 1 and content["again"][0] is content["all"]["view"]
    before = {name: x.as_subclass(torch.Tensor).clone() for name, x in tensors.items()}
    for x in tensors.values():
        x.zero_()
    for name, x in before.items():
        copy = content["all"][name]
        assert torch.equal(copy, x) and copy.dtype == x.dtype and copy.stride() == x.stride()
        assert copy.untyped_storage().nbytes() == x.numel() * x.element_size(), "files hold storages whole"


def test_copies_from_a_gpu_are_whole_and_keep_their_layout(stream):
    check_copies(gpu_tensors(), stream)


def test_copies_do_without_page_locked_memory_where_there_is_none(stream, monkeypatch, capsys):
    empty = torch.empty

    def refuse(*size, pin_memory=False, **kwargs):
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory\nCompile with ...")
        return empty(*size, **kwargs)

    monkeypatch.setattr(torch, "empty", refuse)
    monkeypatch.setattr(util, "_said", set())
    for _ in range(2):
        check_copies(gpu_tensors(), stream)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "(CUDA error: out of memory): training waits for these copies" in err


def test_copies_are_gone_once_they_are_written(tmp_path):
    """They are hundreds of megabytes of page-locked memory, of which the next ones would take as much again."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Conv2d(1, 1, 1))
    copies = checkpoints.host_copy({"G": net})
    seen = [weakref.ref(p) for p in copies.content["G"].parameters()]
    writer = Checkpoints(tmp_path, keep=Keep(), metric=None, snapshot_kimg=4)
    gc.disable()
    try:
        writer._submit(tmp_path / "net.pkl", writer._write_networks, tmp_path / "net.pkl", copies)
        del copies
        assert writer.wait() == []
        writer.close()
        assert len(seen) == 4 and not any(p() is not None for p in seen)
    finally:
        gc.enable()
