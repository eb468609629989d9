"""The networks of a run: the one place that builds them.

What the rest of the program asks of networks:

* A generator has `z_dim`, `w_dim`, `mapping(z, c, ...)` -> ws and `synthesis(ws, ...)` -> images, and `G(z, c, ...)`
  does both. It may have `w_avg`, the mean w. For tasks of D it has `synthesis.run`, which gives features and continues
  from them.
* A discriminator gives logits by `D(img, c)`. For tasks it has `D.run(img, c)`, `has_heads`, and `minibatch_group`, the
  number of images that it looks at together.
* Both have `c_dim`, `img_resolution`, `img_channels`, and `init_args` and `init_kwargs`, which persistent classes
  (`torch_utils.persistence.persistent_class`) have, so that files can hold them. A run that starts from a generator
  takes sizes over from its `init_kwargs`, if they are named as in `generator_kwargs`.

Constructors take what `generator_kwargs` and `discriminator_kwargs` give.
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
