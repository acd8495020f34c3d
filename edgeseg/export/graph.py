"""A thin editable view of an ONNX graph: nodes in topological order, constants as arrays.

The exporter's passes and the quantizer work on it. Shapes are static, so what depends only on
shapes folds away (:meth:`Graph.fold_constants`).
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

__all__ = ["Graph", "attributes"]

Array = npt.NDArray[Any]

_MAX_FOLDED_BYTES = 1 << 20


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes of a node as Python values."""
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


class Graph:
    """Nodes, constants, inputs and outputs of a model with one graph and static shapes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        source, model = model, onnx.ModelProto()
        model.CopyFrom(source)  # nodes are edited in place, and the caller's model is not ours
        self.nodes: list[onnx.NodeProto] = list(model.graph.node)
        self.constants: dict[str, Array] = {
            init.name: numpy_helper.to_array(init) for init in model.graph.initializer
        }
        self.inputs: list[onnx.ValueInfoProto] = list(model.graph.input)
        self.outputs: list[onnx.ValueInfoProto] = list(model.graph.output)
        self.opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._taken = set(self.constants) | {o for n in self.nodes for o in n.output}
        self._taken |= {i.name for i in self.inputs}
        self._lift_constants()
        self._drop_identities()

    def to_model(self) -> onnx.ModelProto:
        """The model, checked; unused constants and nodes are left out."""
        self.prune()
        model = self.unchecked_model()
        onnx.checker.check_model(model, full_check=True)
        return model

    def infer_shapes(self) -> None:
        """Fill :attr:`shapes` for every tensor."""
        self.prune()
        inferred = onnx.shape_inference.infer_shapes(self.unchecked_model(), data_prop=True)
        infos = [*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output]
        self.shapes = {
            v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in infos
        }
        self.shapes |= {k: tuple(np.shape(v)) for k, v in self.constants.items()}

    def producer(self, tensor: str) -> onnx.NodeProto | None:
        """Node that gives ``tensor``; ``None`` for inputs and constants."""
        return next((n for n in self.nodes if tensor in n.output), None)

    def consumers(self, tensor: str) -> list[onnx.NodeProto]:
        """Nodes that take ``tensor``."""
        return [n for n in self.nodes if tensor in n.input]

    def is_output(self, tensor: str) -> bool:
        """Whether ``tensor`` is an output of the graph."""
        return any(o.name == tensor for o in self.outputs)

    def constant(self, stem: str, value: npt.ArrayLike, dtype: npt.DTypeLike | None = None) -> str:
        """Add a constant and return its name."""
        name = self.unique(stem)
        self.constants[name] = np.asarray(value, dtype=dtype)
        return name

    def unique(self, stem: str) -> str:
        """A tensor or node name that is not in use."""
        # Names of nodes that are made but not inserted yet count too.
        name, count = stem, 0
        while name in self._taken:
            count += 1
            name = f"{stem}_{count}"
        self._taken.add(name)
        return name

    def make(
        self, op: str, inputs: Iterable[str], output: str | None = None, **attrs: Any
    ) -> onnx.NodeProto:
        """A node that is not in the graph yet; :meth:`insert_before` or ``after`` puts it there."""
        out = output or self.unique(f"{op.lower()}_out")
        return helper.make_node(op, list(inputs), [out], name=out, **attrs)

    def insert_before(self, anchor: onnx.NodeProto, *nodes: onnx.NodeProto) -> None:
        """Put ``nodes`` in front of ``anchor``."""
        at = self.index(anchor)
        self.nodes[at:at] = nodes

    def insert_after(self, anchor: onnx.NodeProto, *nodes: onnx.NodeProto) -> None:
        """Put ``nodes`` behind ``anchor``."""
        at = self.index(anchor) + 1
        self.nodes[at:at] = nodes

    def index(self, node: onnx.NodeProto) -> int:
        """Position of ``node``, by identity."""
        return next(i for i, n in enumerate(self.nodes) if n is node)

    def remove(self, *nodes: onnx.NodeProto) -> None:
        """Take ``nodes`` out."""
        gone = {id(n) for n in nodes}
        self.nodes = [n for n in self.nodes if id(n) not in gone]

    def redirect(
        self, old: str, new: str, only: Callable[[onnx.NodeProto], bool] | None = None
    ) -> None:
        """Let every consumer of ``old`` (for which ``only`` holds) take ``new``."""
        for node in self.nodes:
            if only is None or only(node):
                for i, name in enumerate(node.input):
                    if name == old:
                        node.input[i] = new

    def prune(self) -> None:
        """Drop nodes and constants that no output depends on."""
        needed = {o.name for o in self.outputs}
        kept: list[onnx.NodeProto] = []
        for node in reversed(self.nodes):
            if any(o in needed for o in node.output):
                kept.append(node)
                needed.update(i for i in node.input if i)
        self.nodes = kept[::-1]
        self.constants = {k: v for k, v in self.constants.items() if k in needed}

    def fold_constants(self) -> None:
        """Evaluate nodes whose inputs are constants, and ``Shape`` of tensors of known shape."""
        before = -1
        while before != len(self.nodes):
            before = len(self.nodes)
            self._fold_once()

    def _fold_once(self) -> None:
        self.infer_shapes()
        for node in list(self.nodes):
            if node.op_type == "Shape" and all(self.shapes.get(node.input[0], (0,))):
                shape = self.shapes[node.input[0]]
                attrs = attributes(node)
                value = np.array(shape[attrs.get("start", 0) : attrs.get("end")], np.int64)
                self.constants[node.output[0]] = value
                self.remove(node)
            elif node.input and all(i in self.constants for i in node.input if i):
                values = self._evaluate(node)
                if sum(v.nbytes for v in values) <= _MAX_FOLDED_BYTES:
                    self.constants |= dict(zip(node.output, values, strict=True))
                    self.remove(node)
        self.prune()

    def _evaluate(self, node: onnx.NodeProto) -> list[Array]:
        feeds = {i: self.constants[i] for i in node.input if i}
        typed = [
            helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            for k, v in feeds.items()
        ]
        out = [helper.make_empty_tensor_value_info(o) for o in node.output]
        model = helper.make_model(
            helper.make_graph([node], "fold", typed, out),
            opset_imports=[helper.make_opsetid("", self.opset)],
        )
        return [np.asarray(v) for v in ReferenceEvaluator(model).run(None, feeds)]

    def unchecked_model(self) -> onnx.ModelProto:
        """The model as it stands, neither pruned nor checked."""
        graph = helper.make_graph(
            self.nodes,
            "body",
            self.inputs,
            self.outputs,
            [numpy_helper.from_array(np.asarray(v), k) for k, v in self.constants.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        model.ir_version = 8
        model.producer_name = "edgeseg"
        return model

    def _lift_constants(self) -> None:
        for node in list(self.nodes):
            if node.op_type == "Constant":
                value = attributes(node)
                tensor = value.get("value")
                if isinstance(tensor, TensorProto):
                    self.constants[node.output[0]] = numpy_helper.to_array(tensor)
                    self.remove(node)

    def _drop_identities(self) -> None:
        for node in list(self.nodes):
            if node.op_type == "Identity" and not self.is_output(node.output[0]):
                self.remove(node)
                self.redirect(node.output[0], node.input[0])
