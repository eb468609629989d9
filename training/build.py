"""The networks of a run: the one place that builds them.

Training asks a generator for `z_dim`, `c_dim`, `mapping(z, c, ...)` -> ws, `synthesis(ws)` -> images, and, if it has them,
`synthesis.run` (features, and going on from them) and `w_avg`. It asks a discriminator for `D(img, c)` -> logits and, if it
has tasks, for `D.run(img, c)` and `has_heads`; `minibatch_group` says how many images it looks at together. Classes must be
persistent (`torch_utils.persistence.persistent_class`), so that pickles hold them, and take what `generator_kwargs` and
`discriminator_kwargs` give.
"""

import torch

from dnnlib.util import UserError
from torch_utils import persistence

from .config.schema import TrainingConfig, discriminator_kwargs, generator_kwargs


def build_networks(config: TrainingConfig) -> tuple[torch.nn.Module, torch.nn.Module]:
    """G and D with new weights, on the current default device, in training mode.

    Raises:
        UserError: No class of that name was imported. Nothing is imported here: the name may come from a file.
    """
    return _class(config.G.class_name)(**generator_kwargs(config)), _class(config.D.class_name)(
        **discriminator_kwargs(config))


def _class(name: str) -> type:
    module, _, class_name = name.rpartition(".")
    cls = persistence.find_class(class_name)
    if cls.__module__ != module:
        raise UserError(f"there is no network class {name}: {class_name} is {cls.__module__}.{class_name} here")
    return cls
