"""Operations to compare with their references: all that have kernels, with settings that networks don't use, too."""

import itertools
from typing import Iterator

from torch_utils.ops import upfirdn2d
from torch_utils.ops.self_test import Case, bias_act_case, draw_inputs, fir_case, modconv_case


def all_cases() -> Iterator[Case]:
    x, b, noise, scale = draw_inputs(24, 17, 40)
    for act in ("linear", "relu", "lrelu"):
        yield bias_act_case(act, x, b)
    taps = {"4x4": [1.0, 3, 3, 1], "12": [1.0, 2, 3, 4, 5, 6, 6, 5, 4, 3, 2, 1], "3x2": [[1.0, 2], [3, 4], [5, 6]]}
    moves = [(1, 1, (2, 1, 2, 1)), (2, 1, (5, 6, 7, 4)), (1, 2, (5, 6, 6, 5)), ((3, 1), (1, 2), (9, -1, 7, 8))]
    for (name, f), move in itertools.product(taps.items(), moves):
        yield fir_case(f"upfirdn2d {name}", upfirdn2d.setup_filter(f), *move, x)
    yield modconv_case(x, b, noise, scale)
