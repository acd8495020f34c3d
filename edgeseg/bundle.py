"""The bundle: the one artefact in which building, running and judging meet.

A folder with

- ``body.onnx``: ``frame`` uint8 ``[1, H, W, 3]`` BGR -> ``features`` float32;
- ``head.safetensors``: weights of the head (:class:`edgeseg.scoring.head.Head`);
- ``bundle.json``: everything else that a run needs, and the sha256 of every file;
- optional: ``calibration.json``, ``model_<scorer>.onnx``, device builds.

Only what ``bundle.json`` lists belongs to the bundle; device builds and caches may lie beside it.
A ``signature.json`` (:mod:`edgeseg.runtime.signing`) covers every file in the folder.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeseg.errors import ArtefactError, InputError, UsageError
from edgeseg.files import write_folder_whole, write_whole
from edgeseg.manifest import SCHEMA, Manifest, ScorerDefaults, integer, number, read_manifest
from edgeseg.safetensors import read_safetensors, write_safetensors
from edgeseg.scoring.head import Head, IsoMaxPlus
from edgeseg.scoring.scorers import valid_scorers

__all__ = [
    "BODY",
    "CALIBRATION",
    "HEAD",
    "MANIFEST",
    "SCHEMA",
    "Bundle",
    "Manifest",
    "ScorerDefaults",
    "check_destination",
    "head_to_files",
    "replace_manifest",
    "write_bundle",
]

MANIFEST: Final = "bundle.json"
BODY: Final = "body.onnx"
HEAD: Final = "head.safetensors"
CALIBRATION: Final = "calibration.json"

_MAX_FILE_BYTES: Final = 512 << 20


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
        try:
            there, marked = folder.exists(), (folder / MANIFEST).is_file()
        except OSError as error:
            raise InputError(
                f"bundle '{folder}' cannot be looked at ({error.strerror}); check its path and its "
                "permissions"
            ) from None
        if not there:
            raise InputError(
                f"bundle '{folder}' does not exist; make one with 'edgeseg export NETWORK --int8'"
            )
        if not marked:
            raise ArtefactError(
                f"'{folder}' is not a bundle: it has no {MANIFEST}; give the folder that "
                "'edgeseg export' wrote"
            )
        manifest = read_manifest(folder / MANIFEST)
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
    def network_sha256(self) -> str:
        """What tells this network from every other: sha256 over the digests of body and head.

        Networks may share a body: teaching the void class changes the last layer alone, which for
        some lies in the head.
        """
        digests = "\n".join(str(self.manifest.files[name]["sha256"]) for name in (BODY, HEAD))
        return hashlib.sha256(digests.encode()).hexdigest()

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
        InputError: it cannot be written to.
    """
    target = Path(destination)
    check_destination(target)
    listed = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in sorted(files.items())
    }
    complete = replace(manifest, files=listed)
    try:
        write_folder_whole(target, {**files, MANIFEST: complete.to_json().encode()})
    except OSError as error:
        raise InputError(
            f"bundle '{target}' cannot be written ({error.strerror}); choose another folder"
        ) from None
    return target


def replace_manifest(bundle: Bundle, manifest: Manifest) -> Bundle:
    """Give a bundle another ``bundle.json``, whole or not at all; no other file is touched.

    Device builds beside the bundle stay, since they hang on its files and not on its manifest.

    Args:
        bundle: as it was opened.
        manifest: of the same files; ``files`` is taken from ``bundle``.

    Raises:
        InputError: it cannot be written to.
    """
    path = bundle.path / MANIFEST
    complete = replace(manifest, files=bundle.manifest.files)
    try:
        write_whole(path, complete.to_json().encode())
    except OSError as error:
        raise InputError(
            f"'{path}' cannot be written ({error.strerror}); copy the bundle to where it can be"
        ) from None
    return Bundle.open(bundle.path)


def check_destination(target: Path) -> None:
    """Raise UsageError unless ``target`` is new, empty or a bundle, and can be replaced."""
    if target.resolve() == Path.cwd():
        # It would be replaced under the feet of the shell that stands in it.
        raise UsageError(f"output '{target}' is the current folder; name a new folder")
    existing = next(p for p in (target, *target.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise UsageError(f"output '{target}': '{existing}' is a file; name a folder for the bundle")
    if target.is_dir() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise UsageError(
            f"output '{target}' is a folder with other files in it, and they will not be "
            "replaced; name a new folder or a bundle"
        )


def _verify_file(folder: Path, name: str, entry: Mapping[str, Any]) -> None:
    if Path(name).name != name or name in (".", ".."):
        raise ArtefactError(
            f"bundle '{folder}' lists '{name}', which is not a plain file name; do not use it"
        )
    path = folder / name
    try:
        if not path.is_file():
            raise ArtefactError(
                f"bundle '{folder}' lacks '{name}'; copy it again or export it again"
            )
        size = path.stat().st_size
        if size != entry["bytes"] or size > _MAX_FILE_BYTES:
            raise ArtefactError(
                f"'{path}' has {size} bytes where the manifest says {entry['bytes']}; the bundle "
                "is damaged, copy it again or export it again"
            )
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ArtefactError(
            f"bundle '{folder}' lists a file that cannot be read ({error.strerror}); copy it again "
            "or export it again"
        ) from None
    if digest != entry["sha256"]:
        raise ArtefactError(
            f"'{path}' is not the file that the manifest describes (sha256 differs); the bundle "
            "is damaged, copy it again or export it again"
        )


def _load_head(path: Path, manifest: Manifest) -> Head:
    tensors = read_safetensors(path)
    entry = manifest.head
    try:
        for name, tensor in tensors.items():
            if not np.isfinite(tensor).all():
                raise ValueError(f"{name} holds numbers that are not finite")
        scale = entry["isomax_distance_scale"]
        isomax = None
        if scale is not None:
            isomax = IsoMaxPlus(
                number(scale, "isomax_distance_scale"),
                tensors["isomax_prototypes"].astype(np.float32),
            )
        void = entry["void_index"]
        head = Head(
            kind=entry["kind"],
            num_outputs=integer(entry["num_outputs"], "num_outputs"),
            num_known=integer(entry["num_known"], "num_known"),
            void_index=None if void is None else integer(void, "void_index"),
            factor=integer(entry["factor"], "factor"),
            weight=tensors["weight"].astype(np.float32) if "weight" in tensors else None,
            bias=tensors["bias"].astype(np.float32) if "bias" in tensors else None,
            isomax=isomax,
            layout=entry["layout"],
        )
        if head.num_known != len(manifest.classes):
            raise ValueError(
                f"{head.num_known} known outputs for {len(manifest.classes)} class names"
            )
        if manifest.height % head.factor or manifest.width % head.factor:
            raise ValueError(
                f"{manifest.height}x{manifest.width} is not x{head.factor} of anything"
            )
        if not set(manifest.scorers) <= set(valid_scorers(head.void_index)):
            raise ValueError("scorer void without a void output")
    except (KeyError, TypeError, ValueError, ArtefactError) as error:
        what = (
            str(error) if isinstance(error, ArtefactError) else f"{type(error).__name__}: {error}"
        )
        raise ArtefactError(
            f"the head of bundle '{path.parent}' is damaged ({what}); export the bundle again"
        ) from None
    return head
