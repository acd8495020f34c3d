"""One step of training: micro-batches forward and backward, the optimiser, checks of sanity."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from edgeseg.errors import EdgesegError, UsageError
from edgeseg.networks.base import Network
from edgeseg.networks.bisenet import BiSeNet
from edgeseg.taxonomy import IGNORE, VOID
from edgeseg.training.distillation import DistillationLoss
from edgeseg.training.losses import PixelLoss
from edgeseg.training.recipe import Optimizer, Recipe, Stage, parse_hxw
from edgeseg.training.sampling import Batch
from edgeseg.training.world import World

__all__ = ["DivergedError", "Stepper", "as_input", "check_fit", "make_optimizer"]

_ENCODER_STRIDE: Final = 8


class DivergedError(EdgesegError):
    """The loss or a gradient is no finite number."""


def as_input(frames: Tensor) -> Tensor:
    """uint8 BGR ``[N, H, W, 3]`` to float RGB ``[N, 3, H, W]`` in [0, 1], channels_last."""
    rgb = frames.permute(0, 3, 1, 2).flip(1).float().div_(255.0)
    return rgb.contiguous(memory_format=torch.channels_last)


def make_optimizer(spec: Optimizer, module: nn.Module, lr: float) -> torch.optim.Optimizer:
    """The recipe's optimiser over what is to be trained."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [{"params": trained, "weight_decay": spec.weight_decay}]
    if not spec.decay_norms:
        groups = [
            {
                "params": [p for p in trained if p.ndim > 1],
                "weight_decay": spec.weight_decay,
            },
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
    if spec.name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=spec.momentum)
    kind = torch.optim.AdamW if spec.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=lr, betas=spec.betas, eps=spec.eps, fused=True)


def check_fit(
    recipe: Recipe, net: Network, teacher: Network | None = None, processes: int = 1
) -> None:
    """Refuse what a stage would stumble over, before anything is written.

    Args:
        recipe: what to do.
        net: what is trained.
        teacher: network whose outputs are learned too.
        processes: how many share their BatchNorms' statistics.

    Raises:
        UsageError: a crop, a batch, a part or a loss that a network was not built for.
    """
    _pixel_loss(recipe, net, None)
    for stage in recipe.stage:
        size = parse_hxw(stage.crop or recipe.data.crop)
        net.check_size(*size)
        if teacher is not None:
            teacher.check_size(*size)
        learning = stage.part != "last" and not stage.freeze_batchnorm
        # Behind a global average a frame has one value a channel, which is no statistic.
        if isinstance(net, BiSeNet) and learning and recipe.data.batch * processes < 2:
            raise UsageError(
                f"{net.structure.network} cannot learn from batches of one frame; set batch = 2 or "
                "more under [data] in the --recipe, or freeze_batchnorm = true under [[stage]]"
            )
        if stage.part == "encoder":
            _encoder(net)


class _Forward(nn.Module):
    """What DistributedDataParallel wraps: the training forward of a network."""

    def __init__(self, net: Network, part: str, compiled: bool, auxiliary: bool) -> None:
        super().__init__()
        self.net, self.part, self.auxiliary = net, part, auxiliary
        # Only the body: the head's phase changes from step to step.
        self._body = torch.compile(net.body) if compiled and not net.auxiliary_strides else net.body

    def forward(self, x: Tensor, stride: int, phase: tuple[int, int]) -> list[Tensor]:
        if self.part == "encoder":
            return [self.net.forward_encoder(x)]
        if self.auxiliary:
            logits, others = self.net.forward_train(x, stride, phase)
            return [logits, *others]
        return [self.net.logits_at(self._body(x), stride, phase)]


class Stepper:
    """Trains a network step by step; what a step does depends on the recipe and its number alone.

    Every micro-batch seeds the generator that dropout draws from, by its number in the run. So
    there is no random state to save, and two processes draw what one with two micro-batches draws.
    """

    def __init__(
        self,
        recipe: Recipe,
        stage: Stage,
        net: Network,
        world: World,
        class_weights: Tensor | None,
        teacher: Network | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Args:
        recipe: what to do.
        stage: which part of it.
        net: network, on ``world.device`` already.
        world: the processes.
        class_weights: float ``[num_outputs]``, or ``None``.
        teacher: network whose outputs are learned too.
        dtype: what the forward computes in; weights stay float32.

        Raises:
            UsageError: a loss that the network was not built for.
        """
        self.recipe, self.stage, self.net, self.world = recipe, stage, net, world
        self.teacher = None if teacher is None else teacher.to(world.device).eval()
        self.dtype = dtype
        spec = recipe.loss
        self.loss = _pixel_loss(recipe, net, class_weights).to(world.device)
        self.distillation: DistillationLoss | None = None
        if teacher is not None:
            d = recipe.distillation
            self.distillation = DistillationLoss(
                self.loss,
                d.temperature,
                d.soft_share,
                d.on_ignored,
                d.confidence,
                spec.entropic_scale if teacher.structure.isomax else 1.0,
            )
        self.strides = [recipe.stride]
        if stage.part == "encoder":
            self.strides = [_ENCODER_STRIDE]
        elif stage.part == "all" and spec.auxiliary and _has_auxiliary(net):
            self.strides += net.auxiliary_strides
        _choose_trained(net, stage.part, auxiliary=len(self.strides) > 1)
        forward = _Forward(net, stage.part, recipe.compile, len(self.strides) > 1)
        self.forward: nn.Module = forward
        if world.size > 1:
            ids = [world.device.index] if world.device.type == "cuda" else None
            self.forward = DistributedDataParallel(forward, device_ids=ids)
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(recipe.optimizer, net, stage.lr or recipe.optimizer.lr)

    def run(self, step: int, batches: Sequence[Batch], lr: float) -> dict[str, float]:
        """One step; figures of it.

        Args:
            step: its number in the run.
            batches: the micro-batches of this process.
            lr: learning rate.

        Raises:
            DivergedError: a loss or gradient that is not finite; the weights are as before.
        """
        self._mode()
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        phase = self._phase(step)
        inputs = [self._to_device(batch) for batch in batches]
        taught = [self._taught(x, phase) for x, _ in inputs]
        targets = [[_thin(y, s, phase) for s in self.strides] for _, y in inputs]
        weights = self._weights(targets, taught)
        sums = torch.zeros_like(weights)
        for part, ((x, _), batch) in enumerate(zip(inputs, batches, strict=True)):
            torch.manual_seed(self._seed(step, part))
            last = part == len(batches) - 1
            with self._synchronised(last):
                with self._autocast():
                    outputs = self.forward(x, self.recipe.stride, phase)
                terms = self._terms(outputs, targets[part], taught[part])
                # DistributedDataParallel averages gradients; the weights are of all processes.
                loss = self._mix(terms / weights) * self.world.size
                if not math.isfinite(loss.item()):
                    raise DivergedError(_where(step, part, batch, "loss", loss.item()))
                loss.backward()  # type: ignore[no-untyped-call]
            sums += terms.detach()
        figures = {"loss": self._mix(self.world.total(sums) / weights).item(), "lr": lr}
        clip = self.recipe.optimizer.clip
        norm = nn.utils.clip_grad_norm_(self.parameters, clip or math.inf).item()
        if not math.isfinite(norm):
            raise DivergedError(_where(step, 0, batches[0], "norm of the gradient", norm))
        self.optimizer.step()
        return {**figures, "gradient_norm": norm}

    def _mode(self) -> None:
        """Training mode; what is frozen keeps its statistics and drops nothing."""
        self.net.train()
        if self.stage.part == "last":
            self.net.eval()
        elif self.stage.freeze_batchnorm:
            for module in self.net.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _phase(self, step: int) -> tuple[int, int]:
        stride = self.recipe.stride
        a, b = np.random.default_rng((self.recipe.seed, 2, step)).integers(0, stride, 2)
        return int(a), int(b)

    def _seed(self, step: int, part: int) -> int:
        number = (step * self.recipe.data.accumulate + part) * self.world.size + self.world.rank
        return int(np.random.SeedSequence((self.recipe.seed, 3, number)).generate_state(1)[0])

    def _to_device(self, batch: Batch) -> tuple[Tensor, Tensor]:
        frames = torch.from_numpy(batch.frames).to(self.world.device, non_blocking=True)
        labels = torch.from_numpy(batch.labels).to(self.world.device, non_blocking=True)
        if self.net.structure.void_index is None:  # what it has no output for is not learned
            labels = labels.masked_fill(labels == VOID, IGNORE)
        return as_input(frames), labels

    @torch.no_grad()
    def _taught(self, x: Tensor, phase: tuple[int, int]) -> Tensor | None:
        """What the teacher says, on the grid of the loss."""
        if self.teacher is None:
            return None
        stride = self.strides[0]
        if self.stage.part == "encoder":
            phase = (stride // 2, stride // 2)  # where the labels are taken too
        with self._autocast():
            features = self.teacher.body(x)
        return self.teacher.logits_at(features.float(), stride, phase)

    def _weights(
        self, targets: Sequence[Sequence[Tensor]], taught: Sequence[Tensor | None]
    ) -> Tensor:
        """What every term is divided by: sums over all micro-batches of all processes."""
        rows = []
        for labels, opinion in zip(targets, taught, strict=True):
            row = [self.loss.weight(y) for y in labels]
            if self.distillation is not None:
                row.append(self.distillation.soft_weight(labels[0], opinion))
            rows.append(torch.stack([w.float().to(self.world.device) for w in row]))
        # A step without a labelled pixel has loss 0, not 0 / 0.
        return self.world.total(torch.stack(rows).sum(0)).clamp_min_(1e-6)

    def _terms(
        self, outputs: Sequence[Tensor], labels: Sequence[Tensor], taught: Tensor | None
    ) -> Tensor:
        """Sums of the main loss, the auxiliary ones and the distillation."""
        if self.distillation is not None and taught is not None:
            hard, soft = self.distillation(outputs[0], taught, labels[0])
            others = [self.loss(o, y) for o, y in zip(outputs[1:], labels[1:], strict=True)]
            return torch.stack([hard, *others, soft])
        return torch.stack([self.loss(o, y) for o, y in zip(outputs, labels, strict=True)])

    def _mix(self, means: Tensor) -> Tensor:
        """The loss of the means of all terms."""
        count = len(self.strides)
        main = means[0]
        if self.distillation is not None:
            main = self.distillation.combine(means[0], means[-1])
        return main + self.recipe.loss.auxiliary * means[1:count].sum()

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.world.device.type, dtype=self.dtype)

    @contextlib.contextmanager
    def _synchronised(self, last: bool) -> Iterator[None]:
        """Gradients are exchanged once a step, behind its last micro-batch."""
        if last or not isinstance(self.forward, DistributedDataParallel):
            yield
            return
        with self.forward.no_sync():
            yield


def _pixel_loss(recipe: Recipe, net: Network, class_weights: Tensor | None) -> PixelLoss:
    from edgeseg.training.losses import LossSpec

    spec = LossSpec.parse(
        recipe.loss.name,
        gamma=recipe.loss.gamma,
        alpha=recipe.loss.alpha,
        entropic_scale=recipe.loss.entropic_scale,
        temperature=recipe.loss.temperature,
        ohem_threshold=recipe.loss.ohem_threshold,
        ohem_min_kept=recipe.loss.ohem_min_kept,
    )
    if (spec.transform == "isomax") != net.structure.isomax:
        has = "has" if net.structure.isomax else "has no"
        fitting = LossSpec(spec.base, "isomax" if net.structure.isomax else "plain").name
        raise UsageError(
            f"loss '{spec.name}' does not fit a network that {has} IsoMax+ distances; set "
            f'name = "{fitting}" under [loss] in the --recipe (edgeseg train also takes --loss), '
            "or begin with other weights"
        )
    return PixelLoss(spec, net.structure.num_outputs, class_weights)


def _has_auxiliary(net: Network) -> bool:
    return bool(net.auxiliary_parameters())


def _choose_trained(net: Network, part: str, *, auxiliary: bool) -> None:
    net.requires_grad_(part == "all")
    if part == "last":
        net.last_layer().requires_grad_(True)
        if net.isomax is not None:
            net.isomax.requires_grad_(True)
    elif part == "encoder":
        _encoder(net).requires_grad_(True)
    elif not auxiliary:
        for parameter in net.auxiliary_parameters():
            parameter.requires_grad_(False)


def _encoder(net: Network) -> nn.Module:
    encoder = getattr(net, "encoder", None)
    if not (isinstance(encoder, nn.Module) and net.auxiliary_parameters()):
        net.forward_encoder(torch.empty(0))  # says why not
    assert isinstance(encoder, nn.Module)
    return encoder


def _thin(labels: Tensor, stride: int, phase: tuple[int, int]) -> Tensor:
    """Labels at the pixels that a sparse grid of logits stands for."""
    if stride == 1:
        return labels.long()
    if stride >= 8:  # features: the pixel at the middle of each cell
        return labels[:, stride // 2 :: stride, stride // 2 :: stride].long()
    return labels[:, phase[0] :: stride, phase[1] :: stride].long()


def _where(step: int, part: int, batch: Batch, what: str, value: float) -> str:
    names = ", ".join(f"'{name}'" for name in dict.fromkeys(batch.names))
    return (
        f"training diverged: the {what} is {value} at step {step}, micro-batch {part} (frames "
        f"{names}); begin anew with a lower learning rate, or mend these frames and go on from the "
        "last checkpoint with --resume"
    )
