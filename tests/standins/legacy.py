"""Network files that hold the arguments of the tests' small generator."""

import json
import sys
from pathlib import Path

from dnnlib.util import UserError

sys.path.insert(0, str(Path(__file__).parents[1] / "metrics"))
from reference_generator import random_generator  # noqa: E402


def load_network_pkl(f, force_fp16=False, *, trust=False):
    try:
        content = json.loads(f.read())
    except ValueError as e:
        raise UserError(f"{f.name} is no network pickle") from e
    G = random_generator()
    G.c_dim = content.pop("c_dim", 0)
    return {"G": G, "D": None, "G_ema": G, "augment_pipe": None, "training_set_kwargs": content.get("training_set_kwargs")}
