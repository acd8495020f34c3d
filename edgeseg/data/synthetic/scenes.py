"""Drawn scenes as a data set: what training reads where no photos are at hand."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from edgeseg.data.samples import Dataset, Int16, Sample, train_id_table
from edgeseg.data.synthetic.render import check_scene, scene
from edgeseg.data.synthetic.weather import Options
from edgeseg.errors import UsageError
from edgeseg.taxonomy import VOID

__all__ = ["SceneSample", "SyntheticScenes"]

UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class SceneSample(Sample):
    """A sample that is drawn, not read; its paths name no files.

    ``load`` draws once. ``load_image`` and ``load_label`` share the drawing if one follows the
    other.
    """

    seed: int = 0
    size: tuple[int, int] = (256, 512)
    options: Options | None = None

    def load(self) -> tuple[UInt8, UInt8]:
        """Frame and label map as :func:`scene` gives them."""
        frame, label = _draw(self.seed, self.size, self.options)
        return frame.copy(), label.copy()

    def load_image(self) -> UInt8:
        """The frame, uint8 ``[h, w, 3]`` BGR."""
        return _draw(self.seed, self.size, self.options)[0].copy()

    def load_label(self) -> UInt8:
        """The label map, uint8 ``[h, w]``: trainIds 0-18, 19 void, 255 for the bonnet."""
        return _draw(self.seed, self.size, self.options)[1].copy()


class SyntheticScenes(Dataset):
    """``count`` scenes, each drawn when it is asked for; labels hold 19 for void.

    The same arguments give the same bytes, and sets of different ``seed`` share no scene, so one
    can judge what another trained. Scene k of seed 0 is ``scene(k, height, width)``.

    >>> data = SyntheticScenes(count=3, height=64, width=128, seed=1)
    >>> frame, label = data[2].load()
    >>> data[2].name, frame.shape, label.shape
    ('synthetic-1-000002', (64, 128, 3), (64, 128))
    """

    def __init__(
        self,
        count: int,
        height: int = 256,
        width: int = 512,
        seed: int = 0,
        *,
        options: Options | None = None,
    ) -> None:
        """UsageError where no scene can be drawn with these numbers."""
        if not 1 <= count <= _MOST:
            raise UsageError(f"{count} synthetic scenes cannot be drawn; use 1 to {_MOST}")
        check_scene(seed, height, width)
        table: Int16 = train_id_table()
        table[VOID] = VOID
        size, folder = (height, width), Path("synthetic")
        names = (f"synthetic-{seed}-{k:06d}" for k in range(count))
        super().__init__(
            "synthetic",
            folder,
            "semantic",
            (
                SceneSample(
                    name,
                    folder / f"{name}.png",
                    folder / f"{name}_label.png",
                    table,
                    seed=seed * _MOST + k,
                    size=size,
                    options=options,
                )
                for k, name in enumerate(names)
            ),
        )


_MOST = 1_000_000  # scenes in a set; also what keeps the seeds of two sets apart


@functools.lru_cache(maxsize=1)
def _draw(seed: int, size: tuple[int, int], options: Options | None) -> tuple[UInt8, UInt8]:
    return scene(seed, *size, options=options)
