"""The registry of metrics: their names, protocols and standard feature nets.

A metric's name states its protocol: `fid50k_full` compares 50,000 generated images with all real ones, `fid50k`
compares them with the first 50,000, and `pr10k3` uses 10,000 of either kind and 3 neighbours. Scores from another
feature net than the metric's standard one never have the plain name.

This module doesn't import PyTorch, and hence a misspelt name is refused at once.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from typing import TYPE_CHECKING, Any, Callable, Literal, Mapping, NamedTuple, Sequence

from dnnlib.util import UserError

if TYPE_CHECKING:
    from torch_utils.formats.feature_nets import Output

_NVIDIA = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics"
INCEPTION_URL = f"{_NVIDIA}/inception-2015-12-05.pt"
VGG16_URL = f"{_NVIDIA}/vgg16.pt"
DINOV2_URL = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"

SIZES = (50, 20, 10, 5, 2, 1)   # Numbers of generated images, in thousands.
_MAX_REAL_NEIGHBOURS = 200_000  # Most real images in metrics that compare all pairs.
_NUM_PATHS = 50_000             # Paths for perceptual path length.


class ImageSet(NamedTuple):
    """The images that a metric needs.

    Kinds: "all real" = the whole data set without mirrored copies; "real" = the whole data set, with mirrored copies if
    the given one has them; "given" = the given data set, which may be a subset; "generated" = G's.
    """

    kind: Literal["all real", "real", "given", "generated"]
    count: int | None = None  # type: ignore[assignment]  # At most the first `count` images; None = all.

    def find(self, dataset: Any) -> tuple[Any, int]:
        """The real images: a data set, and the number of its first items to use."""
        if self.kind != "given":
            dataset = dataset.replace(max_size=None, **({"xflip": False} if self.kind == "all real" else {}))
        return dataset, len(dataset) if self.count is None else min(len(dataset), self.count)

    def resolved(self, dataset: Any) -> ImageSet:
        """The same set, with `count` as the actual number of images."""
        return self if self.kind == "generated" else self._replace(count=self.find(dataset)[1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric and its protocol."""

    function: str                   # "module.function" in this folder: see `compute`.
    standard_net: str               # URL of the feature net with which scores have the metric's plain name.
    output: Output                  # The output of the net that it needs.
    num_gen: int                    # Number of images, or paths, to generate.
    images: ImageSet | None = None  # The real images.
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # Further arguments of the function.
    keeps_features: bool = True     # Whether it needs all features, and not only their moments.
    higher_is_better: bool = False

    @property
    def compute(self) -> Callable[..., dict[str, float]]:
        """The function that returns results by name. Its arguments depend on `output`.

        Called with (opts: MetricOptions, real: FeatureStats | None, gen: FeatureStats), on rank 0 only. For "lpips":
        called with (opts, net: FeatureNet, num_gen=), on all ranks; the results are empty on ranks above 0.
        """
        module, _, name = self.function.partition(".")
        return functools.partial(getattr(importlib.import_module(f"metrics.{module}"), name), **self.options)


class _Family(NamedTuple):
    """Metrics that differ only in the numbers of images."""

    name: str                       # <N> stands for the number of generated images in thousands.
    function: str
    protocol: dict[str, Any]        # Fields of `Metric`.
    max_real: int | None = None     # Most real images in the `_full` form; None = no limit.
    real: bool = True               # Whether it compares with real images: all (`_full`), or N thousand.


_INCEPTION = {"standard_net": INCEPTION_URL, "output": "features"}
_VGG16 = {"standard_net": VGG16_URL, "output": "features"}
_FAMILIES = (
    _Family("fid<N>k", "frechet_inception_distance.compute_fid", _INCEPTION | {"keeps_features": False}),
    _Family("kid<N>k", "kernel_inception_distance.compute_kid", _INCEPTION),
    _Family("pr<N>k3", "precision_recall.compute_pr", _VGG16 | {"higher_is_better": True}, _MAX_REAL_NEIGHBOURS),
    _Family("dc<N>k5", "density_coverage.compute_dc", _VGG16 | {"higher_is_better": True}, _MAX_REAL_NEIGHBOURS),
    _Family("fidinf<N>k", "fid_infinity.compute_fid_infinity", _INCEPTION),
    _Family("fdd<N>k", "frechet_inception_distance.compute_fid",
            {"standard_net": DINOV2_URL, "output": "features", "keeps_features": False}),
    _Family("swd<N>k", "sliced_wasserstein.compute_swd", _INCEPTION),
    _Family("is<N>k", "inception_score.compute_is",
            {"standard_net": INCEPTION_URL, "output": "probabilities", "higher_is_better": True}, real=False),
)
_PATH_LENGTHS = {
    "ppl2_wend": {"space": "w", "sampling": "end",  "crop": False},
    "ppl_zfull": {"space": "z", "sampling": "full", "crop": True},
    "ppl_wfull": {"space": "w", "sampling": "full", "crop": True},
    "ppl_zend":  {"space": "z", "sampling": "end",  "crop": True},
    "ppl_wend":  {"space": "w", "sampling": "end",  "crop": True},
}


def _registry() -> dict[str, Metric]:
    registry = {}
    for count in SIZES:
        for family in _FAMILIES:
            name, num_gen = family.name.replace("<N>", str(count)), count * 1000
            entry: dict[str, Any] = dict(function=family.function, num_gen=num_gen, **family.protocol)
            if family.real:
                registry[f"{name}_full"] = Metric(images=ImageSet("all real", family.max_real), **entry)
                registry[name] = Metric(images=ImageSet("real", num_gen), **entry)
            else:
                registry[name] = Metric(**entry)
    for name, options in _PATH_LENGTHS.items():
        registry[name] = Metric(function="perceptual_path_length.compute_ppl", standard_net=VGG16_URL, output="lpips",
                                num_gen=_NUM_PATHS, options=options)
    return registry


METRICS = _registry()


def is_valid_metric(metric: str) -> bool:
    return metric in METRICS


def list_valid_metrics() -> list[str]:
    return list(METRICS)


def higher_is_better(metric: str) -> bool:
    """Whether a higher score is better, rather than a lower one."""
    return METRICS[metric].higher_is_better


def check_metrics(metrics: Sequence[str]) -> None:
    """Raise UserError if one of the names is no metric. The message lists all metrics."""
    unknown = [name for name in metrics if not is_valid_metric(name)]
    if unknown:
        families = ", ".join(f"{family.name}, {family.name}_full" if family.real else family.name
                             for family in _FAMILIES)
        raise UserError(f"unknown metric {', '.join(unknown)}: there are {families} with N one of "
                        f"{', '.join(map(str, sorted(SIZES)))}, and {', '.join(_PATH_LENGTHS)}")
