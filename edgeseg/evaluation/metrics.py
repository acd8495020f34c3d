"""Pixel metrics as mergeable counts: AuPRC, FPR95 and mIoU in bounded memory.

Nothing here keeps a pixel. :class:`AnomalyMetric` counts scores in bins, :class:`ConfusionMatrix`
counts label pairs, so the counts of two parts of a data set add up to those of the whole, and the
figures of the sum are the figures of the whole to the last bit.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.errors import ArtefactError
from edgeseg.scoring import kernels

__all__ = ["AnomalyMetric", "ConfusionMatrix", "Curve", "keys_from_scores", "score_from_key"]

Int64 = npt.NDArray[np.int64]
Float64 = npt.NDArray[np.float64]
UInt32 = npt.NDArray[np.uint32]

NUM_KEYS: Final = 1 << 24
_CHUNK: Final = 1 << 20
# -0.0 (and negative numbers closer to zero than 4e-43) fall into the bin below zero's own.
_KEY_MINUS_ZERO: Final = 0x7FFFFF
_KEY_ZERO: Final = 0x800000
_UINT32_MAX: Final = 0xFFFFFFFF


def keys_from_scores(scores: npt.ArrayLike) -> UInt32:
    """Order-preserving 24-bit key of each score; a larger score never has a smaller key.

    The float32 pattern with its sign bit flipped (positive numbers) or all bits flipped (negative
    numbers) sorts as an unsigned integer; its upper 24 bits are the key. NaN gets the largest key:
    a broken network must not look calm.
    """
    values = np.asarray(scores).astype(np.float32)  # a copy: it is changed in place
    np.copyto(values, np.float32(np.inf), where=np.isnan(values))
    bits = values.view(np.uint32)
    flip = (bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(0x80000000)
    keys = (bits ^ flip) >> np.uint32(8)
    keys[keys == _KEY_MINUS_ZERO] = _KEY_ZERO
    return np.asarray(keys, dtype=np.uint32)


def score_from_key(keys: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """Smallest float32 score of each key's bin.

    The scores that are not below it are those whose key is at least this one.
    """
    raw = np.asarray(keys, dtype=np.uint32) << np.uint32(8)
    positive = raw & np.uint32(0x80000000) != 0
    bits = np.where(positive, raw ^ np.uint32(0x80000000), ~raw)
    scores = np.ascontiguousarray(bits, dtype=np.uint32).view(np.float32)
    # The bin of -inf starts among patterns of NaN, which no score has.
    return np.asarray(np.where(np.isnan(scores), -np.inf, scores), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Curve:
    """Counts at every distinct threshold, from the strictest (largest) downwards.

    ``true_positives[i]`` and ``false_positives[i]`` are the pixels with a score of at least
    ``thresholds[i]``; all arrays are ``[n]``.
    """

    thresholds: npt.NDArray[np.float32]
    true_positives: Int64
    false_positives: Int64
    positives: int
    negatives: int

    @property
    def recall(self) -> Float64:
        """True positive rate, TP / P, in 0 .. 1."""
        return np.asarray(self.true_positives / max(self.positives, 1))

    @property
    def false_positive_rate(self) -> Float64:
        """FP / N, in 0 .. 1."""
        return np.asarray(self.false_positives / max(self.negatives, 1))

    @property
    def precision(self) -> Float64:
        """TP / (TP + FP), in 0 .. 1."""
        return np.asarray(
            self.true_positives / np.maximum(self.true_positives + self.false_positives, 1)
        )

    @property
    def f1(self) -> Float64:
        """2 TP / (2 TP + FP + FN), in 0 .. 1."""
        selected = self.true_positives + self.false_positives
        return np.asarray(2 * self.true_positives / np.maximum(selected + self.positives, 1))


class AnomalyMetric:
    """AuPRC and FPR95 of an anomaly score over any number of pixels.

    Scores are counted by the upper 24 bits of their float32 pattern (sign, exponent, 15 bits of
    mantissa; :func:`keys_from_scores`). A float16 score, the form in which scores leave the
    network by default, fits into them without loss, so its figures are exact. Float32 scores that
    agree in those 24 bits, that is within 2^-15 of their size, are one threshold.

    Memory does not grow with the number of pixels: at most 128 MB of counters, of which only the
    pages that scores fall into are ever touched (for a softmax score a few megabytes).

    >>> metric = AnomalyMetric()
    >>> metric.update([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0])
    >>> metric.auprc(), metric.fpr95()
    (0.8333333333333333, 0.5)
    """

    def __init__(self, threads: int | None = None) -> None:
        """``threads``: how many the native counter uses; by default every core."""
        self._threads = threads
        self._dense: tuple[UInt32, UInt32] | None = None
        self._pending = 0
        self._keys = np.zeros(0, dtype=np.uint32)
        self._positive: Int64 = np.zeros(0, dtype=np.int64)
        self._negative: Int64 = np.zeros(0, dtype=np.int64)
        self._add = _native_histogram() or _numpy_histogram

    def update(self, score: npt.ArrayLike, label: npt.ArrayLike) -> None:
        """Count the pixels of a frame.

        Args:
            score: floating point, any shape; larger is more anomalous. NaN counts as the largest.
            label: the same shape; 1 anomalous, 0 in-distribution, every other value is skipped.
        """
        scores, labels = np.asarray(score), np.asarray(label)
        if scores.shape != labels.shape:
            raise ValueError(f"scores {scores.shape} and labels {labels.shape} differ in shape")
        if scores.dtype not in (np.float16, np.float32):
            scores = scores.astype(np.float32)
        scores = np.ascontiguousarray(scores).reshape(-1)
        if labels.dtype != np.uint8:
            labels = np.where(labels == 1, 1, np.where(labels == 0, 0, 255))
        labels = np.ascontiguousarray(labels, dtype=np.uint8).reshape(-1)
        for start in range(0, scores.size, _UINT32_MAX):
            part = slice(start, start + _UINT32_MAX)
            self._count(scores[part], labels[part])

    def merge(self, other: "AnomalyMetric") -> None:
        """Add the counts of ``other``, as if its pixels had been given to this one."""
        other._fold()
        self._fold()
        self._insert(other._keys, other._positive, other._negative)

    @property
    def positives(self) -> int:
        """Anomalous pixels counted."""
        self._fold()
        return int(self._positive.sum())

    @property
    def negatives(self) -> int:
        """In-distribution pixels counted."""
        self._fold()
        return int(self._negative.sum())

    def curve(self) -> Curve:
        """Counts at every distinct threshold, the largest first."""
        self._fold()
        tp = np.cumsum(self._positive[::-1])
        fp = np.cumsum(self._negative[::-1])
        return Curve(
            thresholds=score_from_key(self._keys[::-1]),
            true_positives=tp,
            false_positives=fp,
            positives=int(tp[-1]) if tp.size else 0,
            negatives=int(fp[-1]) if fp.size else 0,
        )

    def auprc(self) -> float | None:
        """Average precision, sum over thresholds n of (R_n - R_{n-1}) P_n, in 0 .. 1.

        Tied scores are one threshold and nothing is interpolated, as in scikit-learn's
        ``average_precision_score``. ``None`` where no pixel is anomalous.
        """
        curve = self.curve()
        if curve.positives == 0:
            return None
        gained = np.diff(curve.true_positives, prepend=0)
        return float((gained * curve.precision).sum() / curve.positives)

    def fpr95(self, level: float = 0.95) -> float | None:
        """False positive rate at the first threshold whose true positive rate reaches ``level``.

        Not interpolated. ``None`` where no pixel is anomalous or all are.
        """
        curve = self.curve()
        if curve.positives == 0 or curve.negatives == 0:
            return None
        return float(curve.false_positive_rate[int(np.argmax(curve.recall >= level))])

    def best_f1_threshold(self) -> float | None:
        """Score from which on pixels are to be called anomalous for the largest F1 over all pixels.

        The larger score where two tie; ``None`` where no pixel is anomalous.
        """
        curve = self.curve()
        if curve.positives == 0:
            return None
        return float(curve.thresholds[int(np.argmax(curve.f1))])

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """The occupied bins, ``[n]`` each.

        ``keys`` uint32 ascending, ``positive`` and ``negative`` int64.
        """
        self._fold()
        return {"keys": self._keys, "positive": self._positive, "negative": self._negative}

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[Any]]) -> "AnomalyMetric":
        """Inverse of :meth:`state`; ArtefactError where it is not one."""
        metric = cls()
        try:
            keys, positive, negative = (state[k] for k in ("keys", "positive", "negative"))
        except KeyError as error:
            raise ArtefactError(f"the metric state lacks {error}; write it again") from None
        valid = (
            keys.dtype == np.uint32
            and positive.dtype == np.int64 == negative.dtype
            and keys.ndim == 1
            and keys.shape == positive.shape == negative.shape
            and bool((np.diff(keys.astype(np.int64)) > 0).all())
            and (keys.size == 0 or int(keys[-1]) < NUM_KEYS)
            and bool((positive >= 0).all() and (negative >= 0).all())
        )
        if not valid:
            raise ArtefactError("the metric state does not hold ascending keys with their counts")
        metric._insert(keys, positive, negative)
        return metric

    def _count(self, scores: npt.NDArray[Any], labels: npt.NDArray[np.uint8]) -> None:
        if self._pending + scores.size > _UINT32_MAX:
            self._fold()  # before a 32-bit counter could overflow
        if self._dense is None:
            # calloc: pages without a score never become real memory.
            self._dense = (np.zeros(NUM_KEYS, np.uint32), np.zeros(NUM_KEYS, np.uint32))
        if np.isnan(scores).any():
            scores = np.where(np.isnan(scores), scores.dtype.type(np.inf), scores)
        self._add(scores, labels, *self._dense, self._threads)
        self._pending += scores.size

    def _fold(self) -> None:
        """Move the dense counters into the sparse ones."""
        if self._dense is None or self._pending == 0:
            return
        keys, positive, negative = [], [], []
        for start in range(0, NUM_KEYS, _CHUNK):
            pos, neg = (a[start : start + _CHUNK] for a in self._dense)
            at = np.flatnonzero(pos | neg)
            if at.size:
                keys.append((at + start).astype(np.uint32))
                positive.append(pos[at].astype(np.int64))
                negative.append(neg[at].astype(np.int64))
        self._dense = None
        self._pending = 0
        if keys:
            self._insert(np.concatenate(keys), np.concatenate(positive), np.concatenate(negative))

    def _insert(self, keys: UInt32, positive: Int64, negative: Int64) -> None:
        keys = np.where(keys == _KEY_MINUS_ZERO, np.uint32(_KEY_ZERO), keys)
        merged, where = np.unique(np.concatenate([self._keys, keys]), return_inverse=True)
        sums = []
        for old, new in ((self._positive, positive), (self._negative, negative)):
            total = np.zeros(merged.size, dtype=np.int64)
            np.add.at(total, where, np.concatenate([old, new]))
            sums.append(total)
        self._keys, self._positive, self._negative = merged, sums[0], sums[1]


class ConfusionMatrix:
    """Pixels by true and predicted class; mIoU over the classes that occur in the labels."""

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.counts: Int64 = np.zeros((num_classes, num_classes), dtype=np.int64)
        """``[num_classes, num_classes]``, row = label, column = prediction."""

    def update(self, prediction: npt.ArrayLike, label: npt.ArrayLike) -> None:
        """Count a frame.

        Labels of ``num_classes`` and above (255, ignore) are skipped; predictions must lie below
        ``num_classes``.
        """
        predicted, labels = np.asarray(prediction), np.asarray(label)
        if predicted.shape != labels.shape:
            raise ValueError(
                f"prediction {predicted.shape} and labels {labels.shape} differ in shape"
            )
        inside = labels < self.num_classes
        found = predicted[inside].astype(np.int64)
        if found.size and int(found.max()) >= self.num_classes:
            raise ValueError(f"predicted class {int(found.max())} of {self.num_classes}")
        pairs = labels[inside].astype(np.int64) * self.num_classes + found
        counts = np.bincount(pairs, minlength=self.num_classes**2)
        self.counts += counts.reshape(self.counts.shape)

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add the counts of ``other``."""
        if other.num_classes != self.num_classes:
            raise ArtefactError(
                f"a confusion matrix of {other.num_classes} classes cannot be added to one of "
                f"{self.num_classes}; merge parts of the same evaluation"
            )
        self.counts += other.counts

    def iou(self) -> list[float | None]:
        """Intersection over union per class, in 0 .. 1; ``None`` where no label holds the class."""
        hit = np.diag(self.counts)
        labelled = self.counts.sum(axis=1)
        union = labelled + self.counts.sum(axis=0) - hit
        return [float(hit[c] / union[c]) if labelled[c] else None for c in range(self.num_classes)]

    def miou(self) -> float | None:
        """Mean of :meth:`iou` over the classes that occur in the labels; ``None`` without any."""
        present = [value for value in self.iou() if value is not None]
        return sum(present) / len(present) if present else None

    @classmethod
    def from_counts(cls, counts: npt.NDArray[Any]) -> "ConfusionMatrix":
        """From :attr:`counts`; ArtefactError where they are not a square of counts."""
        if counts.ndim != 2 or counts.shape[0] != counts.shape[1] or counts.dtype != np.int64:
            raise ArtefactError("the confusion matrix in the metric state is not a square of int64")
        if (counts < 0).any():
            raise ArtefactError("the confusion matrix in the metric state has negative counts")
        matrix = cls(counts.shape[0])
        matrix.counts += counts
        return matrix


_Histogram = Callable[[npt.NDArray[Any], npt.NDArray[np.uint8], UInt32, UInt32, int | None], None]


def _native_histogram() -> _Histogram | None:
    return kernels.score_histogram if kernels.available() else None


def _numpy_histogram(
    scores: npt.NDArray[Any],
    labels: npt.NDArray[np.uint8],
    positive: UInt32,
    negative: UInt32,
    threads: int | None,
) -> None:
    """What the native counter does, in numpy and on one thread."""
    del threads
    for start in range(0, scores.size, _CHUNK):
        part = slice(start, start + _CHUNK)
        keys = keys_from_scores(scores[part])
        np.add.at(positive, keys[labels[part] == 1], np.uint32(1))
        np.add.at(negative, keys[labels[part] == 0], np.uint32(1))
