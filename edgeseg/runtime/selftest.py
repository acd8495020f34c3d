"""Before the first frame: does this machine compute what the bundle was made to compute?"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.errors import ArtefactError
from edgeseg.runtime.deadline import Problem
from edgeseg.runtime.golden import GOLDEN, check_golden
from edgeseg.runtime.golden_frame import golden_frame
from edgeseg.runtime.health import check_features
from edgeseg.runtime.session import Session
from edgeseg.scoring.scorers import anomaly_score, class_map

__all__ = ["CLASS_SHARE", "SCORE_TOLERANCE", "SelfTest", "self_test"]

SCORE_TOLERANCE: Final = 2e-3
"""Of the head against the definition in numpy, absolute plus relative: two float16 steps."""
CLASS_SHARE: Final = 0.999
"""Pixels whose class must agree with the definition; ties of float32 rounding are the rest."""
_ROWS: Final = 3


@dataclass(frozen=True, slots=True)
class SelfTest:
    """What the self-test found."""

    problem: Problem | None
    """``None``: passed."""
    reference: str
    """``stored``, or ``definition``: the head's in numpy, on the engine's own features."""
    score_error: float | None
    """Against the definition, the largest difference of a score in units of ``tolerance +
    tolerance * |score|``; against stored outputs, see :class:`edgeseg.runtime.golden.Agreement`.
    """
    class_agreement: float | None
    """Share of the pixels with the same class."""


def self_test(session: Session) -> SelfTest:
    """Run one frame and compare.

    A bundle with golden outputs is held against them (:mod:`edgeseg.runtime.golden`). Without
    them the engine is only shown to give finite features that depend on the frame and are the
    same twice, and the head is held against its definition. Whatever the engine raises is a
    problem that the test found.
    """
    stored = GOLDEN in session.bundle.manifest.files
    try:
        return _against_stored(session) if stored else _against_definition(session)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        problem = Problem("engine_error", f"the engine failed ({text})")
        return SelfTest(problem, "stored" if stored else "definition", None, None)


def _against_definition(session: Session) -> SelfTest:
    frame = golden_frame(*session.size)
    first = session.features(frame).copy()
    problem = check_features(first)
    other = session.features(np.ascontiguousarray(frame[::-1]))
    if problem is None and np.array_equal(first, other):
        problem = Problem("constant", "the engine's answer does not depend on the frame")
    # What is scored stays where the engine left it: only then the session's own head runs.
    features = session.features(frame)
    if problem is None and not np.array_equal(first, features):
        # Engines that split sums by thread may differ in the last bits, and no more.
        spread = float(np.abs(first - features).max())
        if not spread <= 1e-3 * float(np.abs(first).max()):
            problem = Problem("not_repeatable", "the engine gave two answers for one frame")
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
    try:
        found = check_golden(session)
    except ArtefactError as error:
        return SelfTest(Problem("golden_unusable", str(error)), "stored", None, None)
    problem = None if found.passed else Problem("golden_differs", found.text())
    return SelfTest(problem, "stored", found.worst_score, found.equal_classes)


def _error(
    score: npt.NDArray[Any], expected: npt.NDArray[Any], tolerance: float
) -> npt.NDArray[np.float32]:
    wide, reference = np.asarray(score, np.float32), np.asarray(expected, np.float32)
    difference = np.abs(wide - reference) / (tolerance + tolerance * np.abs(reference))
    # NaN must not pass for agreement.
    out: npt.NDArray[np.float32] = np.nan_to_num(difference.astype(np.float32), nan=np.inf)
    return out
