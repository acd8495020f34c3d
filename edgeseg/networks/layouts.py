"""Key layouts of published checkpoints: how they are recognised, and our names for their keys.

A layout says which network it is of, what its tensors tell of the structure, and what it calls
each of our parameters. ERFNet, MiDE-Net and BiSeNet use published names themselves.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from edgeseg.networks.enet import PADDED_POOL_VARIANT

__all__ = ["BISENET_MEAN", "BISENET_STD", "LAYOUTS", "Layout", "recognise"]

BISENET_MEAN: Final = (0.3257, 0.3690, 0.3223)
BISENET_STD: Final = (0.2112, 0.2148, 0.2115)
"""RGB statistics that the published BiSeNetV1 weights for Cityscapes were trained with."""

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Layout:
    """One way in which checkpoints of a network name their tensors."""

    network: str
    marks: tuple[str, ...]
    """Keys that a checkpoint of this layout has and those of others lack."""
    outputs: tuple[str, int]
    """Key and axis whose length is the number of outputs."""
    rename: Callable[[str], str] = lambda key: key
    """Our name of a parameter to the layout's."""
    infer: Callable[[Tensors], dict[str, Any]] = lambda tensors: {}
    """Fields of the structure, beyond the number of outputs, that the tensors tell."""
    optional: tuple[str, ...] = ()
    """Biases that older checkpoints lack; they are zero there."""


def recognise(keys: set[str]) -> Layout | None:
    """The layout that has all its marks among ``keys`` (without ``module.``)."""
    for layout in LAYOUTS:
        if keys.issuperset(layout.marks):
            return layout
    return None


_STAGE = re.compile(r"^(?:(down|up)(\d)|stage(\d)\.(\d))\.(.*)$")


def _enet_numbered(key: str) -> str:
    """``bottleneck10.prelu1.weight`` and the like."""
    match = _STAGE.match(key)
    if match:
        _, edge, stage, index, rest = match.groups()
        # Stages 2 and 3 are alike, but stage 3 has no downsampling, and starts at 1 all the same.
        key = f"bottleneck{edge}0.{rest}" if edge else f"bottleneck{stage}{int(index) + 1}.{rest}"
    for ours, theirs in (("skip_conv", "spatil_conv"), ("skip_bn", "bn_up")):
        key = key.replace(f".{ours}.", f".{theirs}.")
    return re.sub(r"\.act(_out|\d?)\.", r".prelu\1.", key)


_KINDS: Final = ("regular", "dilated", "asymmetric", "dilated") * 2
_BLOCK: Final = {
    "conv1": "ext_conv1.0", "bn1": "ext_conv1.1", "act1": "ext_conv1.2",
    "conv2": "ext_conv2.0", "bn2": "ext_conv2.1", "act2": "ext_conv2.2",
    "conv3": "ext_conv3.0", "bn3": "ext_conv3.1", "act3": "ext_conv3.2",
    "act_out": "out_activation",
}  # fmt: skip
_ASYMMETRIC_BLOCK: Final = _BLOCK | {
    "conv2": "ext_conv2", "bn2": "ext_conv2.4", "act2": "ext_conv2.5",
}  # fmt: skip
_UP_BLOCK: Final = _BLOCK | {
    "conv2": "ext_tconv1", "bn2": "ext_tconv1_bnorm", "conv3": "ext_conv2.0",
    "bn3": "ext_conv2.1", "skip_conv": "main_conv1.0", "skip_bn": "main_conv1.1",
}  # fmt: skip
_INITIAL: Final = {"conv": "main_branch", "bn": "batch_norm", "act": "out_activation"}


def _enet_kinds(key: str) -> str:
    """``asymmetric2_3.ext_conv2.0.weight`` and the like."""
    head, _, rest = key.partition(".")
    if head == "fullconv":
        return f"transposed_conv.{rest}"
    if head == "initial":
        part, _, leaf = rest.partition(".")
        return f"initial_block.{_INITIAL.get(part, part)}.{leaf}"
    match = _STAGE.match(key)
    if not match:
        return key
    direction, edge, stage, index, rest = match.groups()
    names = _BLOCK
    if edge:
        prefix = f"{'downsample' if direction == 'down' else 'upsample'}{edge}_0"
        names = _BLOCK if direction == "down" else _UP_BLOCK
    else:
        kind = _KINDS[int(index)] if stage in "23" else "regular"
        names = _ASYMMETRIC_BLOCK if kind == "asymmetric" else _BLOCK
        prefix = f"{kind}{stage}_{int(index) + (stage != '3')}"
    part, _, leaf = rest.partition(".")
    return f"{prefix}.{names.get(part, part)}.{leaf}"


def _infer_bisenet(tensors: Tensors) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "auxiliary": "conv_out16.conv_out.weight" in tensors,
        "fusion_two_convs": "ffm.conv1.weight" in tensors,
    }
    if _trained_on_normalised(tensors):
        fields |= {"mean": BISENET_MEAN, "std": BISENET_STD}
    return fields


def _trained_on_normalised(tensors: Tensors) -> bool:
    """Whether the first BatchNorm saw an input with its mean removed.

    The keys do not say, and published weights come both ways: fine-tuned ones on [0, 1]. But the
    running mean behind a convolution without bias is the input's mean times the sum of each
    filter, so least squares over the filters gives the mean back: 0.28 to 0.35 for street scenes
    in [0, 1] (found so in four published ENet, ERFNet and MiDE-Net checkpoints), near zero where
    it was removed.
    """
    weight, mean = tensors.get("sp.conv1.conv.weight"), tensors.get("sp.conv1.bn.running_mean")
    if weight is None or mean is None or weight.ndim != 4 or mean.shape != weight.shape[:1]:
        return True  # damaged; the comparison of shapes will say so
    sums = weight.double().sum(dim=(2, 3))
    if not (torch.isfinite(sums).all() and torch.isfinite(mean).all()):
        return True
    estimate = torch.linalg.lstsq(sums, mean.double()[:, None], driver="gelsd").solution
    return bool(estimate.mean() < 0.15)


LAYOUTS: Final[tuple[Layout, ...]] = (
    Layout(
        "enet",
        ("initial.conv.weight", "bottleneck10.conv1.weight"),
        ("fullconv.weight", 1),
        _enet_numbered,
    ),
    Layout(
        "enet",
        ("initial_block.main_branch.weight", "downsample1_0.ext_conv1.0.weight"),
        ("transposed_conv.weight", 1),
        _enet_kinds,
        lambda tensors: dict(PADDED_POOL_VARIANT),
    ),
    Layout("enet", ("initial.conv.weight", "down1.conv1.weight"), ("fullconv.weight", 1)),
    Layout(
        "erfnet",
        ("encoder.initial_block.conv.weight",),
        ("decoder.output_conv.weight", 1),
        infer=lambda tensors: {"auxiliary": "encoder.output_conv.weight" in tensors},
    ),
    Layout(
        "midenet",
        ("initial.conv.weight", "bottleneck1.0.conv1.weight"),
        ("classifier.weight", 0),
    ),
    Layout(
        "bisenet",
        ("cp.resnet.conv1.weight",),
        ("conv_out.conv_out.weight", 0),
        infer=_infer_bisenet,
        optional=("conv_out.conv_out.bias", "conv_out16.conv_out.bias", "conv_out32.conv_out.bias"),
    ),
)
