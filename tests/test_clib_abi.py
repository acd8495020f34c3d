"""What programs that link libedgeseg rely on: symbols, header, packages, examples."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edgeseg import __version__
from edgeseg.data.synthetic import scene
from edgeseg.runtime import library, library_abi
from edgeseg.runtime.library import LibrarySession
from edgeseg.runtime.session import Session
from edgeseg.scoring.kernels import resize_bilinear
from tests.cbuild import CLIB, INCLUDE, WARNINGS, build, compiler
from tests.conftest import ROOT

PACKAGE = ROOT / "edgeseg"
READY = PACKAGE / "bundles" / "ready"
EXAMPLES = CLIB / "examples"
HEADER = INCLUDE / "edgeseg.h"

needs_library = pytest.mark.skipif(not library.available(), reason="libedgeseg is not built")


def declared() -> set[str]:
    """Functions of the header."""
    code = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)
    return set(re.findall(r"\b(edgeseg_\w+)\(", code))


def succeed(*command: str | Path, **env: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **env},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@needs_library
def test_exactly_the_header_is_exported_under_a_version():
    if shutil.which("nm") is None:
        pytest.skip("no nm")
    lines = succeed("nm", "-D", "--defined-only", library_abi.library_path()).splitlines()
    symbols = {line.split()[2] for line in lines if " T " in line}
    assert symbols == {f"{name}@@EDGESEG_0.1" for name in declared()}
    others = {line for line in lines if " T " not in line}
    assert len(others) == 1
    assert "EDGESEG_0.1" in others.pop()


@needs_library
def test_the_soname_carries_the_major_version():
    if shutil.which("readelf") is None:
        pytest.skip("no readelf")
    dynamic = succeed("readelf", "-d", library_abi.library_path())
    assert "[libedgeseg.so.0]" in dynamic
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic))
    assert not {name for name in needed if "onnx" in name or "openvino" in name or "++" in name}


@needs_library
def test_one_version_everywhere():
    assert library_abi.load().edgeseg_version().decode() == __version__
    numbers = re.findall(r"#define EDGESEG_VERSION_\w+ (\d+)", HEADER.read_text())
    assert ".".join(numbers) == __version__
    folder = PACKAGE / "lib"
    assert f"Version: {__version__}\n" in (folder / "pkgconfig" / "edgeseg.pc").read_text()
    versions = folder / "cmake" / "edgeseg" / "edgesegConfigVersion.cmake"
    assert f'PACKAGE_VERSION "{__version__}"' in versions.read_text()


@pytest.mark.parametrize(
    ("variable", "usual", "standard", "suffix"),
    [("CC", "cc", "c11", "c"), ("CXX", "c++", "c++11", "cpp")],
)
def test_the_header_stands_alone_without_warnings(tmp_path, variable, usual, standard, suffix):
    source = tmp_path / f"alone.{suffix}"
    source.write_text(
        "#include <edgeseg.h>\n"
        "int main(void) {\n"
        "    edgeseg_contract contract = EDGESEG_CONTRACT_INIT;\n"
        "    edgeseg_scorer_defaults defaults = EDGESEG_SCORER_DEFAULTS_INIT;\n"
        "    edgeseg_session_options options = EDGESEG_SESSION_OPTIONS_INIT;\n"
        "    edgeseg_session_info info = EDGESEG_SESSION_INFO_INIT;\n"
        "    edgeseg_frame frame = EDGESEG_FRAME_INIT;\n"
        "    edgeseg_result result = EDGESEG_RESULT_INIT;\n"
        "    return contract.size && defaults.size && options.size && info.size && frame.size &&\n"
        "           result.size ? 0 : 1;\n"
        "}\n"
    )
    command = compiler(variable, usual)
    build(
        tmp_path / "alone", f"-std={standard}", *WARNINGS, f"-I{INCLUDE}", source, command=command
    )


def test_python_and_c_lay_the_structs_out_alike(tmp_path):
    """Every field at the same offset, by the header and by ctypes."""
    structs = {
        "edgeseg_contract": library_abi.Contract,
        "edgeseg_session_options": library_abi.Options,
        "edgeseg_session_info": library_abi.Info,
        "edgeseg_frame": library_abi.FrameView,
        "edgeseg_result": library_abi.RawResult,
    }
    # edgeseg_result nests what the Python class has in a row.
    nested = {"max": "summary.max", "fraction": "summary.fraction", "summary": "timings.summary",
              "region_pixels": "summary.pixels"}  # fmt: skip
    nested |= {name: f"timings.{name}" for name in ("convert", "resize", "body", "head", "total")}
    checks = ["#include <edgeseg.h>"]
    for name, struct in structs.items():
        checks.append(f'_Static_assert(sizeof({name}) == {ctypes.sizeof(struct)}, "{name}");')
        for field, *_ in struct._fields_:
            place = nested.get(field, field) if name == "edgeseg_result" else field
            offset = getattr(struct, field).offset
            checks.append(f'_Static_assert(offsetof({name}, {place}) == {offset}, "{place}");')
    source = tmp_path / "layout.c"
    source.write_text("\n".join(checks) + "\n")
    build(tmp_path / "layout.o", "-std=c11", "-c", f"-I{INCLUDE}", source)


def test_the_sources_compile_without_warnings(tmp_path):
    succeed(sys.executable, ROOT / "tools" / "check_c.py")


def test_openvinos_functions_are_declared_as_its_headers_do(tmp_path):
    openvino = pytest.importorskip("openvino")
    headers = Path(openvino.__file__).parent / "include"
    if not (headers / "openvino" / "c" / "openvino.h").is_file():
        pytest.skip("this OpenVINO brings no C headers")
    source = ROOT / "tests" / "clib" / "check_openvino_abi.c"
    build(tmp_path / "abi.o", "-std=c11", "-c", f"-I{CLIB}", f"-I{headers}", source)


def test_onnxruntimes_places_are_those_of_its_header(tmp_path):
    """The header is in no Python package: ONNXRUNTIME_INCLUDE names its folder."""
    folder = os.environ.get("ONNXRUNTIME_INCLUDE")
    flags = [f"-I{folder}"] if folder else []
    if not flags and shutil.which("pkg-config"):
        command = ["pkg-config", "--cflags", "libonnxruntime"]
        asked = subprocess.run(command, capture_output=True, text=True, check=False)
        flags = asked.stdout.split() if asked.returncode == 0 else []
    if not flags:
        pytest.skip("no onnxruntime_c_api.h here (ONNXRUNTIME_INCLUDE)")
    source = ROOT / "tests" / "clib" / "check_ort_abi.c"
    build(tmp_path / "abi.o", "-std=c11", "-c", f"-I{CLIB}", *flags, source)


# --- the examples -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    """Road scenes at the network's size and at a camera's, as PPM."""
    folder = tmp_path_factory.mktemp("frames")
    paths = []
    for seed, height, width in ((3, 512, 1024), (5, 360, 640)):
        bgr, _ = scene(seed, height, width)
        paths.append(folder / f"{seed}.ppm")
        rgb = np.ascontiguousarray(bgr[..., ::-1])
        paths[-1].write_bytes(b"P6\n%d %d\n255\n" % (width, height) + rgb.tobytes())
    return paths


def pkg_config() -> list[str]:
    if shutil.which("pkg-config") is None:
        pytest.skip("no pkg-config")
    path = str(PACKAGE / "lib" / "pkgconfig")
    return succeed("pkg-config", "--cflags", "--libs", "edgeseg", PKG_CONFIG_PATH=path).split()


@pytest.fixture(scope="module", params=["c", "cpp", "cmake"])
def example(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "cmake":
        if shutil.which("cmake") is None:
            pytest.skip("no cmake")
        options = (f"-Dedgeseg_ROOT={PACKAGE}", "-DCMAKE_BUILD_TYPE=Release")
        succeed("cmake", "-S", EXAMPLES, "-B", folder, *options)
        succeed("cmake", "--build", folder)
        return folder / "segment_cpp"
    command = compiler() if request.param == "c" else compiler("CXX", "c++")
    standard = "-std=c11" if request.param == "c" else "-std=c++17"
    source = EXAMPLES / f"segment.{request.param}"
    return build(folder / "segment", standard, *WARNINGS, source, *pkg_config(), command=command)


@needs_library
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_example_programs_give_what_python_gives(example, engine, frames, tmp_path):
    pytest.importorskip(engine)
    path = library.engine_library(engine)
    if path is None:
        pytest.skip(f"{engine} has no C library here")
    variable = {f"EDGESEG_{engine.upper()}_LIBRARY": str(path)}
    succeed(example, READY, engine, "1", tmp_path, *frames, **variable)
    with LibrarySession(READY, engine, threads=1) as session:
        for i, name in enumerate(frames):
            header, _, size, _, data = name.read_bytes()[:2], *name.read_bytes().split(b"\n", 3)
            assert header == b"P6"
            width, height = map(int, size.split())
            rgb = np.frombuffer(data, np.uint8).reshape(height, width, 3)
            expected = session.run(rgb, pixels="rgb")
            assert expected.score is not None
            classes = np.fromfile(tmp_path / f"{i}.classes", np.uint8).reshape(session.size)
            score = np.fromfile(tmp_path / f"{i}.score", np.float16).reshape(session.size)
            np.testing.assert_array_equal(classes, expected.class_map)
            np.testing.assert_array_equal(score, expected.score)


@needs_library
@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_c_program_equals_the_python_session_on_roadanomaly21(shared_data, engine, tmp_path):
    pytest.importorskip(engine)
    source = EXAMPLES / "segment.c"
    program = build(tmp_path / "segment", "-std=c11", source, *pkg_config())
    images = sorted((shared_data / "anomaly" / "RoadAnomaly21" / "images").iterdir())
    frames = []
    for path in images:
        frames.append(tmp_path / f"{path.stem}.ppm")
        cv2.imwrite(str(frames[-1]), cv2.imread(str(path)))
    variable = {f"EDGESEG_{engine.upper()}_LIBRARY": str(library.engine_library(engine))}
    succeed(program, READY, engine, "2", tmp_path, *frames, **variable)
    with Session(READY, engine, threads=2) as session:
        for i, path in enumerate(images):
            expected = session.run(resize_bilinear(cv2.imread(str(path)), *session.size))
            classes = np.fromfile(tmp_path / f"{i}.classes", np.uint8).reshape(session.size)
            score = np.fromfile(tmp_path / f"{i}.score", np.float16).reshape(session.size)
            np.testing.assert_array_equal(classes, expected.class_map)
            np.testing.assert_array_equal(score, expected.score)


@needs_library
def test_example_programs_tell_what_is_wrong(example, tmp_path):
    done = subprocess.run(
        [str(example), str(tmp_path), "auto", "1", str(tmp_path), "none.ppm"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "is not a bundle" in done.stderr
