"""The first program on a host: receives the package and the bundles, then starts the agent.

Its text is what ``python -c`` there reads first from its input, so it imports the standard library
alone. What it answers stands behind a word that the caller chose; what else a log-in shell, an
engine or a driver prints is no answer. Once everything has arrived, the end of the input means that
the caller is gone, and ends the whole process group.
"""

import json
import os
import platform
import signal
import sys
import tarfile
import threading
from importlib.util import find_spec
from typing import Any

MAX_HEADER_BYTES = 1 << 20

# Whatever engines keep between runs goes into the folder that is removed.
KEPT = {"XDG_CACHE_HOME": "cache", "TMPDIR": "scratch", "CUDA_CACHE_PATH": "cuda"}


class Limited:
    """The next ``size`` bytes of a stream, as a file for :mod:`tarfile`."""

    def __init__(self, stream: Any, size: int) -> None:
        self._stream, self.left = stream, size

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; fewer at the end alone."""
        data: bytes = self._stream.read(min(size, self.left))
        self.left -= len(data)
        return data


def unpack(stream: Any, size: int, folder: str) -> None:
    """Files and folders of a tar stream, and nothing else, below ``folder``."""
    limited = Limited(stream, size)
    # A filter of tarfile's own is not in every 3.10; these two tests leave it nothing to do.
    with tarfile.open(fileobj=limited, mode="r|") as archive:  # type: ignore[call-overload]
        for member in archive:
            parts = member.name.split("/")
            if not member.isreg() or ".." in parts or "" in parts:
                raise ValueError("an entry that is no plain file below the folder")
            target = os.path.join(folder, *parts)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            content = archive.extractfile(member)
            with open(target, "xb") as out:
                while content is not None and (block := content.read(1 << 20)):
                    out.write(block)
    while limited.left and limited.read(1 << 16):
        pass
    if limited.left:
        raise EOFError("the connection ended")


def facts() -> dict[str, Any]:
    """What decides whether it is worth sending anything, and what."""
    engines = ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx")
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "numpy": find_spec("numpy") is not None,
        "engines": [name for name in engines if find_spec(name) is not None],
    }


def end_with_the_caller() -> None:
    """Kill everything that was started here when the input ends."""
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


def main(nonce: str, folder: str) -> None:
    """Receive, start, and leave the removal of the folder to the shell that waits for this."""
    os.setpgid(0, 0)
    channel = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)

    def tell(kind: str, value: Any) -> None:
        channel.write(f"{nonce} {kind} {json.dumps(value)}\n")
        channel.flush()

    source = sys.stdin.buffer
    tell("facts", facts())
    line = source.readline(MAX_HEADER_BYTES)
    if not line.endswith(b"\n"):
        return
    header = json.loads(line)
    try:
        unpack(source, header["bytes"], folder)
    except EOFError:
        return
    except (OSError, ValueError, tarfile.TarError) as error:
        tell("error", {"code": 7, "message": f"the files cannot be unpacked there ({error})"})
        return
    threading.Thread(target=end_with_the_caller, daemon=True).start()
    for variable, name in KEPT.items():
        os.environ[variable] = os.path.join(folder, name)
        os.mkdir(os.environ[variable])
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    os.chdir(folder)
    sys.path.insert(0, folder)
    try:
        from edgeseg.profiling.remote.agent import answer
    except ImportError as error:
        text = f"Python {platform.python_version()} there cannot import what it has: {error}"
        tell("error", {"code": 3, "message": f"{text}; install it again"})
        return
    answer(header["request"], folder, tell)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[3])
    # Engines that crash while the interpreter winds down must not spoil what has been told.
    os._exit(0)
