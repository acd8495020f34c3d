"""ROC and precision-recall curves as a short list of their thresholds."""

from typing import Any, Final

import numpy as np

from edgeseg.evaluation.metrics import Curve

__all__ = ["MAX_POINTS", "curve_document"]

MAX_POINTS: Final = 200
_BY_RECALL: Final = 120
_BY_FALSE_POSITIVES: Final = 70


def curve_document(curve: Curve, level: float = 0.95) -> dict[str, Any] | None:
    """At most 200 of a curve's thresholds, the strictest first; ``None`` without both classes.

    They are evenly spaced in recall, and denser towards few false positives. The first and the last
    threshold, that of the largest F1 and that of the false positive rate at ``level`` are among
    them. What is kept is exact but for the sixth digit.

    Returns:
        ``positives`` and ``negatives``, pixels; ``threshold`` (``None`` where it is not finite),
        ``recall_percent``, ``fpr_percent`` and ``precision_percent``, a list each.
    """
    if not curve.positives or not curve.negatives:
        return None
    recalls = np.linspace(0, curve.positives, _BY_RECALL)
    rates = curve.negatives * np.linspace(0, 1, _BY_FALSE_POSITIVES) ** 3
    last = curve.thresholds.size - 1
    chosen = np.concatenate(
        [
            np.searchsorted(curve.true_positives, recalls),
            np.searchsorted(curve.false_positives, rates),
            [0, last, int(np.argmax(curve.recall >= level)), int(np.argmax(curve.f1))],
        ]
    )
    at = np.unique(np.minimum(chosen, last))
    return {
        "positives": curve.positives,
        "negatives": curve.negatives,
        "threshold": [_short(v) for v in curve.thresholds[at]],
        "recall_percent": [_short(100 * v) for v in curve.recall[at]],
        "fpr_percent": [_short(100 * v) for v in curve.false_positive_rate[at]],
        "precision_percent": [_short(100 * v) for v in curve.precision[at]],
    }


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if np.isfinite(value) else None
