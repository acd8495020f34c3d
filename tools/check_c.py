"""Compile the C sources with every warning as an error, and link nothing."""

import os
import subprocess
import sys
from pathlib import Path

NATIVE = Path(__file__).resolve().parent.parent / "edgeseg" / "scoring" / "native"
WARNINGS = ("all", "extra", "pedantic", "conversion", "shadow")
WARNINGS += ("strict-prototypes", "missing-prototypes", "error")
FLAGS = ["-std=c11", "-O2", "-fsyntax-only", *(f"-W{name}" for name in WARNINGS)]


def main() -> int:
    compiler = os.environ.get("CC", "cc")
    sources = sorted(str(p) for p in NATIVE.glob("*.c"))
    return subprocess.run([compiler, *FLAGS, *sources], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
