"""The networks of a run: the one place that builds them.

The rest of the program uses these members of networks:

* Generator: `z_dim`, `w_dim`, `mapping(z, c, ...)` -> ws, `synthesis(ws, ...)` -> images, and `G(z, c, ...)` for both.
  Optional: `w_avg`, the mean w. For tasks of D: `synthesis.run`, which returns features and resumes from them.
* Discriminator: `D(img, c)` -> logits. For tasks: `D.run(img, c)`, `has_heads`, and `minibatch_group`, the number of
  images that share a minibatch standard deviation.
* Both: `c_dim`, `img_resolution`, `img_channels`, and the `init_args` and `init_kwargs` that persistent classes
  (`torch_utils.persistence.persistent_class`) have, so that they can be saved. A run that starts from a generator takes
  its sizes from `init_kwargs`, if these are named as in `generator_kwargs`.

Constructors take the results of `generator_kwargs` and `discriminator_kwargs` as keywords.
"""

from typing import Any

from dnnlib.util import UserError
from torch_utils import persistence

from .config.schema import TrainingConfig, discriminator_kwargs, generator_kwargs


def build_networks(config: TrainingConfig) -> tuple[Any, Any]:
    """G and D with new weights, on the current default device, in training mode.

    Returns:
        Two modules. They are `Any` here, because networks that share no class may be trained.

    Raises:
        UserError: No class of that name was imported. Nothing is imported here, because the name may come from a file.
    """
    G = _class(config.G.class_name)(**generator_kwargs(config))
    return G, _class(config.D.class_name)(**discriminator_kwargs(config))


def _class(name: str) -> type:
    module, _, class_name = name.rpartition(".")
    cls = persistence.find_class(class_name)
    if cls.__module__ != module:
        raise UserError(f"there is no network class {name}: {class_name} is {cls.__module__}.{class_name} here")
    return cls
