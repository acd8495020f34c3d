"""The libraries that are built here for a Jetson: what they ask of it, and what they compute.

They run under qemu's emulation of aarch64, so the NEON code is the one that is executed.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnx", reason="edgeseg.export needs onnx")

from edgeseg.export.jetson.crossbuild import (
    COMPILER,
    LIBRARIES,
    build_wheel,
    check_wheel,
    newest_glibc,
    source_tree,
)
from edgeseg.runtime.session import Session
from edgeseg.scoring.head import HEAD_KINDS
from edgeseg.scoring.scorers import SCORERS
from tests.bundles import make_bundle
from tests.cbuild import INCLUDE, build
from tests.conftest import ROOT
from tests.test_kernels import as_layout, check, definition, make_features, make_head

KERNELS = ROOT / "edgeseg/scoring/native"
EXAMPLE = ROOT / "edgeseg/clib/examples/segment.c"
SYSROOT = Path("/usr/aarch64-linux-gnu")
UBUNTU_20_04 = (2, 31)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel() -> Path:
    if shutil.which(COMPILER) is None or source_tree() is None:
        pytest.skip(f"needs a checkout and {COMPILER} (apt install gcc-aarch64-linux-gnu)")
    return build_wheel()


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aarch64")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def emulator() -> list[str]:
    found = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if found is None or not SYSROOT.is_dir():
        pytest.skip("needs qemu-aarch64 (apt install qemu-user-static libc6-arm64-cross)")
    return [found, "-L", str(SYSROOT)]


def test_the_wheel_runs_on_ubuntu_20_04_and_later(wheel: Path) -> None:
    check_wheel(wheel, UBUNTU_20_04)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert not [n for n in names if n.startswith("edgeseg/weights/") and n.endswith("safetensors")]
    kept = {"bundles/ready/head.safetensors", "profiles/orin-nano-8.toml"}
    kept.add("export/jetson/device/install.sh")
    assert {f"edgeseg/{name}" for name in kept} <= {*names}


@pytest.mark.parametrize("name", LIBRARIES)
def test_versions_that_a_library_asks_for(unpacked: Path, name: str) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("needs readelf (apt install binutils)")
    library = unpacked / name
    told = subprocess.run(
        ["readelf", "--wide", "--dynamic", "--version-info", library],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    versions = {tuple(map(int, v)) for v in re.findall(r"Name: GLIBC_(\d+)\.(\d+)", told)}
    assert max(versions) == newest_glibc(library.read_bytes())
    assert max(versions) <= UBUNTU_20_04
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", told))
    # On Ubuntu 20.04 threads and dlopen are not in libc yet.
    assert needed == {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2"}


@pytest.fixture(scope="module")
def program(unpacked: Path, emulator: list[str], tmp_path_factory: pytest.TempPathFactory):
    """Runs ``tests/native/jetson_head.c`` with the wheel's kernels."""
    kernels = unpacked / LIBRARIES[0]
    folder = tmp_path_factory.mktemp("program")
    source = ROOT / "tests/native/jetson_head.c"
    options = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{KERNELS}"]
    linked = [kernels, f"-Wl,-rpath,{kernels.parent}", "-lm"]
    binary = build(folder / "head", *options, source, *linked, command=[COMPILER])
    return [*emulator, binary]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_neon_kernels_agree_with_the_definition(program, tmp_path, kind, layout):
    head = make_head(kind, layout)
    for number, (h, w) in enumerate([(3, 5), (5, 67)]):
        features = make_features(head, h, w, seed=number)
        config = [
            HEAD_KINDS.index(kind),
            ["nchw", "nhwc"].index(layout),
            head.channels_in,
            head.num_outputs,
            head.num_known,
            head.void_index,
            head.factor,
            h,
            w,
        ]
        names = ["config", "features", "weights", "output"]
        files = [tmp_path / name for name in names]
        files[0].write_text(" ".join(map(str, config)))
        files[1].write_bytes(as_layout(head, features).tobytes())
        parts = [] if head.weight is None else [head.weight, head.bias]
        files[2].write_bytes(b"".join(part.astype(np.float32).tobytes() for part in parts))
        done = subprocess.run([*program, *files], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["neon"] * len(SCORERS)
        shape = (h * head.factor, w * head.factor)
        pixels = shape[0] * shape[1]
        content = files[3].read_bytes()
        assert len(content) == len(SCORERS) * 5 * pixels
        for index, scorer in enumerate(SCORERS):
            part = content[index * 5 * pixels :][: 5 * pixels]
            classes = np.frombuffer(part[:pixels], np.uint8).reshape(shape)
            score = np.frombuffer(part[pixels:], np.float32).reshape(shape)
            check((classes, score), definition(head, features, scorer, 1.5))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ONNX Runtime as the archive carries it for JetPack 6."""
    folder = tmp_path_factory.mktemp("engine")
    wanted = ["--only-binary=:all:", "--no-deps", "--python-version", "3.10", "--dest", folder]
    wanted += ["--platform", "manylinux_2_28_aarch64", "onnxruntime"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--quiet", "download", *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip("onnxruntime for aarch64 cannot be downloaded")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return next(folder.glob("onnxruntime/capi/libonnxruntime.so*"))


def test_the_c_example_gives_what_python_gives(unpacked, emulator, engine, tmp_path):
    library = unpacked / LIBRARIES[1]
    options = ["-std=c11", f"-I{INCLUDE}", EXAMPLE, library, f"-Wl,-rpath,{library.parent}"]
    binary = build(tmp_path / "segment", *options, command=[COMPILER])
    bundle = make_bundle(tmp_path / "bundle")
    rgb = np.random.default_rng(0).integers(0, 256, (64, 128, 3), np.uint8)
    (tmp_path / "frame.ppm").write_bytes(b"P6\n128 64\n255\n" + rgb.tobytes())
    done = subprocess.run(
        [*emulator, binary, bundle, "onnxruntime", "1", tmp_path, tmp_path / "frame.ppm"],
        env={**os.environ, "EDGESEG_ONNXRUNTIME_LIBRARY": str(engine)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    classes = np.fromfile(tmp_path / "0.classes", np.uint8).reshape(64, 128)
    score = np.fromfile(tmp_path / "0.score", np.float16).reshape(64, 128)
    with Session(bundle, backend="onnxruntime", threads=1) as session:
        here = session.run(np.ascontiguousarray(rgb[..., ::-1]))
        # Another processor adds up in another order.
        assert (classes == here.class_map).mean() > 0.999
        assert np.allclose(score.astype(np.float32), here.score.astype(np.float32), atol=2e-3)
