"""The evaluation loop: frames in, counts out, one frame in memory at a time."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from edgeseg.data.samples import Dataset, Sample
from edgeseg.data.transforms import ResizeMethod, resize_frame, resize_label
from edgeseg.errors import InputError, UsageError
from edgeseg.evaluation import protocols
from edgeseg.evaluation.archive import ArchiveWriter
from edgeseg.evaluation.state import EvaluationState, Identity, ScorerSpec, write_map
from edgeseg.taxonomy import NUM_KNOWN

if TYPE_CHECKING:
    from edgeseg.runtime.session import Session

__all__ = ["Prediction", "Predictor", "SessionPredictor", "evaluate"]

UInt8 = npt.NDArray[np.uint8]
_AHEAD = 2


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a network says about a frame."""

    class_map: UInt8
    """``[H, W]``, trainIds 0-18."""
    scores: Mapping[ScorerSpec, npt.NDArray[Any]]
    """``[H, W]`` each, float16 or float32, larger is more anomalous."""


class Predictor(Protocol):
    """Anything that can be evaluated."""

    @property
    def network(self) -> str:
        """Name of the architecture."""
        ...

    @property
    def artefact(self) -> str:
        """sha256 of what holds the weights: a file, or a bundle's body and head."""
        ...

    @property
    def precision(self) -> str:
        """``float32``, ``float16`` or ``int8``."""
        ...

    @property
    def backend(self) -> str:
        """Engine that computes it."""
        ...

    @property
    def score_dtype(self) -> str:
        """``float16`` or ``float32``."""
        ...

    @property
    def scorers(self) -> tuple[str, ...]:
        """Names of the scorers that it has."""
        ...

    def predict(self, frame: UInt8, scorers: Sequence[ScorerSpec]) -> Prediction:
        """Class map and scores of a frame, uint8 ``[H, W, 3]`` BGR at the network's size.

        The arrays need to last until the next call only.
        """
        ...


class SessionPredictor:
    """A bundle as it runs on the device: its engine, its head kernel, the session's score type."""

    def __init__(self, session: "Session") -> None:
        self.session = session
        manifest = session.bundle.manifest
        self.network = manifest.network
        self.score_dtype = session.score_dtype.name
        self.artefact = session.bundle.network_sha256
        self.precision = manifest.precision
        self.backend = session.backend_name
        self.scorers = tuple(manifest.scorers)

    def predict(self, frame: UInt8, scorers: Sequence[ScorerSpec]) -> Prediction:
        """One pass of the body, one of the head per scorer."""
        features = self.session.features(frame)
        if not scorers:
            return Prediction(self.session.score(features).class_map, {})
        scores = {}
        for spec in scorers:
            result = self.session.score(features, spec.name, spec.temperature)
            scores[spec] = result.score.copy()  # the next scorer reuses the buffer
        return Prediction(result.class_map, scores)

    def logits(self, frame: UInt8) -> npt.NDArray[np.float32]:
        """Logits of a frame (as :meth:`predict` takes it), float32 ``[C, H, W]``.

        From the engine's features by the head's definition in numpy: the kernel never writes
        logits.
        """
        head = self.session.bundle.head
        return head.logits(head.channel_first(self.session.features(frame)))


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    scorers: Sequence[ScorerSpec] = (),
    *,
    size: tuple[int, int],
    protocol: protocols.Protocol = "paper",
    every: int = 1,
    shard: protocols.Shard = (1, 1),
    resize: ResizeMethod = "runtime",
    maps: Path | None = None,
    split: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationState:
    """Run a network over a data set and count.

    Args:
        predictor: the network.
        dataset: an anomaly set, or one with semantic labels.
        scorers: what to score an anomaly set with; one with semantic labels gives mIoU alone.
        size: height and width that frames and labels are resized to, pixels.
        protocol: see :mod:`edgeseg.evaluation.protocols`.
        every: take every n-th frame.
        shard: ``(i, n)``, evaluate part i of n.
        resize: ``runtime`` or ``pillow``.
        maps: file to keep the score maps in, which the component metrics need for their second
            pass (about 1 MB per float16 map at 512x1024). Without it there are none.
        split: which one of the set ``dataset`` is; named beside the figures.
        progress: called with the frames done and the frames in all.

    Raises:
        InputError: an unreadable frame or label map, or no frame left to evaluate.
    """
    if not len(dataset):
        raise InputError(f"'{dataset.folder}' holds no frames; check the path")
    specs = _check_scorers(predictor, dataset, scorers)
    whole = protocols.select(dataset, every)
    part = protocols.select(dataset, every, shard)
    identity = Identity(
        network=predictor.network,
        artefact=predictor.artefact,
        precision=predictor.precision,
        backend=predictor.backend,
        dataset=dataset.name,
        kind=dataset.kind,
        protocol=protocol,
        height=size[0],
        width=size[1],
        resize=resize,
        every=every,
        selection=hashlib.sha256("\n".join(s.name for s in whole).encode()).hexdigest(),
        score_dtype=predictor.score_dtype,
        components=maps is not None and bool(specs),
        scorers=specs,
        split=split,
    )
    state = EvaluationState(identity, shard, NUM_KNOWN)
    writer = ArchiveWriter(maps) if maps is not None and identity.components else None
    try:
        for done, loaded in enumerate(_load(part, size, resize), start=1):
            if protocols.keeps(protocol, dataset.kind, loaded.label):
                prediction = predictor.predict(loaded.frame, specs)
                if writer is not None:
                    scores = [prediction.scores[spec] for spec in specs]
                    write_map(writer, state.frames, loaded.label, loaded.native_pixels, scores)
                _count(state, dataset.kind, prediction, loaded.label)
            else:
                state.frames_left_out += 1
            if progress is not None:
                progress(done, len(part))
    finally:
        if writer is not None:
            writer.close()
    if maps is not None and identity.components:
        state.attach_maps(maps)
    return state


def _check_scorers(
    predictor: Predictor, dataset: Dataset, scorers: Sequence[ScorerSpec]
) -> tuple[ScorerSpec, ...]:
    for spec in scorers:
        if spec.name not in predictor.scorers:
            raise UsageError(
                f"scorer '{spec.name}' is not one that this {predictor.network} has; choose from "
                f"{', '.join(predictor.scorers)}"
            )
    return tuple(dict.fromkeys(scorers)) if dataset.kind == "anomaly" else ()


def _count(state: EvaluationState, kind: str, prediction: Prediction, label: UInt8) -> None:
    if kind == "anomaly":
        for spec, metric in zip(state.identity.scorers, state.metrics, strict=True):
            metric.update(prediction.scores[spec], label)
    else:
        state.confusion.update(prediction.class_map, label)
    state.frames += 1


@dataclass(frozen=True, slots=True)
class _Loaded:
    frame: UInt8
    label: UInt8
    native_pixels: int


def _load(
    samples: Sequence[Sample], size: tuple[int, int], resize: ResizeMethod
) -> Iterator[_Loaded]:
    """Decode and resize in order, a little ahead of the network on a thread of its own."""

    def read(sample: Sample) -> _Loaded:
        photo, label = sample.load()
        if photo.shape[:2] != label.shape:
            raise InputError(
                f"'{sample.image_path}' is {photo.shape[1]}x{photo.shape[0]} and its label map "
                f"{label.shape[1]}x{label.shape[0]} pixels; they must be of one size"
            )
        return _Loaded(resize_frame(photo, size, resize), resize_label(label, size), label.size)

    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edgeseg-decode")
    try:
        waiting: list[Future[_Loaded]] = [pool.submit(read, s) for s in samples[:_AHEAD]]
        for following in range(len(samples)):
            loaded = waiting.pop(0).result()
            if following + _AHEAD < len(samples):
                waiting.append(pool.submit(read, samples[following + _AHEAD]))
            yield loaded
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
