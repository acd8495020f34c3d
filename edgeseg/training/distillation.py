"""Training a small network on the outputs of a large one."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeseg.errors import UsageError
from edgeseg.training.losses import PixelLoss

__all__ = ["DistillationLoss"]


class DistillationLoss(nn.Module):
    """A mix of the loss on the labels and the divergence from a teacher (Hinton et al. 2015).

    soft = T^2 KL(softmax(teacher / T) || softmax(student / T)), per pixel, over the outputs that
    both have: a teacher without a void output says nothing of the student's. T^2 keeps the size of
    the gradient when T changes. The student's are the logits that the hard term takes the softmax
    of, the teacher's those times ``teacher_scale``: an IsoMax+ network learned its probabilities
    from logits times E_s, without which it is sure of nothing.

    The two terms have weights of their own, so the sums of micro-batches are added up first::

        loss = combine(hard_sum / weight, soft_sum / soft_weight)
    """

    def __init__(
        self,
        hard: PixelLoss,
        temperature: float = 1.0,
        soft_share: float = 0.5,
        on_ignored: bool = False,
        confidence: float = 0.0,
        teacher_scale: float = 1.0,
    ) -> None:
        """Args:
        hard: the loss on the labels.
        temperature: T, above 0.
        soft_share: share of the soft term, from 0 (labels alone) to 1 (teacher alone).
        on_ignored: whether the teacher is also followed where there is no label.
        confidence: pixels where the teacher's largest probability (at T = 1) is below it are
            left out of the soft term.
        teacher_scale: factor on the teacher's logits, above 0: E_s where the teacher has IsoMax+
            distances.
        """
        super().__init__()
        if temperature <= 0:
            raise UsageError(f"temperature of the distillation is {temperature}, must be above 0")
        if teacher_scale <= 0:
            raise ValueError(f"teacher_scale is {teacher_scale}, must be above 0")
        for name, value in (("soft_share", soft_share), ("confidence", confidence)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name} of the distillation is {value}, must lie in [0, 1]")
        self.hard = hard
        self.temperature = temperature
        self.soft_share = soft_share
        self.on_ignored = on_ignored
        self.confidence = confidence
        self.teacher_scale = teacher_scale

    def weight(self, labels: Tensor) -> Tensor:
        """What the hard sum is to be divided by: :meth:`PixelLoss.weight`."""
        return self.hard.weight(labels)

    def soft_weight(self, labels: Tensor, teacher_logits: Tensor | None = None) -> Tensor:
        """What the soft sum is to be divided by: the number of pixels that it covers.

        Args:
            labels: uint8 or int64 ``[N, H, W]``.
            teacher_logits: float ``[N, D, H, W]``, needed where ``confidence`` is above 0.

        Returns:
            A float32 scalar; 0 where no pixel is covered (the soft sum is then 0 as well).
        """
        if self.confidence and teacher_logits is None:
            raise ValueError("confidence is above 0: soft_weight needs the teacher's logits")
        return self._covered(labels, teacher_logits).sum().float()

    def forward(
        self, student_logits: Tensor, teacher_logits: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The hard and the soft sum, two scalars.

        Args:
            student_logits: float ``[N, C, H, W]``.
            teacher_logits: float ``[N, D, H, W]``, in the order of the student's outputs; gets no
                gradient.
            labels: uint8 or int64 ``[N, H, W]``, as :class:`PixelLoss` takes them.
        """
        if student_logits.shape[2:] != teacher_logits.shape[2:]:
            raise ValueError(
                f"the teacher's logits are {tuple(teacher_logits.shape[2:])}, the student's "
                f"{tuple(student_logits.shape[2:])}: resize the teacher's first"
            )
        shared = min(student_logits.shape[1], teacher_logits.shape[1])
        # What the hard term normalises, so that both pull towards one scale.
        wide = torch.promote_types(student_logits.dtype, torch.float32)
        own = self.hard.transformed(student_logits.to(wide))
        student = self._log_probabilities(own[:, :shared])
        said = self._said(teacher_logits)[:, :shared]
        teacher = self._log_probabilities(said).to(student.dtype)
        divergence = F.kl_div(student, teacher, reduction="none", log_target=True).sum(1)
        soft = (divergence * self._covered(labels, teacher_logits)).sum()
        return self.hard(student_logits, labels), self.temperature**2 * soft

    def combine(self, hard: Tensor, soft: Tensor) -> Tensor:
        """(1 - soft_share) hard + soft_share soft, of the two means."""
        return (1 - self.soft_share) * hard + self.soft_share * soft

    def _said(self, teacher_logits: Tensor) -> Tensor:
        """What the softmax of the teacher is taken of."""
        logits = teacher_logits.detach()
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits if self.teacher_scale == 1 else logits * self.teacher_scale

    def _log_probabilities(self, logits: Tensor) -> Tensor:
        return F.log_softmax(logits if self.temperature == 1 else logits / self.temperature, dim=1)

    def _covered(self, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
        """The pixels of the soft term, bool ``[N, H, W]``."""
        covered = torch.ones_like(labels, dtype=torch.bool)
        if not self.on_ignored:
            covered = labels != self.hard.ignore_index
        if self.confidence and teacher_logits is not None:
            shared = self._said(teacher_logits)[:, : self.hard.num_outputs].float()
            largest = shared.amax(1) - shared.logsumexp(1)
            covered = covered & (largest.exp() >= self.confidence)
        return covered
