"""Losses of StyleGAN2 (Karras et al., CVPR 2020), with tasks for D (GGDR, GLeaD).

One method for each training phase. A method yields scalar terms; the caller scales each and calls backward before it
asks for the next one, so that the graphs of fake and real images are not held at the same time.
"""

from typing import Callable, Iterator, NamedTuple, Sequence

import numpy as np
import torch
from torch.nn.functional import softplus

from torch_utils import distributed, training_stats
from torch_utils.ops import conv2d_gradfix

from .augment import AugmentOutput
from .config.schema import LossConfig
from .networks import Discriminator, DiscriminatorOutput, Generator, SynthesisOutput
from .tasks import Shown, Task

Tensor = torch.Tensor
Augment = Callable[[Tensor, dict[int, Tensor]], AugmentOutput]  # Of images and G's feature maps; see `AugmentPipe.run`.


class Batch(NamedTuple):
    """The images of one step that fit into one pass."""

    real_img: Tensor    # [N, C, R, R] float32 in [-1, 1].
    real_c: Tensor      # [N, c_dim].
    gen_z: Tensor       # [N, z_dim].
    gen_c: Tensor       # [N, c_dim].


class StyleGAN2Loss:
    """The generator's and discriminator's losses; `pl_mean` is the only state."""

    def __init__(
        self,
        G: Generator,
        D: Discriminator,
        *,
        config: LossConfig,
        real_tasks: Sequence[Task] = (),
        fake_tasks: Sequence[Task] = (),
        augment: Augment | None = None,                         # What happens to all images before D sees them.
        observe_real: Callable[[Tensor], None] | None = None,   # Is told D's logits of real images.
    ):
        self.G = G
        self.D = D
        self.config = config
        self.real_tasks = real_tasks
        self.fake_tasks = fake_tasks
        self.augment = augment
        self.observe_real = observe_real
        self.pl_mean = torch.zeros([], device=next(D.parameters()).device)  # Moving average of path lengths.
        self._pl_means: list[Tensor] = []   # What the parts of a batch would make of it.

    # Phases.

    def g_main(self, batch: Batch) -> Iterator[Tensor]:
        """Non-saturating logistic loss, L_G = softplus(-D(G(z))) (GLeaD, Eq. 8)."""
        img = self._run_g(batch.gen_z, batch.gen_c).img
        logits = self.D(self._shown(img).img, batch.gen_c)
        loss = softplus(-logits)
        self._report_scores("fake", logits)
        training_stats.report("Loss/G/loss", loss)
        yield loss.mean()

    def g_path_length(self, batch: Batch) -> Iterator[Tensor]:
        """Path length regularisation, (|J_w^T y| - a)^2 (StyleGAN2, Eq. 4), on a part of the batch."""
        n = max(batch.gen_z.shape[0] // self.config.pl_batch_shrink, 1)
        ws = self._map(batch.gen_z[:n], batch.gen_c[:n])
        with conv2d_gradfix.second_order():
            img = self.G.synthesis(ws)
            y = torch.randn_like(img) / np.sqrt(img.shape[2] * img.shape[3])
            grads = _input_gradient((img * y).sum(), ws)  # [N, num_ws, w_dim]
        lengths = grads.square().sum(2).mean(1).sqrt()
        pl_mean = self.pl_mean.lerp(lengths.mean(), self.config.pl_decay)
        self._pl_means.append(pl_mean.detach())
        penalty = (lengths - pl_mean).square()  # the gradient goes through the mean, too, as in published results
        loss = penalty * self.config.pl_weight
        training_stats.report("Loss/pl_penalty", penalty)
        training_stats.report("Loss/G/reg", loss)
        yield loss.mean()

    def update_pl_mean(self) -> None:
        """After path length regularisation of all parts of the batch: one step of the moving average, on all ranks."""
        self.pl_mean = distributed.all_reduce_mean_(torch.stack(self._pl_means).mean())
        self._pl_means.clear()

    def d_main(self, batch: Batch) -> Iterator[Tensor]:
        """Logistic loss and the tasks, L_D + L_rec (GLeaD, Eq. 7 and 9): first the fake images, then the real ones."""
        with torch.no_grad():
            keep = sorted({res for task in self.fake_tasks for res in task.states})
            shown = self._shown(*self._run_g(batch.gen_z, batch.gen_c, keep=keep))
        out = self._run_d(shown, batch.gen_c, self.fake_tasks)
        loss_fake = softplus(out.logits)
        self._report_scores("fake", out.logits)
        yield loss_fake.mean() + self._run_tasks("fake", self.fake_tasks, out, shown)
        loss_fake = loss_fake.detach()

        shown = self._shown(batch.real_img)
        out = self._run_d(shown, batch.real_c, self.real_tasks)
        loss_real = softplus(-out.logits)
        self._report_scores("real", out.logits)
        training_stats.report("Loss/D/loss", loss_fake + loss_real)
        yield loss_real.mean() + self._run_tasks("real", self.real_tasks, out, shown)

    def d_r1(self, batch: Batch) -> Iterator[Tensor]:
        """R1, gamma / 2 |dD(x)/dx|^2 (Mescheder et al., ICML 2018), on real images."""
        tasks = self.real_tasks if self.config.real_task_in_dreg else ()
        real_img = batch.real_img.detach().requires_grad_()
        shown = self._shown(real_img)
        with conv2d_gradfix.second_order():
            out = self._run_d(shown, batch.real_c, tasks)
            grads = _input_gradient(out.logits.sum(), real_img)
        self._report_scores("real", out.logits)
        penalty = grads.square().sum([1, 2, 3])
        loss = penalty * (self.config.r1_gamma / 2)
        training_stats.report("Loss/r1_penalty", penalty)
        training_stats.report("Loss/D/reg", loss)
        yield loss.mean() + self._run_tasks("real", tasks, out, shown)

    # Parts.

    def _map(self, z: Tensor, c: Tensor) -> Tensor:
        """ws [N, num_ws, w_dim]; with some probability two latents are mixed at a random layer."""
        ws = self.G.mapping(z, c)
        if self.config.style_mixing_prob > 0 and torch.rand([]).item() < self.config.style_mixing_prob:
            cutoff = int(torch.randint(1, ws.shape[1], []))  # drawn on the host: nothing waits for the device
            other = self.G.mapping(torch.randn_like(z), c, skip_w_avg_update=True)
            ws = torch.cat([ws[:, :cutoff], other[:, cutoff:]], dim=1)
        return ws

    def _run_g(self, z: Tensor, c: Tensor, keep: Sequence[int] = ()) -> SynthesisOutput:
        return self.G.synthesis.run(self._map(z, c), keep=keep)

    def _shown(self, img: Tensor, states: dict | None = None) -> Shown:
        states = states or {}
        if self.augment is None:
            return Shown(img, img, states)
        out = self.augment(img, {res: state.x for res, state in states.items()})
        return Shown(out.images, img, {res: state._replace(x=out.maps[res]) for res, state in states.items()})

    def _run_d(self, shown: Shown, c: Tensor, tasks: Sequence[Task]) -> DiscriminatorOutput:
        if tasks:
            return self.D.run(shown.img, c)
        return DiscriminatorOutput(self.D(shown.img, c), {}, None, None, None)

    def _run_tasks(self, kind: str, tasks: Sequence[Task], out: DiscriminatorOutput, shown: Shown) -> Tensor | float:
        total: Tensor | float = 0.0
        for task in tasks:
            loss = task.loss(out, shown) * task.weight
            training_stats.report(f"Loss/D/{kind}_{task.name}", loss)
            total = total + loss.mean()
        return total

    def _report_scores(self, kind: str, logits: Tensor) -> None:
        training_stats.report(f"Loss/scores/{kind}", logits)
        training_stats.report(f"Loss/signs/{kind}", logits.sign())
        if kind == "real" and self.observe_real is not None:
            self.observe_real(logits)


def _input_gradient(y: Tensor, x: Tensor) -> Tensor:
    """dy/dx, differentiable; no weight's gradient is computed on the way."""
    with conv2d_gradfix.no_weight_gradients():
        (grads,) = torch.autograd.grad(y, x, create_graph=True)
    return grads
