"""The stream of training batches: item ``g`` of a run is a function of the recipe and ``g`` alone.

So a run that was killed goes on with the very frames that it would have seen, and two processes
with a half batch each see what one process with two micro-batches sees.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import cv2
import numpy as np
import numpy.typing as npt
from torch.utils.data import IterableDataset, get_worker_info

from edgeseg.data.labelled import open_labelled
from edgeseg.data.synthetic import SyntheticScenes
from edgeseg.errors import InputError, UsageError
from edgeseg.taxonomy import NUM_KNOWN
from edgeseg.training.augment import Levels, crop, paste_unknown, photometric, void_where_sure
from edgeseg.training.recipe import CYCLE, Recipe, Source, Stage, parse_hxw

if TYPE_CHECKING:
    from edgeseg.data.samples import Dataset, Sample

__all__ = ["Batch", "Batches", "Mixture", "open_source"]

UInt8 = npt.NDArray[np.uint8]

_LEAST_PIXELS: Final = 32
"""Of a class in a frame that is drawn by it."""
_CACHE_LIMIT: Final = 6 << 30
"""A source whose decoded frames are larger than this together is read anew for every crop."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A micro-batch."""

    frames: UInt8
    """``[N, H, W, 3]`` BGR."""
    labels: UInt8
    """``[N, H, W]``, trainIds, 19 void, 255 ignore."""
    names: tuple[str, ...]
    """Which frames these are, for messages."""


def open_source(
    source: Source, data: Path | None, places: Mapping[str, Path] | None = None
) -> "Dataset":
    """The data set of a source.

    Args:
        source: from a recipe.
        data: folder of ``--data``; ``None`` where the synthetic scenes take its place.
        places: folders to read instead of the recipe's, by the recipe's name for them.
    """
    if places and source.folder in places:
        return open_labelled(places[source.folder], source.split)
    if source.folder == "synthetic" or (data is None and source.folder == "."):
        height, width = parse_hxw(source.size)
        return SyntheticScenes(source.count, height, width, seed=0)
    if data is None:
        raise UsageError(f"the recipe reads '{source.folder}', so it needs --data DIR")
    return open_labelled(data / source.folder, source.split)


def _check_places(recipe: Recipe, places: Mapping[str, Path]) -> None:
    folders = {s.folder for s in recipe.data.source}
    for name in places:
        if name == "synthetic" or name not in folders:
            read = ", ".join(f"'{f}'" for f in sorted(folders - {"synthetic"})) or "no folder"
            raise UsageError(
                f"--source '{name}={places[name]}' replaces nothing: the recipe reads {read}"
            )


class _Frames:
    """The frames of one source, decoded once where they fit into memory."""

    def __init__(self, source: Source, samples: Sequence["Sample"], shrink: float) -> None:
        self.source = source
        self.samples = samples
        self._kept: dict[int, Levels] = {}
        self.smallest = shrink * min(source.scales or source.scale)
        first = self._read(0)
        size = first.label.size * 4 * 4 // 3
        self.keep = size * len(samples) <= _CACHE_LIMIT
        self.pixels = np.zeros((len(samples), 256), np.int64)
        # Scenes are drawn when they are needed first; all of them at once would take minutes.
        if (self.keep and source.folder != "synthetic") or source.rare:
            for index in range(len(samples)):
                levels = self.load(index)
                self.pixels[index] = np.bincount(levels.label.ravel(), minlength=256)
        if source.rare and not self.holding.any():
            raise InputError(
                f"source '{source.folder}' draws frames by their rare classes, and none of its "
                f"labels has {_LEAST_PIXELS} pixels of a known class; check the labels"
            )

    @property
    def holding(self) -> npt.NDArray[np.bool_]:
        """``[frames, 19]``: which frames hold enough of a class to be drawn by it."""
        return self.pixels[:, :NUM_KNOWN] >= _LEAST_PIXELS

    def load(self, index: int) -> Levels:
        levels = self._kept.get(index)
        if levels is None:
            levels = self._read(index)
            if self.keep:
                self._kept[index] = levels
        return levels

    def _read(self, index: int) -> Levels:
        sample = self.samples[index]
        frame, label = sample.load()
        if frame.shape[:2] != label.shape:
            raise InputError(
                f"'{sample.name}' is {frame.shape[1]}x{frame.shape[0]} and its label map "
                f"{label.shape[1]}x{label.shape[0]} pixels; they must be of one size"
            )
        if self.source.void != "ignore":
            erosion = self.source.erosion if self.source.void == "eroded" else 0
            label = void_where_sure(label, erosion)
        return Levels(frame, label, self.smallest)


class Mixture:
    """All sources of a recipe, and the crops that it makes of them."""

    def __init__(
        self, recipe: Recipe, data: Path | None, places: Mapping[str, Path] | None = None
    ) -> None:
        """Opens every source; decodes those that fit into memory.

        Raises:
            UsageError: ``places`` names no source, or other sources train on all held-out frames.
            InputError: a missing folder, an unpaired or unreadable file.
        """
        _check_places(recipe, places or {})
        self.recipe = recipe
        self.held_out: list[Sample] = []
        self._sources: list[_Frames] = []
        self._used: list[str] = []
        for source in recipe.data.source:
            samples = list(open_source(source, data, places))
            if len(samples) <= source.hold_out:
                raise InputError(
                    f"source '{source.folder}' has {len(samples)} frames and {source.hold_out} are "
                    "to be held out; give more frames or lower hold_out"
                )
            kept = samples[: len(samples) - source.hold_out]
            self.held_out += samples[len(kept) :]
            self._used += [f"{source.folder}/{s.name}" for s in kept]
            shrink = min(stage.scale for stage in recipe.stage)
            self._sources.append(_Frames(source, kept, shrink))
        # The same photo may stand in two sources, large and small: held out is held out.
        names = {s.name for frames in self._sources for s in frames.samples}
        asked = len(self.held_out)
        self.held_out = [s for s in self.held_out if s.name not in names]
        self.not_held_out = asked - len(self.held_out)
        """Frames that were to be held out, but another source trains on one of that name."""
        if asked and not self.held_out:
            raise UsageError(
                f"none of the {asked} frames to be held out is left: sources train on frames of "
                "the same names, which count as the same photos; hold these out there too, or "
                "rename them"
            )
        shares = np.array([s.share for s in recipe.data.source])
        self._cycle = _interleave(shares / shares.sum())
        # How often source s stands before place p of the cycle, and in all of it.
        hot = self._cycle[:, None] == np.arange(len(shares))
        self._before = np.vstack([np.zeros(len(shares), int), np.cumsum(hot, 0)])
        self._orders: dict[tuple[int, int], npt.NDArray[np.intp]] = {}

    def __len__(self) -> int:
        """Frames of all sources together: an epoch."""
        return sum(len(s.samples) for s in self._sources)

    @property
    def names(self) -> list[str]:
        """Every frame that is trained on."""
        return list(self._used)

    def pixel_counts(self) -> npt.NDArray[np.float64]:
        """Pixels of each known class ``[19]``, sources weighted by their shares."""
        counts = np.zeros(NUM_KNOWN)
        for frames in self._sources:
            own = frames.pixels[:, :NUM_KNOWN].sum(0).astype(float)
            if not own.any():  # not in memory: a hundred frames tell enough
                step = max(1, len(frames.samples) // 100)
                for index in range(0, len(frames.samples), step):
                    label = frames.load(index).label
                    own += np.bincount(label.ravel(), minlength=256)[:NUM_KNOWN]
            counts += frames.source.share * own / max(own.sum(), 1.0)
        return counts

    def item(self, number: int, stage: Stage) -> tuple[UInt8, UInt8, str]:
        """Crop ``number`` of the run as ``stage`` wants it: frame, label and name."""
        size = parse_hxw(stage.crop or self.recipe.data.crop)
        rng = np.random.default_rng((self.recipe.seed, number))
        which = int(self._cycle[number % CYCLE])
        turn = number // CYCLE * int(self._before[-1, which])
        turn += int(self._before[number % CYCLE, which])
        frames = self._sources[which]
        source, augment = frames.source, self.recipe.augment
        anchor_class: int | None = None
        if source.rare and rng.random() < source.rare:
            index, anchor_class = self._rare(rng, frames)
        else:
            index = self._pick(which, turn)
        levels = frames.load(index)
        anchor = None if anchor_class is None else _anchor(rng, levels.label, anchor_class)
        if source.scales:
            scale = float(rng.choice(source.scales))
        else:
            low, high = np.log2(source.scale)
            scale = float(2.0 ** rng.uniform(low, high))
        scale *= stage.scale
        frame, label = crop(rng, levels, size, scale, source.stretch, augment, anchor)
        pasted = augment.paste_unknown and source.folder != "synthetic"
        if pasted and rng.random() < augment.paste_unknown:
            paste_unknown(rng, frame, label)
        return photometric(rng, frame, augment), label, frames.samples[index].name

    def _pick(self, which: int, turn: int) -> int:
        """Source ``which``'s ``turn``-th frame: every epoch in an order of its own."""
        count = len(self._sources[which].samples)
        key = (which, turn // count)
        if key not in self._orders:
            if len(self._orders) > 4 * len(self._sources):
                self._orders.clear()
            rng = np.random.default_rng((self.recipe.seed, 1 << 40, *key))
            self._orders[key] = rng.permutation(count)
        return int(self._orders[key][turn % count])

    def _rare(self, rng: np.random.Generator, frames: _Frames) -> tuple[int, int]:
        """A frame that holds a class drawn by its rarity, and the class."""
        present = frames.holding
        seen = np.flatnonzero(present.any(0))
        share = frames.pixels[:, seen].sum(0) / max(frames.pixels[:, seen].sum(), 1)
        # Hoyer et al. 2022 (DAFormer), equation 10: softmax of (1 - f_c) / T.
        odds = np.exp((1.0 - share) / 0.1 - 10.0)
        chosen = int(rng.choice(seen, p=odds / odds.sum()))
        return int(rng.choice(np.flatnonzero(present[:, chosen]))), chosen


def _interleave(shares: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """A cycle of source numbers in which each stands by its share, evenly spread."""
    owed = np.zeros(len(shares))
    cycle = np.empty(CYCLE, np.intp)
    for place in range(CYCLE):
        owed += shares
        cycle[place] = int(owed.argmax())
        owed[cycle[place]] -= 1.0
    return cycle


def _anchor(rng: np.random.Generator, label: UInt8, wanted: int) -> tuple[float, float]:
    """A random pixel of a class, as shares of height and width."""
    rows, columns = np.nonzero(label == wanted)
    at = int(rng.integers(rows.size))
    return (float(rows[at]) + 0.5) / label.shape[0], (float(columns[at]) + 0.5) / label.shape[1]


class Batches(IterableDataset[Batch]):
    """Endless micro-batches of one process, from step ``start`` on.

    Global item numbers run through steps, accumulated micro-batches, processes, frames, in that
    order: micro-batch ``m`` of step ``k`` holds items ``(k * micro + m) * batch + i``.
    """

    def __init__(
        self, mixture: Mixture, stage: Stage, start: int, rank: int = 0, world: int = 1
    ) -> None:
        data = mixture.recipe.data
        self.mixture, self.stage = mixture, stage
        self.start, self.rank, self.world = start, rank, world
        self.accumulate, self.size = data.accumulate, data.batch
        # A loader's worker that forks while OpenCV's pool is there never gets its threads back and
        # hangs, even in a call that would end the pool; so it must go before.
        cv2.setNumThreads(1)

    def __iter__(self) -> Iterator[Batch]:
        info = get_worker_info()
        turn, stride = (0, 1) if info is None else (info.id, info.num_workers)
        while True:
            step, part = divmod(turn, self.accumulate)
            first = ((self.start + step) * self.accumulate + part) * self.world + self.rank
            yield self.make(first * self.size)
            turn += stride

    def make(self, first: int) -> Batch:
        """The micro-batch whose first item is ``first``."""
        items = [self.mixture.item(first + i, self.stage) for i in range(self.size)]
        frames, labels, names = zip(*items, strict=True)
        return Batch(np.stack(frames), np.stack(labels), tuple(names))
