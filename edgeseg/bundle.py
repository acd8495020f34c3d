"""The bundle: the one artefact in which building, running and judging meet.

A folder with

- ``body.onnx``: ``frame`` uint8 ``[1, H, W, 3]`` BGR -> ``features`` float32;
- ``head.safetensors``: weights of the head (:class:`edgeseg.scoring.head.Head`);
- ``bundle.json``: everything else that a run needs, and the sha256 of every file;
- optional: ``calibration.json``, ``model_<scorer>.onnx``, device builds.

Only what ``bundle.json`` lists belongs to the bundle; device builds and caches may lie beside it.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeseg.errors import ArtefactError, InputError, UsageError
from edgeseg.safetensors import read_safetensors, write_safetensors
from edgeseg.scoring.head import Head, IsoMaxPlus
from edgeseg.scoring.scorers import SCORERS

__all__ = [
    "BODY",
    "CALIBRATION",
    "HEAD",
    "MANIFEST",
    "SCHEMA",
    "Bundle",
    "Manifest",
    "ScorerDefaults",
    "head_to_files",
    "write_bundle",
]

SCHEMA: Final = "edgeseg.bundle/1"
MANIFEST: Final = "bundle.json"
BODY: Final = "body.onnx"
HEAD: Final = "head.safetensors"
CALIBRATION: Final = "calibration.json"

_MAX_MANIFEST_BYTES: Final = 4 << 20
_MAX_FILE_BYTES: Final = 512 << 20
_MAX_SIDE: Final = 8192


@dataclass(frozen=True, slots=True)
class ScorerDefaults:
    """What a scorer uses when the command line does not say."""

    threshold: float | None = None
    """99th percentile of the score on calibration frames; ``None`` where none were seen."""
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Manifest:
    """Contents of ``bundle.json``. Sizes in pixels, counts as integers."""

    network: str
    structure: dict[str, Any]
    """Structure spec of the network (channel widths), as its class takes it."""
    classes: list[str]
    """Names of the known classes; index = value in the class map."""
    palette: list[list[int]]
    """RGB per known class."""
    height: int
    width: int
    head: dict[str, Any]
    """kind, factor, num_outputs, num_known, void_index, layout, isomax distance scale."""
    scorers: dict[str, ScorerDefaults]
    precision: str
    """``float32``, ``float16`` or ``int8``: what the weights and activations are stored as."""
    compute_precision: str = "f32"
    """Type of what is not integer: ``f32`` or ``bf16``. Engines are told, never left to choose."""
    weights_name: str = ""
    """Where the weights come from; pictures made with the bundle name it."""
    license: str = ""
    """Terms of the weights."""
    counts: dict[str, Any] = field(default_factory=dict)
    """``params``, ``macs`` of the deployed graph, head included."""
    calibration: dict[str, Any] = field(default_factory=dict)
    """Provenance of the ranges: source, number of frames, method."""
    accuracy: dict[str, Any] = field(default_factory=dict)
    """Measured before and after quantization, where a gate ran."""
    created_by: str = ""
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    """File name -> ``sha256``, ``bytes``; filled in by :func:`write_bundle`."""
    schema: str = SCHEMA

    def to_json(self) -> str:
        """The document as it stands in ``bundle.json``."""
        return json.dumps(asdict(self), indent=1, sort_keys=True, allow_nan=False) + "\n"


class Bundle:
    """An opened, verified bundle."""

    def __init__(self, path: Path, manifest: Manifest, head: Head) -> None:
        self.path = path
        self.manifest = manifest
        self.head = head

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Bundle":
        """Read and verify a bundle folder.

        Raises:
            InputError: there is no such folder.
            ArtefactError: not a bundle, another schema, or a damaged or missing file.
        """
        folder = Path(path)
        if not folder.exists():
            raise InputError(
                f"bundle '{folder}' does not exist; make one with 'edgeseg export NETWORK --int8'"
            )
        manifest_path = folder / MANIFEST
        if not manifest_path.is_file():
            raise ArtefactError(
                f"'{folder}' is not a bundle: it has no {MANIFEST}; give the folder that "
                "'edgeseg export' wrote"
            )
        manifest = _parse_manifest(manifest_path)
        for name, entry in manifest.files.items():
            _verify_file(folder, name, entry)
        for name in (BODY, HEAD):
            if name not in manifest.files:
                raise ArtefactError(f"bundle '{folder}' does not list {name}; export it again")
        return cls(folder, manifest, _load_head(folder / HEAD, manifest))

    @property
    def body_path(self) -> Path:
        """Path of ``body.onnx``."""
        return self.path / BODY

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frame, in pixels."""
        return self.manifest.height, self.manifest.width

    @property
    def body_sha256(self) -> str:
        """What the body's caches and device builds are keyed by."""
        return str(self.manifest.files[BODY]["sha256"])

    @property
    def file_bytes(self) -> int:
        """Bytes that must be on the device to run it: body, head and manifest."""
        needed = sum(int(self.manifest.files[name]["bytes"]) for name in (BODY, HEAD))
        return needed + (self.path / MANIFEST).stat().st_size

    def scorer_defaults(self, scorer: str) -> ScorerDefaults:
        """Defaults of ``scorer``; UsageError where the bundle does not have it."""
        try:
            return self.manifest.scorers[scorer]
        except KeyError:
            have = ", ".join(self.manifest.scorers)
            raise UsageError(
                f"bundle '{self.path}' has no scorer '{scorer}'; it has {have}"
            ) from None


def head_to_files(head: Head) -> tuple[dict[str, Any], bytes]:
    """The manifest's ``head`` entry and the bytes of ``head.safetensors``."""
    entry: dict[str, Any] = {
        "kind": head.kind,
        "factor": head.factor,
        "num_outputs": head.num_outputs,
        "num_known": head.num_known,
        "void_index": head.void_index,
        "layout": head.layout,
        "isomax_distance_scale": head.isomax.distance_scale if head.isomax else None,
    }
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    if head.weight is not None and head.bias is not None:
        tensors["weight"] = head.weight
        tensors["bias"] = head.bias
    if head.isomax is not None:
        tensors["isomax_prototypes"] = head.isomax.prototypes
    return entry, write_safetensors(tensors)


def write_bundle(
    destination: str | os.PathLike[str], manifest: Manifest, files: Mapping[str, bytes]
) -> Path:
    """Write a bundle whole or not at all.

    An existing bundle at ``destination`` is replaced; any other folder that is not empty is
    refused.

    Args:
        destination: folder to create.
        manifest: its ``files`` entry is filled in here.
        files: name -> content; must hold ``body.onnx`` and ``head.safetensors``.

    Raises:
        UsageError: ``destination`` is a file, or a folder that holds something else.
    """
    target = Path(destination)
    check_destination(target)
    listed = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in sorted(files.items())
    }
    complete = Manifest(**{**_shallow(manifest), "files": listed})
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        for name, content in files.items():
            _write_synced(staging / name, content)
        _write_synced(staging / MANIFEST, complete.to_json().encode())
        staging.chmod(0o755)
        if target.exists():
            # Two renames: a folder cannot be replaced by one. What was there stays whole beside
            # it until the new one is in place, and comes back if that fails.
            old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
            os.rename(target, old / "bundle")
            try:
                os.rename(staging, target)
            except OSError:
                os.rename(old / "bundle", target)
                raise
            finally:
                shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return target


def check_destination(target: Path) -> None:
    """Raise UsageError unless ``target`` is new, empty or a bundle."""
    if target.is_file():
        raise UsageError(f"output '{target}' is a file; name a folder for the bundle")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise UsageError(
            f"output '{target}' is a folder with other files in it, and they will not be "
            "replaced; name a new folder or a bundle"
        )


def _shallow(manifest: Manifest) -> dict[str, Any]:
    return {f.name: getattr(manifest, f.name) for f in fields(manifest)}


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as handle:
        handle.write(content)
        handle.flush()
        os.fsync(handle.fileno())


def _parse_manifest(path: Path) -> Manifest:
    if path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise ArtefactError(f"'{path}' is larger than any manifest; the bundle is damaged")
    try:
        raw = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ArtefactError(f"'{path}' is not valid JSON; export the bundle again") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("schema"), str):
        raise ArtefactError(f"'{path}' is not the manifest of a bundle: it names no schema")
    if raw["schema"] != SCHEMA:
        raise ArtefactError(
            f"'{path}' has schema '{raw['schema']}', and this version reads '{SCHEMA}'; "
            "export it again with this version"
        )
    known = {f.name for f in fields(Manifest)}
    try:
        given = raw.pop("scorers")
        unknown = set(given) - set(SCORERS)
        if unknown:
            raise ValueError(f"unknown scorer {min(unknown)!r}")
        scorers = {name: ScorerDefaults(**given[name]) for name in SCORERS if name in given}
        manifest = Manifest(
            scorers=scorers, **{key: value for key, value in raw.items() if key in known}
        )
        _check_manifest(manifest)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtefactError(
            f"'{path}' is damaged ({type(error).__name__}: {error}); export the bundle again"
        ) from None
    return manifest


def _check_manifest(manifest: Manifest) -> None:
    for side in (manifest.height, manifest.width):
        if not isinstance(side, int) or not 8 <= side <= _MAX_SIDE:
            raise ValueError(f"frame side {side!r} is not between 8 and {_MAX_SIDE}")
    if len(manifest.palette) != len(manifest.classes):
        raise ValueError("palette and classes differ in length")
    for colour in manifest.palette:
        if len(colour) != 3 or not all(isinstance(v, int) and 0 <= v <= 255 for v in colour):
            raise ValueError(f"{colour!r} is not a colour")
    if not manifest.scorers:
        raise ValueError("no scorer")
    for defaults in manifest.scorers.values():
        if not (isinstance(defaults.temperature, int | float) and defaults.temperature > 0):
            raise ValueError(f"temperature {defaults.temperature!r}")
        if not isinstance(defaults.threshold, int | float | None):
            raise ValueError(f"threshold {defaults.threshold!r}")
    if manifest.compute_precision not in ("f32", "bf16"):
        raise ValueError(f"compute precision {manifest.compute_precision!r}")
    for entry in manifest.files.values():
        if not isinstance(entry["sha256"], str) or not isinstance(entry["bytes"], int):
            raise TypeError("file entry")


def _verify_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    if Path(name).name != name or name in (".", ".."):
        raise ArtefactError(
            f"bundle '{folder}' lists '{name}', which is not a plain file name; do not use it"
        )
    path = folder / name
    if not path.is_file():
        raise ArtefactError(f"bundle '{folder}' lacks {name}; copy it again or export it again")
    size = path.stat().st_size
    if size != entry["bytes"] or size > _MAX_FILE_BYTES:
        raise ArtefactError(
            f"'{path}' has {size} bytes where the manifest says {entry['bytes']}; the bundle is "
            "damaged, copy it again or export it again"
        )
    with path.open("rb") as handle:
        digest = (
            hashlib.file_digest(handle, "sha256").hexdigest()
            if hasattr(hashlib, "file_digest")
            else hashlib.sha256(handle.read()).hexdigest()
        )
    if digest != entry["sha256"]:
        raise ArtefactError(
            f"'{path}' is not the file that the manifest describes (sha256 differs); the bundle "
            "is damaged, copy it again or export it again"
        )


def _load_head(path: Path, manifest: Manifest) -> Head:
    tensors = read_safetensors(path)
    entry = manifest.head
    try:
        scale = entry["isomax_distance_scale"]
        isomax = (
            IsoMaxPlus(float(scale), tensors["isomax_prototypes"].astype(np.float32))
            if scale is not None
            else None
        )
        head = Head(
            kind=entry["kind"],
            num_outputs=int(entry["num_outputs"]),
            num_known=int(entry["num_known"]),
            void_index=None if entry["void_index"] is None else int(entry["void_index"]),
            factor=int(entry["factor"]),
            weight=tensors["weight"].astype(np.float32) if "weight" in tensors else None,
            bias=tensors["bias"].astype(np.float32) if "bias" in tensors else None,
            isomax=isomax,
            layout=entry["layout"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtefactError(
            f"the head of bundle '{path.parent}' is damaged ({type(error).__name__}: {error}); "
            "export the bundle again"
        ) from None
    if head.num_known != len(manifest.classes):
        raise ArtefactError(
            f"bundle '{path.parent}' names {len(manifest.classes)} classes and its head has "
            f"{head.num_known}; export the bundle again"
        )
    return head
