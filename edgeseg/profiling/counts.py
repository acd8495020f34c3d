"""What a network costs: operations, memory and bytes, by layer and in all."""

from dataclasses import asdict, dataclass
from typing import Any, Final

from edgeseg.profiling.layers import CONVOLUTIONS, Layer, LayerGraph
from edgeseg.scoring.head import Head

__all__ = ["Counts", "HeadShape", "LayerCounts", "count", "layer_rows"]

SCORE_BYTES: Final = 2
_SCORER_OPERATIONS: Final = {"maxlogit": 0, "msp": 3, "void": 3, "energy": 3, "entropy": 5}
"""Per pixel and output: subtraction, exponential and sum of a softmax; entropy also multiplies and
adds."""
_TAPS: Final = {"deconv2x2": 4, "deconv3x3": 9}


@dataclass(frozen=True, slots=True)
class HeadShape:
    """What of a head decides its cost."""

    kind: str
    factor: int
    channels_in: int
    num_outputs: int

    @classmethod
    def of(cls, head: Head) -> "HeadShape":
        """Of a bundle's head."""
        return cls(head.kind, head.factor, head.channels_in, head.num_outputs)

    def macs(self, size: tuple[int, int]) -> int:
        """Multiply-accumulates of its transposed convolution; resizing has none."""
        pixels = size[0] * size[1] // self.factor**2
        return pixels * self.channels_in * self.num_outputs * _TAPS.get(self.kind, 0)

    def operations(self, size: tuple[int, int], scorer: str) -> int:
        """Everything else: interpolation or bias, the class map, the score."""
        pixels = size[0] * size[1]
        upsampling = {"bilinear": 7, "identity": 0}.get(self.kind, 1)
        return pixels * self.num_outputs * (upsampling + 1 + _SCORER_OPERATIONS[scorer])

    def feature_bytes(self, size: tuple[int, int]) -> int:
        """Bytes of the float32 features."""
        return 4 * self.channels_in * size[0] * size[1] // self.factor**2

    @property
    def weights(self) -> int:
        """Elements of weights and biases."""
        taps = _TAPS.get(self.kind, 0)
        return self.num_outputs * (self.channels_in * taps + 1) if taps else 0


@dataclass(frozen=True, slots=True)
class LayerCounts:
    """One row of the per-layer table."""

    name: str
    op: str
    shape: str
    """Channels in and out, kernel, ``/stride``, ``d`` dilation, ``g`` groups; what it writes."""
    integer: bool
    macs: int
    operations: int
    weights: int
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Of one frame, the head with its scorer included."""

    params: int
    """Trainable parameters of the deployed structure, BatchNorms counted."""
    macs: int
    """Multiply-accumulates of the graph that runs."""
    macs_integer: int
    macs_float: int
    integer_operations: int
    """Two per integer multiply-accumulate."""
    flops: int
    """Two per float multiply-accumulate, and everything that is not one."""
    weight_bytes: int
    activation_peak_bytes: int
    """Largest sum of activations alive at once, in the body or at the head."""
    read_bytes: int
    """Of every layer, activations and weights each once."""
    written_bytes: int
    file_bytes: int
    """Of the files that a device needs; 0 where there is no bundle yet."""

    def to_document(self) -> dict[str, int]:
        """As JSON has them."""
        return asdict(self)


def count(
    graph: LayerGraph, head: HeadShape, scorer: str, *, params: int, file_bytes: int = 0
) -> Counts:
    """Totals of body and head.

    Args:
        graph: at the frame size that is asked about.
        head: of the same network.
        scorer: of :data:`edgeseg.scoring.scorers.SCORERS`.
        params: of the structure; BatchNorms are folded in the graph and cannot be counted there.
        file_bytes: of the bundle.
    """
    rows = layer_rows(graph, head, scorer)
    integer = sum(row.macs for row in rows if row.integer)
    floating = sum(row.macs for row in rows if not row.integer)
    pixels = graph.size[0] * graph.size[1]
    at_head = head.feature_bytes(graph.size) + pixels * (1 + SCORE_BYTES)
    return Counts(
        params=params,
        macs=integer + floating,
        macs_integer=integer,
        macs_float=floating,
        integer_operations=2 * integer,
        flops=2 * floating + sum(row.operations for row in rows),
        weight_bytes=sum(layer.weight_bytes for layer in graph.layers) + 4 * head.weights,
        activation_peak_bytes=max(graph.peak_bytes(), at_head),
        read_bytes=sum(row.read_bytes for row in rows),
        written_bytes=sum(row.written_bytes for row in rows),
        file_bytes=file_bytes,
    )


def layer_rows(graph: LayerGraph, head: HeadShape, scorer: str) -> list[LayerCounts]:
    """The layers in order of execution, the head last."""
    rows = [
        LayerCounts(
            name=layer.name,
            op="+".join((layer.op, *layer.fused)),
            shape=_shape(graph, layer),
            integer=layer.integer,
            macs=graph.macs(layer),
            operations=graph.operations(layer),
            weights=layer.weights,
            read_bytes=graph.read_bytes(layer),
            written_bytes=graph.bytes_of(layer.output),
        )
        for layer in graph.layers
    ]
    pixels = graph.size[0] * graph.size[1]
    rows.append(
        LayerCounts(
            name="head",
            op=f"{head.kind}+{scorer}",
            shape=f"{head.channels_in}->{head.num_outputs}, {graph.size[0]}x{graph.size[1]}",
            integer=False,
            macs=head.macs(graph.size),
            operations=head.operations(graph.size, scorer),
            weights=head.weights,
            read_bytes=head.feature_bytes(graph.size) + 4 * head.weights,
            written_bytes=pixels * (1 + SCORE_BYTES),
        )
    )
    return rows


def _shape(graph: LayerGraph, layer: Layer) -> str:
    plane = "x".join(map(str, graph.plane(layer.output)[1:]))
    if layer.op not in CONVOLUTIONS:
        return plane
    text = f"{layer.channels[0]}->{layer.channels[1]} {'x'.join(map(str, layer.kernel))}"
    if any(s != 1 for s in layer.strides):
        text += f"/{max(layer.strides)}"
    if any(d != 1 for d in layer.dilations):
        text += f" d{max(layer.dilations)}"
    if layer.groups != 1:
        text += f" g{layer.groups}"
    return f"{text}, {plane}"


def as_documents(rows: list[LayerCounts]) -> list[dict[str, Any]]:
    """Rows as JSON has them."""
    return [asdict(row) for row in rows]
