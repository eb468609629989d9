"""State that a program resumes from. Each part owns its own: it gives it by `state_dict()` and takes it back by
`load_state_dict()`.

State is tensors and plain data. A dict of parts is a part, too; a part that is None is left out.
"""

from typing import Any, Mapping, Protocol, Union

import torch


class Part(Protocol):
    def state_dict(self) -> dict[Any, Any]:
        """The state. Tensors are those of the part, not copies. All ranks call this together."""
        ...

    def load_state_dict(self, state: dict[Any, Any], /) -> Any:
        """Continue from a state, perhaps on another number of ranks, which call this together.

        Raises:
            Misfit: The state is that of another part, or damaged.
        """
        ...


Parts = Mapping[str, Union[Part, "Parts", None]]


class Misfit(ValueError):
    """Says which entry of a state does not fit, such as `networks.G.mapping.fc0.weight`."""


def capture(parts: Parts) -> dict[str, Any]:
    """The states of all parts, by name."""
    return {name: capture(part) if isinstance(part, Mapping) else dict(part.state_dict())
            for name, part in parts.items() if part is not None}


def restore(parts: Parts, states: Any, where: str = "") -> None:
    """Give each part its state.

    Raises:
        Misfit: A part has no state, a state has no part, or one does not fit the other.
    """
    there = {name: part for name, part in parts.items() if part is not None}
    check(states, dict.fromkeys(there, object), where)
    for name, part in there.items():
        path = _join(where, name)
        if isinstance(part, Mapping):
            restore(part, states[name], path)
            continue
        try:
            if isinstance(part, torch.nn.Module):   # its own messages have many lines
                check(states[name], part.state_dict())
            part.load_state_dict(states[name])
        except Misfit as e:
            raise Misfit(_join(path, str(e))) from e


def check(found: Any, expected: Any, where: str = "") -> None:
    """Raise Misfit, with the name of the first entry of `found` that is not as expected.

    Args:
        expected: A type or a tuple of types; a tensor, whose shape and dtype are compared; [x], a list of what x
                  describes; {type: x}, a dict of such keys and of what x describes; or {name: x, ...}, a dict of just
                  these names.
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
    """What describes each entry that is found or expected, by its key; None = the entry is not expected."""
    if isinstance(expected, list):
        return dict.fromkeys(range(len(found)), expected[0])
    kind = next(iter(expected), None)
    if isinstance(kind, type):
        return {key: expected[kind] if isinstance(key, kind) else None for key in found}
    return dict.fromkeys(found) | expected


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where and name else where or name
