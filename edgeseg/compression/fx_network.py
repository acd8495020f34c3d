"""A network whose body torch FX computes in INT8: how it runs, and what it costs."""

import importlib.util
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor, fx, nn

from edgeseg.compression.fx_folder import ENGINES, Recipe
from edgeseg.errors import MissingDependencyError
from edgeseg.networks.base import Network
from edgeseg.networks.counts import count
from edgeseg.networks.predictor import TorchPredictor
from edgeseg.runtime.machine import cpu_flags
from edgeseg.scoring.head import Head

__all__ = [
    "BODY",
    "FXCounts",
    "FXNetwork",
    "FXPredictor",
    "all_tensors",
    "check_machine",
    "default_activation_bits",
    "default_engine",
    "float_operations",
    "fx_counts",
    "graphs_module",
    "head_layers",
]

BODY: Final = "body."
"""Prefix of the graph's keys; the head's follow."""
_HEAD: Final = "head."
_ISOMAX: Final = "isomax."


class FXNetwork(Network):
    """A network whose body is an integer graph; used like the float one, but not trained."""

    def __init__(self, network: Network, graph: fx.GraphModule, recipe: Recipe) -> None:
        """Args:
        network: float network; only its head is kept.
        graph: of its body, or of all of it.
        recipe: that the graph was built from.
        """
        super().__init__(network.structure)
        self.normalise = nn.Identity()  # inside the graph
        self.graph = graph
        self.recipe = recipe
        self.calibration: dict[str, Any] = {}
        """Where the ranges come from."""
        self.provenance = dict(network.provenance)
        with torch.device("meta"):
            self.shell = type(network)(network.structure)
        self.isomax = None
        if not recipe.whole:
            for prefix, module in head_layers(network).items():
                ours = head_layers(self.shell)[prefix]
                ours.load_state_dict(_copied(module.state_dict()), assign=True)
            self.isomax = self.shell.isomax
        self.eval()

    def body(self, x: Tensor) -> Tensor:
        """Features (of a whole graph: logits) of float RGB ``[N, 3, H, W]`` in [0, 1]."""
        with graphs_module().running(self.recipe.engine), torch.no_grad():
            return self.graph(x)  # type: ignore[no-any-return]

    def upsample(self, features: Tensor) -> Tensor:
        """The float head's linear part: ``[N, C, H, W]``."""
        return features if self.recipe.whole else self.shell.upsample(features)

    def last_layer(self) -> nn.Module:
        """The layer that gives the outputs; in float unless the graph is whole."""
        return self.shell.last_layer()

    def head_spec(self) -> Head:
        """The head as numpy weights; of a whole graph, none is left."""
        return super().head_spec() if self.recipe.whole else self.shell.head_spec()

    def _head_weights(self) -> tuple[int, Tensor | None, Tensor | None]:
        return 1, None, None

    def check_size(self, height: int, width: int) -> None:
        """Raise UsageError where the network cannot take frames of this size, in pixels."""
        self.shell.check_size(height, width)


class FXPredictor(TorchPredictor):
    """An :class:`FXNetwork` as the evaluation sees it: float32 scores from its logits."""

    backend = "torch-fx"
    precision = "int8"


@dataclass(frozen=True, slots=True)
class FXCounts:
    """What a quantized network costs, counted on the float graph."""

    params: int
    """Trainable parameters of the deployed structure, as the float network's."""
    macs_integer: int
    """Multiply-accumulates of int8 by int8, for one frame."""
    macs_float: int
    """The others."""


def fx_counts(network: FXNetwork, height: int, width: int) -> FXCounts:
    """Counts for frames of ``height`` x ``width`` pixels: those of the float graph, parted.

    Raises:
        UsageError: the network does not take frames of this size.
    """
    with torch.device("meta"):
        ghost = type(network.shell)(network.structure).eval()
    total = count(ghost, height, width)
    macs = 0

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        weight: Any = layer.weight
        transposed = isinstance(layer, nn.ConvTranspose2d)
        macs += (inputs[0] if transposed else output).numel() * weight[0].numel()

    for name in graphs_module().integer_layers(network.graph):
        ghost.get_submodule(name).register_forward_hook(hook)
    with torch.no_grad():
        ghost(torch.empty(1, 3, height, width, device="meta"))
    return FXCounts(total.params, macs, total.macs - macs)


def float_operations(network: FXNetwork) -> dict[str, int]:
    """What is computed in float, and how often: classes of modules and names of functions."""
    found: dict[str, int] = graphs_module().float_operations(network.graph)
    head = network.head_spec()
    if head.kind != "identity":
        name = "interpolate" if head.kind == "bilinear" else "ConvTranspose2d"
        found[name] = found.get(name, 0) + 1
    if head.isomax is not None:
        found["IsoMaxPlus"] = 1
    return dict(sorted(found.items()))


def default_engine() -> str:
    """The engine of this machine's processor."""
    return "x86" if platform.machine().lower() in ("x86_64", "amd64", "i686") else "qnnpack"


def default_activation_bits(engine: str) -> int:
    """7 where products are added in 16 bits: on x86 before AVX-512 VNNI; otherwise 8."""
    return 7 if engine == "x86" and "avx512_vnni" not in cpu_flags() else 8


def graphs_module() -> ModuleType:
    """The module that imports ``torch.ao.quantization``, which newer versions of torch lack."""
    try:
        from edgeseg.compression import fx_graph
    except ImportError:
        there = importlib.util.find_spec("torchao") is not None
        raise MissingDependencyError(
            f"torch {torch.__version__} has no FX quantization any more; install torch>=2.4,<=2.13 "
            "(its successor, pt2e of torchao, is "
            + ("installed, but not used by this version yet)" if there else "not installed)")
        ) from None
    return fx_graph


def check_machine(recipe: Recipe, what: str) -> None:
    """Raise MissingDependencyError where this machine cannot compute ``what``, or not rightly."""
    if recipe.engine not in torch.backends.quantized.supported_engines:
        have = ", ".join(e for e in torch.backends.quantized.supported_engines if e in ENGINES)
        raise MissingDependencyError(
            f"torch has no engine '{recipe.engine}' on this machine, which {what} needs; quantize "
            f"with --engine {have or 'of another machine'}"
        )
    if recipe.activation_bits > default_activation_bits(recipe.engine):
        raise MissingDependencyError(
            f"{what} has activations of 8 bits, and sums of products overflow with them on this "
            "processor, which lacks AVX-512 VNNI; quantize with --activation-bits 7"
        )


def head_layers(network: Network) -> dict[str, nn.Module]:
    """What of the head has weights, by the prefix of its keys."""
    layers: dict[str, nn.Module] = {}
    if network.head_kind != "bilinear":
        layers[_HEAD] = network.last_layer()
    if network.isomax is not None:
        layers[_ISOMAX] = network.isomax
    return layers


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in state.items()}


def all_tensors(network: FXNetwork) -> dict[str, Tensor]:
    """The state of graph and head in plain tensors, by prefixed key."""
    tensors = {BODY + k: v for k, v in graphs_module().state(network.graph).items()}
    if not network.recipe.whole:
        for prefix, module in head_layers(network.shell).items():
            tensors |= {prefix + k: v.contiguous() for k, v in _copied(module.state_dict()).items()}
    return tensors
