"""Scores of a whole run: what counts as scored, in which order the rest is done, what the table says."""

import json
import os
import signal

import pytest
import torch

from dnnlib.util import EasyDict, UserError
from metrics import metric_main
from training.runs import resume, run_scores
from training.runs.interrupt import StopRequest
from training.runs.run_scores import RunScorer, ScoreBook, ScoreTable
from training.runs.training_state import state_path, write_state


@pytest.fixture
def run_dir(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "log.txt").touch()
    write_options(path, total_kimg=400)
    return path


def write_options(run_dir, *, total_kimg):
    content = {"total_kimg": total_kimg, "training_set_kwargs": {"path": "images.zip"}}
    (run_dir / "training_options.json").write_text(json.dumps(content))


def save_pickle(run_dir, kimg, *, content=b"good"):
    path = run_dir / f"network-snapshot-{kimg:06d}.pkl"
    path.write_bytes(content)
    return path


def result_of(metric, values, *, detector):
    net = metric_main.feature_net(metric, str(detector))
    return EasyDict(
        results={f"{name}@tiny-net": value for name, value in values.items()}, metric=metric,
        detector=EasyDict(name=net.name, sha256=net.digest), total_time=1.0, total_time_str="1s", num_gpus=1,
    )


class Scores:
    """Stands in for loading and scoring: keeps what was asked for, and does what a test has planned beside it."""

    def __init__(self, run_dir, detector, *, metrics=("fid1k_full",), beside=None, protocol=None):
        self.detector, self.asked, self.lines, self.warnings = detector, [], [], []
        self.beside = beside or {}      # What happens while a pickle is loaded, by its kimg.
        self.stop = StopRequest(quiet=True)
        self.book = ScoreBook(run_dir, metrics, detector=str(detector), protocol=protocol)
        self.scorer = RunScorer(book=self.book, load=self.load, calculate=self.calculate, stop=self.stop,
                                say=self.lines.append, warn=self.warnings.append)

    def load(self, path):
        kimg = int(path.rpartition("-")[2][:-4])
        self.beside.pop(kimg, lambda: None)()
        try:
            content = open(path, "rb").read()
        except FileNotFoundError as e:
            raise UserError(f"can't open {path}") from e
        if content != b"good":
            raise UserError("no pickle")
        G = torch.nn.Identity()
        G.kimg = kimg
        return G

    def calculate(self, metric, *, G, shared):
        self.asked.append((metric, G.kimg))
        return result_of(metric, {metric: float(G.kimg)}, detector=self.detector)


def test_pickles_are_scored_in_order_of_kimg_by_what_is_missing(run_dir, tiny_net, capsys):
    for kimg in (1000000, 200, 0):
        save_pickle(run_dir, kimg)
    (run_dir / ".network-snapshot-000400.pkl.x.tmp").touch()    # being written
    (run_dir / "network-snapshot-best.pkl").touch()
    fake = Scores(run_dir, tiny_net, metrics=("kid1k", "fid1k_full"))
    fake.book.add(result_of("kid1k", {"kid1k": 0.5}, detector=tiny_net), run_dir / "network-snapshot-000200.pkl")
    fake.scorer.score_all()
    assert fake.asked == [("kid1k", 0), ("fid1k_full", 0), ("fid1k_full", 200),
                          ("kid1k", 1000000), ("fid1k_full", 1000000)]
    assert fake.lines == ["network-snapshot-000000.pkl: 1 of 3, 2 waiting",
                          "network-snapshot-000200.pkl: 2 of 3, 1 waiting", "network-snapshot-1000000.pkl: 3 of 3"]
    assert fake.scorer.num_scored == 3 and not fake.warnings
    again = Scores(run_dir, tiny_net, metrics=("kid1k", "fid1k_full"))
    again.scorer.score_all()
    assert again.asked == [] == again.lines
    written = [line for metric in ("kid1k", "fid1k_full")
               for line in (run_dir / f"metric-{metric}.jsonl").read_text().splitlines()]
    assert sorted(capsys.readouterr().out.splitlines()) == sorted(written) and len(written) == 6


def test_a_score_counts_if_net_and_protocol_are_the_same(run_dir, tiny_net, tmp_path):
    pickle = save_pickle(run_dir, 0)
    good = result_of("fid1k_full", {"fid1k_full": 3.0}, detector=tiny_net)
    named = {"snapshot_pkl": pickle.name}
    expected = {"fid1k_full": {pickle.name: {"fid1k_full@tiny-net": 3.0}}}
    without = {key: value for key, value in good.items() if key != "detector"}
    for record, counts in [
        ({**good, **named}, True),
        ({**good, "results": {"fid1k_full@renamed": 3.0}, **named}, True),
        ({**without, **named}, True),
        ({**without, "results": {"fid1k_full": 3.0}, **named}, False),                         # by the standard net
        ({**good, "detector": {"name": "tiny-net", "sha256": "0"}, **named}, False),
        ({**good, "protocol": {"seed": 1}, **named}, False),
        ({**good, "results": {}, **named}, False),
        ({**good, "results": {"fid1k_full@tiny-net": "low"}, **named}, False),
        (good, False),
    ]:
        (run_dir / "metric-fid1k_full.jsonl").write_text(json.dumps(record) + '\n[1]\n{"half')
        found = ScoreBook(run_dir, ["fid1k_full"], detector=str(tiny_net)).read()
        assert found == (expected if counts else {"fid1k_full": {}}), record


def test_another_protocol_is_noted_and_found_again(run_dir, tiny_net):
    save_pickle(run_dir, 0)
    for protocol in ({}, {"seed": 1}, {"seed": 1}):
        Scores(run_dir, tiny_net, protocol=protocol).scorer.score_all()
    records = [json.loads(line) for line in (run_dir / "metric-fid1k_full.jsonl").read_text().splitlines()]
    assert [record.get("protocol") for record in records] == [None, {"seed": 1}]


def test_what_vanishes_is_passed_over_and_what_is_broken_named(run_dir, tiny_net):
    for kimg in (0, 100, 200, 300):
        save_pickle(run_dir, kimg, content=b"bad" if kimg == 100 else b"good")
    fake = Scores(run_dir, tiny_net, beside={
        0: (run_dir / "network-snapshot-000000.pkl").unlink, 100: (run_dir / "network-snapshot-000300.pkl").unlink})
    fake.scorer.score_all()
    assert fake.asked == [("fid1k_full", 200)]
    assert [line for line in fake.lines if "deleted" in line] == [
        f"network-snapshot-{kimg}.pkl was deleted before it was scored: passed over" for kimg in ("000000", "000300")]
    assert fake.warnings == ["no scores of network-snapshot-000100.pkl: no pickle"]
    assert list(fake.scorer.broken) == ["network-snapshot-000100.pkl"]


def test_follow_ends_with_the_last_pickle(run_dir, tiny_net, monkeypatch):
    """What comes while another one is scored waits; a broken one is passed over."""
    monkeypatch.setattr(run_scores, "_POLL_SEC", 0.01)
    fake = Scores(run_dir, tiny_net)

    def more_come():
        save_pickle(run_dir, 200, content=b"bad")
        save_pickle(run_dir, 300)

    def length_changes():
        write_options(run_dir, total_kimg=500)
        save_pickle(run_dir, 400)

    fake.beside = {100: more_come, 300: length_changes, 400: lambda: save_pickle(run_dir, 500)}
    save_pickle(run_dir, 100)
    fake.scorer.follow()
    assert [kimg for _, kimg in fake.asked] == [100, 300, 400, 500]
    assert "network-snapshot-000200.pkl: 2 of 3, 1 waiting" in fake.lines
    assert len(fake.warnings) == 1 and fake.scorer.broken == {"network-snapshot-000200.pkl"}


def test_follow_waits_and_says_whether_a_program_is_training(run_dir, tiny_net, monkeypatch):
    said = []
    fake = Scores(run_dir, tiny_net)
    steps = iter([lambda: None, lambda: lock.__enter__(), lambda: None, lambda: lock.__exit__(None, None, None),
                  lambda: None, lambda: save_pickle(run_dir, 400)])
    lock = resume.locked(str(run_dir))
    monkeypatch.setattr(run_scores.time, "sleep", lambda sec: (said.append(len(fake.lines)), next(steps)()))
    fake.scorer.follow()
    assert fake.lines[0] == f"Waiting for network pickles in {run_dir}, until 400 kimg"
    assert [line.startswith("No program is training") for line in fake.lines] == [False, True, True, False]
    assert said == [2, 2, 2, 2, 3, 3]   # when it started to wait, and when training was given up again


def test_states_tell_better_than_names_whether_a_run_is_finished(run_dir, tiny_net):
    """A run of half a kimg has its first and its last pickle under the same name."""
    write_options(run_dir, total_kimg=0.5)
    scorer = Scores(run_dir, tiny_net).scorer
    assert not scorer.is_finished()
    save_pickle(run_dir, 0)
    assert scorer.is_finished()
    write_state(state_path(run_dir, 256), {})
    assert not scorer.is_finished()
    write_state(state_path(run_dir, 512), {})
    assert scorer.is_finished()
    (run_dir / "network-snapshot-000000.pkl").unlink()
    assert not scorer.is_finished()


def test_a_request_to_stop_is_followed_at_once(run_dir, tiny_net, monkeypatch):
    save_pickle(run_dir, 0)
    fake = Scores(run_dir, tiny_net, beside={0: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    with fake.stop, pytest.raises(KeyboardInterrupt):
        fake.scorer.follow()
    assert fake.asked == []
    fake = Scores(run_dir, tiny_net)
    monkeypatch.setattr(run_scores.time, "sleep", lambda sec: os.kill(os.getpid(), signal.SIGINT))
    with fake.stop, pytest.raises(KeyboardInterrupt):
        fake.scorer.follow()
    assert fake.asked == [("fid1k_full", 0)]    # and then it waited


def test_the_table_marks_the_best_that_are_there(run_dir, tiny_net):
    book = ScoreBook(run_dir, ["fid1k_full", "pr1k3", "is1k", "kid1k"], detector=str(tiny_net))
    for kimg, fid, precision, mean in (
        (0, 9.0, 0.1, 1.0), (200, 3.5, 0.7, 3.0), (400, 2.5, 0.7, 4.0), (600, 4.0, 0.2, 2.0),
    ):
        path = save_pickle(run_dir, kimg)
        for metric, values in (
            ("fid1k_full", {"fid1k_full": fid}),
            ("pr1k3", {"pr1k3_precision": precision, "pr1k3_recall": 1 - precision}),
            ("is1k", {"is1k_mean": mean, "is1k_std": 0.5}),
        ):
            book.add(result_of(metric, values, detector=tiny_net), path)
    (run_dir / "network-snapshot-000400.pkl").unlink()
    save_pickle(run_dir, 800)
    book.add(result_of("kid1k", {"kid1k": float("nan")}, detector=tiny_net), run_dir / "network-snapshot-000000.pkl")
    table = ScoreTable(book)
    assert table.first == "fid1k_full@tiny-net" and table.best(table.first).kimg == 200
    rows = [line.split() for line in str(table).splitlines()]
    assert rows[0] == ["kimg", "fid1k_full@tiny-net", "pr1k3_precision@tiny-net", "pr1k3_recall@tiny-net",
                       "is1k_mean@tiny-net", "is1k_std@tiny-net", "kid1k@tiny-net"]
    assert rows[1:-1] == [
        ["0", "9.0000", "0.1000", "0.9000*", "1.0000", "0.5000", "nan"],
        ["200", "3.5000*", "0.7000*", "0.3000", "3.0000*", "0.5000", "-"],
        ["400", "2.5000", "0.7000", "0.3000", "4.0000", "0.5000", "-", "deleted"],
        ["600", "4.0000", "0.2000", "0.8000", "2.0000", "0.5000", "-"],
        ["800", "-", "-", "-", "-", "-", "-"],
    ]
    assert {len(line.rstrip()) for line in str(table).splitlines()[1:3]} == {len(str(table).splitlines()[1])}


def test_an_empty_table(run_dir, tiny_net):
    table = ScoreTable(ScoreBook(run_dir, ["fid1k_full"], detector=str(tiny_net)))
    assert table.rows == [] and table.first is None and str(table).splitlines()[0].strip() == "kimg"


@pytest.mark.parametrize("content", ["{}", "[]", "{", "[" * 100_000, '{"total_kimg": "all", "training_set_kwargs": {}}',
                                     '{"total_kimg": 1, "training_set_kwargs": null}'])
def test_options_that_are_damaged(run_dir, content):
    (run_dir / "training_options.json").write_text(content)
    with pytest.raises(UserError, match="training_options.json is damaged"):
        run_scores.read_options(run_dir)


def test_training_is_seen_without_being_disturbed(run_dir):
    assert not resume.is_busy(run_dir)
    with resume.locked(str(run_dir)):
        assert resume.is_busy(run_dir) and resume.is_busy(run_dir)
    assert not resume.is_busy(run_dir)
    (run_dir / "log.txt").unlink()
    assert not resume.is_busy(run_dir) and not (run_dir / "log.txt").exists()
