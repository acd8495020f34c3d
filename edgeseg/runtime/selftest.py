"""Before the first frame: does this machine compute what the bundle was made to compute?"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.runtime.deadline import Problem
from edgeseg.runtime.health import check_features
from edgeseg.runtime.session import Session
from edgeseg.safetensors import read_safetensors
from edgeseg.scoring.scorers import anomaly_score, class_map

__all__ = ["CLASS_SHARE", "GOLDEN", "SCORE_TOLERANCE", "SelfTest", "golden_frame", "self_test"]

GOLDEN: Final = "golden.safetensors"
"""File of a bundle with ``frame`` uint8 ``[H, W, 3]``, ``class_map`` uint8 ``[H, W]`` and
``score_<scorer>`` ``[H, W]`` at the bundle's temperature, as the build computed them."""

SCORE_TOLERANCE: Final = 2e-3
"""Of the head against the definition in numpy, absolute plus relative: two float16 steps."""
CLASS_SHARE: Final = 0.999
"""Pixels whose class must agree with the definition; ties of float32 rounding are the rest."""
_ROWS: Final = 3
_GOLDEN_SCORE: Final = 0.05
_GOLDEN_PIXELS: Final = 0.99
"""Against stored outputs engines differ: INT8 and bf16 round in their own ways."""


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What the self-test found."""

    problem: Problem | None
    """``None``: passed."""
    reference: str
    """``stored``, or ``definition``: the head's in numpy, on the engine's own features."""
    score_error: float | None
    """Largest difference of a score, in units of ``tolerance + tolerance * |score|``."""
    class_agreement: float | None
    """Share of the pixels with the same class."""


def golden_frame(height: int, width: int) -> npt.NDArray[np.uint8]:
    """A deterministic frame, uint8 ``[height, width, 3]``: a road to a horizon, with noise.

    The noise is a fixed integer hash, not a generator whose stream a new numpy might change.
    """
    rows, columns = np.mgrid[0:height, 0:width].astype(np.uint32)
    mixed = rows * np.uint32(2654435761) ^ columns * np.uint32(2246822519)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(3266489917)
    noise = (mixed >> np.uint32(27)).astype(np.int32) - 16
    horizon = height * 2 // 5
    sky = rows < horizon
    half = (rows - np.minimum(rows, horizon)).astype(np.float64) * width / max(1, height)
    road = ~sky & (np.abs(columns - width / 2) < half)
    frame = np.empty((height, width, 3), np.int32)
    for channel, (above, ground, asphalt) in enumerate(
        ((190, 60, 95), (160, 110, 92), (130, 80, 90))
    ):
        frame[..., channel] = np.where(sky, above, np.where(road, asphalt, ground)) + noise
    return np.clip(frame, 0, 255).astype(np.uint8)


def self_test(session: Session) -> SelfTest:
    """Run one frame and compare.

    With :data:`GOLDEN` in the bundle, class map and score are held against what the build
    stored. Without it the engine is only shown to give finite features that depend on the frame
    and are the same twice, and the head is held against its definition.
    """
    if GOLDEN in session.bundle.manifest.files:
        return _against_stored(session)
    frame = golden_frame(*session.size)
    features = session.features(frame).copy()
    again = session.features(frame)
    problem = check_features(features)
    if problem is None and not np.array_equal(features, again):
        # Engines that split sums by thread may differ in the last bits, and no more.
        spread = float(np.abs(features - again).max())
        if spread > 1e-3 * float(np.abs(features).max()):
            problem = Problem("not_repeatable", "the engine gave two answers for one frame")
    if problem is None:
        other = session.features(np.ascontiguousarray(frame[::-1]))
        if np.array_equal(features, other):
            problem = Problem("constant", "the engine's answer does not depend on the frame")
    if problem is not None:
        return SelfTest(problem, "definition", None, None)
    result = session.score(features)
    head = session.bundle.head
    # Every 3rd row meets both phases of a deconvolution, and spares a slow device seconds.
    logits = head.logits(head.channel_first(features))[:, ::_ROWS]
    expected = anomaly_score(
        logits,
        session.scorer,
        num_known=head.num_known,
        void_index=head.void_index,
        temperature=session.temperature,
    )
    error = _error(result.score[::_ROWS], expected, SCORE_TOLERANCE)
    worst = float(error.max())
    agreement = float(
        np.mean(result.class_map[::_ROWS] == class_map(logits, num_known=head.num_known))
    )
    if worst > 1 or agreement < CLASS_SHARE:
        problem = Problem(
            "head_differs",
            f"the head kernel differs from its definition (score {worst:.1f} times the "
            f"tolerance, {100 * agreement:.2f}% of the classes agree)",
        )
    return SelfTest(problem, "definition", worst, agreement)


def _against_stored(session: Session) -> SelfTest:
    stored = read_safetensors(session.bundle.path / GOLDEN)
    frame, classes = stored.get("frame"), stored.get("class_map")
    score = stored.get(f"score_{session.scorer}")
    shapes = [None if a is None else a.shape for a in (frame, classes)]
    fits = shapes == [(*session.size, 3), session.size]
    fits = fits and (score is None or score.shape == session.size)
    if frame is None or not fits or frame.dtype != np.uint8:
        unusable = Problem("golden_unusable", f"{GOLDEN} does not fit the bundle's frame")
        return SelfTest(unusable, "stored", None, None)
    result = session.run(frame)
    agreement = float(np.mean(result.class_map == classes))
    # At another temperature than the stored score's, the classes alone can be compared.
    default = session.bundle.scorer_defaults(session.scorer).temperature
    worst, near = None, 1.0
    if score is not None and session.temperature == default:
        error = _error(result.score, score, _GOLDEN_SCORE)
        worst, near = float(error.max()), float(np.mean(error <= 1))
    problem = None
    if agreement < _GOLDEN_PIXELS or near < _GOLDEN_PIXELS:
        problem = Problem(
            "golden_differs",
            f"{100 * agreement:.2f}% of the classes and {100 * near:.2f}% of the scores agree "
            "with what the bundle stored",
        )
    return SelfTest(problem, "stored", worst, agreement)


def _error(
    score: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: float
) -> npt.NDArray[np.float32]:
    wide, reference = np.asarray(score, np.float32), np.asarray(expected, np.float32)
    difference = np.abs(wide - reference) / (tolerance + tolerance * np.abs(reference))
    # NaN must not pass for agreement.
    out: npt.NDArray[np.float32] = np.nan_to_num(difference.astype(np.float32), nan=np.inf)
    return out
