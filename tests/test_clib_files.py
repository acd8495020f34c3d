"""libedgeseg refuses every bundle that the Python reader refuses, with one sentence."""

import ctypes
import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseg.bundle import Bundle
from edgeseg.errors import EdgesegError
from edgeseg.runtime import library, library_abi
from edgeseg.safetensors import write_safetensors
from tests.bundles import make_bundle
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not library.available(), reason="libedgeseg is not built")


def open_status(folder: Path) -> tuple[int, str]:
    """What the C library says of a bundle: 0, or a negative status and a sentence."""
    lib, handle = library_abi.load(), ctypes.c_void_p()
    status = lib.edgeseg_bundle_open(os.fsencode(folder), ctypes.byref(handle))
    assert bool(handle) == (status == 0)
    lib.edgeseg_bundle_close(handle)
    return status, "" if status == 0 else lib.edgeseg_last_error().decode()


def python_refuses(folder: Path) -> bool:
    try:
        Bundle.open(folder)
    except EdgesegError:
        return True
    return False


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture
def copy(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def edit(folder: Path, change) -> None:
    path = folder / "bundle.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def replace_head(folder: Path, content: bytes) -> None:
    (folder / "head.safetensors").write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    edit(folder, lambda m: m["files"].update({"head.safetensors": entry}))


def test_whole_bundles_are_opened(whole):
    assert open_status(whole) == (0, "")
    assert open_status(ROOT / "edgeseg" / "bundles" / "ready") == (0, "")


def test_the_contract_is_that_of_the_manifest(whole):
    lib, handle, contract = library_abi.load(), ctypes.c_void_p(), library_abi.Contract()
    assert lib.edgeseg_bundle_open(os.fsencode(whole), ctypes.byref(handle)) == 0
    assert lib.edgeseg_bundle_contract(handle, ctypes.byref(contract)) == 0
    manifest = Bundle.open(whole).manifest
    assert (contract.height, contract.width) == (manifest.height, manifest.width)
    assert contract.network.decode() == manifest.network
    assert contract.weights.decode() == manifest.weights_name
    assert contract.precision.decode() == manifest.precision
    assert contract.body_sha256.decode() == manifest.files["body.onnx"]["sha256"]
    names = [lib.edgeseg_bundle_class(handle, i).decode() for i in range(contract.num_classes)]
    assert names == manifest.classes
    lib.edgeseg_bundle_close(handle)


CHANGES = {
    "schema": lambda m: m.update(schema="edgeseg.bundle/9"),
    "no schema": lambda m: m.pop("schema"),
    "no network": lambda m: m.pop("network"),
    "network is a number": lambda m: m.update(network=5),
    "height is a text": lambda m: m.update(height="64"),
    "height is real": lambda m: m.update(height=64.0),
    "height is true": lambda m: m.update(height=True),
    "height is huge": lambda m: m.update(height=2**70),
    "height is small": lambda m: m.update(height=4),
    "height is odd": lambda m: m.update(height=65),
    "no classes": lambda m: m.update(classes=[], palette=[]),
    "class is a number": lambda m: m["classes"].__setitem__(0, 1),
    "palette is short": lambda m: m["palette"].pop(),
    "colour is large": lambda m: m["palette"].__setitem__(0, [0, 0, 256]),
    "colour is short": lambda m: m["palette"].__setitem__(0, [0, 0]),
    "no scorers": lambda m: m.update(scorers={}),
    "unknown scorer": lambda m: m["scorers"].update(magic={"temperature": 1.0}),
    "temperature is 0": lambda m: m["scorers"]["msp"].update(temperature=0),
    "temperature is huge": lambda m: m["scorers"]["msp"].update(temperature=1e39),
    "threshold is a text": lambda m: m["scorers"]["msp"].update(threshold="0.5"),
    "precision": lambda m: m.update(precision="int4"),
    "compute precision": lambda m: m.update(compute_precision="f16"),
    "head kind": lambda m: m["head"].update(kind="cubic"),
    "head layout": lambda m: m["head"].update(layout="chwn"),
    "no layout": lambda m: m["head"].pop("layout"),
    "head factor": lambda m: m["head"].update(factor=3),
    "too many outputs": lambda m: m["head"].update(num_outputs=65),
    "other outputs": lambda m: m["head"].update(num_outputs=21),
    "void is known": lambda m: m["head"].update(void_index=3),
    "void is outside": lambda m: m["head"].update(void_index=20),
    "no void output": lambda m: m["head"].update(void_index=None),
    "known is not classes": lambda m: m["head"].update(num_known=18),
    "isomax without prototypes": lambda m: m["head"].update(isomax_distance_scale=1.0),
    "files": lambda m: m.update(files={}),
    "files is a list": lambda m: m.update(files=[]),
    "body not listed": lambda m: m["files"].pop("body.onnx"),
    "head not listed": lambda m: m["files"].pop("head.safetensors"),
    "sha256": lambda m: m["files"]["body.onnx"].update(sha256="0" * 64),
    "sha256 is short": lambda m: m["files"]["body.onnx"].update(sha256="0"),
    "bytes": lambda m: m["files"]["body.onnx"].update(bytes=1),
    "missing file": lambda m: m["files"].update(other={"sha256": "0" * 64, "bytes": 1}),
    "outside": lambda m: m["files"].update({"../x": {"sha256": "0" * 64, "bytes": 1}}),
    "absolute": lambda m: m["files"].update({"/etc/passwd": {"sha256": "0" * 64, "bytes": 1}}),
    "dot": lambda m: m["files"].update({".": {"sha256": "0" * 64, "bytes": 1}}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_with_one_fault_is_refused_by_both(copy, name):
    edit(copy, CHANGES[name])
    status, sentence = open_status(copy)
    assert status == -4
    assert str(copy) in sentence
    assert "\n" not in sentence
    assert python_refuses(copy)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"schema": NaN}',
        b'{"a": 1, "a": 2}',
        b'{"a": 01}',
        b'{"a": "\x01"}',
        b'{"a": "\\x"}',
        b'{"a": "\\ud800"}',
        b'{"a": "\xff"}',
        b'{"a": 1} x',
        b'{"a": 1,}',
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"[" + b"1," * 300_000 + b"1]",
        b" " * (5 << 20),
    ],
)
def test_what_is_no_manifest_is_refused(copy, text):
    (copy / "bundle.json").write_bytes(text)
    assert open_status(copy)[0] == -4


WEIGHT = np.zeros((16, 20, 2, 2), np.float32)
BIAS = np.zeros(20, np.float32)


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"weight": WEIGHT},
        {"weight": WEIGHT, "bias": BIAS[:19]},
        {"weight": WEIGHT[:, :19], "bias": BIAS},
        {"weight": WEIGHT[:0], "bias": BIAS},
        {"weight": WEIGHT[..., 0], "bias": BIAS},
        {"weight": WEIGHT * np.nan, "bias": BIAS},
        {"weight": WEIGHT + np.float32(np.inf), "bias": BIAS},
    ],
)
def test_a_head_that_does_not_fit_is_refused_by_both(copy, tensors):
    with np.errstate(invalid="ignore"):
        replace_head(copy, write_safetensors(tensors))
    assert open_status(copy)[0] == -4
    assert python_refuses(copy)


def test_a_head_in_float16_is_read(copy):
    replace_head(copy, write_safetensors({"weight": WEIGHT.astype(np.float16), "bias": BIAS}))
    assert open_status(copy) == (0, "")


def header(text: str, data: bytes) -> bytes:
    return len(text).to_bytes(8, "little") + text.encode() + data


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        b"\xff" * 16,
        header("[]", b""),
        header('{"a": 1}', b""),
        header('{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,8]}}', b"\0" * 8),
        header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}', b"\0" * 8),
        header('{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}', b"\0" * 8),
        header('{"a":{"dtype":"F99","shape":[2],"data_offsets":[0,8]}}', b"\0" * 8),
        header('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', b"\0" * 12),
        header(
            '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
            '"b":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            b"\0" * 16,
        ),
        header('{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}', b""),
        header(
            '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,99999999999999999999]}}', b"\0" * 8
        ),
    ],
)
def test_what_is_no_safetensors_file_is_refused_by_both(copy, content):
    replace_head(copy, content)
    status, sentence = open_status(copy)
    assert status == -4
    assert "head.safetensors" in sentence
    assert python_refuses(copy)


def test_folders_that_are_not_there_or_no_bundle(tmp_path, copy):
    assert open_status(tmp_path / "nowhere")[0] == -7
    assert open_status(tmp_path)[0] == -4
    (copy / "body.onnx").unlink()
    assert open_status(copy)[0] == -4
    os.mkfifo(copy / "body.onnx")  # must be refused, not waited for
    assert open_status(copy)[0] == -4


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_damaged_manifest_that_c_takes_is_one_that_python_takes(whole, tmp_path_factory, data):
    text = bytearray((whole / "bundle.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at] = data.draw(st.one_of(st.sampled_from(b'"\\{}[]:,0-e.'), st.integers(0, 255)))
    folder = tmp_path_factory.mktemp("damaged")
    for name in ("body.onnx", "head.safetensors"):
        os.link(whole / name, folder / name)
    (folder / "bundle.json").write_bytes(text)
    status, _ = open_status(folder)
    assert status in (0, -4)
    if status == 0:
        assert not python_refuses(folder)
