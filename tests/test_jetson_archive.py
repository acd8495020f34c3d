"""The archive for a Jetson: which boards, which wheels, and what is in it."""

import hashlib
import json
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="exporting needs onnx")

from edgeseg import __version__
from edgeseg.bundle import Bundle
from edgeseg.errors import ArtefactError, InputError, UsageError
from edgeseg.export.jetson.archive import SCHEMA, archive_path, device_wheels, write_archive
from edgeseg.export.jetson.boards import JetPack, board_of, jetson_targets
from edgeseg.export.jetson.wheels import find_wheels
from edgeseg.profiling.devices import device_names, load_device
from edgeseg.runtime.ready import ready_bundle
from edgeseg.runtime.tensorrt.calibration_cache import CalibrationCache
from edgeseg.runtime.tensorrt.versions import abilities
from tests.jetson_wheels import board_for, fake_edgeseg, make_wheel
from tests.tensorrt_fakes import fake_tensorrt

PACK = JetPack("6.1", "10.3.0", "3.10", ("numpy<2",))


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """What edgeseg needs on Python 3.10, and what it does not."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    fake_edgeseg(folder)
    make_wheel(folder, "numpy", "1.26.4", "cp310-cp310-manylinux2014_aarch64", requires=["small"])
    make_wheel(folder, "numpy", "2.2.6", "cp310-cp310-manylinux2014_aarch64")
    make_wheel(folder, "numpy", "1.26.5", "cp311-cp311-manylinux2014_aarch64")
    markers = [
        "only_old; python_version < '3.11'",
        "only_arm; platform_machine == 'aarch64'",
        "only_windows; sys_platform == 'win32'",
        "only_extra; extra == 'plots'",
    ]
    make_wheel(folder, "small", requires=markers)
    for name in ("only_old", "only_arm", "only_windows", "only_extra", "torch", "opencv_python"):
        make_wheel(folder, name)
    make_wheel(folder, "pip", "26.0")
    return folder


@pytest.mark.parametrize("name", [n for n in device_names() if "jetson" in load_device(n).device])
def test_every_jetson_is_a_target_or_refused_with_the_reason(name):
    if f"jetson-{name}" in jetson_targets():
        board = board_of(f"jetson-{name}", "int8")
        assert board.jetpacks[0].name == "6.0"
        assert {pack.python for pack in board.jetpacks} <= {"3.10", "3.12"}
        return
    with pytest.raises(UsageError, match=r"no INT8|Python 3\.8"):
        board_of(f"jetson-{name}", "int8")
    with pytest.raises(UsageError, match=r"TensorRT 8\.2|Python 3\.8"):
        board_of(f"jetson-{name}", "float16")


def test_developer_kits_and_profiles_by_their_names():
    assert board_of("jetson-orin-nano").name == "jetson-orin-nano-8"
    assert board_of("orin-nx-8").name == "jetson-orin-nx-8"
    assert board_of("rtx-3080") is None
    assert board_of("jetson-orin") is None


def test_calibration_caches_have_the_versions_that_tensorrt_asks_for():
    for pack in board_of("jetson-orin-nano").jetpacks:
        trt = fake_tensorrt("10.3")
        trt.__version__ = f"{pack.tensorrt}.30"
        assert abilities(trt).cache_version == pack.cache_version


def test_only_the_wheels_that_the_device_needs(wheels):
    own = next(wheels.glob("edgeseg-*"))
    found = find_wheels(PACK, own, wheels)
    names = {pin.partition("==")[0] for pin in found.pins}
    # Both only_… hold on the device alone; here pip would have left them out.
    assert names == {"edgeseg", "numpy", "small", "only-old", "only-arm"}
    assert "numpy==1.26.4" in found.pins
    assert own in found.paths
    assert wheels / "pip-26.0-py3-none-any.whl" in found.paths


def test_wheels_that_do_not_suffice_are_named(wheels):
    (wheels / "only_old-1.0-py3-none-any.whl").unlink()
    with pytest.raises(InputError, match=r"Python 3\.10.*only_old"):
        find_wheels(PACK, next(wheels.glob("edgeseg-*")), wheels)


def test_wheels_of_another_machine_do_not_count(wheels):
    for path in wheels.glob("numpy-*"):
        path.rename(wheels / path.name.replace("aarch64", "x86_64"))
    with pytest.raises(InputError, match="numpy"):
        device_wheels(board_for(PACK), wheels)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\x7fELF" + bytes(14) + b"\x3e\0", "not for aarch64"),
        (b"\x7fELF" + bytes(14) + b"\xb7\0\0GLIBC_2.17\0GLIBC_2.38\0", r"needs glibc 2\.38"),
        (None, "lacks"),
    ],
)
def test_libraries_that_the_device_cannot_load_are_refused(wheels, content, reason):
    if content is None:
        make_wheel(wheels, "edgeseg", __version__, "py3-none-linux_aarch64")
    else:
        fake_edgeseg(wheels, library=content)
    with pytest.raises(ArtefactError, match=reason):
        device_wheels(board_for(PACK), wheels)


@pytest.fixture
def archive(wheels, tmp_path):
    board = board_for(PACK)
    destination = tmp_path / "out" / "edgeseg.tar.gz"
    bundle = Bundle.open(ready_bundle())
    size = write_archive(bundle, board, device_wheels(board, wheels), destination)
    assert destination.stat().st_size == size
    assert [p.name for p in destination.parent.iterdir()] == [destination.name]
    return destination


def test_the_same_contents_give_the_same_bytes(archive, wheels, tmp_path):
    first = archive.read_bytes()
    for path in wheels.iterdir():
        path.chmod(0o600)
    board = board_for(PACK)
    other = tmp_path / "again" / archive.name
    write_archive(Bundle.open(ready_bundle()), board, device_wheels(board, wheels), other)
    assert other.read_bytes() == first


def test_what_the_archive_holds(archive):
    with tarfile.open(archive) as packed:
        entries = packed.getmembers()
        files = {e.name.partition("/")[2]: packed.extractfile(e).read() for e in entries}
    assert [e.name for e in entries] == sorted(e.name for e in entries)
    assert {e.name.partition("/")[0] for e in entries} == {"edgeseg"}
    assert {(e.uid, e.gid, e.uname, e.gname, e.mtime) for e in entries} == {
        (0, 0, "", "", 315532800)
    }
    assert {e.name for e in entries if e.mode & 0o111} == {"edgeseg/install.sh"}
    sums = dict(reversed(line.split("  ")) for line in files["SHA256SUMS"].decode().splitlines())
    assert sums == {
        name: hashlib.sha256(content).hexdigest()
        for name, content in files.items()
        if name != "SHA256SUMS"
    }
    names = [name for name in files if name.startswith("wheels/")]
    assert len(names) == 6
    assert not [name for name in names if "opencv" in name or "torch" in name]
    assert files["requirements-3.10.txt"].decode().splitlines().count("numpy==1.26.4") == 1
    assert files["c/include/edgeseg.h"] == b"/* header */\n"
    assert files["bundle/body.onnx"] == (ready_bundle() / "body.onnx").read_bytes()
    cache = CalibrationCache.parse(files["calibration/tensorrt-10.3.0.cache"])
    assert cache.version == 100300
    assert cache.scales
    described = json.loads(files["archive.json"])
    assert described["schema"] == SCHEMA
    assert described["license"]
    assert described["jetpacks"] == [{"jetpack": "6.1", "tensorrt": "10.3.0", "python": "3.10"}]


def test_an_archive_that_cannot_be_written_leaves_nothing(wheels, tmp_path):
    board = board_for(PACK)
    (tmp_path / "file").write_text("")
    found = device_wheels(board, wheels)
    with pytest.raises(InputError, match="cannot be written"):
        write_archive(Bundle.open(ready_bundle()), board, found, tmp_path / "file" / "a.tar.gz")


# --- edgeseg export --target jetson-… -----------------------------------------------------------


@pytest.fixture
def export(monkeypatch, capfd):
    pytest.importorskip("torch", reason="exporting needs torch")
    from edgeseg import cli

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["edgeseg", "export", "midenet", *map(str, options)])
        monkeypatch.delenv("EDGESEG_TRACEBACK", raising=False)
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = error.code or 0
        return code, *capfd.readouterr()

    return run


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--target", "jetson-moon"], 2, "jetson-orin-nano-8"),
        (["--target", "onxn"], 2, "choose one of onnx, tensorrt, tensorrt-rtx, jetson-"),
        (["--target", "jetson-nano", "--int8"], 2, "no INT8"),
        (["--target", "jetson-tx2", "--fp16"], 2, "TensorRT 8.2.1"),
        (["--target", "jetson-xavier-nx", "--int8"], 2, "Python 3.8"),
        (["--target", "jetson-orin-nano", "--dla", 0], 2, "--target tensorrt"),
        (["--wheels", "."], 2, "--target jetson-PROFILE"),
        (["--target", "jetson-orin-nano", "--wheels", "nowhere"], 7, "'nowhere' is not a folder"),
    ],
)
def test_what_cannot_be_is_one_sentence_and_makes_nothing(export, tmp_path, options, code, said):
    got, out, err = export(*options, "-o", tmp_path / "bundle")
    assert (got, out) == (code, "")
    assert said in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("COMPILER", "no-such-compiler", "apt install gcc-aarch64-linux-gnu"),
        ("source_tree", lambda: None, "--wheels DIR"),
    ],
)
def test_no_compiler_and_no_sources_are_said_before_anything_is_made(
    export, tmp_path, monkeypatch, name, value, said
):
    monkeypatch.setattr(f"edgeseg.export.jetson.crossbuild.{name}", value)
    code, out, err = export("--target", "jetson-orin-nano", "-o", tmp_path / "bundle")
    assert (code, out) == (3, "")
    assert said in err
    assert list(tmp_path.iterdir()) == []


def test_no_package_index_is_said(export, tmp_path, wheels, monkeypatch):
    from edgeseg.export.jetson import archive

    monkeypatch.setattr(archive, "build_wheel", lambda: next(wheels.glob("edgeseg-*")))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    code, out, err = export("--target", "jetson-orin-nano", "-o", tmp_path / "bundle")
    assert (code, out) == (3, "")
    assert "cannot be downloaded" in err
    assert "--wheels DIR" in err


@pytest.mark.slow
def test_export_makes_bundle_and_archive(export, tmp_path, wheels):
    make_wheel(wheels, "cuda_python", "12.2.1")
    make_wheel(wheels, "cuda_bindings", "13.2.0")
    make_wheel(wheels, "numpy", "1.26.4", "cp312-cp312-manylinux2014_aarch64")
    make_wheel(wheels, "onnxruntime")
    bundle = tmp_path / "road"
    options = ["--size", "64x128", "--fp16", "--target", "jetson-orin-nano", "--wheels", wheels]
    code, out, err = export(*options, "-o", bundle, "--json")
    assert code == 0, err
    document = json.loads(out)
    archive = archive_path(bundle, board_of("jetson-orin-nano"))
    assert document["archive"] == str(archive)
    assert document["archive_bytes"] == archive.stat().st_size
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    # The device has no onnx to make them.
    assert {"bundle/tensorrt_body.onnx", "bundle/tensorrt_void.onnx"} <= names
    assert {"requirements-3.10.txt", "requirements-3.12.txt"} <= names
    assert not [name for name in names if name.startswith("calibration/")]
