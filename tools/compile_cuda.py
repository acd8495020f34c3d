"""Compile the head's CUDA kernel to cubins and print what each takes.

    python tools/compile_cuda.py [--arch 75 86 87 89 110] [--outputs 19 20] [-o DIR]

By nvcc where it knows the architecture, else by NVRTC: that of nvidia-cuda-nvrtc-cu12==12.9.* still
compiles sm_72 (Xavier), which CUDA 13 dropped. Neither needs a GPU.
"""

import argparse
import ctypes
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from edgeseg.scoring.cuda import SOURCES, resources  # noqa: E402

ARCHITECTURES = (72, 75, 86, 87, 89, 110)


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
    """NVRTC's library: the one given, or that of the pip package."""
    if given is not None:
        return given
    spec = importlib.util.find_spec("nvidia") if importlib.util.find_spec("nvidia") else None
    for place in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(place).glob("cuda_nvrtc/lib/libnvrtc.so.*")):
            return found
    return None


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHITECTURES)
    parser.add_argument("--outputs", type=int, nargs="+", default=(19, 20))
    parser.add_argument("--nvrtc", type=Path, help="libnvrtc.so.12")
    parser.add_argument("-o", "--output", type=Path, help="folder for the cubins")
    options = parser.parse_args()
    library = find_nvrtc(options.nvrtc)
    failed = False
    print("| arch | outputs | compiler | registers | static shared bytes | cubin bytes |")
    print("|---|---:|---|---:|---:|---:|")
    for architecture in options.arch:
        for outputs in options.outputs:
            try:
                if nvcc_knows(architecture):
                    compiler, cubin = "nvcc", by_nvcc(architecture, outputs)
                elif library is not None:
                    compiler, cubin = "nvrtc", by_nvrtc(library, architecture, outputs)
                else:
                    print(f"| sm_{architecture} | {outputs} | none here | | | |")
                    failed = True
                    continue
            except CompileError as error:
                print(f"sm_{architecture}: {error}", file=sys.stderr)
                failed = True
                continue
            used = resources(cubin)
            print(
                f"| sm_{architecture} | {outputs} | {compiler} | {used.registers} | "
                f"{used.static_shared_bytes} | {len(cubin)} |"
            )
            if options.output:
                options.output.mkdir(parents=True, exist_ok=True)
                path = options.output / f"head_{outputs}_sm{architecture}.cubin"
                path.write_bytes(cubin)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
