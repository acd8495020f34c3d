"""What goes to a host: the part of this package that runs bundles, the bundles, and no more."""

import os
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from edgeseg.bundle import MANIFEST, Bundle
from edgeseg.runtime import ready
from edgeseg.runtime.library_abi import library_path as clib_path
from edgeseg.scoring.library import library_path as kernels_path

__all__ = ["bundle_folder", "pack"]

_PACKAGE = Path(__file__).resolve().parents[2]
_PARTS = ("runtime", "scoring", "profiling", "clib", "include")
_SUFFIXES = (".py", ".json", ".c", ".h", ".map", ".cu", ".cuh")


def bundle_folder(number: int) -> str:
    """Where the bundle of this number lies on the host."""
    return f"bundles/{number}"


@contextmanager
def pack(bundles: Sequence[Bundle], *, libraries: bool, reference: bool) -> Iterator[IO[bytes]]:
    """A tar of what is needed to measure bundles, in a file without a name, at its beginning.

    Args:
        bundles: opened; only what their manifests list is packed.
        libraries: the compiled libraries too.
        reference: the ready bundle too.
    """
    # Its own entries name neither owners nor times, and hold no links.
    with tempfile.TemporaryFile() as out:
        with tarfile.open(fileobj=out, mode="w") as archive:
            for source, name in _files(bundles, libraries, reference):
                with source.open("rb") as file:
                    entry = tarfile.TarInfo(name)
                    entry.size = os.fstat(file.fileno()).st_size
                    archive.addfile(entry, file)
        out.seek(0)
        yield out


def _files(
    bundles: Sequence[Bundle], libraries: bool, reference: bool
) -> Iterator[tuple[Path, str]]:
    for path in sorted(_PACKAGE.glob("*.py")):
        yield path, f"edgeseg/{path.name}"
    for part in _PARTS:
        for path in sorted((_PACKAGE / part).rglob("*")):
            if path.suffix in _SUFFIXES and path.is_file():
                yield path, f"edgeseg/{path.relative_to(_PACKAGE).as_posix()}"
    if libraries:
        for path in (kernels_path(), clib_path()):
            if path.is_file():
                yield path, f"edgeseg/{path.relative_to(_PACKAGE).as_posix()}"
    # An installed package has the profiles inside, a checkout beside it.
    for folder in (_PACKAGE / "profiles", _PACKAGE.parent / "profiles"):
        if folder.is_dir():
            for path in sorted(folder.glob("*.toml")):
                yield path, f"edgeseg/profiles/{path.name}"
            break
    if reference:
        yield from _of_bundle(Bundle.open(ready.ready_bundle()), "edgeseg/bundles/ready")
    for number, bundle in enumerate(bundles):
        yield from _of_bundle(bundle, bundle_folder(number))


def _of_bundle(bundle: Bundle, folder: str) -> Iterator[tuple[Path, str]]:
    for name in (MANIFEST, *bundle.manifest.files):
        yield bundle.path / name, f"{folder}/{name}"
