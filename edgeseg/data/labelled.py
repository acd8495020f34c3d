"""Open a labelled data set of road scenes by what lies in its folder."""

import os
from pathlib import Path

from edgeseg.data.camvid import CamVid
from edgeseg.data.cityscapes import Cityscapes, split_folder
from edgeseg.data.folder import LabelledFolder, find_mapping
from edgeseg.data.samples import Dataset, given_name
from edgeseg.errors import InputError

__all__ = ["open_labelled"]


def open_labelled(folder: str | os.PathLike[str], split: str = "train") -> Dataset:
    """The labelled frames of ``folder``, in whichever layout it has.

    - the official Cityscapes layout: ``leftImg8bit/SPLIT`` and ``gtFine/SPLIT``;
    - ``SPLIT/images`` and ``SPLIT/labels``;
    - CamVid: ``SPLIT`` and ``SPLITannot``;
    - ``images`` and ``labels``, which have no splits and are taken whole.

    The second and fourth may hold a mapping file, see :class:`LabelledFolder`; for the second it
    lies in the split's folder or above it. Labels come out as trainIds 0-18, 19 void, 255 ignore.

    Raises:
        InputError: no such layout, or the layout lacks ``split``; another split is never taken.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"data folder '{root}' does not exist; check the path")
    splits = dict.fromkeys((split, "train", "val", "test"))

    def has(pattern: str) -> bool:
        return any((root / pattern.replace("SPLIT", name)).is_dir() for name in splits)

    if has("leftImg8bit") or has("gtFine"):
        return Cityscapes(root, split)
    if has("SPLIT/images") or has("SPLIT/labels"):
        chosen = split_folder(root, root, split)
        mapping = find_mapping(chosen) or find_mapping(root)
        return LabelledFolder(chosen, given_name(root), mapping=mapping)
    if has("SPLITannot"):
        return CamVid(root, split)
    if has("images") or has("labels"):
        return LabelledFolder(root)
    raise InputError(
        f"'{root}' holds no labelled data in a known layout; it needs leftImg8bit/{split}/ and "
        f"gtFine/{split}/ (Cityscapes), {split}/images/ and {split}/labels/, {split}/ and "
        f"{split}annot/ (CamVid), or images/ and labels/ with an optional labels.toml"
    )
