"""What D has to do besides telling real from fake: a task gives a loss for each image, from what D extracted from it.

Adding a task means adding a class here. Neither the training loop nor the loss knows which tasks there are.
"""

from typing import Collection, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F

from .config.schema import TaskConfig, TrainingConfig
from .networks import DiscriminatorOutput, Generator, SynthesisState
from .perceptual import PerceptualLoss, build_perceptual

Tensor = torch.Tensor


class Shown(NamedTuple):
    """The images that D was shown, and what is known about them."""

    img: Tensor                         # After augmentation, as D saw them [N, C, R, R].
    clean: Tensor                       # Before augmentation.
    states: dict[int, SynthesisState]   # Of G, by resolution, feature maps warped like `img`; empty for real images.


class Task(Protocol):
    name: str                           # For reports: "Loss/D/<kind>_<name>".
    weight: float
    states: Collection[int]             # Resolutions at which it needs G's states.

    def loss(self, out: DiscriminatorOutput, shown: Shown) -> Tensor:
        """Unweighted loss [N] for D's output `out` on the images `shown`."""
        ...


class FeatureMatching:
    """D's decoder reproduces G's features of a fake image: cosine distance over channels (GGDR, Lee et al., ECCV 2022).

    Where D has a feature head for G (GLeaD+GGDR), that head is compared; else the decoder's level of that resolution.
    """

    name = "feature"

    def __init__(self, *, res: int, weight: float = 10):
        self.res = res
        self.weight = weight
        self.states: Collection[int] = (res,)

    def loss(self, out: DiscriminatorOutput, shown: Shown) -> Tensor:
        source = out.fmaps[self.res] if out.f is None else _resize(out.f, self.res)
        target = shown.states[self.res].x.detach().to(torch.float32)
        return 1 - F.cosine_similarity(source, target, dim=1).mean(dim=[1, 2])


class ImageReconstruction:
    """A frozen G rebuilds the image from what D extracted (GLeaD, Bai et al., CVPR 2023, Eq. 3 to 7).

    Gradients pass through G to D; G's weights get none, because only D's require any while D is trained.
    """

    name = "reconstruction"
    states: Collection[int] = ()

    def __init__(
        self,
        *,
        G: Generator,
        res_g: int,                                         # G goes on from this resolution; 1 = from its constant.
        distance: PerceptualLoss,
        weight: float,                                      # Lambda 1 for real images, lambda 2 for fake ones.
        target: Literal["input", "clean"] = "input",        # What D was shown, or the image before augmentation.
    ):
        self.G = G
        self.res_g = res_g
        self.distance = distance
        self.weight = weight
        self.target = target

    def loss(self, out: DiscriminatorOutput, shown: Shown) -> Tensor:
        target = self.distance.embed_target(shown.img if self.target == "input" else shown.clean)
        return self.distance.distance(reconstruct(self.G, out, res_g=self.res_g), target)


def build_tasks(config: TrainingConfig, G: Generator) -> tuple[list[Task], list[Task]]:
    """The tasks on real and on fake images that `config` asks for; what needs a perceptual net shares one."""
    distances: dict[str, PerceptualLoss] = {}

    def distance(name: str) -> PerceptualLoss:
        spec = config.perceptual if name == "perceptual" else name
        if spec not in distances:
            device = next(G.parameters()).device
            distances[spec] = build_perceptual(spec, device=device, img_channels=config.dataset.num_channels,
                                               dtype=_perceptual_type(config, device))
        return distances[spec]

    def build(task: TaskConfig | None) -> list[Task]:
        if task is None:
            return []
        if task.kind == "feature":
            return [FeatureMatching(res=config.loss.feature_res, weight=task.weight)]
        return [ImageReconstruction(G=G, res_g=config.D.res_g, distance=distance(task.distance), weight=task.weight,
                                    target=config.loss.recon_target)]

    return build(config.loss.real_task), build(config.loss.fake_task)


def _perceptual_type(config: TrainingConfig, device: torch.device) -> torch.dtype:
    """The type in which D's highest resolution computes, or float32 if that was asked for."""
    half = config.D.num_fp16_res > 0 and (device.type == "cuda" or config.D.half_type == "bfloat16")
    return getattr(torch, config.D.half_type) if half and not config.lpips_fp32 else torch.float32


def reconstruct(G: Generator, out: DiscriminatorOutput, *, res_g: int, noise_mode: str = "random") -> Tensor:
    """Images [N, C, R, R] that G makes of D's (f, basis image, w), going on from resolution `res_g` (Eq. 5 and 6)."""
    start = None
    if out.f is not None:
        start = SynthesisState(res_g, _resize(out.f, res_g), _resize(out.img, res_g))
    ws = out.w.unsqueeze(1).repeat(1, G.synthesis.num_ws_from(res_g if start else 0), 1)  # one w for all layers
    return G.synthesis.run(ws, start=start, noise_mode=noise_mode).img


def _resize(x: Tensor, res: int) -> Tensor:
    if x.shape[-1] == res:
        return x
    return F.interpolate(x, size=(res, res), mode="bilinear", align_corners=False)
