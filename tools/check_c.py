"""Compile the C sources with every warning as an error, and link nothing.

Where the compiler for aarch64 is installed, it must take what a Jetson gets too, NEON included.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "edgeseg" / "scoring" / "native"
CLIB = ROOT / "edgeseg" / "clib"
OLD_GLIBC = CLIB / "old_glibc"
CROSS = "aarch64-linux-gnu-gcc"
INCLUDES = [f"-I{ROOT / 'edgeseg' / 'include'}", f"-I{NATIVE}", f"-I{CLIB}"]
# The others need an engine's headers.
TESTS = ("count_malloc.c", "exercise.c", "fake_ort.c")
WARNINGS = ("all", "extra", "pedantic", "conversion", "shadow")
WARNINGS += ("strict-prototypes", "missing-prototypes", "error")
FLAGS = ["-std=c11", "-O2", "-fsyntax-only", *(f"-W{name}" for name in WARNINGS)]


def main() -> int:
    compiler = os.environ.get("CC", "cc")
    folders = (NATIVE, CLIB, CLIB / "examples")
    sources = sorted(str(p) for folder in folders for p in folder.glob("*.c"))
    tests = [str(ROOT / "tests" / "clib" / name) for name in TESTS]
    done = subprocess.run([compiler, *FLAGS, *INCLUDES, *sources, *tests], check=False)
    if done.returncode or shutil.which(CROSS) is None:
        return done.returncode
    old = ["-include", str(OLD_GLIBC / "symbols.h"), str(OLD_GLIBC / "calls.c")]
    tests = [str(ROOT / "tests" / "native" / "jetson_head.c")]
    command = [CROSS, *FLAGS, *INCLUDES, *old, *sources, *tests]
    return subprocess.run(command, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
