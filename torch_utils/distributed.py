"""Communication between processes. A process that has not called `join` is rank 0 of 1.

The environment variables that torchrun sets identify the process: RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
MASTER_PORT. Tensors on GPUs, such as gradients, are reduced over NCCL. Everything else goes over gloo, on the hosts. If
a process dies or hangs, the others get an error within a time limit, even while their GPUs are busy.
"""

import contextlib
import datetime
import json
import os
import threading
from typing import Any, Callable, Iterator, NamedTuple

import torch

from dnnlib.util import UserError


class LostRank(UserError):
    """Another process of this run died, or did not answer in time. The message names it."""


class _Group:
    """The state of this process between `join` and `leave`."""

    def __init__(self, timeout_sec: float, advice: str):
        self.rank, self.world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        self.timeout_sec = timeout_sec
        self.advice = advice            # Tells the user what to do when a process is lost.
        self.store: Any = None          # Key-value store that all processes share.
        self.host_group: Any = None     # Process group for tensors on the CPU.
        self.step = 0                   # Number of operations that this process has begun together with all others.
        self.closed = threading.Event()
        self.heart: threading.Thread | None = None


_group: _Group | None = None


def join(
    *, device: str, timeout_sec: float, rank0_sec: float | None = None,
    advice: str = "The last training state is good; resume from it",
) -> torch.device:
    """Meet the other processes of this run.

    Args:
        device:      "cuda" or "cpu".
        timeout_sec: Longest wait for other processes, here and in all operations that processes do together.
        rank0_sec:   Longest wait for rank 0 here, which may have more to prepare; None = `timeout_sec`.
        advice:      What the user should do if a process is lost. It ends the message.

    Returns:
        The device of this process.

    Raises:
        LostRank:  A process did not join.
        UserError: There is no GPU for this process.
    """
    global _group
    group = _group = _Group(timeout_sec, advice)
    timeout = datetime.timedelta(seconds=timeout_sec)
    local = torch.device("cpu")
    if device == "cuda":
        local = torch.device("cuda", int(os.environ.get("LOCAL_RANK", group.rank)))
        if local.index >= torch.cuda.device_count():
            raise UserError(f"rank {group.rank} is process {local.index} of its machine, counted from 0, and finds "
                            f"{torch.cuda.device_count()} GPU(s): start one process for each GPU, and let each see "
                            "them all")
        torch.cuda.set_device(local)
    try:
        # torchrun and training.jobs.launch host the store; without them, rank 0 does.
        is_host = group.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = _open_store(timeout, is_host=is_host)
        group.store = _open_store(timeout)  # a second connection: the first one may be blocked by long waits
        _beat(group)
        if group.rank == 0:
            store.set("rank 0 is here", "")
        elif rank0_sec is not None:
            store.wait(["rank 0 is here"], datetime.timedelta(seconds=rank0_sec))
        # A time-out of NCCL ends the process without a message. gloo must time out first: then we name the lost rank.
        backend, patience = ("nccl", 2 * timeout) if device == "cuda" else ("gloo", timeout)
        torch.distributed.init_process_group(backend, store=store, rank=group.rank, world_size=group.world_size,
                                             timeout=patience)
        group.host_group = torch.distributed.new_group(backend="gloo", timeout=timeout)
    except RuntimeError as e:
        raise LostRank(_describe_absence(group, e)) from e
    return local


def _open_store(timeout: datetime.timedelta, *, is_host: bool = False) -> Any:
    """Connect to the store that all processes share, or host it."""
    store = torch.distributed.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=is_host,
                                       timeout=timeout, wait_for_workers=False)
    return _namespace(store)


def _namespace(store: Any) -> Any:
    """This project's keys in the store. Each restart by torchrun has keys of its own."""
    return torch.distributed.PrefixStore(f"glead/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def leave() -> None:
    """Leave the other processes. Does nothing without `join`."""
    global _group
    if _group is not None:
        _group.closed.set()
        if _group.heart is not None:
            _group.heart.join()  # a thread that uses the store while the interpreter ends would abort the process
        _group = None
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def first_to_report(message: str) -> bool:
    """Whether this process is the first to report why the run ends. If so, the message is stored for the launcher."""
    if _group is None or _group.store is None:
        return True
    signed, store = f"{_group.rank} {message}", _group.store
    try:
        return _within(_ANSWER_SEC, lambda: store.compare_set("verdict", "", signed).decode() == signed)
    except RuntimeError:  # the store is gone or out of reach
        return True


def reported(store: Any) -> str | None:
    """The message that `first_to_report` stored; None if there is none. `store` is the one that the processes share."""
    store = _namespace(store)
    return store.get("verdict").decode().partition(" ")[2] if store.check(["verdict"]) else None


def rank() -> int:
    return 0 if _group is None else _group.rank


def world_size() -> int:
    return 1 if _group is None else _group.world_size


def current_device(kind: str) -> torch.device:
    """The device of this process: the CPU for "cpu", its own GPU for "cuda"."""
    return torch.device(kind, torch.cuda.current_device()) if kind == "cuda" else torch.device(kind)


def print0(*args: Any, **kwargs: Any) -> None:
    """Print on rank 0 only."""
    if rank() == 0:
        print(*args, **kwargs)


def all_reduce_mean_(tensor: torch.Tensor) -> torch.Tensor:
    """Average over all ranks, in place."""
    if world_size() > 1:
        all_reduce_sum_(tensor)
        tensor /= world_size()
    return tensor


def all_reduce_sum_(tensor: torch.Tensor) -> torch.Tensor:
    """Sum over all ranks, in place.

    Raises:
        LostRank: A process is missing.
    """
    if _group is not None:
        with _named_losses():
            torch.distributed.all_reduce(tensor, group=None if tensor.is_cuda else _group.host_group)
    return tensor


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on any rank. Hosts wait for each other, but not for GPUs.

    Raises:
        LostRank: A process is missing.
    """
    if _group is None:
        return flag
    box = torch.tensor([int(flag)])
    with _named_losses():
        torch.distributed.all_reduce(box, group=_group.host_group)
    return bool(box.item())


def from_rank0(value: Any) -> Any:
    """The value that rank 0 passes, on every rank. It is data that JSON can hold.

    Raises:
        LostRank: A process is missing.
    """
    if _group is None:
        return value
    box = [json.dumps(value)]
    with _named_losses():
        torch.distributed.broadcast_object_list(box, src=0, group=_group.host_group)
    return json.loads(box[0])


def first_given(value: Any) -> Any:
    """The value of the lowest rank that doesn't pass None, on every rank; None if all pass None. JSON can hold it.

    Raises:
        LostRank: A process is missing.
    """
    if _group is None:
        return value
    boxes = [""] * _group.world_size
    with _named_losses():
        torch.distributed.all_gather_object(boxes, json.dumps(value), group=_group.host_group)
    return next((given for given in map(json.loads, boxes) if given is not None), None)


def say_failed() -> None:
    """Tell the other ranks that this one has failed in the current work, and waits for them."""
    if _group is not None:
        with contextlib.suppress(RuntimeError):     # the next common operation names the lost rank
            _group.store.set(f"failed/{_group.step}", "")


def has_failed_elsewhere() -> bool:
    """Whether another rank has called `say_failed` since the last common operation. Costs one request to the store."""
    if _group is None:
        return False
    group = _group
    try:
        return _within(_ANSWER_SEC, lambda: group.store.check([f"failed/{group.step}"]))
    except RuntimeError:    # the next common operation names the lost rank
        return False


def rank0_first(work: Callable[[], Any]) -> None:
    """Do some work in the first process of each machine, and then in the others, which find the result in a cache.

    All ranks call this together. The others start when the first processes of all machines have finished.

    Raises:
        LostRank: A first process died, or took longer than the time limit of `join`.
    """
    is_first = _group is None or int(os.environ.get("LOCAL_RANK", _group.rank)) == 0
    if is_first:
        work()
    any_rank(False)     # waits for all
    if not is_first:
        work()


# ----------------------------------------------------------------------------------------------------------------------
# Finding lost ranks: a thread of each process reports the process's step, even while the main thread waits or hangs.

_BEAT_SEC = 0.5
_ANSWER_SEC = 3     # The store answers within milliseconds, or not at all.


def _beat(group: _Group) -> None:
    """Start the thread that reports this process's step to the store every `_BEAT_SEC`."""
    def run() -> None:
        number = 0
        while not group.closed.is_set():
            number += 1
            with contextlib.suppress(RuntimeError):  # the store ends with the process that hosts it
                group.store.set(f"beat/{group.rank}", json.dumps([number, group.step]))
            group.closed.wait(_BEAT_SEC)

    group.heart = threading.Thread(target=run, daemon=True, name="heartbeat")
    group.heart.start()


@contextlib.contextmanager
def _named_losses() -> Iterator[None]:
    """Wraps a common operation of all ranks: errors become a LostRank that names the missing rank."""
    group = _group
    assert group is not None
    group.step += 1
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as e:
        raise LostRank(_diagnose(group, e).message) from e


class _Diagnosis(NamedTuple):
    is_lost: bool   # Whether a process is missing.
    message: str


def _diagnose(group: _Group, error: RuntimeError) -> _Diagnosis:
    """Find out which ranks are the reason for an error. Takes seconds."""
    what = f"rank {group.rank} lost contact to the other processes in step {group.step}"
    try:
        dead, behind = _within(4 * _BEAT_SEC + _ANSWER_SEC, lambda: _missing(group))
    except RuntimeError as silence:
        return _Diagnosis(True, f"{_first_line(silence)}: {what}. {group.advice}")
    if dead:
        return _Diagnosis(True, f"{_names(dead)} died, was stopped, or lost the network: {what}. {group.advice}")
    if behind:
        return _Diagnosis(True, f"{_names(behind)} did not answer within {group.timeout_sec:g} s (hanging, or much "
                                f"slower): {what}. {group.advice}")
    return _Diagnosis(False, f"{what} ({_first_line(error)}). {group.advice}")


def _missing(group: _Group) -> tuple[list[int], list[int]]:
    """Ranks whose reports have stopped, and ranks that are alive but behind this one."""
    def look() -> dict[int, list[int]]:     # rank -> [number of the report, step]
        beats = {}
        for other in range(group.world_size):
            if other != group.rank and group.store.check([f"beat/{other}"]):
                beats[other] = json.loads(group.store.get(f"beat/{other}"))
        return beats

    before = look()
    group.closed.wait(4 * _BEAT_SEC)
    after = look()
    others = [other for other in range(group.world_size) if other != group.rank]
    dead = [other for other in others if before.get(other, [0])[0] == after.get(other, [0])[0]]
    behind = [other for other in others if other not in dead and after[other][1] < group.step]
    return dead, behind


def _describe_absence(group: _Group, error: RuntimeError) -> str:
    """The message about ranks that did not join."""
    others = list(range(group.world_size))
    with contextlib.suppress(RuntimeError, AttributeError):  # no store was reached
        others = [other for other in others if not group.store.check([f"beat/{other}"])] or others
    absent = [other for other in others if other != group.rank]
    return (f"{_names(absent)} did not come within {group.timeout_sec:g} s, says rank {group.rank} "
            f"({_first_line(error)})")


def lost_rank(error: BaseException) -> LostRank | None:
    """A LostRank if a missing process is the reason for `error`; otherwise None."""
    if isinstance(error, LostRank):
        return error
    if _group is None or not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError):
        return None
    diagnosis = _diagnose(_group, error)
    return LostRank(diagnosis.message) if diagnosis.is_lost else None


def _within(limit_sec: float, question: Callable[[], Any]) -> Any:
    """Query the store with a time limit. Without one, its client waits for 15 minutes if the network is down.

    Raises:
        RuntimeError: There was no answer within the limit.
    """
    answers: list[Any] = []

    def ask() -> None:
        with contextlib.suppress(RuntimeError, ValueError):
            answers.append(question())

    thread = threading.Thread(target=ask, daemon=True, name="question")
    thread.start()
    thread.join(limit_sec)
    if not answers:
        raise RuntimeError(f"the machine at {os.environ['MASTER_ADDR']}, where the processes met, does not answer")
    return answers[0]


def _names(ranks: list[int]) -> str:
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
