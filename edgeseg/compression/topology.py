"""The four networks as steps over wires, and their structure specs read off their tensors.

Each function walks the way of the data as the network's ``body`` and ``forward_train`` do; where
one of those changes, its twin here must.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from torch import Tensor, nn

from edgeseg.compression.coupling import Coupling, Flow, Wire
from edgeseg.networks.base import Network
from edgeseg.networks.bisenet import BiSeNetStructure
from edgeseg.networks.enet import ENetStructure
from edgeseg.networks.erfnet import ERFNetStructure
from edgeseg.networks.midenet import MiDENetStructure
from edgeseg.networks.structure import Structure

__all__ = ["couple", "fitting_structure"]


def couple(network: Network) -> Coupling:
    """The coupling of a network's channels."""
    flow = Flow(network)
    describe, auxiliary = _DESCRIPTIONS[network.structure.network]
    describe(flow)
    return flow.coupling(auxiliary)


def fitting_structure(structure: Structure, state: Mapping[str, Tensor]) -> Structure:
    """``structure`` with the widths that the tensors of ``state`` have.

    Args:
        structure: of the network before channels were taken out.
        state: what is left of its state dict, by the same names.
    """

    def out(*names: str) -> Any:
        """Widths of convolutions, or of the sums and concatenations behind a BatchNorm."""
        found = []
        for name in names:
            weight = state[f"{name}.weight"]
            found.append(weight.shape[1] if _is_transposed(name) else weight.shape[0])
        return tuple(found)

    return _SPECS[structure.network](structure, out)


def _is_transposed(name: str) -> bool:
    # The only transposed convolutions whose width a spec holds.
    return name in ("up4.conv2", "up5.conv2")


# --- ERFNet


def _erfnet(f: Flow) -> None:
    x = _erfnet_down(f, "encoder.initial_block", f.input())
    for index in range(15):
        name = f"encoder.layers.{index}"
        x = _erfnet_down(f, name, x) if index in (0, 6) else _non_bottleneck(f, name, x)
    if "encoder.output_conv.weight" in f.network.state_dict():
        f.output(f.conv("encoder.output_conv", x))
    for index in range(6):
        name = f"decoder.layers.{index}"
        if index in (0, 3):
            x = f.relu(f.norm(f"{name}.bn", f.conv(f"{name}.conv", x)))
        else:
            x = _non_bottleneck(f, name, x)
    f.output(f.conv("decoder.output_conv", x))


def _erfnet_down(f: Flow, name: str, x: Wire) -> Wire:
    return f.relu(f.norm(f"{name}.bn", f.concat(f.conv(f"{name}.conv", x), f.spatial(x))))


def _non_bottleneck(f: Flow, name: str, x: Wire) -> Wire:
    y = f.relu(f.conv(f"{name}.conv3x1_1", x))
    y = f.relu(f.norm(f"{name}.bn1", f.conv(f"{name}.conv1x3_1", y)))
    y = f.relu(f.conv(f"{name}.conv3x1_2", y))
    y = f.norm(f"{name}.bn2", f.conv(f"{name}.conv1x3_2", y))
    return f.relu(f.add(y, x))


def _erfnet_spec(s: ERFNetStructure, out: Callable[..., Any]) -> ERFNetStructure:
    def inner(part: str, blocks: range) -> Any:
        convs = ("conv3x1_1", "conv1x3_1", "conv3x1_2")
        return tuple(out(*(f"{part}.layers.{i}.{conv}" for conv in convs)) for i in blocks)

    initial, stage1, stage2, decoder1, decoder2 = out(
        "encoder.initial_block.bn", "encoder.layers.0.bn", "encoder.layers.6.bn",
        "decoder.layers.0.bn", "decoder.layers.3.bn",
    )  # fmt: skip
    return replace(
        s,
        initial=initial,
        stage1=stage1,
        stage2=stage2,
        decoder1=decoder1,
        decoder2=decoder2,
        stage1_inner=inner("encoder", range(1, 6)),
        stage2_inner=inner("encoder", range(7, 15)),
        decoder1_inner=inner("decoder", range(1, 3)),
        decoder2_inner=inner("decoder", range(4, 6)),
    )


# --- MiDE-Net

_MIDENET_BLOCKS: Final = tuple(f"bottleneck{a}.{b}" for a in (1, 2) for b in range(3))


def _midenet(f: Flow) -> None:
    frame = f.input()
    pair = f.concat(f.conv("initial.conv", frame), f.spatial(frame))
    x = f.relu(f.norm("initial.bn", pair))
    for name in _MIDENET_BLOCKS:
        y = f.relu(f.norm(f"{name}.bn1", f.conv(f"{name}.conv1", x)))
        y = f.relu(f.norm(f"{name}.bn2", f.conv(f"{name}.conv2", y)))
        y = f.norm(f"{name}.bn3", f.conv(f"{name}.conv3", y))
        skip = f.conv(f"{name}.match_channels", x) if name.endswith("0") else x
        x = f.relu(f.add(y, skip))
    f.output(f.conv("classifier", f.spatial(x)))


def _midenet_spec(s: MiDENetStructure, out: Callable[..., Any]) -> MiDENetStructure:
    initial, stage1, stage2 = out("initial.bn", "bottleneck1.0.conv3", "bottleneck2.0.conv3")
    inner: Any = tuple(out(f"{name}.conv1", f"{name}.conv2") for name in _MIDENET_BLOCKS)
    return replace(s, initial=initial, stage1=stage1, stage2=stage2, inner=inner)


# --- ENet


def _enet(f: Flow) -> None:
    s = f.network.structure
    assert isinstance(s, ENetStructure)
    frame = f.input()
    pooled, conv = f.spatial(frame), f.conv("initial.conv", frame)
    pair = f.concat(pooled, conv) if s.initial_pool_first else f.concat(conv, pooled)
    top = f.prelu("initial.act", f.norm("initial.bn", pair))
    x, chosen1 = _enet_down(f, "down1", top, s.stage1), top
    for index in range(4):
        x = _enet_bottleneck(f, f"stage1.{index}", x)
    x, chosen2 = _enet_down(f, "down2", x, s.stage2), x
    for stage in (2, 3):
        for index in range(8):
            x = _enet_bottleneck(f, f"stage{stage}.{index}", x)
    for stage, blocks, chosen in ((4, 2, chosen2), (5, 1, chosen1)):
        x = _enet_up(f, f"up{stage}", x, chosen)
        for index in range(blocks):
            x = _enet_bottleneck(f, f"stage{stage}.{index}", x)
    f.output(f.conv("fullconv", x))


def _enet_residual(f: Flow, name: str, x: Wire) -> Wire:
    y = f.prelu(f"{name}.act1", f.norm(f"{name}.bn1", f.conv(f"{name}.conv1", x)))
    if isinstance(f.network.get_submodule(f"{name}.conv2"), nn.Sequential):
        y = f.norm(f"{name}.conv2.1", f.conv(f"{name}.conv2.0", y))
        y = f.conv(f"{name}.conv2.3", f.prelu(f"{name}.conv2.2", y))
    else:
        y = f.conv(f"{name}.conv2", y)
    y = f.prelu(f"{name}.act2", f.norm(f"{name}.bn2", y))
    return f.prelu(f"{name}.act3", f.norm(f"{name}.bn3", f.conv(f"{name}.conv3", y)))


def _enet_bottleneck(f: Flow, name: str, x: Wire) -> Wire:
    return f.prelu(f"{name}.act_out", f.add(_enet_residual(f, name, x), x))


def _enet_down(f: Flow, name: str, x: Wire, width: int) -> Wire:
    skip = f.pad(f.spatial(x), width)
    return f.prelu(f"{name}.act_out", f.add(_enet_residual(f, name, x), skip))


def _enet_up(f: Flow, name: str, x: Wire, chosen: Wire) -> Wire:
    skip = f.norm(f"{name}.skip_bn", f.conv(f"{name}.skip_conv", x))
    total = f.add(_enet_residual(f, name, x), f.unpool(skip, chosen))
    return f.prelu(f"{name}.act_out", total)


def _enet_spec(s: ENetStructure, out: Callable[..., Any]) -> ENetStructure:
    def inner(stage: int, first: str, published: Sequence[tuple[int, ...]]) -> Any:
        names = [first] if first else []
        names += [f"stage{stage}.{i}" for i in range(len(published) - len(names))]
        rows = []
        for name, widths in zip(names, published, strict=True):
            pair = ("conv2.0", "conv2.3") if len(widths) == 3 else ("conv2",)
            rows.append(out(*(f"{name}.{conv}" for conv in ("conv1", *pair))))
        return tuple(rows)

    initial, stage1, stage2 = out("initial.bn", "down1.conv3", "down2.conv3")
    return replace(
        s,
        initial=initial,
        stage1=stage1,
        stage2=stage2,
        initial_slopes=1 if s.initial_slopes == 1 else initial,
        stage1_inner=inner(1, "down1", s.stage1_inner),
        stage2_inner=inner(2, "down2", s.stage2_inner),
        stage3_inner=inner(3, "", s.stage3_inner),
        stage4_inner=inner(4, "up4", s.stage4_inner),
        stage5_inner=inner(5, "up5", s.stage5_inner),
    )


# --- BiSeNet


def _bisenet(f: Flow) -> None:
    frame = f.input()
    spatial = frame
    for name in ("conv1", "conv2", "conv3", "conv_out"):
        spatial = _conv_bn_relu(f, f"sp.{name}", spatial)
    at16, at32 = _resnet(f, "cp.resnet", frame)
    average = _conv_bn_relu(f, "cp.conv_avg", f.spatial(at32))
    top = f.add(_refine(f, "cp.arm32", at32), average)
    up16 = _conv_bn_relu(f, "cp.conv_head32", f.spatial(top))
    middle = f.add(_refine(f, "cp.arm16", at16), up16)
    up8 = _conv_bn_relu(f, "cp.conv_head16", f.spatial(middle))
    x = _conv_bn_relu(f, "ffm.convblk", f.concat(spatial, up8))
    weight = f.spatial(x)
    s = f.network.structure
    assert isinstance(s, BiSeNetStructure)
    if s.fusion_two_convs:
        weight = f.conv("ffm.conv2", f.relu(f.conv("ffm.conv1", weight)))
    else:
        weight = f.norm("ffm.bn", f.conv("ffm.conv", weight))
    x = f.add(f.multiply(x, f.sigmoid(weight)), x)
    heads = [("conv_out", x)]
    heads += [("conv_out16", up8), ("conv_out32", up16)] if s.auxiliary else []
    for name, features in heads:
        f.output(f.conv(f"{name}.conv_out", _conv_bn_relu(f, f"{name}.conv", features)))


def _conv_bn_relu(f: Flow, name: str, x: Wire) -> Wire:
    return f.relu(f.norm(f"{name}.bn", f.conv(f"{name}.conv", x)))


def _resnet(f: Flow, name: str, x: Wire) -> tuple[Wire, Wire]:
    x = f.spatial(f.relu(f.norm(f"{name}.bn1", f.conv(f"{name}.conv1", x))))
    ends = []
    for layer in range(1, 5):
        for block in range(2):
            x = _basic_block(f, f"{name}.layer{layer}.{block}", x, layer > 1 and block == 0)
        ends.append(x)
    return ends[2], ends[3]


def _basic_block(f: Flow, name: str, x: Wire, strided: bool) -> Wire:
    y = f.relu(f.norm(f"{name}.bn1", f.conv(f"{name}.conv1", x)))
    y = f.norm(f"{name}.bn2", f.conv(f"{name}.conv2", y))
    if strided:
        x = f.norm(f"{name}.downsample.1", f.conv(f"{name}.downsample.0", x))
    return f.relu(f.add(y, x))


def _refine(f: Flow, name: str, x: Wire) -> Wire:
    x = _conv_bn_relu(f, f"{name}.conv", x)
    weight = f.norm(f"{name}.bn_atten", f.conv(f"{name}.conv_atten", f.spatial(x)))
    return f.multiply(x, f.sigmoid(weight))


def _bisenet_spec(s: BiSeNetStructure, out: Callable[..., Any]) -> BiSeNetStructure:
    resnet, layers = "cp.resnet.layer", range(1, 5)
    fusion, classifier = out("ffm.convblk.conv", "conv_out.conv.conv")
    inner: Any = tuple(out(*(f"{resnet}{i}.{b}.conv1" for b in range(2))) for i in layers)
    return replace(
        s,
        layers=out(*(f"{resnet}{i}.0.conv2" for i in layers)),
        inner=inner,
        context=out("cp.arm32.conv.conv", "cp.arm16.conv.conv", "cp.conv_head16.conv"),
        spatial=out(*(f"sp.{name}.conv" for name in ("conv1", "conv2", "conv3", "conv_out"))),
        fusion=fusion,
        fusion_inner=out("ffm.conv1")[0] if s.fusion_two_convs else s.fusion_inner,
        classifier=classifier,
        auxiliary_inner=(
            out("conv_out16.conv.conv", "conv_out32.conv.conv")
            if s.auxiliary
            else s.auxiliary_inner
        ),
    )


_DESCRIPTIONS: Final[dict[str, tuple[Callable[[Flow], None], tuple[str, ...]]]] = {
    "erfnet": (_erfnet, ()),
    "midenet": (_midenet, ()),
    "enet": (_enet, ()),
    "bisenet": (_bisenet, ("conv_out16", "conv_out32")),
}
_SPECS: Final[dict[str, Callable[..., Structure]]] = {
    "erfnet": _erfnet_spec,
    "midenet": _midenet_spec,
    "enet": _enet_spec,
    "bisenet": _bisenet_spec,
}
