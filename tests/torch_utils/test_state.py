"""State of parts: captured, given back, and refused where it does not fit."""

import copy

import pytest
import torch

from torch_utils.state import Misfit, capture, check, restore


class Counter:
    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        check(state, {"count": int})
        self.count = state["count"]


def parts(count=0):
    return {"counter": Counter(count), "nets": {"a": torch.nn.Linear(2, 3), "b": None}, "none": None}


def test_parts_take_back_what_they_gave():
    before, after = parts(7), parts()
    state = copy.deepcopy(capture(before))
    assert list(state) == ["counter", "nets"] and list(state["nets"]) == ["a"]
    restore(after, state)
    assert after["counter"].count == 7
    assert torch.equal(after["nets"]["a"].weight, before["nets"]["a"].weight)


@pytest.mark.parametrize("where, state", [
    ("counter", {"counter": 7}), ("counter.count", {"counter": {"count": 7.5}}), ("counter.more", {"counter": {
        "count": 7, "more": 8}}), ("nets.b", {"nets": {"b": {}}}), ("none", {"none": {}}), ("nets.a.weight", {
            "nets": {"a": {"weight": torch.zeros(3, 3), "bias": torch.zeros(3)}}}),
    ("nets.a.bias", {"nets": {"a": {"weight": torch.zeros(3, 2)}}}), ("nets", {"nets": []}),
])
def test_a_misfit_is_named(where, state):
    good = capture(parts(7))
    bad = good | {name: good[name] | part if name == "nets" and "b" in part else part for name, part in state.items()}
    with pytest.raises(Misfit) as caught:
        restore(parts(), bad)
    assert str(caught.value) == where


def test_patterns():
    pattern = {"a": [(int, float)], "b": {int: torch.zeros(2)}}
    check({"a": [1, 2.5], "b": {3: torch.ones(2)}}, pattern)
    check({"a": [], "b": {}}, pattern)
    for where, found in (("a.1", {"a": [1, "x"], "b": {}}), ("b.c", {"a": [], "b": {"c": torch.ones(2)}}),
                         ("b.3", {"a": [], "b": {3: torch.ones(2).double()}}), ("b", {"a": []})):
        with pytest.raises(Misfit, match=f"^{where}$"):
            check(found, pattern)
