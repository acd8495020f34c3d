"""What an evaluation has counted so far: mergeable, and a file between machines.

A state file is written per shard; merging the states of all shards gives the counts, and so the
figures, of the whole run.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from edgeseg.errors import ArtefactError, UsageError
from edgeseg.evaluation.archive import ArchiveReader, ArchiveWriter
from edgeseg.evaluation.components import ComponentMetric, minimum_sizes
from edgeseg.evaluation.metrics import AnomalyMetric, ConfusionMatrix
from edgeseg.evaluation.protocols import MAX_SHARDS
from edgeseg.files import replacing

__all__ = ["EvaluationState", "Identity", "ScorerSpec", "merge_files"]

STATE_SCHEMA: Final = "edgeseg.eval-state/1"


class ScorerSpec(NamedTuple):
    """A scorer at a temperature."""

    name: str
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What was evaluated on what; states of different identities never merge."""

    network: str
    artefact: str
    """Where the weights came from: sha256 of the weights file, or over a bundle's body and head."""
    precision: str
    backend: str
    dataset: str
    kind: str
    protocol: str
    height: int
    width: int
    resize: str
    every: int
    selection: str
    """sha256 over the names of the frames of all shards together."""
    score_dtype: str
    components: bool
    scorers: tuple[ScorerSpec, ...]
    split: str = ""
    """Of a set that has splits; empty for others, and in files from before it was kept."""


@dataclass(frozen=True, slots=True)
class _MapFile:
    """A file that holds score maps of ``frames`` frames for the component metrics."""

    path: Path
    frames: int


class EvaluationState:
    """Counts of one evaluation, or of a part of it."""

    def __init__(self, identity: Identity, shard: tuple[int, int], num_classes: int) -> None:
        self.identity = identity
        self.shards: tuple[int, ...] = (shard[0],)
        self.num_shards = shard[1]
        self.frames = 0
        self.frames_left_out = 0
        """Frames that the protocol left out."""
        self.metrics = tuple(AnomalyMetric() for _ in identity.scorers)
        self.confusion = ConfusionMatrix(num_classes)
        self._maps: tuple[_MapFile, ...] = ()

    def attach_maps(self, path: Path) -> None:
        """Use the score maps of all frames in ``path`` (written by :func:`write_map`)."""
        self._maps = (*self._maps, _MapFile(path, self.frames))

    def merge(self, other: "EvaluationState") -> None:
        """Add the counts of another part of the same evaluation.

        Raises:
            UsageError: a part of something else, or a part that is in already.
        """
        mine, theirs = asdict(self.identity), asdict(other.identity)
        for key, value in mine.items():
            if value != theirs[key]:
                raise UsageError(
                    f"the parts to merge differ in {key} ({_brief(value)} and "
                    f"{_brief(theirs[key])}); merge the shards of one evaluation"
                )
        if self.num_shards != other.num_shards:
            raise UsageError(
                f"a part of {self.num_shards} and a part of {other.num_shards} do not belong "
                "together; merge the shards of one evaluation"
            )
        twice = sorted(set(self.shards) & set(other.shards))
        if twice:
            raise UsageError(
                f"shard {twice[0]}/{self.num_shards} is given twice; merge each part once"
            )
        for metric, more in zip(self.metrics, other.metrics, strict=True):
            metric.merge(more)
        self.confusion.merge(other.confusion)
        self.frames += other.frames
        self.frames_left_out += other.frames_left_out
        self.shards = tuple(sorted((*self.shards, *other.shards)))
        self._maps += other._maps

    @property
    def missing_shard(self) -> int | None:
        """The first part that is not in yet, counted from 1; ``None``: all are in."""
        if len(self.shards) == self.num_shards:
            return None
        have = set(self.shards)
        return next(i for i in range(1, self.num_shards + 1) if i not in have)

    def results(self) -> list[dict[str, Any]]:
        """One entry per scorer, as ``results`` of the JSON document.

        ``scorer``, ``temperature``, ``auprc_percent``, ``fpr95_percent`` and, where score maps
        were kept, ``components``. Percentages are ``None`` where they are not defined.
        """
        components = self._components()
        rows = []
        for index, spec in enumerate(self.identity.scorers):
            row: dict[str, Any] = {
                "scorer": spec.name,
                "temperature": spec.temperature,
                "auprc_percent": percent(self.metrics[index].auprc()),
                "fpr95_percent": percent(self.metrics[index].fpr95()),
            }
            if components is not None:
                row["components"] = components[index]
            rows.append(row)
        return rows

    def miou_percent(self) -> float | None:
        """Mean IoU over the classes that occur in the labels; ``None`` for an anomaly set."""
        return percent(self.confusion.miou())

    def save(self, path: Path) -> None:
        """Write the state whole or not at all."""
        try:
            with replacing(path) as new:
                self._write(new)
        except OSError as error:
            raise UsageError(
                f"--output '{path}' cannot be written ({error.strerror}); name another file"
            ) from None

    @classmethod
    def load(cls, path: Path) -> "EvaluationState":
        """Read a state file; ArtefactError where it is damaged or of another version."""
        archive = ArchiveReader(path)
        try:
            return cls._from_archive(archive, path)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ArtefactError(
                f"metric state '{path}' is damaged ({type(error).__name__}); write it again"
            ) from None
        finally:
            archive.close()

    def _write(self, path: Path) -> None:
        writer = ArchiveWriter(path)
        header = {
            "schema": STATE_SCHEMA,
            "identity": asdict(self.identity),
            "shards": self.shards,
            "num_shards": self.num_shards,
            "frames": self.frames,
            "frames_left_out": self.frames_left_out,
        }
        writer.header(header)
        writer.array("confusion", self.confusion.counts)
        for index, metric in enumerate(self.metrics):
            for key, array in metric.state().items():
                writer.array(f"metric{index}/{key}", array)
        for index, (label, native_pixels, scores) in enumerate(self._score_maps()):
            write_map(writer, index, label, native_pixels, scores)
        writer.close()

    @classmethod
    def _from_archive(cls, archive: ArchiveReader, path: Path) -> "EvaluationState":
        header = archive.header()
        if header.get("schema") != STATE_SCHEMA:
            raise ArtefactError(
                f"'{path}' has schema '{header.get('schema')}', and this version reads "
                f"'{STATE_SCHEMA}'; write it again with this version"
            )
        raw = header["identity"]
        specs = tuple(ScorerSpec(str(name), float(t)) for name, t in raw["scorers"])
        identity = Identity(**{**raw, "scorers": specs})
        confusion = ConfusionMatrix.from_counts(archive.array("confusion"))
        num_shards = int(header["num_shards"])
        shards = tuple(int(i) for i in header["shards"])
        once = 0 < len(shards) == len(set(shards))
        if not once or num_shards > MAX_SHARDS or not all(1 <= i <= num_shards for i in shards):
            raise ValueError("shards")
        state = cls(identity, (1, num_shards), confusion.num_classes)
        state.shards = shards
        state.frames = int(header["frames"])
        state.frames_left_out = int(header["frames_left_out"])
        state.confusion = confusion
        state.metrics = tuple(
            AnomalyMetric.from_state(
                {key: archive.array(f"metric{i}/{key}") for key in ("keys", "positive", "negative")}
            )
            for i in range(len(specs))
        )
        if identity.components:
            state.attach_maps(path)
        return state

    def _components(self) -> list[dict[str, Any]] | None:
        if not self.identity.components:
            return None
        thresholds = [metric.best_f1_threshold() for metric in self.metrics]
        totals = [ComponentMetric() for _ in self.metrics]
        sizes = minimum_sizes(self.identity.dataset)
        for label, native_pixels, scores in self._score_maps():
            scaled = sizes.scaled(label.size / native_pixels)
            for total, threshold, score in zip(totals, thresholds, scores, strict=True):
                if threshold is not None:
                    total.update(score >= threshold, label, scaled)
        return [
            {
                "threshold": threshold,
                "siou_percent": percent(total.mean_siou()),
                "ppv_percent": percent(total.mean_ppv()),
                "mean_f1_percent": percent(total.mean_f1()),
                "labelled": len(total.siou),
                "predicted": len(total.ppv),
                "minimum_native_pixels": {
                    "labelled": sizes.labelled,
                    "predicted": sizes.predicted,
                },
            }
            for threshold, total in zip(thresholds, totals, strict=True)
        ]

    def _score_maps(
        self,
    ) -> Iterator[tuple[npt.NDArray[np.uint8], int, list[npt.NDArray[Any]]]]:
        """Label map, pixels of the original frame and one score map per scorer, frame by frame."""
        shape = (self.identity.height, self.identity.width)
        for part in self._maps:
            archive = ArchiveReader(part.path)
            try:
                for index in range(part.frames):
                    label = archive.array(f"map{index}/label")
                    native = archive.array(f"map{index}/native_pixels")
                    scores = [
                        archive.array(f"map{index}/score{i}") for i in range(len(self.metrics))
                    ]
                    if any(a.shape != shape for a in (label, *scores)) or native.shape != (1,):
                        raise ArtefactError(f"'{part.path}' holds maps of another size")
                    yield label, max(int(native[0]), 1), scores
            finally:
                archive.close()


def write_map(
    writer: ArchiveWriter,
    index: int,
    label: npt.NDArray[np.uint8],
    native_pixels: int,
    scores: Sequence[npt.NDArray[Any]],
) -> None:
    """Add what the component metrics need of a frame to an archive."""
    writer.array(f"map{index}/label", label)
    writer.array(f"map{index}/native_pixels", np.array([native_pixels], dtype=np.int64))
    for i, score in enumerate(scores):
        writer.array(f"map{index}/score{i}", score)


def merge_files(paths: Sequence[Path]) -> EvaluationState:
    """The state of the whole evaluation from the files of all its shards.

    Raises:
        UsageError: a shard is missing, given twice, or of another evaluation.
    """
    if not paths:
        raise UsageError("--merge needs the state files of all shards")
    # Sorted by shard: the order of the arguments must not be seen in the output.
    states = sorted((EvaluationState.load(path) for path in paths), key=lambda s: s.shards)
    whole = states[0]
    for state in states[1:]:
        whole.merge(state)
    missing = whole.missing_shard
    if missing is not None:
        raise UsageError(
            f"shard {missing}/{whole.num_shards} is missing; give the files of all "
            f"{whole.num_shards} shards"
        )
    return whole


def percent(value: float | None) -> float | None:
    """A share as a percentage."""
    return None if value is None else 100.0 * value


def _brief(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return " ".join(str(v) for v in value)
    return str(value)[:40]
