"""TensorRT-RTX in a process and an interpreter of its own.

It brings 350 MB, so it stays out of the development environment: ``make .venv-rtx/.installed`` puts
it beside, or ``EDGESEG_RTX_PYTHON`` names an interpreter that has it. It needs no GPU to build.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BESIDE = ROOT / ".venv-rtx"

Build = Callable[..., dict]


def interpreter(given: str | None = None) -> str | None:
    """The interpreter that has TensorRT-RTX: the one named, the one beside, this one, or none."""
    named = given or os.environ.get("EDGESEG_RTX_PYTHON")
    if named:
        return named
    beside = BESIDE / "bin" / "python"
    if beside.exists() and any(BESIDE.glob("lib/python*/site-packages/tensorrt_rtx")):
        return str(beside)
    return sys.executable if importlib.util.find_spec("tensorrt_rtx") else None


@contextmanager
def rtx_builder(python: str) -> Iterator[tuple[str, Build]]:
    """The version of TensorRT-RTX, and a function that builds a file.

    ``build(path, precision, targets)`` takes an ONNX file, ``float32|float16|int8`` and compute
    capabilities, and gives ``engine_bytes``, ``layers``, ``seconds`` of the clock and
    ``cpu_seconds``, or an ``error``.

    Raises:
        RuntimeError: the interpreter has no TensorRT-RTX that can be imported, or it died.
    """
    command = [python, str(Path(__file__).resolve())]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as child:

        def answer() -> dict:
            line = child.stdout.readline()
            if not line:
                raise RuntimeError(
                    f"the builder ended with {child.wait()}; try '{command[0]} -c "
                    '"import tensorrt_rtx"\''
                )
            return json.loads(line)

        def build(path: Path, precision: str = "float32", targets: Sequence[str] = ("8.6",)):
            request = {"path": str(path), "precision": precision, "targets": targets}
            child.stdin.write(json.dumps(request) + "\n")
            child.stdin.flush()
            return answer()

        yield answer()["version"], build
        child.stdin.close()


def serve() -> None:
    """Say the version, then build the files named on stdin; a JSON line each on stdout."""
    import tensorrt_rtx as trt

    sys.path.insert(0, str(ROOT))

    from edgeseg.errors import EdgesegError
    from edgeseg.runtime.tensorrt.builder import BuildOptions, build

    print(json.dumps({"version": trt.__version__}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        options = BuildOptions(request["precision"], compute_capabilities=tuple(request["targets"]))
        started = time.process_time()
        try:
            built = build(trt, Path(request["path"]).read_bytes(), options)
            answer = {
                "engine_bytes": len(built.content),
                "layers": built.layers,
                "seconds": round(built.seconds, 2),
                "cpu_seconds": round(time.process_time() - started, 2),
            }
        except EdgesegError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
