"""The wheel of edgeseg for aarch64, with its libraries compiled here for there."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from edgeseg import __version__
from edgeseg.errors import ArtefactError, MissingDependencyError
from edgeseg.files import replacing
from edgeseg.runtime.cache import cache_folder

__all__ = [
    "COMPILER",
    "EPOCH",
    "LIBRARIES",
    "build_wheel",
    "check_wheel",
    "newest_glibc",
    "source_tree",
]

COMPILER: Final = "aarch64-linux-gnu-gcc"
EPOCH: Final = 315532800
"""Time of every file, the earliest that a zip can hold: the same contents give the same bytes."""
LIBRARIES: Final[tuple[str, ...]] = (
    "edgeseg/scoring/native/_edgeseg_kernels.so",
    "edgeseg/lib/libedgeseg.so.0",
)

_SOURCES: Final = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
_FOLDERS: Final = ("edgeseg", "calibration_data", "profiles", "export/recipes")
# Weights (32 MB) are for building bundles, which needs torch.
_LEFT_OUT: Final = ("*.so", "*.so.*", "__pycache__", "*.safetensors")
_NAME: Final = f"edgeseg-{__version__}-py3-none-linux_aarch64.whl"
_AARCH64: Final = 183  # EM_AARCH64 of the ELF header
_GLIBC: Final = re.compile(rb"\0GLIBC_2\.(\d+)(?=\0)")


def source_tree() -> Path | None:
    """The checkout that this package lies in; ``None`` where it is installed without sources."""
    root = Path(__file__).resolve().parents[3]
    return root if (root / "setup.py").is_file() and _old_glibc(root).is_dir() else None


def _cross_command(root: Path) -> tuple[str, str]:
    """``CC`` and ``CFLAGS`` that build the libraries of a checkout for a Jetson.

    What is built so needs glibc 2.29: Ubuntu 20.04 (JetPack 5) has 2.31, 22.04 has 2.35.

    Raises:
        MissingDependencyError: the compiler is not installed.
    """
    if shutil.which(COMPILER) is None:
        raise MissingDependencyError(
            f"the compiler {COMPILER}, which builds edgeseg's libraries for the device, is not "
            "installed; run 'apt install gcc-aarch64-linux-gnu libc6-dev-arm64-cross'"
        )
    old = _old_glibc(root)
    flags = f"-include '{old / 'symbols.h'}' '{old / 'calls.c'}' -mno-outline-atomics"
    return COMPILER, f"{flags} -Wl,--no-as-needed -l:libpthread.so.0 -l:libdl.so.2"


def build_wheel() -> Path:
    """The wheel of the checkout, built once and kept in the user's cache.

    Returns:
        ``edgeseg-…-py3-none-linux_aarch64.whl``, without the shipped weights.

    Raises:
        MissingDependencyError: no checkout, no compiler, or setuptools is missing or too old.
    """
    root = source_tree()
    if root is None:
        raise MissingDependencyError(
            "this edgeseg is installed without its C sources, so its libraries cannot be built for "
            f"the device; export from a checkout, or give a folder with {_NAME} by --wheels DIR"
        )
    compiler, flags = _cross_command(root)
    with tempfile.TemporaryDirectory(prefix="edgeseg-") as temporary:
        tree = Path(temporary) / "tree"
        _copy_sources(root, tree)
        kept = cache_folder() / "wheels" / _digest(tree) / _NAME
        if kept.is_file():
            return kept
        said = _run_setuptools(tree, Path(temporary), compiler, flags)
        wheel = Path(temporary) / _NAME
        if not wheel.is_file():
            raise MissingDependencyError(
                f"edgeseg's wheel for the device cannot be built ({_last_line(said)}); run "
                "'pip install setuptools>=77' and try again"
            )
        missing = _libraries(wheel)[1]
        if missing:
            error = re.search(r"error: .*", said)
            raise MissingDependencyError(
                f"{compiler} cannot build {missing[0]} ({_last_line(error[0] if error else '')}); "
                "run 'apt install libc6-dev-arm64-cross'"
            )
        with replacing(kept) as new:
            shutil.copyfile(wheel, new)
    return kept


def check_wheel(wheel: Path, glibc: tuple[int, int]) -> None:
    """Refuse a wheel of edgeseg that the device could not use in full.

    Args:
        wheel: of edgeseg.
        glibc: the device's.

    Raises:
        ArtefactError: its libraries are missing, for another processor, or need a newer glibc.
    """
    found, missing = _libraries(wheel)
    if missing:
        raise ArtefactError(
            f"'{wheel}' lacks {missing[0]}, without which scoring is slow; build it again with "
            f"CC={COMPILER}"
        )
    for name, content in found.items():
        if content[:4] != b"\x7fELF" or int.from_bytes(content[18:20], "little") != _AARCH64:
            raise ArtefactError(
                f"{name} in '{wheel}' is not for aarch64; build the wheel again with CC={COMPILER}"
            )
        needed = newest_glibc(content)
        if needed > glibc:
            raise ArtefactError(
                f"{name} in '{wheel}' needs glibc {needed[0]}.{needed[1]} and the device has "
                f"{glibc[0]}.{glibc[1]}; build it with an older compiler, such as Debian 12's"
            )


def newest_glibc(library: bytes) -> tuple[int, int]:
    """The newest version of glibc whose symbols a library asks for, of its string table."""
    return 2, max((int(minor) for minor in _GLIBC.findall(library)), default=0)


def _copy_sources(root: Path, tree: Path) -> None:
    """What a wheel is built of; a copy, because a build leaves its marks in the tree."""
    left_out = shutil.ignore_patterns(*_LEFT_OUT)
    for name in _FOLDERS:
        shutil.copytree(root / name, tree / name, ignore=left_out)
    for name in _SOURCES:
        shutil.copy(root / name, tree)
    # The head of the ready bundle is not weights to build from.
    for head in root.glob("edgeseg/bundles/*/*.safetensors"):
        shutil.copy(head, tree / head.relative_to(root))


def _digest(tree: Path) -> str:
    """Of all files below ``tree``, their names and modes."""
    digest = hashlib.sha256()
    for path in sorted(p for p in tree.rglob("*") if p.is_file()):
        content = path.read_bytes()
        named = f"{path.relative_to(tree).as_posix()}\0{path.stat().st_mode}\0{len(content)}\0"
        digest.update(named.encode() + content)
    return digest.hexdigest()[:32]


def _run_setuptools(tree: Path, folder: Path, compiler: str, flags: str) -> str:
    """Build the wheel of ``tree`` into ``folder``; what was said."""
    ask = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PYTHON")},
        "CC": compiler,
        "CFLAGS": flags,
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "_PYTHON_HOST_PLATFORM": "linux-aarch64",
    }
    done = subprocess.run(
        [sys.executable, "-c", ask, str(folder)],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    return done.stderr


def _last_line(text: str) -> str:
    return " ".join((text.strip().splitlines() or ["no reason given"])[-1].split())[:200]


def _libraries(wheel: Path) -> tuple[dict[str, bytes], list[str]]:
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = set(archive.namelist())
            found = {name: archive.read(name) for name in LIBRARIES if name in names}
    except (OSError, zipfile.BadZipFile):
        raise ArtefactError(f"'{wheel}' cannot be read as a wheel; fetch it again") from None
    return found, [name for name in LIBRARIES if name not in found]


def _old_glibc(root: Path) -> Path:
    return root / "edgeseg" / "clib" / "old_glibc"
