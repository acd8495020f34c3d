"""A plain folder of photos and label maps in any numbering, with a file that says what it means.

``labels.toml`` (or ``labels.json``) at the folder's top maps each raw value to a class::

    0 = "road"        # a class name of edgeseg.taxonomy.CLASSES
    7 = 13            # or its trainId
    9 = "void"        # belongs to no class: comes out as 19
    255 = "ignore"    # unlabelled: comes out as 255
"""

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from edgeseg.data.samples import (
    WRONG_DATASET,
    Dataset,
    Int16,
    Sample,
    find_images,
    given_name,
    lookup_table,
    pair_by_stem,
    train_id_table,
)
from edgeseg.errors import InputError
from edgeseg.taxonomy import CLASSES, IGNORE, VOID

__all__ = ["MAPPING_FILES", "LabelledFolder", "find_mapping", "read_mapping"]

MAPPING_FILES: Final = ("labels.toml", "labels.json")
_VALUE_OF: Final = {**{name: k for k, name in enumerate(CLASSES)}, "void": VOID, "ignore": IGNORE}
_RAW_VALUES: Final = {str(value): value for value in range(256)}
_CHOICES: Final = 'a class name, a trainId 0-18, "void" or "ignore"'


class LabelledFolder(Dataset):
    """``images/NAME.*`` and ``labels/NAME.*``, paired by stem.

    Labels come out as trainIds 0-18, 19 void and 255 ignore. A mapping file translates them;
    without one the maps hold these values already.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        name: str | None = None,
        *,
        mapping: Path | None = None,
        void: bool = True,
    ) -> None:
        """Open the folder; label maps are read when they are asked for.

        Args:
            folder: holds ``images/`` and ``labels/``.
            name: of the data set, by default the folder's.
            mapping: the mapping file, by default ``labels.toml`` or ``labels.json`` in ``folder``.
            void: whether 19 may come out. If not, a mapping's "void" counts as "ignore", and a map
                without a mapping must not hold 19.

        Raises:
            InputError: a folder is missing, files do not pair, or the mapping cannot be used.
        """
        root = Path(folder)
        if not root.is_dir():
            raise InputError(f"folder '{root}' does not exist; check the path")
        for needed in ("images", "labels"):
            if not (root / needed).is_dir():
                raise InputError(
                    f"'{root}' has no folder '{needed}'; a labelled folder needs images/ and "
                    "labels/"
                )
        mapping = mapping or find_mapping(root)
        table, remedy = _table(mapping, void)
        pairs = pair_by_stem(find_images(root / "images"), find_images(root / "labels"), root)
        super().__init__(
            name or given_name(root),
            root,
            "semantic",
            (Sample(n, i, m, table, remedy) for n, i, m in pairs),
        )


def find_mapping(folder: Path) -> Path | None:
    """The mapping file of ``folder``, if it has one; InputError where it has two."""
    there = [folder / name for name in MAPPING_FILES if (folder / name).exists()]
    if len(there) > 1:
        raise InputError(f"'{folder}' has both labels.toml and labels.json; remove one")
    return there[0] if there else None


def read_mapping(path: Path) -> dict[int, int]:
    """Raw label value (0-255) -> 0-18, 19 for "void" or 255 for "ignore".

    Raises:
        InputError: the file is unreadable or maps what cannot be mapped; names the entry.
    """
    mapping: dict[int, int] = {}
    for key, value in _parse(path).items():
        if key not in _RAW_VALUES:
            raise InputError(f"'{path}' maps '{key}'; label maps hold whole numbers from 0 to 255")
        mapping[_RAW_VALUES[key]] = _target(path, key, value)
    if not mapping:
        raise InputError(f"'{path}' maps nothing; add entries such as 0 = \"road\"")
    return mapping


def _table(mapping: Path | None, void: bool) -> tuple[Int16, str]:
    if mapping is not None:
        pairs = read_mapping(mapping)
        if not void:
            pairs = {raw: IGNORE if value == VOID else value for raw, value in pairs.items()}
        return lookup_table(pairs), f"add the value to '{mapping.name}', or correct the map"
    table = train_id_table()
    if void:
        table[VOID] = VOID
    return table, f"{WRONG_DATASET}, or add a labels.toml" if void else WRONG_DATASET


def _parse(path: Path) -> Mapping[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputError(f"'{path}' cannot be read ({error.strerror}); check the file") from None
    except UnicodeDecodeError:
        raise InputError(f"'{path}' is not UTF-8 text; save it as such") from None
    try:
        content = _loads_toml(text, path) if path.suffix == ".toml" else _loads_json(text)
    except (ValueError, RecursionError) as error:  # both parsers' errors are ValueErrors
        what = "TOML" if path.suffix == ".toml" else "JSON"
        why = str(error).splitlines()[0].rstrip(".")
        raise InputError(f"'{path}' is not valid {what} ({why}); correct it") from None
    if not isinstance(content, dict):
        raise InputError(f'\'{path}\' is not a mapping; write {{"0": "road"}} and so on')
    return content


def _loads_toml(text: str, path: Path) -> Any:
    try:
        import tomllib
    except ImportError:  # Python 3.10
        raise InputError(
            f"'{path}' needs Python 3.11 to be read; write the mapping as labels.json instead"
        ) from None
    return tomllib.loads(text)


def _loads_json(text: str) -> Any:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key is given twice")
        return found

    return json.loads(text, object_pairs_hook=once)


def _target(path: Path, key: str, value: object) -> int:
    if isinstance(value, str):
        if value in _VALUE_OF:
            return _VALUE_OF[value]
        close = difflib.get_close_matches(value.lower().replace("_", " "), _VALUE_OF, 1)
        use = f"did you mean '{close[0]}'?" if close else f"use {_CHOICES}"
        raise InputError(f"'{path}' maps {key} to '{value}', which is no class; {use}")
    number = value if isinstance(value, int) and not isinstance(value, bool) else -1
    if 0 <= number <= VOID or number == IGNORE:
        return number
    raise InputError(f"'{path}' maps {key} to {value!r}; use {_CHOICES}")
