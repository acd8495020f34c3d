"""The safe state: a result that nobody can take for a calm scene."""

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.runtime.opencv import opencv
from edgeseg.scoring.scorers import score_range

__all__ = ["SAFE_CLASS", "mark_missing", "mark_safe", "safe_maps", "top_score"]

SAFE_CLASS: Final = 255
"""Fills the class map in the safe state. No network has that class."""

_RED: Final = (40, 40, 220)
_STRIPE: Final = 48


def top_score(scorer: str, num_known: int) -> float:
    """The most anomalous value that ``scorer`` has, see :func:`score_range`."""
    return score_range(scorer, num_known)[1]


def safe_maps(
    size: tuple[int, int], scorer: str, num_known: int, dtype: npt.DTypeLike
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[Any]]:
    """Class map (:data:`SAFE_CLASS` everywhere) and score (its top everywhere), read-only
    ``[H, W]``.
    """
    class_map = np.full(size, SAFE_CLASS, np.uint8)
    score = np.full(size, top_score(scorer, num_known), dtype)
    class_map.flags.writeable = score.flags.writeable = False
    return class_map, score


def mark_safe(picture: npt.NDArray[np.uint8], reason: str = "") -> npt.NDArray[np.uint8]:
    """Draw over ``picture`` (uint8 BGR, changed in place) that it shows no result.

    Stripes and words, not a colour alone: colours mean classes and scores elsewhere.
    """
    cv2 = opencv()
    height, width = picture.shape[:2]
    step = max(16, min(_STRIPE, height // 4))
    stripes = picture.copy()
    for x in range(-height, width, 2 * step):
        corners = np.array(
            [[x, height], [x + step, height], [x + step + height, 0], [x + height, 0]]
        )
        cv2.fillConvexPoly(stripes, corners.astype(np.int32), _RED)
    cv2.addWeighted(stripes, 0.35, picture, 0.65, 0, dst=picture)
    cv2.rectangle(picture, (0, 0), (width - 1, height - 1), _RED, max(2, step // 8))
    words = "SAFE STATE: NO VALID RESULT"
    _centred(picture, words, height // 2, min(1.4, width / 520), 2)
    if reason:
        text = reason.encode("ascii", "replace").decode()
        _centred(picture, text, height // 2 + max(14, height // 12), min(0.55, width / 900), 1)
    return picture


def mark_missing(picture: npt.NDArray[np.uint8], words: str) -> npt.NDArray[np.uint8]:
    """Darken ``picture`` (uint8 BGR, changed in place) and write on it why it has no result."""
    np.multiply(picture, 0.5, out=picture, casting="unsafe")
    height, width = picture.shape[:2]
    _centred(picture, words, height // 2, min(1.0, width / 640), 2)
    return picture


def _centred(
    picture: npt.NDArray[np.uint8], text: str, y: int, size: float, thickness: int
) -> None:
    cv2 = opencv()
    font = cv2.FONT_HERSHEY_SIMPLEX
    (drawn, height), _ = cv2.getTextSize(text, font, size, thickness)
    width = picture.shape[1]
    if drawn > width - 16:
        size *= (width - 16) / drawn
        (drawn, height), _ = cv2.getTextSize(text, font, size, thickness)
    left, pad = max(0, (width - drawn) // 2), max(3, height // 2)
    low = (max(0, left - pad), max(0, y - height - pad))
    cv2.rectangle(picture, low, (left + drawn + pad, y + pad), (0, 0, 0), cv2.FILLED)
    cv2.putText(picture, text, (left, y), font, size, (255, 255, 255), thickness, cv2.LINE_AA)
