"""Small wheels and archives for tests of the Jetson archive."""

import base64
import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pip

from edgeseg import __version__
from edgeseg.export.jetson.boards import Board, JetPack, board_of

__all__ = ["board_for", "fake_edgeseg", "make_wheel", "pip_wheel"]

ELF = b"\x7fELF" + bytes(14) + (183).to_bytes(2, "little")


def make_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    tag: str = "py3-none-any",
    files: Mapping[str, bytes] | None = None,
    requires: Sequence[str] = (),
) -> Path:
    """A wheel with ``files`` in it."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {text}\n" for text in requires)
    contents = dict(files or {f"{name}.py": b""})
    contents[f"{info}/METADATA"] = (
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}".encode()
    )
    contents[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode()
    rows = [f"{path},{_digest(content)},{len(content)}\n" for path, content in contents.items()]
    contents[f"{info}/RECORD"] = "".join([*rows, f"{info}/RECORD,,\n"]).encode()
    wheel = folder / f"{name}-{version}-{tag}.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in contents.items():
            archive.writestr(path, content)
    return wheel


def fake_edgeseg(
    folder: Path,
    tag: str = "py3-none-linux_aarch64",
    library: bytes = ELF + b"\0GLIBC_2.29\0GLIBC_2.17\0",
    modules: Mapping[str, bytes] | None = None,
) -> Path:
    """Something of edgeseg's name whose libraries look like aarch64's."""
    contents = {
        "edgeseg/scoring/native/_edgeseg_kernels.so": library,
        "edgeseg/lib/libedgeseg.so.0": library,
        "edgeseg/include/edgeseg.h": b"/* header */\n",
        "edgeseg/__init__.py": f"__version__ = '{__version__}'\n".encode(),
        **{f"edgeseg/{path}.py": content for path, content in (modules or {}).items()},
    }
    return make_wheel(folder, "edgeseg", __version__, tag, contents, ["numpy>=1.24"])


def pip_wheel(folder: Path) -> Path:
    """The pip of this Python as a wheel again."""
    package = Path(pip.__file__).parent
    files = {
        f"pip/{path.relative_to(package).as_posix()}": path.read_bytes()
        for path in sorted(package.rglob("*"))
        if path.is_file() and path.suffix != ".pyc"
    }
    return make_wheel(folder, "pip", pip.__version__, files=files)


def board_for(*jetpacks: JetPack) -> Board:
    """A Jetson Orin Nano with these JetPacks."""
    board = board_of("jetson-orin-nano")
    assert board is not None
    return Board(board.device, jetpacks)


def _digest(content: bytes) -> str:
    digest = hashlib.sha256(content).digest()
    return f"sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')}"
