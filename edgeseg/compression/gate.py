"""The accuracy gate: what INT8 may cost, and whether it does.

On labelled data it looks at mIoU and at AuPRC and FPR95 of every scorer that the network has, the
float32 body against the INT8 one on the same engine, with float32 scores. Without labels it looks
at the change of scores on calibration frames (:mod:`edgeseg.compression.label_free`), which must
stay below that of a given noise in the picture: a set of thirty frames can be met by chance, ten
million pixels cannot.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeseg.compression.gate_data import Kept
from edgeseg.compression.label_free import Reference, ScoreChange
from edgeseg.compression.noise import add_noise
from edgeseg.errors import InputError
from edgeseg.evaluation.evaluate import Prediction, SessionPredictor, evaluate
from edgeseg.evaluation.state import EvaluationState, ScorerSpec
from edgeseg.runtime.session import Session

__all__ = ["Figure", "Gate", "Verdict"]

_GAIN: Final = {"auprc_percent": 1, "fpr95_percent": -1, "miou_percent": 1}
_NAMES: Final = {"auprc_percent": "AuPRC", "fpr95_percent": "FPR95", "miou_percent": "mIoU"}

UInt8 = npt.NDArray[np.uint8]
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure before and after, in percent."""

    dataset: str
    scorer: str | None
    """``None`` for mIoU."""
    name: str
    """``auprc_percent``, ``fpr95_percent`` or ``miou_percent``."""
    before: float
    after: float

    @property
    def drop(self) -> float:
        """By how many points it became worse."""
        return _GAIN[self.name] * (self.before - self.after)

    def __str__(self) -> str:
        scorer = f" {self.scorer}" if self.scorer else ""
        return f"{self.dataset}{scorer} {_NAMES[self.name]} {self.before:.2f} -> {self.after:.2f}"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate says about one variant."""

    figures: tuple[Figure, ...]
    change: ScoreChange
    limit: ScoreChange | None
    """Of ``change``; ``None`` where there is none."""
    max_drop: float
    complete: bool = True
    """Whether every set was looked at; a search stops at the first one that fails."""

    @property
    def excess(self) -> float:
        """By how many times the worst figure is beyond what is allowed; at most 1 where it holds.

        What is allowed are ``max_drop`` points, or ``limit``.
        """
        return max([self._figure_excess(f) for f in self.figures] + [self._change_excess()])

    @property
    def holds(self) -> bool:
        """Whether every figure is within its limit."""
        change = self.limit is None or all(
            value <= self.limit.values[name] for name, value in self.change.values.items()
        )
        return change and all(f.drop <= self.max_drop for f in self.figures)

    @property
    def worst_figure(self) -> Figure | None:
        """The figure that lost most; ``None`` where none was measured."""
        return max(self.figures, key=lambda f: f.drop, default=None)

    @property
    def worst(self) -> str:
        """What is furthest beyond its limit, in words."""
        figure, limit = self.worst_figure, self.limit
        # Without a limit there is nothing to be beyond, though every figure became better.
        if limit is not None and (
            figure is None or self._change_excess() > self._figure_excess(figure)
        ):
            name = max(self.change.values, key=self._ratio)
            return (
                f"{name.replace('_', ' ')} on calibration frames changes by "
                f"{self.change.values[name]:.2f}, allowed are {limit.values[name]:.2f}"
            )
        if figure is None:
            return "nothing was measured"
        return f"{figure} ({figure.drop:+.2f} points worse, allowed are {self.max_drop:g})"

    def _figure_excess(self, figure: Figure) -> float:
        return figure.drop / max(self.max_drop, 1e-9)

    def _change_excess(self) -> float:
        return max((self._ratio(name) for name in self.change.values), default=0.0)

    def _ratio(self, name: str) -> float:
        if self.limit is None:
            return 0.0
        return self.change.values[name] / max(self.limit.values[name], 1e-12)


class Gate:
    """Judges sessions against the float network.

    Args:
        session: of the float body; used here only, and not kept.
        datasets: to measure on.
        reference: of the float network, for the measure without labels.
        max_drop: points that a figure may lose.
        limit: of the change of scores; ``None``: none.
        progress: is told what is being done.

    Raises:
        InputError: a set that gives no figure.
    """

    def __init__(
        self,
        session: Session,
        datasets: Sequence[Kept],
        reference: Reference,
        max_drop: float,
        limit: ScoreChange | None,
        progress: Progress = lambda _: None,
    ) -> None:
        self._datasets = list(datasets)
        self.max_drop = max_drop
        self.limit = limit
        self.reference = reference
        defaults = session.bundle.manifest.scorers
        self._specs = [ScorerSpec(name, d.temperature) for name, d in defaults.items()]
        self._before: dict[str, Mapping[tuple[str | None, str], float]] = {}
        self.frames: dict[str, int] = {}
        """How many frames of each set count, in the order of the sets."""
        for dataset in self._datasets:
            progress(f"measuring float32 on {dataset.name}")
            state = self._evaluate(SessionPredictor(session), dataset)
            self._before[dataset.name] = _figures_of(state)
            if not self._before[dataset.name]:
                raise InputError(
                    f"gate data '{dataset.name}' gives nothing to judge by: none of its frames "
                    "has an anomalous pixel or a label; take more frames or another set"
                )
            self.frames[dataset.name] = state.frames

    def judge(self, session: Session, *, stop_early: bool = False) -> Verdict:
        """Measure a variant; ``stop_early``: leave out what cannot change a "no"."""
        change = self.reference.change(session.features)
        verdict = Verdict((), change, self.limit, self.max_drop)
        predictor = SessionPredictor(session)
        for dataset in list(self._datasets):
            if stop_early and not verdict.holds:
                return replace(verdict, complete=False)
            figures = self._compare(predictor, dataset)
            verdict = replace(verdict, figures=(*verdict.figures, *figures))
            if any(f.drop > self.max_drop for f in figures):
                # What fails one candidate is likely to fail the next: look there first.
                self._datasets.remove(dataset)
                self._datasets.insert(0, dataset)
        return verdict

    def noise_drops(self, session: Session, levels: Sequence[int]) -> dict[int, tuple[Figure, ...]]:
        """Figures of the float network on frames with noise, by its level."""
        drops = {}
        for level in levels:
            predictor = _Noisy(session, level)
            figures = [f for d in self._datasets for f in self._compare(predictor, d)]
            drops[level] = tuple(figures)
        return drops

    def _compare(self, predictor: SessionPredictor, dataset: Kept) -> list[Figure]:
        before = self._before[dataset.name]
        after = _figures_of(self._evaluate(predictor, dataset))
        return [
            Figure(dataset.name, *key, before[key], after[key]) for key in before if key in after
        ]

    def _evaluate(self, predictor: SessionPredictor, dataset: Kept) -> EvaluationState:
        return evaluate(predictor, dataset, self._specs, size=predictor.session.size)


class _Noisy(SessionPredictor):
    """The float network behind a noisy camera."""

    def __init__(self, session: Session, level: int) -> None:
        super().__init__(session)
        self._level = level
        self._index = 0

    def predict(self, frame: UInt8, scorers: Sequence[ScorerSpec]) -> Prediction:
        self._index += 1
        return super().predict(add_noise(frame, self._level, self._index), scorers)


def _figures_of(state: EvaluationState) -> dict[tuple[str | None, str], float]:
    figures: dict[tuple[str | None, str], float] = {}
    for row in state.results():
        for name in ("auprc_percent", "fpr95_percent"):
            if row[name] is not None:
                figures[row["scorer"], name] = row[name]
    miou = state.miou_percent()
    if miou is not None:
        figures[None, "miou_percent"] = miou
    return figures
