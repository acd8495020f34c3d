"""Compile the C sources with every warning as an error, and link nothing."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "edgeseg" / "scoring" / "native"
CLIB = ROOT / "edgeseg" / "clib"
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
    sources += [str(ROOT / "tests" / "clib" / name) for name in TESTS]
    return subprocess.run([compiler, *FLAGS, *INCLUDES, *sources], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
