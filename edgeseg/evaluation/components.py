"""Component metrics of SegmentMeIfYouCan: how well each object is found, whatever its size.

Chan et al. 2021, "SegmentMeIfYouCan: A Benchmark for Anomaly Segmentation", section 3.2. With
``K`` the connected components (8-neighbourhood) of the anomalous label pixels and ``K'`` those of
the predicted ones:

- ``K'(k)``: union of the predicted components that touch ``k``;
  ``A(k)``: pixels of the other components of ``K``;
- sIoU(k) = |k and K'(k)| / |(k or K'(k)) without A(k)|;
- PPV(k') = |k' and K(k')| / |k'|, the share of a prediction that lies on anomalies;
- at a threshold tau: TP = components with sIoU >= tau, FN the others, FP = predicted components
  with PPV < tau, F1 = 2 TP / (2 TP + FN + FP); reported is the mean F1 over tau = 0.25, 0.30 ...
  0.75.

As in the benchmark's published evaluation: pixels are predicted anomalous from the score on that
maximizes the pixel-wise F1 over the whole set; ignored pixels are never predicted; predicted
components below a minimum size are dropped; label components below a smaller minimum are ignored
together with what is predicted on them.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from edgeseg.errors import MissingDependencyError

__all__ = ["ComponentMetric", "MinimumSizes", "minimum_sizes"]

UInt8 = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

TAUS: Final = tuple(t / 100 for t in range(25, 80, 5))


@dataclass(frozen=True, slots=True)
class MinimumSizes:
    """Smallest components that count, in pixels of the original frame."""

    predicted: int
    labelled: int

    def scaled(self, factor: float) -> "MinimumSizes":
        """The same at another resolution; ``factor`` is the ratio of the areas."""
        return MinimumSizes(round(self.predicted * factor), round(self.labelled * factor))


# The benchmark's values for its two tracks; its obstacle track, LostAndFound included, holds
# objects that are a few pixels large.
_ANOMALY_TRACK: Final = MinimumSizes(predicted=500, labelled=100)
_OBSTACLE_TRACK: Final = MinimumSizes(predicted=50, labelled=10)
_OBSTACLE_SETS: Final = ("obstacle", "obsticle", "lostfound", "lostandfound")


def minimum_sizes(dataset: str) -> MinimumSizes:
    """What the benchmark uses for a data set of this name.

    50 / 10 pixels on obstacle sets, 500 / 100 elsewhere.
    """
    name = dataset.lower().replace("_", "")
    return _OBSTACLE_TRACK if any(part in name for part in _OBSTACLE_SETS) else _ANOMALY_TRACK


class ComponentMetric:
    """sIoU, PPV and mean F1 over any number of frames.

    Keeps two numbers per component and no pixels, so parts merge, and means are summed exactly
    (``math.fsum``), so they do not depend on the order of the parts.
    """

    def __init__(self) -> None:
        self.siou: list[float] = []
        """One per labelled component."""
        self.ppv: list[float] = []
        """One per predicted component."""

    def update(self, predicted: npt.NDArray[np.bool_], label: UInt8, sizes: MinimumSizes) -> None:
        """Add a frame.

        Args:
            predicted: bool ``[h, w]``, pixels predicted anomalous.
            label: uint8 ``[h, w]``; 1 anomalous, 0 in-distribution, others ignored.
            sizes: minimum sizes in pixels of this frame.
        """
        inside = (label == 0) | (label == 1)
        truth, truth_count = _connected(label == 1)
        guess, guess_count = _connected(predicted & inside)
        truth_size = np.bincount(truth.ravel(), minlength=truth_count + 1)
        guess_size = np.bincount(guess.ravel(), minlength=guess_count + 1)
        guess[guess_size[guess] < sizes.predicted] = 0
        small = truth_size < sizes.labelled
        small[0] = False
        inside &= ~small[truth]

        # Everything else follows from how many pixels each pair of components shares.
        t, g = truth[inside].astype(np.int64), guess[inside].astype(np.int64)
        pairs, shared = np.unique(t * (guess_count + 1) + g, return_counts=True)
        pair_truth, pair_guess = np.divmod(pairs, guess_count + 1)
        guess_total = _sum_by(pair_guess, shared, guess_count + 1)
        truth_total = _sum_by(pair_truth, shared, truth_count + 1)
        on_truth = _sum_by(pair_guess, np.where(pair_truth > 0, shared, 0), guess_count + 1)

        for k in np.flatnonzero(truth_total[1:]) + 1:
            touching = pair_guess[(pair_truth == k) & (pair_guess > 0)]
            hit = int(shared[(pair_truth == k) & (pair_guess > 0)].sum())
            # |K'(k)| without the pixels that lie on other labelled components.
            on_others = int(on_truth[touching].sum()) - hit
            union = int(guess_total[touching].sum()) + int(truth_total[k]) - hit - on_others
            self.siou.append(hit / union)
        for k in np.flatnonzero(guess_total[1:]) + 1:
            self.ppv.append(int(on_truth[k]) / int(guess_total[k]))

    def merge(self, other: "ComponentMetric") -> None:
        """Add the components of ``other``."""
        self.siou += other.siou
        self.ppv += other.ppv

    def mean_siou(self) -> float | None:
        """Mean sIoU over the labelled components, 0 .. 1; ``None`` without any."""
        return math.fsum(self.siou) / len(self.siou) if self.siou else None

    def mean_ppv(self) -> float | None:
        """Mean PPV over the predicted components, 0 .. 1; ``None`` without any."""
        return math.fsum(self.ppv) / len(self.ppv) if self.ppv else None

    def f1(self, tau: float) -> float | None:
        """F1 at one threshold of sIoU and PPV, 0 .. 1; ``None`` without components."""
        tp = sum(value >= tau for value in self.siou)
        wrong = len(self.siou) - tp + sum(value < tau for value in self.ppv)
        return 2 * tp / (2 * tp + wrong) if tp + wrong else None

    def mean_f1(self) -> float | None:
        """Mean of :meth:`f1` over tau = 0.25, 0.30 ... 0.75; ``None`` without components."""
        values = [value for tau in TAUS if (value := self.f1(tau)) is not None]
        return math.fsum(values) / len(values) if values else None


def _connected(mask: npt.NDArray[np.bool_]) -> tuple[Labels, int]:
    """Components of the 8-neighbourhood, 0 the background, and how many there are."""
    try:
        import cv2
    except ImportError:
        raise MissingDependencyError(
            "component metrics need OpenCV; 'pip install opencv-python-headless' installs it, or "
            "leave out --components"
        ) from None
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return np.asarray(labels, dtype=np.int32), count - 1


def _sum_by(index: Int64, values: npt.NDArray[Any], length: int) -> Int64:
    total = np.zeros(length, dtype=np.int64)
    np.add.at(total, index, values)
    return total
