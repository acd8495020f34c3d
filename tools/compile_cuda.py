"""Compile the head's CUDA kernel to cubins and print what each takes.

    python tools/compile_cuda.py [--arch 72 75 87] [--outputs 19 20] [-o DIR] [--json FILE]

By nvcc where it knows the architecture, else by NVRTC: that of nvidia-cuda-nvrtc-cu12==12.9.* still
compiles sm_72 (Xavier), which CUDA 13 dropped; ``make .venv-rtx/.installed`` gets it. Neither needs
a GPU. Exits 1 where there is no compiler, where it refuses, and where registers are spilled.
"""

import argparse
import ctypes
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgeseg.scoring.cuda import KERNEL, SOURCES, resources  # noqa: E402
from make_readme import markdown  # noqa: E402
from nvidia_tables import kernel_table  # noqa: E402

ARCHITECTURES = (72, 75, 86, 87, 89, 110, 120)
OUTPUTS = (19, 20)
# The first of Blackwell; CUDA 12's compiler spills registers there, that of 13 does not.
BLACKWELL = 100


class CompileError(Exception):
    """The compiler's own words."""


def nvcc_knows(architecture: int) -> bool:
    """Whether there is an nvcc that compiles for ``sm_<architecture>``."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        return False
    done = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False)
    return f"sm_{architecture}" in done.stdout.split()


def by_nvcc(architecture: int, outputs: int) -> bytes:
    with tempfile.TemporaryDirectory(prefix="edgeseg-cuda-") as folder:
        target = Path(folder) / "head.cubin"
        done = subprocess.run(
            [
                "nvcc",
                "-cubin",
                f"-arch=sm_{architecture}",
                "-O3",
                "-Werror",
                "all-warnings",
                f"-DEDGESEG_OUTPUTS={outputs}",
                str(SOURCES / "head.cu"),
                "-o",
                str(target),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise CompileError(done.stderr + done.stdout)
        return target.read_bytes()


def find_nvrtc(given: Path | None = None) -> Path | None:
    """NVRTC's library: the one given, that of the pip package here, or in ``.venv-rtx``."""
    if given is not None:
        return given
    spec = importlib.util.find_spec("nvidia")
    places = [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    places += sorted((ROOT / ".venv-rtx").glob("lib/python*/site-packages/nvidia"))
    return next((f for p in places for f in sorted(p.glob("cuda_nvrtc/lib/libnvrtc.so.*"))), None)


def nvrtc_knows(library: Path | None, architecture: int) -> bool:
    """Whether NVRTC is there and compiles well for ``sm_<architecture>``."""
    if library is None:
        return False
    nvrtc, major, minor = ctypes.CDLL(str(library)), ctypes.c_int(), ctypes.c_int()
    nvrtc.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    if architecture >= BLACKWELL and major.value < 13:
        return False
    count = ctypes.c_int()
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    known = (ctypes.c_int * count.value)()
    nvrtc.nvrtcGetSupportedArchs(known)
    return architecture in known


def by_nvrtc(library: Path, architecture: int, outputs: int) -> bytes:
    for builtins in sorted(library.parent.glob("libnvrtc-builtins.so*")):
        ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
    nvrtc = ctypes.CDLL(str(library))
    header = (SOURCES / "head_pixel.h").read_bytes()
    program = ctypes.c_void_p()
    headers, names = (ctypes.c_char_p * 1)(header), (ctypes.c_char_p * 1)(b"head_pixel.h")
    source = (SOURCES / "head.cu").read_bytes()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"head.cu", 1, headers, names)
    given = [f"-arch=sm_{architecture}", f"-DEDGESEG_OUTPUTS={outputs}", "-default-device"]
    options = (ctypes.c_char_p * len(given))(*(text.encode() for text in given))
    try:
        code = nvrtc.nvrtcCompileProgram(program, len(given), options)
        size = ctypes.c_size_t()
        if code:
            nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
            log = ctypes.create_string_buffer(size.value)
            nvrtc.nvrtcGetProgramLog(program, log)
            raise CompileError(log.value.decode(errors="replace"))
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        cubin = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetCUBIN(program, cubin)
        return cubin.raw
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def compile_head(architecture: int, outputs: int, library: Path | None) -> tuple[str, bytes] | None:
    """The compiler's name and the cubin; ``None`` where no compiler here knows the architecture."""
    if nvcc_knows(architecture):
        return "nvcc", by_nvcc(architecture, outputs)
    if nvrtc_knows(library, architecture):
        return "NVRTC", by_nvrtc(library, architecture, outputs)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--outputs", type=int, nargs="+", default=OUTPUTS)
    parser.add_argument("--nvrtc", type=Path, help="libnvrtc.so.12")
    parser.add_argument("-o", "--output", type=Path, help="folder for the cubins")
    parser.add_argument("--json", type=Path, help="also write the rows here")
    options = parser.parse_args()
    library = find_nvrtc(options.nvrtc)
    rows, failed = [], False
    for architecture in options.arch:
        for outputs in options.outputs:
            name = f"sm_{architecture} with {outputs} outputs"
            try:
                made = compile_head(architecture, outputs, library)
            except CompileError as error:
                print(f"{name}: {error}", file=sys.stderr)
                failed = True
                continue
            if made is None:
                print(f"{name}: no compiler here knows it", file=sys.stderr)
                failed = True
                continue
            compiler, cubin = made
            used = asdict(resources(cubin))
            rows.append(
                {
                    "kernel": KERNEL,
                    "architecture": architecture,
                    "outputs": outputs,
                    "compiler": compiler,
                    **used,
                    "cubin_bytes": len(cubin),
                }
            )
            if used["local_bytes"]:
                print(f"{name}: {used['local_bytes']} bytes are spilled", file=sys.stderr)
                failed = True
            if options.output:
                options.output.mkdir(parents=True, exist_ok=True)
                path = options.output / f"head_{outputs}_sm{architecture}.cubin"
                path.write_bytes(cubin)
    print(kernel_table({"rows": rows}, markdown))
    if options.json and not failed:
        options.json.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
