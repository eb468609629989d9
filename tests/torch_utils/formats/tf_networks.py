"""Networks as the TensorFlow programs of StyleGAN2 pickle them: random variables, the pickle, and what they compute.

The computations are written down from the definitions, in float64 and one image at a time, on the variables as they
stand in the file.
"""

import contextlib
import pickle
import sys
import types

import numpy as np
import torch
import torch.nn.functional as F


class Network:
    """Pickles as an object of `dnnlib.tflib.network.Network` does; `state` may be anything."""

    __module__ = "dnnlib.tflib.network"

    def __init__(self, variables, components=None, function="G_main", source="", **static_kwargs):
        self.state = dict(
            version=4, name="net", static_kwargs=static_kwargs, components=components or {}, build_module_src=source,
            build_func_name=function, variables=variables,
        )

    def __getstate__(self):
        return self.state


@contextlib.contextmanager
def tflib():
    """Modules of that name, so that `pickle` can refer to their class."""
    modules = {name: types.ModuleType(name) for name in ("dnnlib.tflib", "dnnlib.tflib.network")}
    modules["dnnlib.tflib.network"].Network = Network
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def dumps(content, protocol=4):
    with tflib():
        return pickle.dumps(content, protocol=protocol)


def nf(resolution, options):
    """Channels, by the program's formula: stage = log2(resolution) - 1."""
    stage = int(np.log2(resolution)) - 1
    return int(min(options["fmap_base"] / 2**stage, options["fmap_max"]))


def resolutions_of(options):
    return [2**i for i in range(2, int(np.log2(options["resolution"])) + 1)]


def make_generator(rng, *, label=None, architecture="skip", **options):
    """A G with `label` in (None, "LabelEmbed", "LabelConcat")."""
    options = dict(dict(resolution=16, fmap_base=32, fmap_max=8, num_channels=3, mapping_layers=3, label_size=0),
                   **options)
    z_dim, w_dim, width = 10, 12, 11
    mapping, synthesis = {}, {}
    lrmul = options.get("mapping_lrmul", 0.01)  # weights start at the inverse of it
    label_width = 0
    if label:
        label_width = z_dim if label == "LabelConcat" else w_dim
        mapping[f"{label}/weight"] = rng.randn(options["label_size"], label_width)
    if label == "LabelEmbed":
        mapping["LabelEmbed/bias"] = rng.randn(label_width)
    widths = [z_dim + label_width] + [width] * (options["mapping_layers"] - 1) + [w_dim]
    for i in range(options["mapping_layers"]):
        mapping[f"Dense{i}/weight"] = rng.randn(widths[i], widths[i + 1]) / lrmul
        mapping[f"Dense{i}/bias"] = rng.randn(widths[i + 1]) / lrmul / 10

    def layer(scope, c_in, c_out, kernel):
        synthesis[f"{scope}/weight"] = rng.randn(kernel, kernel, c_in, c_out)
        synthesis[f"{scope}/mod_weight"] = rng.randn(w_dim, c_in)
        synthesis[f"{scope}/mod_bias"] = rng.randn(c_in) / 5
        if kernel > 1:
            synthesis[f"{scope}/noise_strength"] = rng.randn() / 5
        synthesis[f"{scope}/bias"] = rng.randn(c_out)

    synthesis["4x4/Const/const"] = rng.randn(1, nf(4, options), 4, 4)
    for res in resolutions_of(options):
        c_in, c_out, name = nf(max(res // 2, 4), options), nf(res, options), f"{res}x{res}"
        if res == 4:
            layer("4x4/Conv", c_out, c_out, 3)
        else:
            layer(f"{name}/Conv0_up", c_in, c_out, 3)
            layer(f"{name}/Conv1", c_out, c_out, 3)
            if architecture == "resnet":
                synthesis[f"{name}/Skip/weight"] = rng.randn(1, 1, c_in, c_out)
        if architecture == "skip" or res == options["resolution"]:
            layer(f"{name}/ToRGB", c_out, options["num_channels"], 1)
    for i in range(2 * len(resolutions_of(options)) - 1):
        size = 2 ** ((i + 5) // 2)
        synthesis[f"noise{i}"] = rng.randn(1, 1, size, size)
    own = {"lod": np.float32(0), "dlatent_avg": rng.randn(w_dim)}
    components = dict(
        mapping=Network(as_list(mapping), function="G_mapping", **options),
        synthesis=Network(as_list(synthesis), function="G_synthesis_stylegan2", **options),
    )
    network = Network(as_list(own), components, function="G_main", architecture=architecture, **options)
    flat = {**own, **{f"mapping/{k}": v for k, v in mapping.items()},
            **{f"synthesis/{k}": v for k, v in synthesis.items()}}
    return network, as_float32(flat)


def make_discriminator(rng, *, label_size=0, architecture="resnet", mapping_layers=0, function="D_stylegan2",
                       **options):
    options = dict(dict(resolution=16, fmap_base=32, fmap_max=8, num_channels=3, mbstd_num_features=1), **options)
    if label_size:
        options.update(label_size=label_size, mapping_fmaps=7, mapping_layers=mapping_layers)
    variables = {}

    def layer(scope, *shape):
        variables[f"{scope}/weight"] = rng.randn(*shape)
        variables[f"{scope}/bias"] = rng.randn(shape[-1])

    if label_size:
        for i, scope in enumerate(["LabelEmbed"] + [f"Mapping{k}" for k in range(mapping_layers)]):
            layer(scope, 7 if i else label_size, 7)
            if i:
                variables[f"{scope}/weight"] *= 10
    for res in resolutions_of(options)[::-1]:
        c, name = nf(res, options), f"{res}x{res}"
        if res == options["resolution"] or architecture == "skip":
            layer(f"{name}/FromRGB", 1, 1, options["num_channels"], c)
        if res > 4:
            layer(f"{name}/Conv0", 3, 3, c, c)
            layer(f"{name}/Conv1_down", 3, 3, c, nf(res // 2, options))
            if architecture == "resnet":
                variables[f"{name}/Skip/weight"] = rng.randn(1, 1, c, nf(res // 2, options))
    c = nf(4, options)
    layer("4x4/Conv", 3, 3, c + options["mbstd_num_features"], c)
    layer("4x4/Dense0", 16 * c, c)
    layer("Output", c, 7 if label_size else 1)
    return Network(as_list(variables), function=function, architecture=architecture, **options), as_float32(variables)


def as_float32(variables):
    return {k: np.float32(v) if np.ndim(v) == 0 else v.astype(np.float32) for k, v in variables.items()}


def as_list(variables):
    return list(as_float32(variables).items())


# ----------------------------------------------------------------------------------------------------------------------
# What they compute.


def weight(v, name, lrmul=1.0):
    """Weights are scaled when they are used, by the root of the layer's fan-in."""
    w = torch.as_tensor(v[name], dtype=torch.float64)
    return w * lrmul / np.sqrt(np.prod(w.shape[:-1]))


def bias(v, name, lrmul=1.0):
    return torch.as_tensor(v[name], dtype=torch.float64) * lrmul


def lrelu(x):
    return F.leaky_relu(x, 0.2) * np.sqrt(2)


def normalize(x):
    return x / torch.sqrt((x**2).mean() + 1e-8)


def correlate(x, w):
    """x [C, H, W] with w [kh, kw, in, out]; zeros around."""
    return F.conv2d(x[None], w.permute(3, 2, 0, 1), padding=w.shape[0] // 2)[0]


def fir(x, kernel, first, size, gain=1.0):
    """Convolve with the kernel along both axes: output o is made of inputs o - first, o - first + 1, ... (0 around)."""
    f = torch.as_tensor(kernel, dtype=torch.float64)
    f = torch.outer(f, f) / f.sum() ** 2 * gain
    more = size + len(kernel) - 1 - first - x.shape[-1]
    x = F.pad(x, [first, more, first, more])
    return F.conv2d(x[:, None], f.flip(0, 1)[None, None])[:, 0]


def insert_zeros(x):
    y = x.new_zeros(x.shape[0], 2 * x.shape[1], 2 * x.shape[2])
    y[:, ::2, ::2] = x
    return y


def conv_up(x, w, kernel):
    """Insert zeros, correlate on the unbounded plane, filter; the filter is centred half a pixel to the left."""
    size, margin = 2 * x.shape[-1], 8
    y = correlate(F.pad(insert_zeros(x), [margin] * 4), w)
    return fir(y, kernel, 2, size + 2 * margin, gain=4)[:, margin:-margin, margin:-margin]


def conv_down(x, w, kernel):
    """Filter, correlate on the unbounded plane, keep every second pixel; the filter is centred half a pixel right."""
    size, margin = x.shape[-1], 8
    y = correlate(fir(F.pad(x, [margin] * 4), kernel, 1, size + 2 * margin), w)
    return y[:, margin:-margin, margin:-margin][:, ::2, ::2]


def modulated(x, v, scope, w_latent, *, up=False, demodulate=True, kernel=(1, 3, 3, 1)):
    style = w_latent @ weight(v, f"{scope}/mod_weight") + bias(v, f"{scope}/mod_bias") + 1
    w = weight(v, f"{scope}/weight") * style[None, None, :, None]
    if demodulate:
        w = w / torch.sqrt((w**2).sum(dim=(0, 1, 2)) + 1e-8)
    return conv_up(x, w, kernel) if up else correlate(x, w)


def generate(v, z, label, *, architecture="skip", lrmul=0.01, kernel=(1, 3, 3, 1), noise=True):
    """One image [C, H, W] from z [z_dim] and label [c_dim] or None."""
    x = z
    if "mapping/LabelConcat/weight" in v:
        x = normalize(torch.cat([z, label @ torch.as_tensor(v["mapping/LabelConcat/weight"], dtype=torch.float64)]))
    elif "mapping/LabelEmbed/weight" in v:
        embedded = label @ weight(v, "mapping/LabelEmbed/weight") + bias(v, "mapping/LabelEmbed/bias")
        x = torch.cat([normalize(z), normalize(embedded)])
    else:
        x = normalize(z)
    i = 0
    while f"mapping/Dense{i}/weight" in v:
        x = lrelu(x @ weight(v, f"mapping/Dense{i}/weight", lrmul) + bias(v, f"mapping/Dense{i}/bias", lrmul))
        i += 1
    w_latent, image, num_noises = x, None, 0
    x = torch.as_tensor(v["synthesis/4x4/Const/const"][0], dtype=torch.float64)

    def layer(x, scope, up=False):
        nonlocal num_noises
        x = modulated(x, v, scope, w_latent, up=up, kernel=kernel)
        if noise:
            image_noise = torch.as_tensor(v[f"synthesis/noise{num_noises}"][0], dtype=torch.float64)
            x = x + image_noise * float(v[f"{scope}/noise_strength"])
        num_noises += 1
        return lrelu(x + bias(v, f"{scope}/bias")[:, None, None])

    res = 4
    while f"synthesis/{res}x{res}/Conv1/weight" in v or res == 4:
        scope = f"synthesis/{res}x{res}"
        if res == 4:
            x = layer(x, f"{scope}/Conv")
        else:
            before = x
            x = layer(layer(x, f"{scope}/Conv0_up", up=True), f"{scope}/Conv1")
            if architecture == "resnet":
                x = (x + conv_up(before, weight(v, f"{scope}/Skip/weight"), kernel)) / np.sqrt(2)
        if image is not None:
            image = fir(insert_zeros(image), kernel, 2, 2 * image.shape[-1], gain=4)
        if f"{scope}/ToRGB/weight" in v:
            rgb = modulated(x, v, f"{scope}/ToRGB", w_latent, demodulate=False)
            rgb = rgb + bias(v, f"{scope}/ToRGB/bias")[:, None, None]
            image = rgb if image is None else image + rgb
        res *= 2
    return image


def discriminate(
    v, images, labels, *, architecture="resnet", group_size=4, num_features=1, kernel=(1, 3, 3, 1), lrmul=0.1
):
    """Logits [N] of images [N, C, H, W]."""

    def layer(x, scope, down=False):
        w = weight(v, f"{scope}/weight")
        x = conv_down(x, w, kernel) if down else correlate(x, w)
        return lrelu(x + bias(v, f"{scope}/bias")[:, None, None])

    features = []
    for image in images:
        x, res = None, image.shape[-1]
        while res > 4 or x is None or (architecture == "skip" and res == 4):
            scope = f"{res}x{res}"
            if f"{scope}/FromRGB/weight" in v:
                y = layer(image, f"{scope}/FromRGB")
                x = y if x is None else x + y
            if res == 4:
                break
            before = x
            x = layer(layer(x, f"{scope}/Conv0"), f"{scope}/Conv1_down", down=True)
            if architecture == "resnet":
                x = (x + conv_down(before, weight(v, f"{scope}/Skip/weight"), kernel)) / np.sqrt(2)
            image = fir(image, kernel, 1, res)[:, ::2, ::2]
            res //= 2
        features.append(x)
    x = torch.stack(features)  # [N, C, 4, 4]
    n = len(x)
    group_size = n if group_size is None else min(group_size, n)
    extra = torch.zeros(n, num_features, 4, 4, dtype=torch.float64)
    for i in range(n if num_features else 0):  # groups are strided
        members = x[i % (n // group_size)::n // group_size]
        std = torch.sqrt(members.var(dim=0, unbiased=False) + 1e-8)
        extra[i] = std.reshape(num_features, -1).mean(dim=1)[:, None, None]
    logits = []
    for row, label in zip(torch.cat([x, extra], dim=1), labels):
        y = layer(row, "4x4/Conv").flatten()
        y = lrelu(y @ weight(v, "4x4/Dense0/weight") + bias(v, "4x4/Dense0/bias"))
        y = y @ weight(v, "Output/weight") + bias(v, "Output/bias")
        if "LabelEmbed/weight" in v:
            cmap = normalize(label @ weight(v, "LabelEmbed/weight") + bias(v, "LabelEmbed/bias"))
            i = 0
            while f"Mapping{i}/weight" in v:
                cmap = lrelu(cmap @ weight(v, f"Mapping{i}/weight", lrmul) + bias(v, f"Mapping{i}/bias", lrmul))
                i += 1
            y = (y * cmap).sum(dim=0, keepdim=True) / np.sqrt(len(cmap))
        logits.append(y)
    return torch.cat(logits)
