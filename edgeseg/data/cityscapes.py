"""Cityscapes in its official layout and as folders of paired images and trainId maps."""

import os
from pathlib import Path
from typing import Final

from edgeseg.data.folder import LabelledFolder
from edgeseg.data.samples import (
    Dataset,
    Int16,
    Sample,
    find_images,
    lookup_table,
    pair_by_stem,
    train_id_table,
)
from edgeseg.errors import InputError
from edgeseg.taxonomy import IGNORE

__all__ = ["Cityscapes", "open_cityscapes", "split_folder"]

# labelId -> trainId as cityscapesScripts/helpers/labels.py defines them; all others are ignored.
_TRAIN_ID_OF: Final = {
    7: 0,
    8: 1,
    11: 2,
    12: 3,
    13: 4,
    17: 5,
    19: 6,
    20: 7,
    21: 8,
    22: 9,
    23: 10,
    24: 11,
    25: 12,
    26: 13,
    27: 14,
    28: 15,
    31: 16,
    32: 17,
    33: 18,
}
_IMAGE_ENDING: Final = "_leftImg8bit"
_TRAIN_IDS_ENDING: Final = "_gtFine_labelTrainIds"
_LABEL_IDS_ENDING: Final = "_gtFine_labelIds"


class Cityscapes(Dataset):
    """The official layout: ``leftImg8bit/SPLIT/CITY`` and ``gtFine/SPLIT/CITY``.

    ``*_gtFine_labelTrainIds.png`` is read where it exists, else ``*_gtFine_labelIds.png``, mapped.
    """

    def __init__(self, folder: str | os.PathLike[str], split: str = "val") -> None:
        """InputError where the split is missing or a frame lacks its label map."""
        root = Path(folder)
        images = split_folder(root / "leftImg8bit", root, split)
        labels = root / "gtFine" / split
        if not labels.is_dir():
            raise InputError(f"Cityscapes folder '{root}' has no gtFine/{split}; add the labels")
        photos = [p for p in find_images(images, recursive=True) if p.stem.endswith(_IMAGE_ENDING)]
        maps = find_images(labels, recursive=True)
        chosen: dict[str, tuple[Path, Int16]] = {}
        for ending, table in (
            (_TRAIN_IDS_ENDING, train_id_table()),
            (_LABEL_IDS_ENDING, _label_id_table()),
        ):
            for path in maps:
                if path.stem.endswith(ending):
                    chosen.setdefault(path.stem.removesuffix(ending), (path, table))
        paths = [path for path, _ in chosen.values()]
        pairs = pair_by_stem(photos, paths, root, _frame_name)
        super().__init__(
            "cityscapes",
            root,
            "semantic",
            (Sample(name, image, *chosen[name]) for name, image, _ in pairs),
        )


def open_cityscapes(folder: str | os.PathLike[str], split: str = "val") -> Dataset:
    """Cityscapes in the layout that ``folder`` has: the official one, ``SPLIT/images`` with
    ``SPLIT/labels``, or ``images`` with ``labels`` alone.

    The 256x256 set is photos of 2:1 squeezed to squares: resizing them to the network's size
    restores the aspect, so its samples need no treatment of their own.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"Cityscapes folder '{root}' does not exist; check --data")
    if (root / "leftImg8bit").is_dir():
        return Cityscapes(root, split)
    if any((root / s / "images").is_dir() for s in ("train", "val", split)):
        return LabelledFolder(split_folder(root, root, split), "cityscapes", void=False)
    if (root / "images").is_dir():
        return LabelledFolder(root, "cityscapes", void=False)
    if (root / "cityscapes").is_dir():
        return open_cityscapes(root / "cityscapes", split)
    raise InputError(
        f"'{root}' is not a Cityscapes folder; it needs leftImg8bit/ and gtFine/, or "
        f"{split}/images/ and {split}/labels/"
    )


def split_folder(parent: Path, root: Path, split: str) -> Path:
    """``parent/split``; InputError that says which splits there are where it is missing."""
    chosen = parent / split
    if not chosen.is_dir():
        there = sorted(p.name for p in parent.iterdir() if p.is_dir()) if parent.is_dir() else []
        has = f"it has {', '.join(there)}" if there else f"'{parent}' is missing"
        raise InputError(f"'{root}' has no split '{split}' ({has}); choose one with --split")
    return chosen


def _frame_name(path: Path) -> str:
    stem = path.stem
    for ending in (_IMAGE_ENDING, _TRAIN_IDS_ENDING, _LABEL_IDS_ENDING):
        stem = stem.removesuffix(ending)
    return stem


def _label_id_table() -> Int16:
    # 255 stands for the licence plates' labelId of -1 in 8 bits.
    ignored = dict.fromkeys((*range(34), 255), IGNORE)
    return lookup_table({**ignored, **_TRAIN_ID_OF})
