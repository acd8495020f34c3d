"""CamVid with the 11 classes of SegNet, as trainIds."""

import os
from pathlib import Path
from typing import Final

from edgeseg.data.samples import Dataset, Sample, find_images, lookup_table, pair_by_stem
from edgeseg.errors import InputError
from edgeseg.taxonomy import IGNORE

__all__ = ["CamVid"]

# CamVid class -> trainId. "Bicyclist" is rider and bicycle in one; it counts as bicycle.
_TRAIN_ID_OF: Final = {
    0: 10,  # sky
    1: 2,  # building
    2: 5,  # pole
    3: 0,  # road
    4: 1,  # pavement: sidewalk
    5: 8,  # tree: vegetation
    6: 7,  # sign or symbol: traffic sign
    7: 4,  # fence
    8: 13,  # car
    9: 11,  # pedestrian: person
    10: 18,  # bicyclist: bicycle
    11: IGNORE,  # void
}


class CamVid(Dataset):
    """``SPLIT/*`` and ``SPLITannot/*``, paired by stem; labels come out as trainIds and 255."""

    def __init__(self, folder: str | os.PathLike[str], split: str = "val") -> None:
        """InputError where the split is missing or the files do not pair."""
        root = Path(folder)
        if not root.is_dir():
            raise InputError(f"CamVid folder '{root}' does not exist; check --data")
        if not (root / split).is_dir() and (root / "camvid").is_dir():
            root = root / "camvid"
        images, maps = root / split, root / f"{split}annot"
        if not (images.is_dir() and maps.is_dir()):
            there = [
                s
                for s in ("train", "val", "test")
                if (root / s).is_dir() and (root / f"{s}annot").is_dir()
            ]
            has = f"it has {', '.join(there)}" if there else "nor any other"
            raise InputError(
                f"CamVid folder '{root}' has no split '{split}' ({has}); choose one with --split"
            )
        table = lookup_table({**_TRAIN_ID_OF, IGNORE: IGNORE})
        pairs = pair_by_stem(find_images(images), find_images(maps), root)
        super().__init__("camvid", root, "semantic", (Sample(n, i, m, table) for n, i, m in pairs))
