"""The body of a network as an ONNX graph."""

import io
import warnings
from typing import TYPE_CHECKING

import onnx
import torch
from torch import Tensor, nn

from edgeseg.export.dead_channels import drop_dead_channels
from edgeseg.export.graph import Graph
from edgeseg.export.passes import attach_frame, canonicalise, output_channels_last

if TYPE_CHECKING:
    from edgeseg.networks.base import Network

__all__ = ["OPSET", "export_body"]

OPSET = 17


class _Body(nn.Module):
    """The body behind its normalisation, which the graph's front takes over."""

    def __init__(self, network: "Network") -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network.body(x)


def export_body(
    network: "Network", height: int, width: int, *, drop_dead: bool = True
) -> onnx.ModelProto:
    """``frame`` uint8 ``[1, H, W, 3]`` BGR -> ``features`` float32 ``[1, h * w, C]``.

    Opset 17, IR 8, static shapes, BatchNorms folded, channels that cannot matter left out.

    Raises:
        UsageError: the network cannot take frames of this size.
    """
    network.check_size(height, width)
    was_training = network.training
    network.eval()
    normalise, network.normalise = network.normalise, nn.Identity()
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            # The TorchScript exporter is deprecated in favour of one that starts at opset 18,
            # needs a second package and takes ten seconds where this takes one.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.simplefilter("ignore", UserWarning)
            torch.onnx.export(
                _Body(network).eval(),
                (torch.zeros(1, 3, height, width),),
                buffer,  # type: ignore[arg-type]  # the TorchScript exporter takes streams
                opset_version=OPSET,
                input_names=["rgb"],
                output_names=["features"],
                dynamo=False,
            )
    finally:
        network.normalise = normalise
        network.train(was_training)
    graph = Graph(onnx.load_model_from_string(buffer.getvalue()))
    canonicalise(graph)
    if drop_dead:
        drop_dead_channels(graph)
    structure = network.structure
    attach_frame(graph, "rgb", height, width, structure.mean, structure.std)
    output_channels_last(graph)
    return graph.to_model()
