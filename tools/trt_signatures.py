"""Read the names and arguments of TensorRT's Python API out of NVIDIA's bindings wheels.

    python tools/trt_signatures.py -o tests/tensorrt_signatures.json

The wheels hold the compiled bindings without TensorRT itself. A stub library with the dozen symbols
that they want from it lets them be imported, and pybind11's docstrings say what every call takes.
No GPU and no driver; needs pip's index and a C compiler. For TensorRT 8.5 there is no wheel.
"""

import argparse
import json
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

# Version -> wheel; those of JetPack 6.0, 6.1, 7.2 and the first era without calibrators.
WHEELS = {
    "8.6": "tensorrt-bindings==8.6.1",
    "10.3": "tensorrt-cu12-bindings==10.3.0",
    "10.16": "tensorrt-cu12-bindings==10.16.1.11",
    "11.4": "tensorrt-cu12-bindings==11.4.0.106",
}
CUDA_WHEELS = ("cuda-bindings==13.4.4", "cuda-pathfinder==1.9.1")

CLASSES = (
    "Builder",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "IInt8EntropyCalibrator2",
    "IInt8MinMaxCalibrator",
    "ILayer",
    "ILogger",
    "INetworkDefinition",
    "ITensor",
    "ITimingCache",
    "OnnxParser",
    "ParserError",
    "Runtime",
)
ENUMS = (
    "BuilderFlag",
    "DataType",
    "DeviceType",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "TensorIOMode",
)
CUDA_CALLS = (
    "cudaFree",
    "cudaFreeHost",
    "cudaGetDeviceCount",
    "cudaGetDeviceProperties",
    "cudaGetErrorString",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
    "cudaGraphInstantiate",
    "cudaGraphLaunch",
    "cudaMalloc",
    "cudaMallocHost",
    "cudaMemcpyAsync",
    "cudaRuntimeGetVersion",
    "cudaSetDevice",
    "cudaStreamBeginCapture",
    "cudaStreamCreateWithFlags",
    "cudaStreamDestroy",
    "cudaStreamEndCapture",
    "cudaStreamSynchronize",
)

_SIGNATURE = re.compile(r"(?:^|\d\. )(\w+)\((.*)\)(?: -> .*)?$")


def arguments(text: str) -> list[list[str]]:
    """Names and whether they may be left out (``name=``) of ``a: T, b: U = 1``; no ``self``."""
    parts, depth, start = [], 0, 0
    for i, character in enumerate(text + ","):
        depth += (character in "[(<{") - (character in "])>}")
        if character == "," and depth == 0:
            parts.append(text[start:i].strip())
            start = i + 1
    found = []
    for part in parts:
        name = re.split(r"[:=]", part)[0].strip().split(" ")[-1]
        if name and name != "self" and not name.startswith("*"):
            # A type may hold an equals sign only inside brackets.
            found.append(name + ("=" if re.search(r" = ", part) else ""))
    return found


def overloads(docstring: str) -> list[list[str]]:
    """Argument lists of every form of a call."""
    lines = [line.strip() for line in docstring.splitlines()]
    if not lines or "Overloaded function" not in docstring:
        match = _SIGNATURE.match(lines[0]) if lines else None
        return [arguments(match[2])] if match else []
    numbered = (_SIGNATURE.match(line) for line in lines if re.match(r"\d+\. ", line))
    return [arguments(match[2]) for match in numbered if match]


def describe(module) -> dict:
    """Methods, properties and enum members of the classes that this project uses."""
    found = {"version": module.__version__, "classes": {}, "enums": {}}
    for name in CLASSES:
        kind = getattr(module, name, None)
        if kind is None:
            continue
        methods, properties = {}, {}
        for attribute in dir(kind):
            if attribute.startswith("_") and attribute != "__init__":
                continue
            value = getattr(kind, attribute)
            if isinstance(value, property):
                properties[attribute] = value.fset is not None
            elif callable(value) and not isinstance(value, type):
                methods[attribute] = overloads(value.__doc__ or "")
        found["classes"][name] = {"methods": methods, "properties": properties}
    severities = getattr(module.ILogger, "Severity", None)
    found["enums"] = {n: list(getattr(module, n).__members__) for n in ENUMS if hasattr(module, n)}
    found["enums"]["Severity"] = list(severities.__members__)
    found["constants"] = [n for n in ("float32", "float16", "uint8", "int8") if hasattr(module, n)]
    return found


def describe_cuda(runtime) -> dict:
    """Argument names of the calls of cuda-python's runtime API that this project makes."""
    found = {}
    for name in CUDA_CALLS:
        first = (getattr(runtime, name).__doc__ or "").strip().splitlines()[0]
        found[name] = arguments(_SIGNATURE.match(first)[2])
    return found


def read(wheels: tuple[str, ...], folder: Path) -> dict:
    """Download wheels and describe the first in a child process."""
    target = folder / re.sub(r"\W", "_", wheels[0])
    target.mkdir()
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run(
        [*pip, "--only-binary", ":all:", "--dest", str(target), *wheels],
        check=True,
        capture_output=True,
    )
    for file in target.glob("*.whl"):
        with zipfile.ZipFile(file) as archive:
            archive.extractall(target)
    environment = {"PATH": "/usr/bin:/bin"}
    library = target / "tensorrt_bindings" / "tensorrt.so"
    if library.exists():
        environment["LD_LIBRARY_PATH"] = str(_stubs(library, target))
    done = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), "--child", str(target)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{wheels[0]} cannot be read: {done.stderr[-500:]}")
    return json.loads(done.stdout)


def _stubs(library: Path, target: Path) -> Path:
    """Libraries with the names and symbols that the bindings want from TensorRT."""
    asked = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True).stdout
    names = re.findall(r"\[(libnv[\w.]+)\]", asked)
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", str(library)], capture_output=True, text=True
    ).stdout
    wanted = [
        word
        for word in re.findall(r" U (\w+)\n", symbols)
        if re.match(r"(create\w+_INTERNAL|get\w+|init\w+|_ZN\d+nv\w+)$", word)
    ]
    folder = target / "stubs"
    folder.mkdir()
    source = folder / "stubs.c"
    source.write_text("".join(f"void *{word}(void) {{ return 0; }}\n" for word in wanted))
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    for name in names:
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-o", str(folder / name), str(source)], check=True
        )
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        sys.path.insert(0, options.child)
        if (Path(options.child) / "cuda").is_dir():
            from cuda.bindings import runtime

            print(json.dumps(describe_cuda(runtime)))
        else:
            import tensorrt_bindings

            print(json.dumps(describe(tensorrt_bindings)))
        return 0
    with tempfile.TemporaryDirectory(prefix="edgeseg-wheels-") as folder:
        tables = {version: read((wheel,), Path(folder)) for version, wheel in WHEELS.items()}
        document = {"tensorrt": tables, "cuda-python": read(CUDA_WHEELS, Path(folder))}
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    # A class a line: what a new version changed can be read in a diff.
    text = re.sub(r'("[A-Z]\w+":\{"methods)', r"\n\1", text) + "\n"
    if options.output:
        options.output.write_text(text)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
