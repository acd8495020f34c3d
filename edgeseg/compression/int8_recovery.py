"""Recovery of an INT8 body by training it on what its float original says.

Quantization-aware distillation without labels: the float body is the teacher, the INT8 graph
itself (:mod:`edgeseg.compression.graph_module`) the student, and frames from the camera's view all
the data. What is learned are weights, biases and slopes; scales of activations and nodes stay, so
the result is as fast as what went in.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeseg.compression.graph_module import GraphModule
from edgeseg.compression.label_free import Reference, ScoreChange, ScoreProbe
from edgeseg.errors import InputError, UsageError
from edgeseg.runtime.machine import available_cores
from edgeseg.scoring.head import Head
from edgeseg.training.recipe import Schedule
from edgeseg.training.schedules import rate

__all__ = ["Recovered", "RecoveryOptions", "recover"]

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RecoveryOptions:
    """How to train."""

    steps: int = 300
    learning_rate: float = 0.02
    """Peak, in quantization steps of the weight per step of training."""
    batch: int = 4
    """Crops per step."""
    crop: tuple[int, int] = (256, 512)
    """Rows and columns, pixels; cut down to the frame and to what the body divides."""
    noise: int = 2
    """Uniform input noise of up to so many grey levels, drawn for each crop."""
    temperature: float = 2.0
    """Of the divergence."""
    looks: int = 5
    """How often the frames apart are measured."""
    seed: int = 0
    threads: int | None = None
    """``None``: all cores."""

    def check(self) -> None:
        """UsageError where a value cannot be."""
        for name, value in (
            ("steps", self.steps),
            ("batch", self.batch),
            ("looks", self.looks),
            ("threads", 1 if self.threads is None else self.threads),
            ("crop", min(self.crop)),
        ):
            if value < 1:
                raise UsageError(f"{name} of the recovery is {value}; give 1 or more")
        if not 0 <= self.noise <= 64:
            raise UsageError(f"noise of the recovery is {self.noise} grey levels; give 0 to 64")
        for name, rate_or_t in (
            ("learning rate", self.learning_rate),
            ("temperature", self.temperature),
        ):
            if not (np.isfinite(rate_or_t) and rate_or_t > 0):
                raise UsageError(f"{name} of the recovery is {rate_or_t}; give a number above 0")


@dataclass(frozen=True, slots=True)
class Recovered:
    """What came out."""

    model: onnx.ModelProto
    """The INT8 body; the one that was given where training did not help."""
    before: ScoreChange
    """Against float, on frames that were not trained on, by ONNX Runtime."""
    after: ScoreChange
    kept_step: int
    """Step whose parameters were kept; 0: none."""
    steps: int
    """That were made."""
    trained_frames: int
    apart_frames: int

    def document(self) -> dict[str, Any]:
        """As JSON types, for the report and the manifest."""
        return {
            "steps": self.steps,
            "kept_step": self.kept_step,
            "frames": self.trained_frames,
            "frames_apart": self.apart_frames,
            "change_before": self.before.values,
            "change_after": self.after.values,
        }


def recover(
    float_body: onnx.ModelProto,
    int8_body: onnx.ModelProto,
    head: Head,
    frames: Sequence[UInt8],
    options: RecoveryOptions | None = None,
    *,
    progress: Progress = lambda _: None,
) -> Recovered:
    """Train an INT8 body to give the scores of its float original.

    The loss is a divergence of softened outputs (Hinton et al. 2015) and the squared change of
    maximum logit and void log-odds, which the divergence does not see where a probability is
    saturated; each in units of its size at the start. Of the states that are looked at, the one is
    kept whose scores are nearest to float on frames apart, none of the two measures being worse
    than before (:mod:`edgeseg.compression.label_free`).

    Args:
        float_body: what was quantized.
        int8_body: what it was quantized to.
        head: of the network.
        frames: uint8 ``[H, W, 3]`` BGR at the bodies' size, without labels; a fifth of them, one
            at least, is not trained on.
        options: default: :class:`RecoveryOptions`.
        progress: is told how far it is.

    Raises:
        UsageError: options that cannot be.
        InputError: fewer than two frames, or one of another size.
        ArtefactError: a body with an operator that cannot be trained.
    """
    options = options or RecoveryOptions()
    options.check()
    threads = options.threads or available_cores()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _recover(float_body, int8_body, head, frames, options, threads, progress)
    finally:
        torch.set_num_threads(before)


def _recover(
    float_body: onnx.ModelProto,
    int8_body: onnx.ModelProto,
    head: Head,
    frames: Sequence[UInt8],
    options: RecoveryOptions,
    threads: int,
    progress: Progress,
) -> Recovered:
    teacher, student = GraphModule(float_body).eval(), GraphModule(int8_body)
    size = (student.height, student.width)
    _check_frames(frames, size)
    stride = max(2, -(-len(frames) // max(1, len(frames) // 5)))
    apart = list(frames[stride - 1 :: stride])
    seen = [f for i, f in enumerate(frames) if i % stride != stride - 1]
    parameters = list(student.parameters())
    # Gradients are of a loss of about 1 by single steps of single weights: far below 1e-8.
    optimizer = torch.optim.Adam(parameters, lr=options.learning_rate, eps=1e-12)
    schedule = Schedule(name="cosine", warmup=0.05)
    rng = np.random.default_rng(options.seed)
    loss_of = _Loss(head, options.temperature)
    looks = {round(options.steps * (i + 1) / options.looks) for i in range(options.looks)}
    with ScoreProbe(head, *size, threads) as probe:
        reference = Reference(probe, apart, _features(float_body, head, size, threads))

        def look(model: onnx.ModelProto) -> ScoreChange:
            return reference.change(_features(model, head, size, threads))

        unit = look(int8_body)
        best, model, kept, step = unit, int8_body, 0, 0
        progress(f"before: {_words(unit)}")
        for step in range(1, options.steps + 1):
            factor = rate(schedule, step - 1, options.steps, options.steps)
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * factor
            batch = torch.from_numpy(_draw(seen, options, student.divisor, rng))
            phase = (int(rng.integers(2)), int(rng.integers(2)))
            with torch.no_grad():
                wanted = _logits(head, teacher.maps(batch), phase)
            loss = loss_of(_logits(head, student.maps(batch), phase), wanted)
            if not torch.isfinite(loss):
                progress(f"step {step}: the loss is not finite; kept what was best so far")
                break
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            student.limit()
            if step in looks:
                trained = student.to_onnx()
                now = look(trained)
                progress(f"step {step} of {options.steps}: {_words(now)}")
                if _is_no_worse(now, unit) and now.energy(unit) < best.energy(unit):
                    best, model, kept = now, trained, step
    return Recovered(model, unit, best, kept, step, len(seen), len(apart))


def _check_frames(frames: Sequence[UInt8], size: tuple[int, int]) -> None:
    if len(frames) < 2:
        raise InputError(
            f"recovery needs two frames, one of them to measure on, and got {len(frames)}; give a "
            "folder with more images"
        )
    for frame in frames:
        if frame.shape != (*size, 3) or frame.dtype != np.uint8:
            raise InputError(
                f"a frame for the recovery is {frame.dtype} {frame.shape}, and the body takes "
                f"uint8 {(*size, 3)}; resize it first"
            )


def _draw(
    frames: Sequence[UInt8], options: RecoveryOptions, divisor: int, rng: np.random.Generator
) -> UInt8:
    """Crops at random places, half of them mirrored, with noise: uint8 ``[N, h, w, 3]``."""
    height, width, _ = frames[0].shape
    rows, columns = (
        max(divisor, min(side, whole) // divisor * divisor)
        for side, whole in zip(options.crop, (height, width), strict=True)
    )
    crops = []
    for _ in range(options.batch):
        frame = frames[int(rng.integers(len(frames)))]
        top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
        crop = frame[top : top + rows, left : left + columns].astype(np.int16)
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        level = int(rng.integers(options.noise + 1))
        if level:
            crop = crop + rng.integers(-level, level + 1, crop.shape, dtype=np.int16)
        crops.append(np.clip(crop, 0, 255).astype(np.uint8))
    return np.stack(crops)


def _logits(head: Head, features: Tensor, phase: tuple[int, int]) -> Tensor:
    """Logits on a quarter of the pixels where the head deconvolves, and at the features' own
    places where it only interpolates: neighbours say the same, at a fraction of the time.
    """
    if head.weight is not None and head.bias is not None:
        weight, bias = torch.from_numpy(head.weight), torch.from_numpy(head.bias)
        deconv3x3 = head.kind == "deconv3x3"
        logits = F.conv_transpose2d(
            features, weight, bias, 2, int(deconv3x3), output_padding=int(deconv3x3)
        )[..., phase[0] :: 2, phase[1] :: 2]
    else:
        logits = features
    if head.isomax is not None:
        prototypes = torch.from_numpy(head.isomax.prototypes).view(1, -1, 1, 1)
        logits = -abs(head.isomax.distance_scale) * (logits - prototypes).abs()
    return logits


class _Loss:
    """The loss, every term in units of what it was at the first step."""

    def __init__(self, head: Head, temperature: float) -> None:
        self._head = head
        self._temperature = temperature
        self._units: list[float] = []

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        own, wanted = (F.log_softmax(x / self._temperature, 1) for x in (student, teacher))
        terms = [F.kl_div(own, wanted, reduction="none", log_target=True).sum(1).mean()]
        for a, b in zip(self._scores(student), self._scores(teacher), strict=True):
            terms.append((a - b).square().mean())
        if not self._units:
            self._units = [max(float(term.detach()), 1e-12) for term in terms]
        shares = [term / unit for term, unit in zip(terms, self._units, strict=True)]
        return torch.stack(shares).mean()

    def _scores(self, logits: Tensor) -> list[Tensor]:
        known = logits[:, : self._head.num_known]
        scores = [known.amax(1)]
        if self._head.void_index is not None:
            scores.append(logits[:, self._head.void_index] - known.logsumexp(1))
        return scores


def _features(
    model: onnx.ModelProto, head: Head, size: tuple[int, int], threads: int
) -> Callable[[UInt8], Float32]:
    """Features of a body as ONNX Runtime computes them, ``[1, h, w, C]``."""
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    session = ort.InferenceSession(
        model.SerializeToString(), settings, providers=["CPUExecutionProvider"]
    )
    shape = (1, size[0] // head.factor, size[1] // head.factor, head.channels_in)

    def run(frame: UInt8) -> Float32:
        (features,) = session.run(None, {"frame": frame[None]})
        return np.asarray(features, np.float32).reshape(shape)

    return run


def _is_no_worse(now: ScoreChange, before: ScoreChange) -> bool:
    return all(now.values[name] <= value for name, value in before.values.items())


def _words(change: ScoreChange) -> str:
    texts = [f"{name.replace('_', ' ')} {value:.3f}" for name, value in change.values.items()]
    return f"scores change by {', '.join(texts)} (95th percentile, logits)"
