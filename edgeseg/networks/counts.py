"""Parameters and multiply-accumulates of the graph that is deployed."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgeseg.networks.base import Network

__all__ = ["Counts", "count"]


@dataclass(frozen=True, slots=True)
class Counts:
    """What a network costs."""

    params: int
    """Trainable parameters of the deployed structure: BatchNorms in, auxiliary heads out."""
    params_training: int
    """The same with the auxiliary heads."""
    macs: int
    """Multiply-accumulates of convolutions, transposed convolutions and linear layers for one
    frame, the head included; BatchNorm, activations, pooling and bilinear resizing are not
    counted."""


def count(module: Network, height: int, width: int) -> Counts:
    """Counts for frames of ``height`` x ``width`` pixels; nothing is computed.

    Raises:
        UsageError: the network does not take frames of this size.
    """
    module.check_size(height, width)
    # On the meta device a forward pass yields shapes alone.
    ghost = copy.deepcopy(module).to("meta").eval()
    macs = 0

    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal macs
        weight: Any = layer.weight
        if isinstance(layer, nn.Linear):
            macs += output.numel() * layer.in_features
        elif isinstance(layer, nn.ConvTranspose2d):
            # Every input value meets each of its filters' taps once, edges counted as if inside.
            macs += inputs[0].numel() * weight[0].numel()
        else:
            macs += output.numel() * weight[0].numel()

    for layer in ghost.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            layer.register_forward_hook(hook)
    with torch.no_grad():
        ghost(torch.empty(1, 3, height, width, device="meta"))
    total = sum(p.numel() for p in module.parameters())
    auxiliary = sum(p.numel() for p in module.auxiliary_parameters())
    return Counts(params=total - auxiliary, params_training=total, macs=macs)
