"""Small networks, and what makes pickles like those of other projects."""

import collections
import io
import pickle

import torch

import legacy
from dnnlib.util import EasyDict
from torch_utils import persistence
from training.networks import Discriminator, Generator

G_KWARGS = dict(mapping_kwargs={"num_layers": 2}, synthesis_kwargs={"channel_base": 64, "channel_max": 8})
FOREIGN_SOURCE = "# the same network in another project\nraise SystemExit('embedded source was run')\n"


def make_generator(**options):
    return Generator(8, 0, 16, **{"img_resolution": 8, "img_channels": 3, **G_KWARGS, **options})


def make_networks():
    D = Discriminator(0, 8, 3, channel_base=64, channel_max=8, decoder_res=8, glead_res_g=8, decoder_out_channel=16)
    kwargs = EasyDict(class_name="training.dataset.ImageFolderDataset", path="a.zip", max_size=None, xflip=True)
    return dict(G=make_generator(), D=D, G_ema=make_generator(), training_set_kwargs=kwargs, augment_pipe=None)


class Foreign:
    """Pickles as a persistent object of another project does."""

    def __init__(self, class_name, state, *, source=FOREIGN_SOURCE, **meta):
        self.meta = EasyDict(type="class", version=6, module_src=source, class_name=class_name, state=state, **meta)

    def __reduce__(self):
        return persistence._reconstruct_persistent_obj, (self.meta,)


def foreign_network(class_name, state_dict, **kwargs):
    """A network of another project: the ecosystem's tree of modules, with attributes that ours don't have."""

    def node(tensors):
        state = dict(training=False, _parameters=collections.OrderedDict(), _buffers=collections.OrderedDict())
        state.update(_modules=collections.OrderedDict(), _forward_hooks=collections.OrderedDict(), alien={1, 2})
        children = {}
        for name, tensor in tensors.items():
            head, _, tail = name.partition(".")
            if tail:
                children.setdefault(head, {})[tail] = tensor
            elif head in ("w_avg", "resample_filter", "noise_const"):
                state["_buffers"][head] = tensor
            else:
                state["_parameters"][head] = torch.nn.Parameter(tensor, requires_grad=False)
        for head, tensors in children.items():
            state["_modules"][head] = Foreign("SynthesisLayer", node(tensors))
        return state

    return Foreign(class_name, {**node(state_dict), "_init_args": (), "_init_kwargs": EasyDict(kwargs)})


def load(content, **options):
    return legacy.load_network_pkl(io.BytesIO(content if isinstance(content, bytes) else pickle.dumps(content)),
                                   **options)


class Call:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def as_foreign(module, *, class_name=None, **init_kwargs):
    """A module as another project pickles it: the same attributes and tensors, its source, and these arguments."""
    state = {name: value for name, value in vars(module).items() if name != "_modules"}
    state["_modules"] = {name: None if m is None else as_foreign(m) for name, m in module.named_children()}
    if init_kwargs:
        state.update(_init_args=(), _init_kwargs=EasyDict(init_kwargs))
    return Foreign(class_name or type(module).__name__, state)
