"""Taking channels out of a network, or only zeroing filters."""

import copy
from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor, nn

from edgeseg.compression.coupling import Coupling, Indices, Mask
from edgeseg.compression.dead_filters import Dead, folded, norm_behind
from edgeseg.compression.topology import fitting_structure
from edgeseg.networks.base import Network

__all__ = ["filter_norms", "remove_classes", "zeroed"]


def remove_classes(network: Network, coupling: Coupling, keep: Mask, dead: Dead) -> Network:
    """The network without the classes that are not kept, of the same class and a smaller structure.

    Constants of removed channels move into the biases behind them, exactly where the channel is
    dead (see :mod:`edgeseg.compression.dead_filters`). What else goes counts as zero from then on.

    Args:
        network: in eval mode; stays as it is.
        coupling: its coupling.
        keep: bool per class; fixed classes are kept anyway.
        dead: its dead classes and constants.
    """
    kept = keep | coupling.fixed
    state = {key: value.detach().clone() for key, value in network.state_dict().items()}
    modules = dict(network.named_modules())
    for step in coupling.convolutions:
        wire = step.inputs[0]
        removed = ~kept[coupling.wires[wire]]
        added = torch.from_numpy(folded(modules[step.module], dead.constants[wire], removed))
        if not bool(added.any()):
            continue
        bias = f"{step.module}.bias"
        norm = norm_behind(coupling, step)
        if bias in state:
            state[bias] += added.to(state[bias])
        elif norm is not None:
            mean = state[f"{norm.module}.running_mean"]
            mean -= added.to(mean)
    for step in coupling.steps:
        if not step.module:
            continue
        out = np.flatnonzero(kept[coupling.wires[step.output]])
        if step.kind != "conv":
            for name in ("weight", "bias", "running_mean", "running_var"):
                _take(state, f"{step.module}.{name}", 0, out)
            continue
        transposed = isinstance(modules[step.module], nn.ConvTranspose2d)
        read = np.flatnonzero(kept[coupling.wires[step.inputs[0]]])
        _take(state, f"{step.module}.weight", int(transposed), out)
        _take(state, f"{step.module}.weight", int(not transposed), read)
        _take(state, f"{step.module}.bias", 0, out)
    with torch.random.fork_rng(devices=[]):
        smaller = type(network)(fitting_structure(network.structure, state))
    smaller.to(next(network.parameters()).dtype)
    smaller.load_state_dict(state)
    smaller.provenance = dict(network.provenance)
    return smaller.eval()


def _take(state: dict[str, Tensor], key: str, axis: int, index: Indices) -> None:
    # A PReLU may have one slope for all channels, and a convolution no bias.
    if key in state and state[key].shape[axis] > 1:
        state[key] = state[key].index_select(axis, torch.from_numpy(index).to(state[key].device))


def filter_norms(layer: nn.Module) -> Tensor:
    """L2 norm of every filter, float64 ``[C_out]``; a bias is no part of it."""
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
    weight = layer.weight.detach().cpu().double()
    if isinstance(layer, nn.ConvTranspose2d):
        weight = weight.transpose(0, 1)
    norms: Tensor = weight.flatten(1).norm(dim=1)
    return norms


def zeroed(network: Network, amount: float, protect: Iterable[str] = ()) -> tuple[Network, int]:
    """A copy of which every ``nn.Conv2d`` has its smallest filters set to zero.

    This is what the projects did that this one is compared with: layer by layer, with no regard to
    what the layers share, ``round(amount x filters)`` of them, transposed convolutions left out
    and classifiers not, biases and BatchNorms untouched (``torch.nn.utils.prune.ln_structured``
    with n = 2, dim = 0). Nothing gets smaller or faster by it.

    Args:
        network: stays as it is.
        amount: share of the filters of each layer, 0 to 1.
        protect: names of layers, or of what they are in, to leave out.

    Returns:
        The copy, and how many filters it has at zero now that were not at zero before.
    """
    result = copy.deepcopy(network).eval()
    count = 0
    for name, layer in result.named_modules():
        if not isinstance(layer, nn.Conv2d) or any(f"{name}.".startswith(f"{p}.") for p in protect):
            continue
        norms = filter_norms(layer)
        smallest = norms.argsort(stable=True)[: round(amount * len(norms))]
        count += int((norms[smallest] > 0).sum())
        with torch.no_grad():
            layer.weight[smallest.to(layer.weight.device)] = 0.0
    return result, count
