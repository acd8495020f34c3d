"""Anomaly sets in the form in which SegmentMeIfYouCan, Fishyscapes and RoadAnomaly are passed on.

``FOLDER/images/NAME.*`` and ``FOLDER/labels_masks/NAME.*``, paired by stem.
"""

import os
from pathlib import Path
from typing import Final

from edgeseg.data.samples import (
    Dataset,
    Sample,
    find_images,
    given_name,
    lookup_table,
    pair_by_stem,
)
from edgeseg.errors import InputError
from edgeseg.taxonomy import IGNORE

__all__ = ["AnomalySet"]

_MASK_VALUES: Final = {0: 0, 1: 1, IGNORE: IGNORE}
# Folder name -> mask values, for sets that do not follow 0 / 1 / 255.
_MASK_VALUES_OF: Final = {"RoadAnomaly": {0: 0, 2: 1}}


class AnomalySet(Dataset):
    """An anomaly set. Labels come out as 0 in-distribution, 1 anomaly, 255 ignore.

    The masks of RoadAnomaly (Lis et al. 2019) hold 0 and 2, those of every other set 0, 1 and 255;
    the set's name decides.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str | None = None) -> None:
        """Open the set; masks are read when they are asked for.

        Args:
            folder: holds ``images/`` and ``labels_masks/``.
            name: of the set, by default the folder's. A link's own name counts, not that of what it
                leads to: a store may call that what it likes.

        Raises:
            InputError: one of them is missing, or files do not pair.
        """
        root = Path(folder)
        if not root.is_dir():
            raise InputError(f"anomaly set '{root}' does not exist; check --data and --dataset")
        images, masks = root / "images", root / "labels_masks"
        for needed in (images, masks):
            if not needed.is_dir():
                raise InputError(
                    f"anomaly set '{root}' has no folder '{needed.name}'; it needs images/ and "
                    "labels_masks/"
                )
        name = name or given_name(root)
        # A link of another name to RoadAnomaly still leads to its masks.
        special = [n for n in (name, root.resolve().name) if n in _MASK_VALUES_OF]
        table = lookup_table(_MASK_VALUES_OF[special[0]] if special else _MASK_VALUES)
        pairs = pair_by_stem(find_images(images), find_images(masks), root)
        super().__init__(name, root, "anomaly", (Sample(n, i, m, table) for n, i, m in pairs))
