"""A body as it is deployed, run by torch so that it can be trained.

What quantization-aware training usually trains is a model of the deployed network, with fake
quantization where its author expects the engine to round. Here it is the graph itself that is
trained: the nodes of the ONNX body, each Q/DQ pair rounding with the pair's own scale, and what
training changes goes back into the same nodes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from edgeseg.compression.graph_operators import (
    Operator,
    dequantize,
    fake_quantize,
    operator,
    quantize,
)
from edgeseg.compression.graph_parameters import Trained, trainable
from edgeseg.compression.pooling import only_compared
from edgeseg.errors import ArtefactError, UsageError
from edgeseg.export.graph import Graph

__all__ = ["GraphModule"]


@dataclass(frozen=True, slots=True)
class _Step:
    run: Operator
    takes: list[str]
    gives: str
    frees: list[str]
    """Tensors that nobody takes later."""


class GraphModule(nn.Module):
    """A float or INT8 body as a torch module.

    Rounding passes its gradient on (straight-through), clipping to the range of a pair stops it
    (Jacob et al. 2018, section 3).

    Args:
        body: what :func:`edgeseg.export.body.export_body` or
            :func:`edgeseg.compression.quantize_onnx.quantize_body` gave.

    Raises:
        ArtefactError: it holds an operator that no such body has.
    """

    def __init__(self, body: onnx.ModelProto) -> None:
        super().__init__()
        graph = Graph(body)
        graph.infer_shapes()
        if len(graph.inputs) != 1 or len(graph.outputs) != 1:
            raise ArtefactError(
                f"the body has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs, and "
                "one of each is expected; export it again"
            )
        self._input, self._output = graph.inputs[0].name, graph.outputs[0].name
        self._body = onnx.ModelProto()
        self._body.CopyFrom(body)
        _, self.height, self.width, _ = graph.shapes[self._input]
        self.divisor = _divisor(graph, self.height)
        """Both sides of a frame must be divisible by it."""
        self.factor = _factor(graph, self._output)
        """Pixels of the frame per pixel of the features, along either side."""
        trained, self._trained = trainable(graph)
        self.trained = nn.ModuleList(trained)
        self._fixed: dict[str, str] = {}
        self._steps = self._compile(graph)

    def forward(self, frame: Tensor) -> Tensor:
        """Features of frames.

        Args:
            frame: ``[N, H, W, 3]`` BGR, uint8 or whole numbers 0 .. 255 as float32; any N, and any
                size that is divisible by :attr:`divisor`.

        Returns:
            float32 ``[N, h * w, C]``, as the body's output.

        Raises:
            UsageError: another size.
        """
        _, height, width, _ = frame.shape
        if height % self.divisor or width % self.divisor or not height * width:
            raise UsageError(
                f"frames of {height}x{width} do not fit the body: both sides must be divisible by "
                f"{self.divisor}"
            )
        # Torch pools no integers.
        values: dict[str, Tensor] = {self._input: frame.float()}
        values |= {name: getattr(self, buffer) for name, buffer in self._fixed.items()}
        computed = {trained.name: trained() for trained in self._parts()}
        values |= {tensor: computed[t.name] for tensor, t in self._trained.items()}
        for step in self._steps:
            values[step.gives] = step.run(*[values[name] for name in step.takes])
            for name in step.frees:
                del values[name]
        return values[self._output]

    def maps(self, frame: Tensor) -> Tensor:
        """The same as ``[N, C, h, w]``."""
        rows, columns = frame.shape[1] // self.factor, frame.shape[2] // self.factor
        features: Tensor = self(frame)
        count, _, channels = features.shape
        return features.transpose(1, 2).reshape(count, channels, rows, columns)

    def limit(self) -> None:
        """To be called after each step of an optimizer: keeps codes in their range."""
        for trained in self._parts():
            trained.limit()

    def to_onnx(self) -> onnx.ModelProto:
        """The body with the parameters as they are now; its nodes are those it came with."""
        values = {trained.name: trained.array() for trained in self._parts()}
        model = onnx.ModelProto()
        model.CopyFrom(self._body)
        for initializer in model.graph.initializer:
            if initializer.name in values:
                replacement = numpy_helper.from_array(values[initializer.name], initializer.name)
                initializer.CopyFrom(replacement)
        return model

    def _parts(self) -> list[Trained]:
        return [t for t in self.trained if isinstance(t, Trained)]

    def _compile(self, graph: Graph) -> list[_Step]:
        last: dict[str, int] = {}
        made: list[tuple[Operator, list[str], str]] = []
        fused: set[int] = set()
        for node in graph.nodes:
            if node.output[0] in self._trained or id(node) in fused:
                continue
            if node.op_type == "QuantizeLinear":
                pair = _pair(graph, node)
                if pair is not None:
                    fused.add(id(pair))
                function = quantize if pair is None else fake_quantize
                gives = (node if pair is None else pair).output[0]
                made.append((*self._rounding(graph, node, function), gives))
                continue
            if node.op_type == "DequantizeLinear":
                made.append(self._dequantization(graph, node))
                continue
            run, takes = operator(node, graph.constants, graph.shapes)
            if node.op_type == "Conv" and only_compared(graph, node):
                takes = [takes[0], self._signs(graph, node)]
            made.append((run, [self._operand(graph, name) for name in takes], node.output[0]))
        for at, (_, takes, _) in enumerate(made):
            last |= dict.fromkeys(takes, at)
        own = {gives for _, _, gives in made} - {self._output}
        return [
            _Step(run, takes, gives, [n for n in set(takes) if last[n] == at and n in own])
            for at, (run, takes, gives) in enumerate(made)
        ]

    def _operand(self, graph: Graph, name: str) -> str:
        if name in graph.constants and name not in self._trained:
            self._fix(name, torch.from_numpy(graph.constants[name].copy()))
        return name

    def _fix(self, name: str, value: Tensor) -> None:
        if name not in self._fixed:
            self._fixed[name] = f"fixed_{len(self._fixed)}"
            self.register_buffer(self._fixed[name], value, persistent=False)

    def _signs(self, graph: Graph, node: onnx.NodeProto) -> str:
        """Weights of a difference that is compared with zero: 1 and -1, whatever their size.

        Sums of products that only differ in sign are zero in integers; in floating point a fused
        multiplication and addition would leave its rounding error.
        """
        producer = graph.producer(node.input[1])
        name = producer.input[0] if producer is not None else node.input[1]
        weight = graph.constants[name].astype(np.float32)
        sizes = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
        bias = graph.constants.get(node.input[2]) if len(node.input) > 2 else None
        if not np.isin(np.abs(weight) / np.maximum(sizes, 1e-30), (0, 1)).all() or (
            bias is not None and bias.any()
        ):
            raise ArtefactError(
                f"node '{node.name}' compares a weighted sum, which cannot be trained here; only "
                "bodies that 'edgeseg export' made can be"
            )
        self._fix(f"{node.name} signs", torch.from_numpy(np.sign(weight)))
        return f"{node.name} signs"

    def _dequantization(
        self, graph: Graph, node: onnx.NodeProto
    ) -> tuple[Operator, list[str], str]:
        tensor, names = node.input[0], node.input[1:]
        scale = graph.constants[names[0]]
        if tensor in graph.constants:  # a weight that is not trained
            value = _real(graph, node)
            self._fix(node.output[0], torch.from_numpy(value))
            return (lambda x: x), [node.output[0]], node.output[0]
        if scale.size > 1:
            raise ArtefactError(
                f"node '{node.name}' dequantizes an activation by channel, which cannot be trained "
                "here; only bodies that 'edgeseg export' made can be"
            )
        zero = int(graph.constants[names[1]].item()) if len(names) > 1 else 0
        step = float(scale.item())
        return (lambda codes: dequantize(codes, step, zero)), [tensor], node.output[0]

    def _rounding(
        self, graph: Graph, node: onnx.NodeProto, function: Callable[..., Tensor]
    ) -> tuple[Operator, list[str]]:
        scale, zero = (graph.constants[i] for i in node.input[1:3])
        if scale.size > 1 or zero.dtype not in (np.uint8, np.int8):
            raise ArtefactError(
                f"node '{node.name}' rounds by channel or to {zero.dtype}, which cannot be trained "
                "here; only bodies that 'edgeseg export' made can be"
            )
        point, kind = int(zero.item()), np.iinfo(zero.dtype)
        low, high = int(kind.min), int(kind.max)
        step = float(scale.item())
        return (lambda x: function(x, step, point, low, high)), [node.input[0]]


def _pair(graph: Graph, node: onnx.NodeProto) -> onnx.NodeProto | None:
    """The dequantization behind a quantization, where it is all there is and undoes it."""
    behind = graph.consumers(node.output[0])
    if len(behind) != 1 or behind[0].op_type != "DequantizeLinear":
        return None
    same = all(
        np.array_equal(graph.constants[a], graph.constants[b])
        for a, b in zip(node.input[1:], behind[0].input[1:], strict=True)
    )
    return behind[0] if same else None


def _real(graph: Graph, node: onnx.NodeProto) -> "np.ndarray":
    codes, scale = (graph.constants[i] for i in node.input[:2])
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    shape = [1] * codes.ndim
    if scale.size > 1:
        shape[axis] = -1
    zero = graph.constants[node.input[2]].reshape(shape) if len(node.input) > 2 else 0
    return ((codes.astype(np.float32) - zero) * scale.reshape(shape)).astype(np.float32)


def _divisor(graph: Graph, height: int) -> int:
    """Of what is pooled to a single pixel no size is asked."""
    activations = {
        name
        for node in graph.nodes
        if any(i not in graph.constants for i in node.input)
        for name in node.output
    }
    shapes = [graph.shapes[name] for name in activations]
    rows = [s[2] for s in shapes if len(s) == 4 and s[2] * s[3] > 1]
    return max(height // h for h in rows if height % h == 0)


def _factor(graph: Graph, output: str) -> int:
    """From the shape before rows and columns became one axis."""
    name = output
    while len(graph.shapes[name]) != 4:
        node = graph.producer(name)
        assert node is not None
        name = node.input[0]
    return int(graph.shapes[graph.inputs[0].name][1] // graph.shapes[name][2])
