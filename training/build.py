"""The networks of a run: the one place that builds them.

Training asks a generator for `z_dim`, `c_dim`, `mapping(z, c, ...)` -> ws and `synthesis(ws)` -> images. It also uses
`w_avg`, and `synthesis.run`, which gives features and continues from them, if the generator has them. It asks a
discriminator for `D(img, c)` -> logits. If D has tasks, it also asks for `D.run(img, c)`, `has_heads` and
`minibatch_group`, the number of images that D looks at together.

Classes must be persistent (`torch_utils.persistence.persistent_class`), so that pickles hold them. Their constructors
take what `generator_kwargs` and `discriminator_kwargs` give.
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
