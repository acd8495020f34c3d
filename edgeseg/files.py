"""Files and folders written whole or not at all."""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from edgeseg.errors import InputError

__all__ = ["is_unfinished", "replacing", "write_folder_whole", "write_text", "write_whole"]

_UNFINISHED: Final = re.compile(r"\..{1,50}\.[0-9a-f]{12}", re.DOTALL)


@contextlib.contextmanager
def replacing(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A new, empty file beside ``path`` to write to; it becomes ``path`` when the block has ended.

    Where the block or the renaming fails, the new file is removed and what was at ``path`` stays.
    A file that is replaced keeps its permissions, else the umask decides. Where ``path`` is a link,
    the file that it leads to is replaced. A device or a pipe is written to as it is.

    Args:
        path: its folder is made where it is missing.
        sync: the content is on the disk before it has its name, so that a power failure cannot
            leave an empty file there; costs some milliseconds.

    Raises:
        OSError: it cannot be written.
    """
    if _is_stream(path):
        yield path
        return
    path = Path(os.path.realpath(path))
    _make_folder(path.parent)
    new = _beside(path)
    # Nobody else's file or link is taken for ours.
    os.close(os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield new
        with contextlib.suppress(FileNotFoundError):
            new.chmod(path.stat().st_mode & 0o777)
        if sync:
            _sync(new)
        os.replace(new, path)
    except BaseException:
        with contextlib.suppress(OSError):
            new.unlink()
        raise


def write_whole(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Put ``content`` at ``path``; see :func:`replacing`."""
    with replacing(path, sync=sync) as new:
        new.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Put ``text`` at ``path``, where a user asked for it; InputError where that fails."""
    try:
        write_whole(path, text.encode())
    except OSError as error:
        raise InputError(
            f"'{path}' cannot be written ({error.strerror}); name another file"
        ) from None


def write_folder_whole(target: Path, files: Mapping[str, bytes]) -> None:
    """Put a folder with these files at ``target``, in place of the one that may be there.

    Args:
        target: a folder, or nothing yet; folders above it are made.
        files: plain name -> content.

    Raises:
        OSError: it cannot be written; what was at ``target`` is there as before.
        InputError: the old folder was moved away and cannot be moved back; says where it lies.
    """
    _make_folder(target.parent)
    staging = _beside(target)
    staging.mkdir()
    try:
        for name, content in files.items():
            (staging / name).write_bytes(content)
            _sync(staging / name)
        _put_in_place(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _put_in_place(staging: Path, target: Path) -> None:
    if not target.exists():
        os.rename(staging, target)
        return
    # Two renames: a folder cannot be replaced by one. What was there stays whole beside it until
    # the new one is in place, and comes back if that fails.
    old = _beside(target)
    os.rename(target, old)
    try:
        os.rename(staging, target)
    except OSError as error:
        try:
            os.rename(old, target)
        except OSError:
            raise InputError(
                f"'{target}' cannot be replaced ({error.strerror}); the old one is whole and lies "
                f"in '{old}'"
            ) from None
        raise
    if old.is_symlink():
        old.unlink()  # the link is replaced; what it leads to stays
    else:
        shutil.rmtree(old, ignore_errors=True)


def is_unfinished(name: str) -> bool:
    """Whether a file or folder of this name is one that is being written, or was left by a power
    failure.
    """
    return _UNFINISHED.fullmatch(name) is not None


def _is_stream(path: Path) -> bool:
    # /dev/stdout may lead to a file, whose writer would not notice that it was replaced.
    if path.absolute().parts[1:2] in (("dev",), ("proc",)):
        return path.exists()
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        # "File exists" would say little to whoever reads it.
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from None


def _beside(path: Path) -> Path:
    # Names end at 255 bytes, and a letter has up to four.
    return path.with_name(f".{path.name[:50]}.{secrets.token_hex(6)}")


def _sync(path: Path) -> None:
    with path.open("rb") as written:
        os.fsync(written.fileno())
