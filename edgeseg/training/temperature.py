"""Temperature scaling: one number that makes a trained network's confidences honest.

Guo, Pleiss, Sun & Weinberger 2017, "On Calibration of Modern Neural Networks", section 4.2: with
logits ``f`` and the softmax over the known classes, T minimises the mean negative log-likelihood
of softmax(f / T) on labelled pixels that the network was not trained on. The class map does not
change; the scores that contain a softmax do (:mod:`edgeseg.scoring.scorers`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from edgeseg.bundle import Manifest, ScorerDefaults
from edgeseg.data.samples import Sample
from edgeseg.data.transforms import resize_frame, resize_label
from edgeseg.errors import ArtefactError, InputError
from edgeseg.runtime.session import Session
from edgeseg.taxonomy import NUM_KNOWN

__all__ = [
    "BOUNDS",
    "PIXELS_PER_FRAME",
    "PixelSample",
    "TemperatureFit",
    "expected_calibration_error",
    "fit_temperature",
    "learn_temperature",
    "negative_log_likelihood",
    "sample_pixels",
    "scaled_thresholds",
    "with_temperature",
]

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]

BOUNDS: Final = (0.05, 20.0)
PIXELS_PER_FRAME: Final = 20_000
_MAX_PIXELS: Final = 4_000_000
"""Where the caller leaves the number of pixels to us: 300 MB of logits."""
_BINS: Final = 15
_CHUNK: Final = 1 << 17
_UNAFFECTED: Final = ("maxlogit",)
_QUANTILE: Final = 0.99
_THRESHOLD_FRAMES: Final = 64


class LogitSource(Protocol):
    """A predictor that gives its logits away."""

    def logits(self, frame: UInt8) -> Float32:
        """Frame uint8 ``[H, W, 3]`` BGR -> float32 ``[C, H, W]``, the known classes first."""
        ...


@dataclass(frozen=True, slots=True)
class PixelSample:
    """Labelled pixels of a data set."""

    logits: Float32
    """``[n, 19]``, of the known classes."""
    labels: Int64
    """``[n]``, trainIds 0-18."""
    frames: int
    """Frames that they come from."""


@dataclass(frozen=True, slots=True)
class TemperatureFit:
    """A learned temperature, and what it did on the pixels that it was learned from."""

    temperature: float
    nll_before: float
    """Mean negative log-likelihood at T = 1, in nats per pixel."""
    nll_after: float
    ece_before: float
    """Expected calibration error at T = 1, in 0 .. 1."""
    ece_after: float
    pixels: int
    frames: int

    @property
    def at_bound(self) -> bool:
        """Whether a temperature outside :data:`BOUNDS` would have fitted better."""
        return self.temperature in BOUNDS

    def document(self) -> dict[str, Any]:
        """As JSON, for reports and the manifest."""
        return {
            "temperature": self.temperature,
            "nll": {"before": self.nll_before, "after": self.nll_after},
            "ece_percent": {"before": 100 * self.ece_before, "after": 100 * self.ece_after},
            "pixels": self.pixels,
            "frames": self.frames,
        }


def sample_pixels(
    source: LogitSource,
    samples: Sequence[Sample],
    size: tuple[int, int],
    *,
    per_frame: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> PixelSample:
    """Logits and labels of a random choice of the labelled pixels of every frame.

    Args:
        source: the network.
        samples: frames with trainIds; pixels of other labels than 0-18 are left out.
        size: height and width that frames and labels are resized to, pixels.
        per_frame: at most so many pixels of a frame; default: :data:`PIXELS_PER_FRAME`, fewer
            where the set has more than 200 frames.
        seed: of the choice; a frame's choice does not depend on the other frames.
        progress: called with the frames done and the frames in all.

    Raises:
        InputError: an unreadable frame or label map, or no labelled pixel at all.
        ArtefactError: logits that are not finite.
    """
    most = per_frame or max(1, min(PIXELS_PER_FRAME, _MAX_PIXELS // max(len(samples), 1)))
    logits: list[Float32] = []
    labels: list[Int64] = []
    for index, sample in enumerate(samples):
        label = resize_label(sample.load_label(), size).reshape(-1)
        inside = np.flatnonzero(label < NUM_KNOWN)
        if inside.size > most:
            rng = np.random.default_rng((seed, index))
            inside = np.sort(rng.choice(inside, most, replace=False))
        if inside.size:
            every = source.logits(resize_frame(sample.load_image(), size))
            known = every[:NUM_KNOWN].reshape(NUM_KNOWN, -1)
            chosen = np.ascontiguousarray(known[:, inside].T)
            if not np.isfinite(chosen).all():
                raise ArtefactError(
                    f"the network's logits for '{sample.image_path}' are not finite; its weights "
                    "are damaged, or too large for its precision"
                )
            logits.append(chosen)
            labels.append(label[inside].astype(np.int64))
        if progress is not None:
            progress(index + 1, len(samples))
    if not logits:
        raise InputError(
            "no pixel of the data set is labelled with a known class (trainIds 0-18), so there is "
            "nothing to learn a temperature from; check --data and --split"
        )
    return PixelSample(np.concatenate(logits), np.concatenate(labels), len(logits))


def learn_temperature(pixels: PixelSample) -> TemperatureFit:
    """Fit T and measure what it does."""
    f, y = pixels.logits, pixels.labels
    temperature = fit_temperature(f, y)
    return TemperatureFit(
        temperature=temperature,
        nll_before=negative_log_likelihood(f, y),
        nll_after=negative_log_likelihood(f, y, temperature),
        ece_before=expected_calibration_error(f, y),
        ece_after=expected_calibration_error(f, y, temperature),
        pixels=len(y),
        frames=pixels.frames,
    )


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
    """The T within :data:`BOUNDS` that minimises the mean NLL, by LBFGS on log T in float64.

    The NLL is convex in 1 / T, so it has one minimum in log T, and its slope at a bound says
    whether that lies beyond.

    Args:
        logits: ``[n, C]``, finite.
        labels: ``[n]``, integers in 0 .. C - 1.
    """
    f, y = _tensors(logits, labels)
    low, high = (math.log(bound) for bound in BOUNDS)
    if _slope(low, f, y) > 0:
        return BOUNDS[0]
    if _slope(high, f, y) < 0:
        return BOUNDS[1]
    log_t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [log_t],
        max_iter=100,
        tolerance_grad=1e-10,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        return _mean_nll(log_t, f, y)

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return float(np.clip(math.exp(log_t.item()), *BOUNDS))


def negative_log_likelihood(
    logits: npt.ArrayLike, labels: npt.ArrayLike, temperature: float = 1.0
) -> float:
    """Mean of -log softmax(f / T) at the label, in nats per pixel; arguments as
    :func:`fit_temperature`.
    """
    log_t = torch.tensor(math.log(temperature), dtype=torch.float64)
    return float(_mean_nll(log_t, *_tensors(logits, labels)))


def expected_calibration_error(
    logits: npt.ArrayLike, labels: npt.ArrayLike, temperature: float = 1.0, bins: int = _BINS
) -> float:
    """Expected calibration error, in 0 .. 1 (Guo et al. 2017, equation 3).

    Pixels are sorted by confidence, max softmax(f / T), into ``bins`` intervals of one width,
    closed above; the error is the mean over pixels of |accuracy - confidence| of their bin.

    Args:
        logits: ``[n, C]``.
        labels: ``[n]``, integers in 0 .. C - 1.
        temperature: T > 0.
        bins: number of intervals.
    """
    f, y = _tensors(logits, labels)
    confidence = np.zeros(bins)
    correct = np.zeros(bins)
    for part, label in _parts(f, y):
        p, found = (part.double() / temperature).softmax(dim=1).max(dim=1)
        at = np.clip(np.ceil(p.numpy() * bins).astype(np.int64) - 1, 0, bins - 1)
        confidence += np.bincount(at, weights=p.numpy(), minlength=bins)
        correct += np.bincount(at, weights=(found == label).double().numpy(), minlength=bins)
    return float(np.abs(correct - confidence).sum() / len(y))


def scaled_thresholds(
    session: Session,
    samples: Sequence[Sample],
    temperature: float,
    progress: Progress | None = None,
) -> tuple[dict[str, float], int]:
    """Default thresholds of a bundle's scorers at a temperature.

    The 99th percentile of the score over all pixels, labelled or not, of at most 64 frames that
    are spread evenly over ``samples``: what `edgeseg export` takes from its calibration frames.

    Returns:
        scorer -> threshold, without the scorers that T does not enter, and the number of frames.
    """
    step = max(1, -(-len(samples) // _THRESHOLD_FRAMES))
    chosen = samples[::step]
    names = [name for name in session.bundle.manifest.scorers if name not in _UNAFFECTED]
    seen: dict[str, list[Float32]] = {name: [] for name in names}
    for done, sample in enumerate(chosen, start=1):
        features = session.features(resize_frame(sample.load_image(), session.size))
        for name in names:
            score = session.score(features, name, temperature).score
            # Every fifth pixel places the percentile as well, and bounds the memory.
            seen[name].append(score.reshape(-1)[::5].astype(np.float32))
        if progress is not None:
            progress(done, len(chosen))
    return {
        name: float(np.quantile(np.concatenate(parts), _QUANTILE)) for name, parts in seen.items()
    }, len(chosen)


def with_temperature(
    manifest: Manifest,
    temperature: float,
    thresholds: dict[str, float],
    provenance: dict[str, Any],
) -> Manifest:
    """The manifest with T for every scorer and the thresholds that hold at it.

    Args:
        manifest: of a bundle.
        temperature: T > 0.
        thresholds: as :func:`scaled_thresholds` gives them; scorers that T does not enter keep
            theirs.
        provenance: where T and the thresholds come from; stands in the manifest's calibration
            as ``temperature_scaling``.
    """
    return replace(
        manifest,
        scorers={
            name: ScorerDefaults(
                defaults.threshold if name in _UNAFFECTED else thresholds.get(name), temperature
            )
            for name, defaults in manifest.scorers.items()
        },
        calibration={**manifest.calibration, "temperature_scaling": provenance},
    )


def _tensors(logits: npt.ArrayLike, labels: npt.ArrayLike) -> tuple[Tensor, Tensor]:
    f = np.asarray(logits)
    y = np.asarray(labels, dtype=np.int64)
    if f.ndim != 2 or y.shape != f.shape[:1] or not len(y):
        raise ValueError(f"logits {f.shape} and labels {y.shape} are not [n, C] and [n]")
    return torch.from_numpy(np.ascontiguousarray(f)), torch.from_numpy(y)


def _parts(f: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for start in range(0, len(y), _CHUNK):
        yield f[start : start + _CHUNK], y[start : start + _CHUNK]


def _mean_nll(log_t: Tensor, f: Tensor, y: Tensor) -> Tensor:
    """Mean NLL at exp(log_t), float64 and detached; adds its slope to ``log_t.grad``.

    A part of the pixels at a time: in float64, and with what the slope needs, all of them would
    take several times the memory of the logits.
    """
    total = torch.zeros((), dtype=torch.float64)
    for part, label in _parts(f, y):
        scaled = part.double() * torch.exp(-log_t)
        nll = F.cross_entropy(scaled, label, reduction="sum") / len(y)
        if log_t.requires_grad:
            nll.backward()  # type: ignore[no-untyped-call]
        total += nll.detach()
    return total


def _slope(at: float, f: Tensor, y: Tensor) -> float:
    log_t = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    _mean_nll(log_t, f, y)
    assert log_t.grad is not None
    return float(log_t.grad)
