"""The definition of every anomaly score, in numpy.

The ONNX head, the native kernel and the CUDA kernel are tested against this module. With logits
``f`` (one vector per pixel), ``K`` the known classes, ``T`` the temperature and
``p = softmax(f / T)``:

========  =================================  ==================================================
msp       1 - max over K of p_c              Hendrycks & Gimpel 2017, "A Baseline for Detecting
                                             Misclassified and Out-of-Distribution Examples in
                                             Neural Networks", section 2; with T != 1 Liang, Li
                                             & Srikant 2018 (ODIN), equation 1
maxlogit  -max over K of f_c                 Hendrycks et al. 2022, "Scaling Out-of-Distribution
                                             Detection for Real-World Settings", section 3
entropy   -sum over K of p_c log p_c         Chan, Rottmann & Gottschalk 2021, "Entropy
                                             Maximization and Meta Classification for
                                             Out-of-Distribution Detection in Semantic
                                             Segmentation", equation 4, in nats, not divided
                                             by log |K|
void      softmax over K and void, at void   Blum et al. 2021, "The Fishyscapes Benchmark",
                                             section 4.2 (void classifier)
energy    -T logsumexp over K of f / T       Liu et al. 2020, "Energy-based Out-of-distribution
                                             Detection", equation 4
========  =================================  ==================================================

In all but ``void`` the softmax runs over the known classes alone. A larger score is more
anomalous. ``maxlogit`` does not depend on the temperature.

A pixel with any logit that is not finite, the void output included, gets the largest score of
its scorer: a broken network must never look like a calm scene. Scores are clamped to the finite
range of float16, in which they leave by default.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

from edgeseg.errors import UsageError

__all__ = [
    "FLOAT16_MAX",
    "SCORERS",
    "anomaly_score",
    "anomaly_scores",
    "class_map",
    "score_range",
    "valid_scorers",
]

Float32 = npt.NDArray[np.float32]

SCORERS: Final[tuple[str, ...]] = ("msp", "maxlogit", "entropy", "void", "energy")
FLOAT16_MAX: Final = 65504.0


def valid_scorers(void_index: int | None) -> tuple[str, ...]:
    """Scorers that a network has: all of them, or all but ``void`` without a void output."""
    return SCORERS if void_index is not None else tuple(s for s in SCORERS if s != "void")


def score_range(scorer: str, num_known: int) -> tuple[float, float]:
    """Smallest and largest value that ``scorer`` can give in float16, the most anomalous last."""
    _check_scorer(scorer)
    if scorer == "msp":
        return 0.0, 1.0
    if scorer == "void":
        return 0.0, 1.0
    if scorer == "entropy":
        return 0.0, float(np.log(num_known))
    return -FLOAT16_MAX, FLOAT16_MAX


def anomaly_score(
    logits: npt.ArrayLike,
    scorer: str,
    *,
    num_known: int,
    void_index: int | None = None,
    temperature: float = 1.0,
) -> Float32:
    """Pixel-wise anomaly score, larger is more anomalous.

    Args:
        logits: ``[C, ...]`` (class axis first), the known classes at 0 .. ``num_known`` - 1.
        scorer: one of :data:`SCORERS`.
        num_known: how many of the first channels are known classes.
        void_index: channel of the void output, or ``None`` where the network has none.
        temperature: ``T`` > 0.

    Returns:
        float32 of shape ``logits.shape[1:]``; see :func:`score_range` for its range.

    Raises:
        UsageError: unknown scorer, ``void`` without a void output, or a temperature that is not
            a positive number.

    >>> float(anomaly_score([[0.0], [0.0]], "msp", num_known=2)[0])
    0.5
    """
    _check_scorer(scorer)
    if not (np.isfinite(temperature) and temperature > 0):
        raise UsageError(f"temperature {temperature} is not a positive number")
    f = np.asarray(logits, dtype=np.float32)
    broken = ~np.isfinite(f).all(axis=0)
    # float64 inside: the definition should not carry rounding of its own.
    wide = np.where(broken, 0.0, f).astype(np.float64)
    known = wide[:num_known]
    if scorer == "maxlogit":
        score = -known.max(axis=0)
    elif scorer == "void":
        if void_index is None:
            raise UsageError(
                "scorer 'void' needs a network with a void output, and this one has none; "
                "choose msp, maxlogit, entropy or energy"
            )
        both = np.concatenate([known, wide[void_index : void_index + 1]])
        score = _softmax(both / temperature)[-1]
    elif scorer == "energy":
        scaled = known / temperature
        peak = scaled.max(axis=0)
        score = -temperature * (peak + np.log(np.exp(scaled - peak).sum(axis=0)))
    else:
        p = _softmax(known / temperature)
        if scorer == "msp":
            # 1 - max p as the sum of the others: no cancellation where the network is sure.
            score = p.sum(axis=0) - p.max(axis=0)
            score = np.maximum(score, 0.0)
        else:
            score = -(p * np.log(np.where(p > 0, p, 1.0))).sum(axis=0)
    low, high = score_range(scorer, num_known)
    score = np.where(broken, high, np.clip(score, low, high))
    return score.astype(np.float32)


def anomaly_scores(
    logits: npt.ArrayLike,
    scorers: tuple[str, ...],
    *,
    num_known: int,
    void_index: int | None = None,
    temperature: float = 1.0,
) -> dict[str, Float32]:
    """:func:`anomaly_score` for several scorers of the same logits."""
    return {
        name: anomaly_score(
            logits, name, num_known=num_known, void_index=void_index, temperature=temperature
        )
        for name in scorers
    }


def class_map(logits: npt.ArrayLike, *, num_known: int) -> npt.NDArray[np.uint8]:
    """Index of the largest known logit, uint8 of shape ``logits.shape[1:]``.

    The void output never appears in it. The first of equal logits wins; a logit that is NaN
    never does (0 where all are).
    """
    known = np.asarray(logits, dtype=np.float32)[:num_known]
    ranked = np.where(np.isnan(known), -np.inf, known)
    return np.asarray(ranked.argmax(axis=0), dtype=np.uint8)


def _softmax(f: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    e = np.exp(f - f.max(axis=0))
    return np.asarray(e / e.sum(axis=0))


def _check_scorer(scorer: str) -> None:
    if scorer not in SCORERS:
        raise UsageError(f"scorer '{scorer}' is unknown; choose one of {', '.join(SCORERS)}")
