"""Networks that may be changed, what they put out, and requests to prune them."""

import copy

import torch

from edgeseg.compression.pruning import Request
from edgeseg.compression.ranking import Rules
from tests.exported import HEIGHT, WIDTH, as_input, frames, network

__all__ = ["ANY_WIDTH", "amount", "copied", "outputs"]

ANY_WIDTH = Rules(round_to=1)


def copied(name, fields=()):
    """A network that may be changed, in float64: differences are then of the method."""
    return copy.deepcopy(network(name, **dict(fields))).double()


def outputs(module):
    """All logits, auxiliary ones too, on two frames."""
    with torch.inference_mode():
        logits, auxiliary = module.forward_train(as_input(frames(2)).to(next(module.parameters())))
    return [logits, *auxiliary]


def amount(share, **rules):
    return Request(amount=share, rules=Rules(**rules), size=(HEIGHT, WIDTH))
