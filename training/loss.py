"""Losses of StyleGAN2 (Karras et al., CVPR 2020), with tasks for D (GGDR, GLeaD).

There is one method for each training phase. It yields scalar terms. The caller scales each term and calls backward
before it asks for the next one, so that the graphs of fake and real images are not in memory at the same time.
"""

from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np
import torch

from torch_utils import distributed, misc, training_stats
from torch_utils.ops import conv2d_gradfix
from torch_utils.state import capture, check, restore

from .adversarial import ADVERSARIAL
from .augment import AugmentOutput
from .config.schema import LossConfig
from .networks import Discriminator, DiscriminatorOutput, Generator
from .penalties import build_penalties, input_gradient
from .rivals import Rivals, Term
from .tasks import Shown, Task

Tensor = torch.Tensor
Augment = Callable[[Tensor, dict[int, Tensor]], AugmentOutput]  # Of images and G's feature maps; see `AugmentPipe.run`.


class Units(NamedTuple):
    """Which images of a batch belong to each unit, where several units are computed at once; see `draws`."""

    num: int            # Number of units.
    number: Tensor      # int64 [N]: the unit of each image.
    order: Tensor       # int64 [N]: the positions of the images of the first unit, then of the second, ...


class Batch(NamedTuple):
    """Images that are computed at once: a part of the batch of an iteration."""

    real_img: Tensor    # [N, C, R, R] float32 in [-1, 1].
    real_c: Tensor      # [N, c_dim].
    gen_z: Tensor       # [N, z_dim].
    gen_c: Tensor       # [N, c_dim].
    units: Units | None = None      # None = one unit.


class StyleGAN2Loss:
    """The losses of G and D. Their state is `pl_mean` and the state of rivals."""

    def __init__(
        self,
        G: Generator,
        D: Discriminator,
        *,
        config: LossConfig,
        real_tasks: Sequence[Task] = (),
        fake_tasks: Sequence[Task] = (),
        rivals: Rivals | None = None,                           # They change D or the losses.
        augment: Augment | None = None,                         # Applied to all images before D sees them.
        observe_real: Callable[[Tensor], None] | None = None,   # Called with D's logits of real images.
    ):
        self.G = G
        self.D = D
        self.config = config
        self.rivals = rivals or Rivals(D)
        self.judge = self.rivals.judge
        self.real_tasks: list[Task | Term] = [*real_tasks, *self.rivals.terms["real"]]
        self.fake_tasks: list[Task | Term] = [*fake_tasks, *self.rivals.terms["fake"]]
        self.g_tasks = self.rivals.terms["G"]
        self.dreg_tasks = real_tasks if config.real_task_in_dreg else ()
        self.augment = self.judge.augment = augment
        self.observe_real = observe_real
        self.adversarial = ADVERSARIAL[config.adversarial]()
        self.penalties = build_penalties(self.adversarial.penalties, finite=config.r1 == "finite")
        self.paired = self.adversarial.paired or self.rivals.paired
        self.pl_mean = torch.zeros([], device=next(D.parameters()).device)  # Moving average of path lengths.
        self._pl_means: list[Tensor] = []   # Its next value according to each part of the batch.

    def state_dict(self) -> dict[str, Any]:
        return {"pl_mean": self.pl_mean, **capture(self.rivals.parts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check(state, {"pl_mean": self.pl_mean, **dict.fromkeys(self.rivals.parts, object)})
        restore(self.rivals.parts, {name: state[name] for name in self.rivals.parts})
        self.pl_mean = state["pl_mean"].to(self.pl_mean.device)

    # Phases.

    def g_main(self, batch: Batch) -> Iterator[Tensor]:
        """G's adversarial loss, L_G = softplus(-D(G(z))) (GLeaD, Eq. 8)."""
        ws = self._map(batch.gen_z, batch.gen_c, batch.units)
        shown = self._shown(self.G.synthesis(ws), batch.gen_c, z=batch.gen_z, ws=ws)
        fake = self._judge("fake", shown, self.g_tasks)
        real_logits = None
        if self.adversarial.paired:
            with torch.no_grad():
                real_logits = self.judge(self._shown(batch.real_img, batch.real_c).img, batch.real_c).logits
        loss = self.adversarial.g(fake.logits, real_logits)
        training_stats.report("Loss/G/loss", loss)
        yield loss.mean() + self._run_tasks("G/", self.g_tasks, fake, shown)

    def g_path_length(self, batch: Batch) -> Iterator[Tensor]:
        """Path length regularisation, (|J_w^T y| - a)^2 (StyleGAN2, Eq. 4), on the first images of each unit."""
        z, c, units = self._shrink(batch)
        ws = self._map(z, c, units)
        with conv2d_gradfix.second_order():
            img = self.G.synthesis(ws)
            y = torch.randn_like(img) / np.sqrt(img.shape[2] * img.shape[3])
            grads = input_gradient((img * y).sum(), ws)  # [N, num_ws, w_dim]
        lengths = grads.square().sum(2).mean(1).sqrt()
        lengths = lengths.unflatten(0, [units.num if units else 1, -1])
        pl_mean = self.pl_mean.lerp(lengths.mean(1, keepdim=True), self.config.pl_decay)
        self._pl_means.append(pl_mean.detach().mean())
        # The gradient flows through the mean as well, as in published results.
        penalty = (lengths - pl_mean).square().flatten()
        loss = penalty * self.config.pl_weight
        training_stats.report("Loss/pl_penalty", penalty)
        training_stats.report("Loss/G/reg", loss)
        yield loss.mean()

    def _shrink(self, batch: Batch) -> tuple[Tensor, Tensor, Units | None]:
        """Latents, labels and units of the images for path length regularisation: the first ones of each unit."""
        units = batch.units or Units(1, *[torch.arange(len(batch.gen_z), device=batch.gen_z.device)] * 2)
        n = max(len(batch.gen_z) // units.num // self.config.pl_batch_shrink, 1)
        rows = units.order.unflatten(0, [units.num, -1])[:, :n].flatten()
        order = torch.arange(len(rows), device=rows.device)
        return batch.gen_z[rows], batch.gen_c[rows], batch.units and Units(units.num, order // n, order)

    def forget_parts(self) -> None:
        """Discard what the parts of a batch left so far. The batch is then computed again from its first part."""
        self._pl_means.clear()
        self.rivals.forget()

    def update_pl_mean(self) -> None:
        """Update the moving average of path lengths, after all parts of the batch. All ranks call this."""
        self.pl_mean = distributed.all_reduce_mean_(torch.stack(self._pl_means).mean())
        self._pl_means.clear()

    def d_main(self, batch: Batch) -> Iterator[Tensor]:
        """D's adversarial loss and its tasks, L_D + L_rec (GLeaD, Eq. 7 and 9): fake images first, then real ones."""
        shown = self._generate(batch)
        fake = self._judge("fake", shown, self.fake_tasks)
        fake_logits, loss_fake = fake.logits, self.adversarial.d_fake(fake.logits)
        terms = [loss_fake.mean() + self._run_tasks("D/fake_", self.fake_tasks, fake, shown)]
        if not self.paired:
            yield terms.pop()
            fake, fake_logits, loss_fake = None, fake_logits.detach(), loss_fake.detach()   # frees the graph

        shown = self._shown(batch.real_img, batch.real_c)
        real = self._judge("real", shown, self.real_tasks)
        loss_real = self.adversarial.d_real(real.logits, fake_logits)
        training_stats.report("Loss/D/loss", loss_fake + loss_real)
        yield loss_real.mean() + self._run_tasks("D/real_", self.real_tasks, real, shown) + sum(terms)

    def d_penalty(self, batch: Batch) -> Iterator[Tensor]:
        """The gradient penalties of the adversarial loss: for StyleGAN2, R1, gamma / 2 |dD(x)/dx|^2."""
        for penalty in self.penalties:
            img, c = penalty.images(batch, self._generate)
            tasks = self.dreg_tasks if penalty.kind == "real" else ()
            shown = self._shown(img, c)
            with penalty.derivatives():
                out = self._judge(penalty.kind, shown, tasks)
                value = penalty.of(out.logits, img, shown, self.judge)
            loss = value * (self.config.r1_gamma * penalty.scale)
            training_stats.report(f"Loss/{penalty.name}_penalty", value)
            training_stats.report("Loss/D/reg", loss)
            yield loss.mean() + self._run_tasks(f"D/{penalty.kind}_", tasks, out, shown)

    # Parts.

    def _map(self, z: Tensor, c: Tensor, units: Units | None = None) -> Tensor:
        """ws [N, num_ws, w_dim]. With `style_mixing_prob`, a unit mixes in other latents from a random layer on."""
        ws = self.G.mapping(z, c)
        num_ws, prob, count = ws.shape[1], self.config.style_mixing_prob, units.num if units else 1
        # Draw on the host, so that nothing waits for the device.
        mixed = [prob > 0 and torch.rand([]).item() < prob for _ in range(count)]
        if not any(mixed):
            return ws
        cutoffs = [int(torch.randint(1, num_ws, [])) if is_mixed else num_ws for is_mixed in mixed]
        other = self.G.mapping(torch.randn_like(z), c, skip_w_avg_update=True)
        if units is None:
            return torch.cat([ws[:, :cutoffs[0]], other[:, cutoffs[0]:]], dim=1)
        first = misc.upload(torch.arange(num_ws) < torch.tensor(cutoffs)[:, None], ws.device)   # [count, num_ws]
        return torch.where(first[units.number][:, :, None], ws, other)

    @torch.no_grad()
    def _generate(self, batch: Batch) -> Shown:
        """Make fake images for D, with the states of G that D's tasks need."""
        keep = sorted({res for task in self.fake_tasks for res in task.states})
        ws = self._map(batch.gen_z, batch.gen_c, batch.units)
        img, states = self.G.synthesis.run(ws, keep=keep) if keep else (self.G.synthesis(ws), None)
        return self._shown(img, batch.gen_c, states=states, z=batch.gen_z, ws=ws)

    def _shown(self, img: Tensor, c: Tensor, *, states: dict | None = None, **latents: Tensor) -> Shown:
        states = states or {}
        if self.augment is None:
            return Shown(img, img, c, states, **latents)
        out = self.augment(img, {res: state.x for res, state in states.items()})
        states = {res: state._replace(x=out.maps[res]) for res, state in states.items()}
        return Shown(out.images, img, c, states, **latents)

    def _judge(self, kind: str, shown: Shown, tasks: Sequence[Task | Term]) -> DiscriminatorOutput:
        """Run D, with its decoder and heads if one of the tasks needs them, and report its scores."""
        out = self.judge(shown.img, shown.c, decode=any(task.decodes for task in tasks))
        self._report_scores(kind, out.logits)
        return out

    def _report_scores(self, kind: str, logits: Tensor) -> None:
        training_stats.report(f"Loss/scores/{kind}", logits)
        training_stats.report(f"Loss/signs/{kind}", logits.sign())
        if kind == "real" and self.observe_real is not None:
            self.observe_real(logits)

    @staticmethod
    def _run_tasks(name: str, tasks: Sequence[Task | Term], out: DiscriminatorOutput, shown: Shown) -> Tensor | float:
        """The sum over tasks of the mean weighted loss."""
        total: Tensor | float = 0.0
        for task in tasks:
            loss = task.loss(out, shown)
            if loss is not None:
                training_stats.report(f"Loss/{name}{task.kind}", loss * task.weight)
                total = total + (loss * task.weight).mean()
        return total
