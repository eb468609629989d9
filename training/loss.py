"""Losses of StyleGAN2 (Karras et al., CVPR 2020), with tasks for D (GGDR, GLeaD).

One method for each training phase. A method yields scalar terms; the caller scales each and calls backward before it
asks for the next one, so that the graphs of fake and real images are not held at the same time.
"""

import functools
from typing import Any, Callable, Iterator, NamedTuple, Sequence

import numpy as np
import torch

from torch_utils import distributed, misc, training_stats
from torch_utils.ops import conv2d_gradfix
from torch_utils.state import Parts, capture, check, restore

from .adversarial import ADVERSARIAL
from .augment import AugmentOutput
from .config.schema import LossConfig
from .networks import Discriminator, DiscriminatorOutput, Generator
from .penalties import build_penalties, input_gradient
from .rivals import Rival
from .tasks import Shown, Task

Tensor = torch.Tensor
Augment = Callable[[Tensor, dict[int, Tensor]], AugmentOutput]  # Of images and G's feature maps; see `AugmentPipe.run`.


class Units(NamedTuple):
    """Which images of a batch make up each published part, where several are computed at once; see `draws`."""

    num: int
    number: Tensor      # [N] int64, of the part to which each image belongs.
    order: Tensor       # [N] int64, the positions of the images of the first part, then of the second, ...


class Batch(NamedTuple):
    """The images of one step that fit into one pass."""

    real_img: Tensor    # [N, C, R, R] float32 in [-1, 1].
    real_c: Tensor      # [N, c_dim].
    gen_z: Tensor       # [N, z_dim].
    gen_c: Tensor       # [N, c_dim].
    units: Units | None = None      # None = one published part.


class StyleGAN2Loss:
    """The generator's and discriminator's losses; state is `pl_mean`, and what rivals remember."""

    def __init__(
        self,
        G: Generator,
        D: Discriminator,
        *,
        config: LossConfig,
        real_tasks: Sequence[Task] = (),
        fake_tasks: Sequence[Task] = (),
        rivals: Sequence[Rival] = (),                           # What else changes D or its loss.
        augment: Augment | None = None,                         # What happens to all images before D sees them.
        observe_real: Callable[[Tensor], None] | None = None,   # Called with D's logits of real images.
    ):
        self.G = G
        self.D = D
        self.config = config
        self.real_tasks = real_tasks
        self.fake_tasks = fake_tasks
        self.rivals = rivals
        self.augment = augment
        self.observe_real = observe_real
        self.adversarial = ADVERSARIAL[config.adversarial]()
        self.penalties = build_penalties(self.adversarial.penalties, finite=config.r1 == "finite")
        self.paired = self.adversarial.paired or any(rival.paired for rival in rivals)
        self.pl_mean = torch.zeros([], device=next(D.parameters()).device)  # Moving average of path lengths.
        self._pl_means: list[Tensor] = []   # Its next value, as each part of the batch would have it.

    def state_dict(self) -> dict[str, Any]:
        rivals = self._rivals_with_state()
        return {"pl_mean": self.pl_mean} | ({"rivals": capture(rivals)} if rivals else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        rivals = self._rivals_with_state()
        check(state, {"pl_mean": self.pl_mean} | ({"rivals": object} if rivals else {}))
        restore(rivals, state.get("rivals", {}), "rivals")
        self.pl_mean = state["pl_mean"].to(self.pl_mean.device)

    def _rivals_with_state(self) -> Parts:
        return {rival.kind: rival for rival in self.rivals if rival.remembers}

    # Phases.

    def g_main(self, batch: Batch) -> Iterator[Tensor]:
        """G's adversarial loss, L_G = softplus(-D(G(z))) (GLeaD, Eq. 8)."""
        ws = self._map(batch.gen_z, batch.gen_c, batch.units)
        shown = self._shown(self.G.synthesis(ws), batch.gen_c, z=batch.gen_z, ws=ws)
        fake = self.judge(shown.img, shown.c)
        real_logits = None
        if self.adversarial.paired:
            with torch.no_grad():
                real_logits = self.judge(self._shown(batch.real_img, batch.real_c).img, batch.real_c).logits
        loss = self.adversarial.g(fake.logits, real_logits)
        self._report_scores("fake", fake.logits)
        training_stats.report("Loss/G/loss", loss)
        yield loss.mean() + self._total(
            {f"Loss/G/{rival.kind}": rival.g(fake, shown, self.judge) for rival in self.rivals})

    def g_path_length(self, batch: Batch) -> Iterator[Tensor]:
        """Path length regularisation, (|J_w^T y| - a)^2 (StyleGAN2, Eq. 4), on a part of the batch."""
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
        """Latents and labels of the first images of each unit, as many as path length regularisation looks at."""
        units = batch.units or Units(1, *[torch.arange(len(batch.gen_z), device=batch.gen_z.device)] * 2)
        n = max(len(batch.gen_z) // units.num // self.config.pl_batch_shrink, 1)
        rows = units.order.unflatten(0, [units.num, -1])[:, :n].flatten()
        order = torch.arange(len(rows), device=rows.device)
        return batch.gen_z[rows], batch.gen_c[rows], batch.units and Units(units.num, order // n, order)

    def forget_parts(self) -> None:
        """Before the parts of a batch are computed again from the first one on."""
        self._pl_means.clear()

    def update_pl_mean(self) -> None:
        """One step of the moving average of path lengths, after all parts of the batch. All ranks call this."""
        self.pl_mean = distributed.all_reduce_mean_(torch.stack(self._pl_means).mean())
        self._pl_means.clear()

    def d_main(self, batch: Batch) -> Iterator[Tensor]:
        """D's adversarial loss and its tasks, L_D + L_rec (GLeaD, Eq. 7 and 9): fake images first, then real ones."""
        shown = self._generate(batch)
        fake = self._judge("fake", shown, self.fake_tasks)
        fake_terms = self._run_tasks("fake", self.fake_tasks, fake, shown) + self._run_rivals("fake", fake, shown)
        if self.paired:
            yield self._pair(fake, batch) + fake_terms
            return
        loss_fake = self.adversarial.d_fake(fake.logits)
        yield loss_fake.mean() + fake_terms
        loss_fake, fake, fake_terms = loss_fake.detach(), None, None  # free the graph of the fake images

        shown = self._shown(batch.real_img, batch.real_c)
        real = self._judge("real", shown, self.real_tasks)
        loss_real = self.adversarial.d_real(real.logits)
        training_stats.report("Loss/D/loss", loss_fake + loss_real)
        yield loss_real.mean() + self._run_tasks("real", self.real_tasks, real, shown) + self._run_rivals(
            "real", real, shown)

    def _pair(self, fake: DiscriminatorOutput, batch: Batch) -> Tensor:
        """D's loss where real and fake images meet in one term, with all that concerns real ones."""
        shown = self._shown(batch.real_img, batch.real_c)
        real = self._judge("real", shown, self.real_tasks)
        if self.adversarial.paired:
            loss = self.adversarial.d_pair(fake.logits, real.logits)
        else:
            loss = self.adversarial.d_fake(fake.logits) + self.adversarial.d_real(real.logits)
        training_stats.report("Loss/D/loss", loss)
        pairs = {f"Loss/D/{rival.kind}": rival.pair(fake.logits, real.logits) for rival in self.rivals}
        return loss.mean() + self._run_tasks("real", self.real_tasks, real, shown) + self._run_rivals(
            "real", real, shown) + self._total(pairs)

    def d_penalty(self, batch: Batch) -> Iterator[Tensor]:
        """The gradient penalties of the adversarial loss: R1 for StyleGAN2."""
        for penalty in self.penalties:
            img, c = penalty.images(batch, lambda: self._generate(batch).clean)
            tasks = self.real_tasks if penalty.kind == "real" and self.config.real_task_in_dreg else ()
            judge = functools.partial(self._judge_again, penalty.kind, tasks, c)
            value, out, shown = penalty.of(img.detach(), judge, self.judge)
            loss = value * (self.config.r1_gamma * penalty.scale)
            training_stats.report(f"Loss/{penalty.name}_penalty", value)
            training_stats.report("Loss/D/reg", loss)
            yield loss.mean() + self._run_tasks(penalty.kind, tasks, out, shown)

    def _judge_again(
        self, kind: str, tasks: Sequence[Task], c: Tensor, img: Tensor
    ) -> tuple[DiscriminatorOutput, Shown]:
        shown = self._shown(img, c)
        return self._judge(kind, shown, tasks), shown

    def finish_d(self) -> None:
        """After D's loss of all parts of the batch. All ranks call this."""
        for rival in self.rivals:
            rival.step()

    # Parts.

    def _map(self, z: Tensor, c: Tensor, units: Units | None = None) -> Tensor:
        """ws [N, num_ws, w_dim]. With `style_mixing_prob`, a second latent takes over at a random layer of a unit."""
        ws = self.G.mapping(z, c)
        num_ws, prob, count = ws.shape[1], self.config.style_mixing_prob, units.num if units else 1
        # Drawn on the host, so that nothing waits for the device.
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
        """Fake images for D, with those states of G that D's tasks and rivals need."""
        needed: list[Task | Rival] = [*self.fake_tasks, *self.rivals]
        keep = sorted({res for part in needed for res in part.states})
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

    def _judge(self, kind: str, shown: Shown, tasks: Sequence[Task]) -> DiscriminatorOutput:
        out = self.judge(shown.img, shown.c, decode=bool(tasks))
        self._report_scores(kind, out.logits)
        return out

    def judge(self, img: Tensor, c: Tensor, *, decode: bool = False) -> DiscriminatorOutput:
        """D's output, as rivals let it see the images. Its decoder and heads run only if asked for."""
        look = self.D.run if decode or any(rival.decodes for rival in self.rivals) else self._score
        for rival in self.rivals:
            look = functools.partial(rival.look, look)
        return look(img, c)

    def _score(self, img: Tensor, c: Tensor) -> DiscriminatorOutput:
        return DiscriminatorOutput(self.D(img, c), {}, None, None, None)

    def _run_rivals(self, kind: str, out: DiscriminatorOutput, shown: Shown) -> Tensor | float:
        return self._total({f"Loss/D/{kind}_{rival.kind}": rival.d(kind, out, shown, self.judge)
                            for rival in self.rivals})

    @staticmethod
    def _total(terms: dict[str, Tensor | None]) -> Tensor | float:
        """The sum of means of those terms that there are."""
        total: Tensor | float = 0.0
        for name, term in terms.items():
            if term is not None:
                training_stats.report(name, term)
                total = total + term.mean()
        return total

    def _run_tasks(self, kind: str, tasks: Sequence[Task], out: DiscriminatorOutput, shown: Shown) -> Tensor | float:
        total: Tensor | float = 0.0
        for task in tasks:
            loss = task.loss(out, shown) * task.weight
            training_stats.report(f"Loss/D/{kind}_{task.kind}", loss)
            total = total + loss.mean()
        return total

    def _report_scores(self, kind: str, logits: Tensor) -> None:
        training_stats.report(f"Loss/scores/{kind}", logits)
        training_stats.report(f"Loss/signs/{kind}", logits.sign())
        if kind == "real" and self.observe_real is not None:
            self.observe_real(logits)
