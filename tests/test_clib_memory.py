"""libedgeseg under sanitizers, valgrind and a counter of allocations (see tools/check_clib.py)."""

import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT


def check(name: str, *options: str) -> str:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    command = [sys.executable, str(ROOT / "tools" / "check_clib.py"), name, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    if "not run" in done.stdout:
        pytest.skip(done.stdout.strip())
    return done.stdout


def test_no_frame_allocates() -> None:
    assert check("allocations") == "allocations fake: ok, none by the library in 50 frames\n"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_no_frame_allocates_but_the_engine(engine: str) -> None:
    pytest.importorskip(engine)
    assert "ok, none by the library" in check("allocations", "--engines", engine)


@pytest.mark.slow
def test_clean_under_address_and_undefined_behaviour_sanitizers() -> None:
    lines = check("address").splitlines()
    assert lines[0] == "address fake: ok"
    assert "damaged bundles: ok" in lines[1]


@pytest.mark.slow
def test_clean_under_thread_sanitizer() -> None:
    assert check("thread") == "thread fake: ok\n"


@pytest.mark.slow
def test_clean_under_valgrind() -> None:
    assert check("valgrind") == "valgrind fake: ok\n"
