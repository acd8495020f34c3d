"""The archive for a Jetson: what is in it, and the same bytes for the same contents."""

import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Final

from edgeseg import __version__
from edgeseg.bundle import CALIBRATION, MANIFEST, Bundle
from edgeseg.errors import InputError
from edgeseg.export.jetson.boards import Board, JetPack
from edgeseg.export.jetson.crossbuild import EPOCH, build_wheel, check_wheel
from edgeseg.export.jetson.wheels import WheelSet, find_wheels
from edgeseg.files import replacing
from edgeseg.runtime.tensorrt.calibration_cache import cache_of_bundle

__all__ = ["SCHEMA", "archive_path", "device_wheels", "write_archive"]

SCHEMA: Final = "edgeseg.jetson-archive/1"

_SUMS: Final = "SHA256SUMS"
_C_LIBRARY: Final = ("edgeseg/include/", "edgeseg/lib/")
_EXECUTABLE: Final = ("install.sh",)

Content = bytes | Path


def archive_path(bundle: Path, board: Board) -> Path:
    """Where the archive of a bundle goes: beside it."""
    return bundle.with_name(f"{bundle.resolve().name}-{board.name}.tar.gz")


def device_wheels(board: Board, folder: Path | None) -> list[WheelSet]:
    """The wheels for every Python that a board's JetPacks have; the oldest JetPack first.

    Args:
        board: where to run.
        folder: see :func:`find_wheels`; edgeseg's own wheel may lie there too.

    Raises:
        InputError: ``folder`` does not hold all that is needed.
        MissingDependencyError: no compiler for aarch64, no C sources, no pip, no package index.
        ArtefactError: a wheel of edgeseg in ``folder`` that the device cannot use.
    """
    if folder is not None and not folder.is_dir():
        raise InputError(f"--wheels '{folder}' is not a folder; name one that holds wheels")
    given = [] if folder is None else sorted(folder.glob(f"edgeseg-{__version__}-*aarch64.whl"))
    own = given[-1] if given else build_wheel()
    check_wheel(own, min(pack.glibc for pack in board.jetpacks))
    # The first JetPack of a Python has its oldest CUDA and glibc.
    by_python: dict[str, JetPack] = {}
    for pack in board.jetpacks:
        by_python.setdefault(pack.python, pack)
    return [find_wheels(pack, own, folder) for pack in by_python.values()]


def write_archive(
    bundle: Bundle,
    board: Board,
    wheels: Sequence[WheelSet],
    destination: Path,
    report: Callable[[str], None] = lambda _: None,
) -> int:
    """Write the archive whole or not at all.

    Args:
        bundle: with the graphs for TensorRT in it.
        board: where it is to run.
        wheels: see :func:`device_wheels`.
        destination: the file, ``….tar.gz``.
        report: is told how many files there are.

    Returns:
        its size in bytes.

    Raises:
        InputError: it cannot be written.
    """
    files = _contents(bundle, board, wheels)
    sums = "".join(f"{_sha256(content)}  {name}\n" for name, content in sorted(files.items()))
    files[_SUMS] = sums.encode()
    report(f"writing '{destination}', {len(files)} files")
    top = destination.name.removesuffix(".tar.gz")
    try:
        with replacing(destination) as new, new.open("wb") as out:
            _write_tar(out, top, files)
        return destination.stat().st_size
    except OSError as error:
        raise InputError(
            f"'{destination}' cannot be written ({error.strerror}); free some space or name "
            "another folder by -o"
        ) from None


def _contents(bundle: Bundle, board: Board, wheels: Sequence[WheelSet]) -> dict[str, Content]:
    """Name in the archive -> content."""
    files: dict[str, Content] = {f"bundle/{MANIFEST}": bundle.path / MANIFEST}
    files |= {f"bundle/{name}": bundle.path / name for name in bundle.manifest.files}
    if bundle.manifest.precision == "int8":
        for pack in board.jetpacks:
            cache = cache_of_bundle(bundle.path / CALIBRATION, pack.cache_version)
            files[f"calibration/tensorrt-{pack.tensorrt}.cache"] = cache.render()
    for wheel_set in wheels:
        files |= {f"wheels/{path.name}": path for path in wheel_set.paths}
        pins = "".join(f"{pin}\n" for pin in wheel_set.pins)
        files[f"requirements-{wheel_set.python}.txt"] = pins.encode()
    files |= _c_library(next(p for p in wheels[0].paths if p.name.startswith("edgeseg-")))
    for script in resources.files("edgeseg.export.jetson").joinpath("device").iterdir():
        files[script.name] = script.read_bytes()
    document = _document(bundle, board, wheels)
    files["archive.json"] = (json.dumps(document, indent=1) + "\n").encode()
    return files


def _document(bundle: Bundle, board: Board, wheels: Sequence[WheelSet]) -> dict[str, Any]:
    manifest = bundle.manifest
    return {
        "schema": SCHEMA,
        "created_by": f"edgeseg {__version__}",
        "target": board.name,
        "device": board.device.title,
        "jetpacks": [
            {"jetpack": pack.name, "tensorrt": pack.tensorrt, "python": pack.python}
            for pack in board.jetpacks
        ],
        "network": manifest.network,
        "precision": manifest.precision,
        "size": f"{manifest.height}x{manifest.width}",
        "weights_name": manifest.weights_name,
        "license": manifest.license,
        "body_sha256": bundle.body_sha256,
        "wheels": {wheel_set.python: list(wheel_set.pins) for wheel_set in wheels},
    }


def _c_library(wheel: Path) -> dict[str, Content]:
    """``c/include`` and ``c/lib`` for programs without Python, as the wheel has them."""
    with zipfile.ZipFile(wheel) as archive:
        return {
            f"c/{name.removeprefix('edgeseg/')}": archive.read(name)
            for name in archive.namelist()
            if name.startswith(_C_LIBRARY) and not name.endswith("/")
        }


def _write_tar(out: io.BufferedIOBase, top: str, files: Mapping[str, Content]) -> None:
    # Fast: nearly all of it is compressed already.
    packed = gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=out, mtime=0)
    with packed, tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in sorted(files.items()):
            data = content.read_bytes() if isinstance(content, Path) else content
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size = len(data)
            entry.mtime = EPOCH
            entry.mode = 0o755 if name in _EXECUTABLE else 0o644
            archive.addfile(entry, io.BytesIO(data))


def _sha256(content: Content) -> str:
    data = content.read_bytes() if isinstance(content, Path) else content
    return hashlib.sha256(data).hexdigest()
