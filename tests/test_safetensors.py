"""Files of tensors: equal to the format's own package, and safe to open whatever is in them."""

import json
import math
import struct

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeseg.errors import ArtefactError
from edgeseg.safetensors import read_safetensors, write_safetensors

RNG = np.random.default_rng(0)
TENSORS = {
    "weight": RNG.normal(size=(3, 4, 2, 2)).astype(np.float32),
    "half": RNG.normal(size=(5,)).astype(np.float16),
    "long": RNG.integers(-(2**60), 2**60, (2, 3)),
    "int": RNG.integers(-9, 9, (7,), dtype=np.int32),
    "code": RNG.integers(-128, 128, (4, 1), dtype=np.int8),
    "byte": RNG.integers(0, 256, (3,), dtype=np.uint8),
    "scalar": np.array(2.5, np.float32),
    "empty": np.zeros((0, 3), np.float32),
    "ümlaut": np.ones(1, np.float32),
}


def assert_same(a, b):
    assert sorted(a) == sorted(b)
    for name in a:
        assert a[name].dtype == b[name].dtype
        assert a[name].shape == b[name].shape
        np.testing.assert_array_equal(a[name], b[name])


def pack(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


@pytest.fixture
def parse(tmp_path):
    def read(content):
        path = tmp_path / "t.safetensors"
        path.write_bytes(content)
        return read_safetensors(path)

    return read


def test_round_trip(parse):
    assert_same(parse(write_safetensors(TENSORS)), TENSORS)


def test_same_tensors_give_the_same_bytes():
    assert write_safetensors(TENSORS) == write_safetensors(dict(reversed(TENSORS.items())))


def test_views_and_foreign_byte_order_are_written_by_value(parse):
    tensors = {"t": np.arange(6, dtype=np.float32).reshape(2, 3).T, "b": np.arange(3, dtype=">i4")}
    back = parse(write_safetensors(tensors))
    np.testing.assert_array_equal(back["t"], tensors["t"])
    np.testing.assert_array_equal(back["b"], [0, 1, 2])


def test_the_package_reads_what_we_write():
    package = pytest.importorskip("safetensors.numpy")
    assert_same(package.load(write_safetensors(TENSORS)), TENSORS)


def test_we_read_what_the_package_writes(parse):
    package = pytest.importorskip("safetensors.numpy")
    assert_same(parse(package.save(TENSORS, metadata={"format": "np"})), TENSORS)


def test_tensors_are_writable_and_own_their_memory(parse):
    back = parse(write_safetensors(TENSORS))
    back["weight"][:] = 0


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
MALICIOUS = {
    "nothing": b"",
    "three bytes": b"abc",
    "header longer than the file": struct.pack("<Q", 100) + b"{}",
    "header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "no JSON": pack(b"{"),
    "no UTF-8": pack(b"\xff\xfe"),
    "JSON list": pack([1, 2]),
    "JSON null": pack(b"null"),
    "deep JSON": pack(b"[" * 100_000 + b"]" * 100_000),
    "number of 10000 digits": pack(b'{"a": ' + b"9" * 10_000 + b"}"),
    "entry is no object": pack({"a": 3}),
    "no dtype": pack({"a": {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "unknown dtype": pack({"a": F32 | {"dtype": "F13"}}, bytes(8)),
    "dtype is a list": pack({"a": F32 | {"dtype": ["F32"]}}, bytes(8)),
    "shape is no list": pack({"a": F32 | {"shape": 2}}, bytes(8)),
    "negative side": pack({"a": F32 | {"shape": [-2]}}, bytes(8)),
    "two negative sides": pack({"a": F32 | {"shape": [-2, -1]}}, bytes(8)),
    "fractional side": pack({"a": F32 | {"shape": [2.5]}}, bytes(8)),
    "side as text": pack({"a": F32 | {"shape": ["2"]}}, bytes(8)),
    "infinite side": pack({"a": F32 | {"shape": [float("inf")]}}, bytes(8)),
    "NaN side": pack({"a": F32 | {"shape": [float("nan")]}}, bytes(8)),
    "huge side": pack({"a": F32 | {"shape": [2**62]}}, bytes(8)),
    "sides that overflow to the right size": pack(
        {"a": F32 | {"shape": [2**32, 2**32, 2]}}, bytes(8)
    ),
    "no elements of a huge side": pack(
        {"a": {"dtype": "F32", "shape": [0, 10**30], "data_offsets": [0, 0]}}
    ),
    "100 axes": pack({"a": F32 | {"shape": [1] * 99 + [2]}}, bytes(8)),
    "beyond the end": pack({"a": F32 | {"data_offsets": [4, 12]}}, bytes(8)),
    "backwards": pack({"a": F32 | {"data_offsets": [8, 0]}}, bytes(8)),
    "before the start": pack({"a": F32 | {"data_offsets": [-8, 0]}}, bytes(8)),
    "infinite offset": pack({"a": F32 | {"data_offsets": [0, float("inf")]}}, bytes(8)),
    "three offsets": pack({"a": F32 | {"data_offsets": [0, 8, 8]}}, bytes(8)),
    "data that nobody owns": pack({"a": F32}, bytes(12)),
    "hole": pack({"a": F32, "b": F32 | {"data_offsets": [12, 20]}}, bytes(20)),
    # A thousand names for the same megabyte must not become a gigabyte.
    "overlapping tensors": pack({"a": F32, "b": F32}, bytes(8)),
}


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_file_is_one_sentence(parse, name):
    with pytest.raises(ArtefactError, match=r"not a valid safetensors file") as caught:
        parse(MALICIOUS[name])
    assert "\n" not in str(caught.value)


def test_every_truncation_is_noticed(parse):
    content = write_safetensors(TENSORS)
    for length in range(0, len(content), 7):
        with pytest.raises(ArtefactError):
            parse(content[:length])


def test_a_missing_file_is_an_artefact_error(tmp_path):
    with pytest.raises(ArtefactError, match=r"absent\.safetensors"):
        read_safetensors(tmp_path / "absent.safetensors")


def test_a_file_too_large_for_any_head_is_not_read(tmp_path):
    path = tmp_path / "t.safetensors"
    with path.open("wb") as handle:
        handle.truncate(1 << 40)  # sparse: it takes no space
    with pytest.raises(ArtefactError):
        read_safetensors(path)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["F32", "F16", "I64", "U8", "a"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["dtype", "shape", "data_offsets", "a"]), inner, max_size=4
        )
    ),
    max_leaves=12,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "F64"]) | JSON,
        "shape": st.lists(st.integers(-2, 4) | JSON, max_size=3) | JSON,
        "data_offsets": st.lists(st.integers(-4, 40), min_size=2, max_size=2) | JSON,
    }
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(header=st.dictionaries(st.text(max_size=3), ENTRY | JSON, max_size=3), data=st.binary())
def test_any_header_gives_tensors_or_an_artefact_error(parse, header, data):
    try:
        tensors = parse(pack(header, data))
    except ArtefactError:
        return
    assert sum(t.nbytes for t in tensors.values()) == len(data)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_any_changed_byte_gives_tensors_or_an_artefact_error(parse, position, byte):
    content = bytearray(write_safetensors(TENSORS))
    content[position % len(content)] = byte
    try:
        parse(bytes(content))
    except ArtefactError:
        return


@pytest.mark.parametrize("shape", [[10**4200] * 400, [2] * 100_000, [0, 10**4200], [1] * 9])
def test_shapes_are_bounded_before_they_are_multiplied(parse, monkeypatch, shape):
    # Products of a megabyte of digits take minutes.
    monkeypatch.setattr(math, "prod", lambda _: pytest.fail("multiplied"))
    entry = {"dtype": "U8", "shape": shape, "data_offsets": [0, 1]}
    with pytest.raises(ArtefactError):
        parse(pack({"a": entry}, b"x"))
