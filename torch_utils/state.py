"""The state from which a program resumes. It consists of parts with `state_dict()` and `load_state_dict()`.

State is tensors and plain data. A dict of parts is a part, too. A part that is None is left out.
"""

from typing import Any, Mapping, Protocol, Union

import torch


class Part(Protocol):
    def state_dict(self) -> dict[Any, Any]:
        """The state. Its tensors are the part's own, not copies. All ranks call this together."""
        ...

    def load_state_dict(self, state: dict[Any, Any], /) -> Any:
        """Continue from a state. The number of ranks may have changed. All ranks call this together.

        Raises:
            Misfit: The state belongs to another part, or is damaged.
        """
        ...


Parts = Mapping[str, Union[Part, "Parts", None]]


class Misfit(ValueError):
    """The message is the entry of a state that does not fit, such as `networks.G.mapping.fc0.weight`."""


def capture(parts: Parts) -> dict[str, Any]:
    """The states of all parts, by name."""
    return {name: capture(part) if isinstance(part, Mapping) else dict(part.state_dict())
            for name, part in parts.items() if part is not None}


def restore(parts: Parts, states: Any, where: str = "") -> None:
    """Load the state of each part. `where` is the name of `parts` in messages.

    Raises:
        Misfit: A part has no state, a state has no part, or a state does not fit its part.
    """
    there = {name: part for name, part in parts.items() if part is not None}
    check(states, dict.fromkeys(there, object), where)
    for name, part in there.items():
        path = _join(where, name)
        if isinstance(part, Mapping):
            restore(part, states[name], path)
            continue
        try:
            if isinstance(part, torch.nn.Module):   # PyTorch's own messages have many lines
                check(states[name], part.state_dict())
            part.load_state_dict(states[name])
        except Misfit as e:
            raise Misfit(_join(path, str(e))) from e


def check(found: Any, expected: Any, where: str = "") -> None:
    """Raise Misfit, with the name of the first entry of `found` that is not as expected.

    Args:
        found:    Tensors and plain data.
        expected: A description of `found`. It is one of these:
                  a type or a tuple of types;
                  a tensor, whose shape and dtype must match;
                  [x]: a list whose items match x;
                  {type: x}: a dict whose keys are of this type and whose values match x;
                  {name: x, ...}: a dict with exactly these keys, and values that match.
        where:    Name of `found` in messages.
    """
    children: dict[Any, Any] = {}
    if isinstance(expected, torch.Tensor):
        fits = isinstance(found, torch.Tensor) and (found.shape, found.dtype) == (expected.shape, expected.dtype)
    elif isinstance(expected, (list, dict)):
        fits = isinstance(found, list if isinstance(expected, list) else dict)
        children = _children(found, expected) if fits else {}
    else:
        fits = isinstance(found, expected)
    if not fits:
        raise Misfit(where)
    for key, pattern in children.items():
        path = _join(where, str(key))
        if pattern is None or isinstance(found, dict) and key not in found:
            raise Misfit(path)
        check(found[key], pattern, path)


def _children(found: Any, expected: Any) -> dict[Any, Any]:
    """The description of each entry that is found or expected, by key; None = the entry is not expected."""
    if isinstance(expected, list):
        return dict.fromkeys(range(len(found)), expected[0])
    kind = next(iter(expected), None)
    if isinstance(kind, type):
        return {key: expected[kind] if isinstance(key, kind) else None for key in found}
    return dict.fromkeys(found) | expected


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where and name else where or name
