"""What a user of such a checkout does with our pickles: opens them, renders, scores, augments, copies, writes them anew."""

import copy
import glob
import os
import pickle
import sys

import torch

results = {}
for path in sorted(glob.glob("*.pkl")):
    name = os.path.splitext(path)[0]
    inputs = torch.load(f"{name}.inputs", weights_only=True)
    with open(path, "rb") as f:
        data = pickle.load(f)
    G, D, pipe = data["G_ema"], data["D"], data["augment_pipe"]
    z, c, images = inputs["z"], inputs["c"], inputs["images"]
    G2 = copy.deepcopy(G)
    G3 = type(G)(*G.init_args, **G.init_kwargs).eval().requires_grad_(False)
    G3.load_state_dict(G.state_dict())
    for net in (G, D):  # as their legacy.py forces half precision
        kwargs = copy.deepcopy(net.init_kwargs)
        options = kwargs.get("synthesis_kwargs", kwargs)
        options.num_fp16_res = 4
        options.conv_clamp = 256
        half = type(net)(**kwargs)
        half.load_state_dict(net.state_dict())
        assert getattr(half, "synthesis", half).b32.use_fp16
    out = {
        "const": G(z, c, noise_mode="const"),
        "none, truncated": G(z, c, truncation_psi=0.6, truncation_cutoff=4, noise_mode="none"),
        "unfused": G.synthesis(G.mapping(z, c, truncation_psi=0.5), noise_mode="const", fused_modconv=False, force_fp32=True),
        "copied": G2(z, c, noise_mode="const"),
        "built anew": G3(z, c, noise_mode="const"),
        "D": D(images, c),
        "p": pipe.p,
    }
    torch.manual_seed(4)
    out["augmented"] = pipe(images, debug_percentile=0.3)
    torch.manual_seed(5)
    out["random"] = G(z, c)
    torch.manual_seed(6)
    out["augmented at random"] = pipe(images)
    fields = D.run(images, c)
    out.update({f"D.{key}": value for key, value in fields._asdict().items() if isinstance(value, torch.Tensor)})
    out.update({f"D.fmaps.{res}": value for res, value in fields.fmaps.items()})
    results[name] = out
    assert dict(data["training_set_kwargs"])["path"] == "data.zip"
    with open(f"{name}.again", "wb") as f:
        pickle.dump(data, f)

assert not any(name.split(".")[0] == "training" for name in sys.modules)
torch.save(results, "results.pt")
