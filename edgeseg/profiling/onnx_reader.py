"""Reads what counting needs of an ONNX file, without the ``onnx`` package.

A device has no ``onnx``, and counts must come from the very graph that it runs. Of the protocol
buffer's fields only those of nodes, shapes and constants are decoded; weights are skipped over.
Field numbers are those of ``onnx.proto3``.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from edgeseg.errors import ArtefactError

__all__ = ["DTYPES", "Constant", "Node", "OnnxGraph", "Value", "parse_onnx", "read_onnx"]

DTYPES: Final[dict[int, str]] = {
    1: "float32",
    2: "uint8",
    3: "int8",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    16: "bfloat16",
}
"""Names of ``TensorProto.DataType``."""

_MAX_BYTES: Final = 512 << 20
_MAX_VALUES: Final = 64
"""Constants with more elements are weights; shapes, axes and sizes have fewer."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Value:
    """An input or output of the graph."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Constant:
    """An initializer, or a ``Constant`` node's value."""

    dtype: str
    shape: tuple[int, ...]
    values: tuple[float, ...] | None
    """The elements of small ones, in order; ``None`` for weights."""


@dataclass(frozen=True, slots=True)
class Node:
    """An operator."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(slots=True)
class OnnxGraph:
    """The graph of a model: one level, no subgraphs."""

    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)


def read_onnx(path: Path) -> OnnxGraph:
    """The graph of a model file.

    Raises:
        ArtefactError: it cannot be read, or is no ONNX model.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ArtefactError(f"'{path}' is larger than any network's body; export it again")
        content = path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"'{path}' cannot be read ({error.strerror}); copy it again") from None
    try:
        return parse_onnx(content)
    except (ValueError, IndexError, KeyError, TypeError, struct.error) as error:
        raise ArtefactError(
            f"'{path}' is no ONNX model that can be counted ({error}); export the bundle again"
        ) from None


def parse_onnx(content: bytes) -> OnnxGraph:
    """The graph of a serialised ``ModelProto``.

    Raises:
        ValueError: no graph in it, or not a protocol buffer.
    """
    view = memoryview(content)
    for number, value in _fields(view):
        if number == 7 and isinstance(value, memoryview):
            return _graph(value)
    raise ValueError("it holds no graph")


def _fields(view: memoryview) -> Iterator[tuple[int, int | float | memoryview]]:
    position, end = 0, len(view)
    while position < end:
        key, position = _varint(view, position)
        kind, number = key & 7, key >> 3
        value: int | float | memoryview
        if kind == _VARINT:
            value, position = _varint(view, position)
        elif kind == _BYTES:
            length, position = _varint(view, position)
            if position + length > end:
                raise ValueError("a field runs past the end")
            value, position = view[position : position + length], position + length
        elif kind == _FIXED32:
            (value,) = struct.unpack_from("<f", view, position)
            position += 4
        elif kind == _FIXED64:
            (value,) = struct.unpack_from("<d", view, position)
            position += 8
        else:
            raise ValueError(f"wire type {kind}")
        yield number, value


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = view[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if not byte & 0x80:
            break
        shift += 7
        if shift > 63:
            raise ValueError("an integer without an end")
    # Negative numbers are written as 64-bit two's complement.
    return (result - (1 << 64) if result >> 63 else result), position


def _graph(view: memoryview) -> OnnxGraph:
    graph = OnnxGraph()
    for number, value in _fields(view):
        if not isinstance(value, memoryview):
            continue
        if number == 1:
            node = _node(value)
            if node.op == "Constant":
                graph.constants[node.outputs[0]] = node.attributes["value"]
            else:
                graph.nodes.append(node)
        elif number == 5:
            name, constant = _tensor(value)
            graph.constants[name] = constant
        elif number == 11:
            graph.inputs.append(_value_info(value))
        elif number == 12:
            graph.outputs.append(_value_info(value))
    graph.inputs = [v for v in graph.inputs if v.name not in graph.constants]
    return graph


def _node(view: memoryview) -> Node:
    inputs, outputs, attributes = [], [], {}
    name = op = ""
    for number, value in _fields(view):
        if number == 1:
            inputs.append(_text(value))
        elif number == 2:
            outputs.append(_text(value))
        elif number == 3:
            name = _text(value)
        elif number == 4:
            op = _text(value)
        elif number == 5 and isinstance(value, memoryview):
            key, content = _attribute(value)
            attributes[key] = content
    if not op or not outputs:
        raise ValueError("a node without operator or output")
    return Node(name or outputs[0], op, tuple(inputs), tuple(outputs), attributes)


def _attribute(view: memoryview) -> tuple[str, Any]:
    name, ints = "", []
    single: Any = None
    for number, value in _fields(view):
        if number == 1:
            name = _text(value)
        elif number in (2, 3):
            single = value
        elif number == 4:
            single = _text(value)
        elif number == 5 and isinstance(value, memoryview):
            single = _tensor(value)[1]
        elif number == 8:
            ints += _integers(value)
    return name, ints if ints or single is None else single


def _tensor(view: memoryview) -> tuple[str, Constant]:
    dims: list[int] = []
    dtype, name, raw = "", "", b""
    listed: list[float] = []
    for number, value in _fields(view):
        if number == 1:
            dims += _integers(value)
        elif number == 2:
            dtype = DTYPES[_integers(value)[0]]
        elif number in (5, 7):
            listed += _integers(value)
        elif number == 4:
            listed += _floats(value)
        elif number == 8:
            name = _text(value)
        elif number == 9 and isinstance(value, memoryview) and len(value) <= 8 * _MAX_VALUES:
            raw = value.tobytes()
    if any(n < 0 for n in dims):
        raise ValueError("a negative axis")
    count = int(np.prod(dims, dtype=np.int64)) if dims else 1
    values: tuple[float, ...] | None = None
    if listed:
        values = tuple(listed)
    elif raw and count <= _MAX_VALUES and dtype != "bfloat16":
        values = tuple(np.frombuffer(raw, np.dtype(dtype)).tolist())
    elif count == 0:
        values = ()
    return name, Constant(dtype, tuple(dims), values)


def _value_info(view: memoryview) -> Value:
    name, dtype, shape = "", "", []
    for number, value in _fields(view):
        if number == 1:
            name = _text(value)
        elif number == 2:
            tensor = _only(value, 1)
            for inner, content in _fields(tensor):
                if inner == 1:
                    dtype = DTYPES[_integers(content)[0]]
                elif inner == 2 and isinstance(content, memoryview):
                    shape = [_dimension(dim) for _, dim in _fields(content)]
    return Value(name, dtype, tuple(shape))


def _dimension(view: int | float | memoryview) -> int:
    if isinstance(view, memoryview):
        for number, value in _fields(view):
            if number == 1 and isinstance(value, int) and value > 0:
                return value
    raise ValueError("an axis without a fixed length")


def _only(view: int | float | memoryview, wanted: int) -> memoryview:
    if isinstance(view, memoryview):
        for number, value in _fields(view):
            if number == wanted and isinstance(value, memoryview):
                return value
    raise ValueError("a value that is no tensor")


def _text(value: int | float | memoryview) -> str:
    if not isinstance(value, memoryview):
        raise ValueError("a name that is no text")
    return value.tobytes().decode("utf-8")


def _integers(value: int | float | memoryview) -> list[int]:
    if isinstance(value, int):
        return [value]
    if not isinstance(value, memoryview):
        raise ValueError("a number that is no integer")
    result, position = [], 0
    while position < len(value):
        number, position = _varint(value, position)
        result.append(number)
    return result


def _floats(value: int | float | memoryview) -> list[float]:
    if isinstance(value, memoryview):
        return [float(x) for x in np.frombuffer(value, "<f4")]
    return [float(value)]
