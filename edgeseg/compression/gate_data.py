"""Labelled data for the accuracy gate, by what lies in a folder."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from edgeseg.data import AnomalySet, Dataset, Sample, open_labelled
from edgeseg.data.transforms import resize_frame, resize_label
from edgeseg.errors import InputError, UsageError
from edgeseg.evaluation.protocols import select

__all__ = ["KEPT_BYTES", "Kept", "open_gate_data", "pictures"]

# A folder of data sets may hold them in folders of their own: .../data/anomaly/RoadAnomaly21.
_DEPTH: Final = 2
_SPLITS: Final = ("train", "val", "test")
# What a search looks at of a set unless told otherwise: a full Cityscapes would take hours.
_MOST_FRAMES: Final = 100
# Resized frames with their labels are kept in memory up to this much: every candidate of a search
# sees the same ones.
KEPT_BYTES: Final = 512 << 20

UInt8 = npt.NDArray[np.uint8]


def open_gate_data(
    folders: Sequence[str | os.PathLike[str]],
    names: Sequence[str] = (),
    splits: Sequence[str] = ("train", "val"),
) -> list[Dataset]:
    """The anomaly sets and labelled sets that ``folders`` are or hold, or those of them named.

    Each folder may be an anomaly set (``images`` and ``labels_masks``), anything that
    :func:`edgeseg.data.open_labelled` reads, or hold such folders, up to two levels down; what is
    neither is passed over there.

    Args:
        folders: to look into.
        names: sets to take, by the names that ``edgeseg eval --dataset`` knows: ``cityscapes``,
            ``camvid``, ``anomaly:FOLDER``. None: all that there are.
        splits: of labelled sets that have splits, the first of these that exists. By default train
            before val: what is searched on should not be what is reported later.

    Raises:
        InputError: a folder that is missing, holds no such set, or holds a damaged one.
        UsageError: a name that is unknown, or two sets of the same name.
    """
    roots = [Path(folder) for folder in folders]
    for root in roots:
        if not root.is_dir():
            raise InputError(f"gate data folder '{root}' does not exist; check the path")
    found: list[Dataset] = [_open(_named(roots, name), splits) for name in names]
    for root in () if names else roots:
        inside = list(_find(root, splits, _DEPTH))
        if not inside:
            raise InputError(
                f"gate data folder '{root}' holds neither an anomaly set (images/ and "
                "labels_masks/) nor labelled frames; check the path"
            )
        found += inside
    known = [d.name for d in found]
    for dataset in found:
        if not len(dataset):
            raise InputError(f"'{dataset.folder}' holds no frames; check the path")
        if known.count(dataset.name) > 1:
            raise UsageError(
                f"the gate data holds two sets called '{dataset.name}'; name the one to use"
            )
    return found


def _named(roots: Sequence[Path], name: str) -> Path:
    """The folder of the set that ``edgeseg eval --dataset`` calls ``name``."""
    kind, _, folder = name.partition(":")
    if name not in ("cityscapes", "camvid") and not (kind == "anomaly" and folder):
        raise UsageError(
            f"'{name}' is no name of a data set; choose cityscapes, camvid or anomaly:FOLDER such "
            "as anomaly:RoadAnomaly21, or for --held-out a folder that exists"
        )
    for root in roots:
        if folder:
            places = [root / folder, root / "anomaly" / folder]
            places += [root] if root.resolve().name == folder else []
            fitting = [p for p in places if _is_anomaly_set(p)]
        else:
            fitting = [p for p in (root, root / name) if _is_labelled(p)]
        if fitting:
            return fitting[0]
    listed = ", ".join(f"'{root}'" for root in roots)
    raise InputError(f"the gate data {listed} holds no set '{name}'; check both names")


def _find(folder: Path, splits: Sequence[str], depth: int) -> Iterable[Dataset]:
    if _is_anomaly_set(folder) or _is_labelled(folder):
        yield _open(folder, splits)
    elif depth:
        for child in sorted(folder.iterdir()):
            if child.is_dir() and not child.name.startswith("."):
                yield from _find(child, splits, depth - 1)


def _is_anomaly_set(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "labels_masks").is_dir()


def _is_labelled(folder: Path) -> bool:
    return _is_plain(folder) or any(_has_split(folder, split) for split in _SPLITS)


def _is_plain(folder: Path) -> bool:
    return (folder / "images").is_dir() and (folder / "labels").is_dir()


def _has_split(folder: Path, split: str) -> bool:
    return any(
        (folder / images).is_dir() and (folder / labels).is_dir()
        for images, labels in (
            (f"leftImg8bit/{split}", f"gtFine/{split}"),
            (f"{split}/images", f"{split}/labels"),
            (split, f"{split}annot"),
        )
    )


def _open(folder: Path, splits: Sequence[str]) -> Dataset:
    if _is_anomaly_set(folder):
        return AnomalySet(folder)
    split = next((s for s in splits if _has_split(folder, s)), splits[0])
    dataset = open_labelled(folder, split)
    # The readers name a set by its kind, and two of a kind may lie here.
    name = folder.resolve().name
    return Dataset(name if _is_plain(folder) else f"{name}/{split}", folder, dataset.kind, dataset)


def pictures(datasets: Iterable[Dataset], count: int, size: tuple[int, int]) -> list[UInt8]:
    """Up to ``count`` frames, evenly spread over all sets, at the network's size; no labels."""
    samples = [s for d in datasets for s in d]
    step = max(1, -(-len(samples) // count))
    return [resize_frame(s.load_image(), size) for s in samples[::step]]


@dataclass(frozen=True, slots=True)
class _KeptSample(Sample):
    """A sample that keeps its frame and labels at the network's size once they were read."""

    size: tuple[int, int] = (0, 0)
    store: dict[str, UInt8] = field(default_factory=dict, repr=False, compare=False)

    def load_image(self) -> UInt8:
        if "frame" not in self.store:
            frame = resize_frame(Sample.load_image(self), self.size)
            self.store["frame"] = np.ascontiguousarray(frame)
        return self.store["frame"]

    def load_label(self) -> UInt8:
        if "label" not in self.store:
            self.store["label"] = resize_label(Sample.load_label(self), self.size)
        return self.store["label"]


class Kept(Dataset):
    """Every ``every``-th sample of a set; as many as fit stay in memory at the network's size.

    Args:
        dataset: what to keep.
        every: take every n-th sample; ``None``: so that they are a hundred at most.
        size: height and width, pixels.
        budget: bytes that may be kept.
    """

    def __init__(
        self, dataset: Dataset, every: int | None, size: tuple[int, int], budget: int = KEPT_BYTES
    ) -> None:
        chosen = select(dataset, every or -(-len(dataset) // _MOST_FRAMES))
        each = 4 * size[0] * size[1]
        room = budget // each
        samples = [
            _KeptSample(s.name, s.image_path, s.label_path, s.table, s.remedy, size)
            if index < room
            else s
            for index, s in enumerate(chosen)
        ]
        super().__init__(dataset.name, dataset.folder, dataset.kind, samples)
        self.kept_bytes = min(room, len(chosen)) * each
