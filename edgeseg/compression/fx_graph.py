"""Torch FX graphs in INT8: the one module that touches ``torch.ao.quantization``.

Quantization is the affine scheme of Jacob et al. 2018 ("Quantization and Training of Neural
Networks for Efficient Integer-Arithmetic-Only Inference", equation 1), r = S (q - Z): activations
quint8 per tensor, with ranges observed by histograms; weights qint8 and symmetric, one scale per
output channel, or one for all in transposed convolutions, where torch has no other; BatchNorms
folded into convolutions where one follows directly.

Four things that torch's converter gets wrong or cannot do (all seen with torch 2.13) are handled:

- Integer concatenation takes the scale of its *first* input for all: ENet's convolution would be
  clipped to the range of the pooled image. Concatenating and stacking are computed in float here.
- Quantized PReLU multiplies what is positive by a 1 that is itself quantized like the slopes, and
  so clipped to the largest slope: slopes get a range that holds 1 exactly. Nor does PReLU stand
  in the state dict.
- Transposed convolutions without output padding are wrong in oneDNN where the numbers of channels
  differ, and in FBGEMM at most widths: each is compared with float, and computed there if wrong.
- ``Dropout2d`` is left in float between two conversions: what does nothing is taken out.
"""

import copy
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.ao.nn import quantized as nnq
from torch.ao.quantization import (
    HistogramObserver,
    MinMaxObserver,
    QConfig,
    QConfigMapping,
    default_per_channel_weight_observer,
    default_weight_observer,
    get_default_qconfig_mapping,
)
from torch.ao.quantization.fx.custom_config import PrepareCustomConfig
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.nn import functional as F

from edgeseg.compression.fx_folder import Recipe
from edgeseg.networks.base import Network

__all__ = [
    "as_input",
    "attributes",
    "build",
    "expanded",
    "fill",
    "float_operations",
    "integer_layers",
    "running",
    "state",
]

# 2026-11, torch 2.13: torch.ao.quantization and quantized tensors announce that they will be
# removed, in favour of torchao's pt2e. They are what this module is about, and it is gated: see
# edgeseg.compression.quantize_fx. The last two are no deprecations: a graph that is about to be
# filled from a file was never calibrated, and published graphs concatenate as they do.
_EXPECTED: Final = (
    r"torch\.ao\.quantization is deprecated",
    r"torch\.quantize_per_tensor, torch\.quantize_per_channel",
    r"must run observer before calling calculate_qparams",
    r"All inputs of this cat operator must share",
)
_COUNTER: Final = ".num_batches_tracked"
_SCALES: Final = ".scales"
_ZERO_POINTS: Final = ".zero_points"

UInt8 = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]


class Concatenation(nn.Module):
    """``torch.cat`` over channels that the converter leaves alone."""

    def forward(self, *tensors: Tensor) -> Tensor:
        """``[N, C_i, H, W]`` each to ``[N, sum C_i, H, W]``."""
        return torch.cat(tensors, dim=1)


class SlopeObserver(MinMaxObserver):
    """Range of PReLU slopes, widened to hold 1, which is a whole number of steps."""

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Scale 1 / k and zero point, ``[1]`` each."""
        low, high = min(0.0, float(self.min_val)), max(1.0, float(self.max_val))
        steps = max(1, int(254 / (high - low))) if math.isfinite(high - low) else 127
        low = low if math.isfinite(low) else 0.0
        return torch.tensor([1 / steps]), torch.tensor([math.ceil(-low * steps)])


class FloatConvTranspose2d(nnq.ConvTranspose2d):
    """A transposed convolution of integers, computed in float: what the integer kernel should give,
    within one step of its output.
    """

    def forward(self, x: Tensor) -> Tensor:
        """quint8 to quint8."""
        y = _in_float(self, x)
        return torch.quantize_per_tensor(y, self.scale, self.zero_point, torch.quint8)


def _in_float(module: nnq.ConvTranspose2d, x: Tensor) -> Tensor:
    weight: Tensor = module.weight()  # type: ignore[no-untyped-call]
    bias: Tensor | None = module.bias()  # type: ignore[no-untyped-call]
    return F.conv_transpose2d(
        x.dequantize(),
        weight.dequantize(),
        bias,
        module.stride,
        module.padding,
        module.output_padding,
        module.groups,
        module.dilation,
    )


@contextmanager
def running(engine: str) -> Iterator[None]:
    """Torch's quantized engine set to ``engine``, and the warnings that are expected kept quiet."""
    before = torch.backends.quantized.engine
    with warnings.catch_warnings():
        for message in _EXPECTED:
            warnings.filterwarnings("ignore", message)
        torch.backends.quantized.engine = engine
        try:
            yield
        finally:
            torch.backends.quantized.engine = before


def build(
    network: Network,
    recipe: Recipe,
    frames: Sequence[UInt8] | None,
    progress: Progress | None = None,
) -> fx.GraphModule:
    """Trace, prepare, calibrate and convert.

    Args:
        network: in eval mode; it stays as it is.
        recipe: what the same graph can be built from again.
        frames: uint8 ``[H, W, 3]`` BGR; ``None``: the graph is not calibrated, and :func:`fill`
            follows.
        progress: called with the frames done, and in all.

    Returns:
        Float RGB ``[N, 3, H, W]`` in, float features or logits out.
    """
    traced = _trace(network, recipe)
    custom = PrepareCustomConfig().set_non_traceable_module_classes([Concatenation])
    with running(recipe.engine), torch.no_grad():
        example = (torch.zeros(1, 3, network.size_divisor, network.size_divisor),)
        prepared = prepare_fx(traced, _mapping(recipe), example, custom)
        for done, frame in enumerate(frames or (), start=1):
            prepared(as_input(frame))
            if progress is not None and frames is not None:
                progress(done, len(frames))
        graph = convert_fx(prepared)
        if frames is not None:
            _replace_wrong(graph)
    return graph.eval()


def as_input(frame: UInt8) -> Tensor:
    """uint8 ``[H, W, 3]`` BGR to float RGB ``[1, 3, H, W]`` in [0, 1]."""
    rgb = np.ascontiguousarray(frame[:, :, ::-1].transpose(2, 0, 1))
    return torch.from_numpy(rgb)[None].float() / 255.0


def _mapping(recipe: Recipe) -> QConfigMapping:
    # With seven bits two products fit into the 16 bits that the instruction before VNNI adds in.
    activation = HistogramObserver.with_args(quant_min=0, quant_max=2**recipe.activation_bits - 1)
    mapping = get_default_qconfig_mapping(recipe.engine)
    mapping.set_global(_qconfig(activation, default_per_channel_weight_observer))
    mapping.set_object_type(nn.ConvTranspose2d, _qconfig(activation, default_weight_observer))
    mapping.set_object_type(nn.PReLU, _qconfig(activation, SlopeObserver))
    mapping.set_object_type(torch.stack, None)
    for name in recipe.float_modules:
        mapping.set_module_name(name, None)
    return mapping


def _qconfig(activation: Any, weight: Any) -> QConfig:
    return QConfig(activation, weight)  # type: ignore[no-untyped-call]


def _trace(network: Network, recipe: Recipe) -> fx.GraphModule:
    """The network's body, or all of it, without what does nothing in evaluation."""
    root = copy.deepcopy(network).eval()
    tracer = fx.Tracer()
    tracer.traced_func_name = "forward" if recipe.whole else "body"
    graph = tracer.trace(root)
    traced = fx.GraphModule(root, graph, type(network).__name__)
    joins = 0
    for node in list(graph.nodes):
        if node.op == "call_module":
            if isinstance(traced.get_submodule(node.target), nn.Dropout2d | nn.Identity):
                node.replace_all_uses_with(node.args[0])
                graph.erase_node(node)
        elif node.target is torch.cat and not recipe.whole:
            name = f"concatenation{joins}"
            joins += 1
            traced.add_submodule(name, Concatenation())
            with graph.inserting_before(node):
                new = graph.call_module(name, tuple(node.args[0]))
            node.replace_all_uses_with(new)
            graph.erase_node(node)
    graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced.eval()


def _replace_wrong(graph: nn.Module) -> None:
    """Compute transposed convolutions in float whose integer kernel is wrong on this machine."""
    for module in graph.modules():
        if type(module) is nnq.ConvTranspose2d and not _is_right(module):
            module.__class__ = FloatConvTranspose2d


def _is_right(module: nnq.ConvTranspose2d) -> bool:
    """Whether the kernel gives what float gives, within a step."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, module.in_channels, 5, 7, generator=generator)
    x = torch.quantize_per_tensor(x, 1 / 127, 0, torch.quint8)
    mine = module.scale, module.zero_point
    try:
        # A scale at which nothing is clipped, so that every product shows.
        y = _in_float(module, x)
        low, high = min(0.0, float(y.min())), max(0.0, float(y.max()))
        module.scale = max((high - low) / 250, 1e-12)
        module.zero_point = round(-low / module.scale)
        return bool((module(x).dequantize() - y).abs().max() <= 1.01 * module.scale)
    finally:
        module.scale, module.zero_point = mine


def _raw(graph: nn.Module) -> dict[str, Tensor]:
    """Everything that the graph's result depends on, quantized tensors as such."""
    found = {
        key: value
        for key, value in graph.state_dict().items()
        if isinstance(value, Tensor) and not key.endswith(_COUNTER)
    }
    for name, module in graph.named_modules():
        if isinstance(module, nnq.PReLU):  # torch forgets it
            found[f"{name}.weight"] = module.weight
            found[f"{name}.scale"] = torch.tensor(float(module.scale))
            found[f"{name}.zero_point"] = torch.tensor(int(module.zero_point))
    return found


def expanded(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Quantized tensors as three plain ones: ``K`` int8 or uint8, ``K.scales`` float64 and
    ``K.zero_points`` int64, both ``[]`` or, per channel, ``[C]``; others as they are.
    """
    plain: dict[str, Tensor] = {}
    for key, value in tensors.items():
        if not value.is_quantized:
            plain[key] = value.detach().clone().contiguous()
            continue
        plain[key] = value.int_repr().contiguous()
        if value.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
            plain[key + _SCALES] = torch.tensor(value.q_scale(), dtype=torch.float64)
            plain[key + _ZERO_POINTS] = torch.tensor(value.q_zero_point())
        else:
            plain[key + _SCALES] = value.q_per_channel_scales().double().contiguous()
            plain[key + _ZERO_POINTS] = value.q_per_channel_zero_points().long().contiguous()
    return plain


def state(graph: nn.Module) -> dict[str, Tensor]:
    """The graph's state in plain tensors, as :func:`expanded` has them."""
    with running(torch.backends.quantized.engine):
        return expanded(_raw(graph))


def fill(graph: fx.GraphModule, recipe: Recipe, tensors: Mapping[str, Tensor]) -> None:
    """Give a graph that was not calibrated the state of another of the same recipe.

    Args:
        graph: from :func:`build`.
        recipe: that of the graph.
        tensors: as :func:`state` gave them; keys, shapes and types are the graph's own.
    """
    with running(recipe.engine), torch.no_grad():
        given: dict[str, Any] = dict(graph.state_dict())
        slopes: dict[str, Tensor] = {}
        for key, form in _raw(graph).items():
            value = tensors[key]
            if form.is_quantized:
                value = _quantized(form, value, tensors[key + _SCALES], tensors[key + _ZERO_POINTS])
            (given if key in given else slopes)[key] = value
        graph.load_state_dict(given)
        for name, module in graph.named_modules():
            if isinstance(module, nnq.PReLU):
                module.set_weight(slopes[f"{name}.weight"])
                module.scale = float(slopes[f"{name}.scale"])
                module.zero_point = int(slopes[f"{name}.zero_point"])
        _replace_wrong(graph)


def _quantized(form: Tensor, ints: Tensor, scales: Tensor, zero_points: Tensor) -> Tensor:
    if form.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        return torch._make_per_tensor_quantized_tensor(ints, float(scales), int(zero_points))
    axis = form.q_per_channel_axis()
    return torch._make_per_channel_quantized_tensor(ints, scales, zero_points, axis)


def attributes(graph: fx.GraphModule) -> list[str]:
    """Scales and zero points of activations outside of modules, in the order of their use."""
    return [str(node.target) for node in graph.graph.nodes if node.op == "get_attr"]


def integer_layers(graph: nn.Module) -> set[str]:
    """Names of the convolutions that are computed in integers."""
    return {
        name
        for name, module in graph.named_modules()
        if isinstance(module, nnq.Conv2d | nnq.ConvTranspose2d)
        and not isinstance(module, FloatConvTranspose2d)
    }


def float_operations(graph: fx.GraphModule) -> dict[str, int]:
    """What is computed in float, and how often: modules by class, functions by name."""
    in_float: set[fx.Node] = set()
    found: Counter[str] = Counter()
    for node in graph.graph.nodes:
        label = _label(graph, node)
        if node.op == "placeholder" or label == "dequantize":
            in_float.add(node)
        elif label == FloatConvTranspose2d.__name__:
            found[nn.ConvTranspose2d.__name__] += 1
        elif label not in ("", "quantize_per_tensor") and in_float.intersection(
            node.all_input_nodes
        ):
            in_float.add(node)
            found[label] += 1
    return dict(sorted(found.items()))


def _label(graph: fx.GraphModule, node: fx.Node) -> str:
    if node.op == "call_module":
        return type(graph.get_submodule(str(node.target))).__name__
    if node.op == "call_function":
        return str(getattr(node.target, "__name__", node.target))
    return str(node.target) if node.op == "call_method" else ""
