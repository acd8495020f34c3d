"""The folder in which a network quantized by torch FX is kept.

- ``fx.safetensors``: weights int8 with their scales and zero points beside them, activation scales
  and zero points, and in float32 what stays float (:mod:`edgeseg.compression.fx_graph` names them).
- ``fx.json``: schema ``edgeseg.fx/1``; what the graph is built from again, where the weights and
  the calibration come from, and the sha256 of the other file.

Neither is a pickle. This module needs no torch.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from edgeseg.errors import ArtefactError, InputError, UsageError
from edgeseg.files import write_folder_whole

__all__ = [
    "ENGINES",
    "MANIFEST",
    "SCHEMA",
    "WEIGHTS",
    "Recipe",
    "check_destination",
    "is_fx_folder",
    "read_manifest",
    "write_folder",
]

SCHEMA: Final = "edgeseg.fx/1"
MANIFEST: Final = "fx.json"
WEIGHTS: Final = "fx.safetensors"
ENGINES: Final = ("x86", "qnnpack")

_MAX_MANIFEST_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a graph is built from, beside the network."""

    engine: str
    """Torch's quantized engine: ``x86`` or ``qnnpack``."""
    activation_bits: int = 8
    """8, or 7 where the processor adds products in 16 bits."""
    float_modules: tuple[str, ...] = ()
    """Modules that are not quantized, by their path."""
    whole: bool = False
    """The head is part of the integer graph, and concatenation is torch's: published graphs."""

    @classmethod
    def from_dict(cls, values: Any) -> "Recipe":
        """The inverse of :func:`dataclasses.asdict`; ValueError where it is no recipe."""
        engine, bits, whole = values["engine"], values["activation_bits"], values["whole"]
        names = values["float_modules"]
        if engine not in ENGINES or bits not in (7, 8) or not isinstance(whole, bool):
            raise ValueError("engine, activation_bits or whole")
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError("float_modules")
        return cls(str(engine), int(bits), tuple(names), whole)


def is_fx_folder(path: Path) -> bool:
    """Whether ``path`` is a folder that ``edgeseg quantize --method fx`` wrote."""
    return (path / MANIFEST).is_file()


def check_destination(target: Path) -> None:
    """Raise UsageError unless ``target`` is new, empty, or such a folder and nothing else."""
    if target.resolve() == Path.cwd():
        raise UsageError(f"output '{target}' is the current folder; name a new folder")
    existing = next(p for p in (target, *target.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise UsageError(f"output '{target}': '{existing}' is a file; name a folder")
    names = {entry.name for entry in target.iterdir()} if target.is_dir() else set()
    if names and not (MANIFEST in names and names <= {MANIFEST, WEIGHTS}):
        raise UsageError(
            f"output '{target}' is a folder with other files in it, and they will not be "
            "replaced; name a new folder, or one that 'edgeseg quantize' wrote"
        )


def write_folder(
    target: Path, recipe: Recipe, fields: Mapping[str, Any], content: bytes
) -> dict[str, Any]:
    """Write both files whole or not at all; an earlier such folder is replaced.

    Args:
        target: folder.
        recipe: of the graph.
        fields: of ``fx.json``, beside schema, recipe and checksum.
        content: of ``fx.safetensors``.

    Returns:
        What ``fx.json`` holds.

    Raises:
        UsageError: ``target`` holds something else.
        InputError: it cannot be written to.
    """
    check_destination(target)
    digest = hashlib.sha256(content).hexdigest()
    document = {
        "schema": SCHEMA,
        **fields,
        "recipe": asdict(recipe),
        "files": {WEIGHTS: {"sha256": digest, "bytes": len(content)}},
    }
    text = json.dumps(document, indent=1, allow_nan=False) + "\n"
    try:
        write_folder_whole(target, {WEIGHTS: content, MANIFEST: text.encode()})
    except OSError as error:
        raise InputError(
            f"'{target}' cannot be written ({error.strerror}); choose another folder"
        ) from None
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def read_manifest(folder: Path) -> tuple[dict[str, Any], Recipe]:
    """``fx.json`` and its recipe, after ``fx.safetensors`` was found to be the one it describes.

    Raises:
        InputError: there is no such folder.
        ArtefactError: not such a folder, of another version, or damaged.
    """
    if not folder.exists():
        raise InputError(f"weights '{folder}' do not exist; check the path")
    again = "copy it again or quantize again"
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtefactError(
            f"'{folder}' has no {MANIFEST}; give a folder that 'edgeseg quantize' wrote"
        )
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ValueError("size")
        document = json.loads(path.read_bytes())
        schema = document["schema"]
        if not (isinstance(schema, str) and schema.startswith("edgeseg.fx/")):
            raise ValueError("schema")
        if schema != SCHEMA:
            raise ArtefactError(
                f"'{path}' is of schema {schema}, and this version reads {SCHEMA}; install a "
                "newer version"
            )
        recipe = Recipe.from_dict(document["recipe"])
        entry = document["files"][WEIGHTS]
        digest, size = str(entry["sha256"]), int(entry["bytes"])
        if not (isinstance(document["network"], str) and isinstance(document["structure"], dict)):
            raise TypeError("network or structure")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ArtefactError(f"'{path}' is damaged; {again}") from None
    weights = folder / WEIGHTS
    try:
        right = weights.stat().st_size == size
        right = right and hashlib.sha256(weights.read_bytes()).hexdigest() == digest
    except OSError as error:
        raise ArtefactError(f"'{weights}' cannot be read ({error.strerror}); {again}") from None
    if not right:
        raise ArtefactError(
            f"'{weights}' is not the file that {MANIFEST} describes (size or sha256 differs); "
            f"{again}"
        )
    return document, recipe
