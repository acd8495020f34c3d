"""Compiling small C programs and libraries in tests."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.conftest import ROOT

__all__ = ["CLIB", "INCLUDE", "WARNINGS", "build", "compiler"]

CLIB = ROOT / "edgeseg" / "clib"
INCLUDE = ROOT / "edgeseg" / "include"
WARNINGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Wshadow", "-Werror")


def compiler(variable: str = "CC", usual: str = "cc") -> list[str]:
    """The C compiler (or, as CXX and c++, the C++ compiler); skips where there is none."""
    found = os.environ.get(variable, "").split() or [shutil.which(usual) or ""]
    if not found[0]:
        pytest.skip(f"no {usual}")
    return found


def build(output: Path, *arguments: str | Path, command: Sequence[str] | None = None) -> Path:
    """Compile to ``output``; the test fails with the compiler's words where it cannot."""
    done = subprocess.run(
        [*(command or compiler()), *map(str, arguments), "-o", str(output)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return output
