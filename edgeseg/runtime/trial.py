"""Loads a graph into an engine and runs it once: the child process that may crash.

Not for users. Takes one JSON argument and prints one JSON line where it fails.
"""

import json
import sys
from pathlib import Path

import numpy as np

from edgeseg.errors import EdgesegError
from edgeseg.runtime.backends import BodySpec, load
from edgeseg.runtime.library import LibrarySession

__all__ = ["main"]


def main(argument: str) -> int:
    """Exit code 0 where the graph loads and runs, 1 with the reason on stdout where not."""
    request = json.loads(argument)
    threads = int(request.pop("threads"))
    name = str(request.pop("backend"))
    library = bool(request.pop("library"))
    body = BodySpec(**{**request, "path": Path(request["path"])})
    try:
        if library:  # which runs it once itself
            LibrarySession(body.path.parent, name, threads=threads).close()
        else:
            backend = load(name, body, threads)
            backend.infer(np.zeros((1, body.height, body.width, 3), np.uint8))
    except EdgesegError as error:
        return _fail(type(error).__name__, str(error))
    except Exception as error:
        return _fail(
            "ArtefactError",
            f"backend '{name}' cannot run '{body.path}' ({' '.join(str(error).split())[:300]}); "
            "try another --backend or export the bundle again",
        )
    return 0


def _fail(kind: str, message: str) -> int:
    print(json.dumps({"kind": kind, "message": message}), flush=True)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
