"""The C libraries on a host: those that came along where they load there, else built there."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

from edgeseg.errors import EdgesegError
from edgeseg.runtime import library_abi
from edgeseg.scoring import library as kernels

__all__ = ["BUILT", "COPIED", "NUMPY", "provide"]

COPIED: Final = "copied"
BUILT: Final = "built there"
NUMPY: Final = "numpy"

_FLAGS: Final = ("-std=c11", "-O3", "-fPIC", "-fvisibility=hidden", "-shared")
_LINKED: Final = ("-lpthread", "-lm", "-ldl")
_SECONDS: Final = 600


def provide(package: Path) -> str:
    """See that kernels and libedgeseg can be loaded, as far as this machine lets them.

    Args:
        package: the folder of the package that was copied.

    Returns:
        where the kernels come from: :data:`COPIED`, :data:`BUILT`, or :data:`NUMPY`, which does
        their work where there are none.
    """
    native, clib = package / "scoring" / "native", package / "clib"
    if kernels.available():
        found = COPIED
    else:
        # Of another machine; the failed attempt is remembered.
        _build(kernels.library_path(), sorted(native.glob("*.c")))
        kernels.load.cache_clear()
        found = BUILT if kernels.available() else NUMPY
    if not _loads():
        shared = [p for p in native.glob("*.c") if p.name != "histogram.c"]
        sources = [*sorted(clib.glob("*.c")), *sorted(shared)]
        path = library_abi.library_path()
        script = f"-Wl,-soname,{path.name},--version-script={clib / 'libedgeseg.map'},-z,defs"
        _build(path, sources, f"-I{package / 'include'}", f"-I{native}", script)
    return found


def _loads() -> bool:
    try:
        library_abi.load()
    except EdgesegError:
        return False
    return True


def _build(target: Path, sources: list[Path], *options: str) -> None:
    """Compile, or leave nothing at ``target``."""
    target.unlink(missing_ok=True)
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or not sources:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [compiler, *_FLAGS, *options, "-o", str(target), *map(str, sources), *_LINKED]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        done = None
    if done is None or done.returncode:
        target.unlink(missing_ok=True)
