"""Our counts beside torch's, common mistakes and counts by hand.

    python tools/profile_cross_check.py

Prints, for each network at 512x1024 with 20 outputs, multiply-accumulates from the exported graph
(what ``edgeseg profile`` counts), and from ``torch.utils.flop_counter`` on the module as it is
deployed; what three mistakes of hand-written counters would make of it; three layers by hand. Exits
with 1 where ours differ from torch's by more than 0.5%, or from those by hand by more than 1%.

The mistakes are ones that hand-written counters make: kernels taken as square by
their first side (a factorised 3x1 as 3x3, a 1x3 as 1x1), strides ignored (the input's plane in
place of the output's), transposed convolutions left out. Each is counted apart here; no published
counter was run.
"""

import sys
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgeseg.networks import NETWORKS, build
from edgeseg.networks.base import Network
from edgeseg.profiling.subjects import from_table

HEIGHT, WIDTH = 512, 1024


def main() -> int:
    failed = False
    print(
        "| network | ours | torch | differ | square kernels | no strides | no transposed |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for name in NETWORKS:
        ours = from_table(name).counts("void").macs
        theirs = torch_macs(build(name))
        failed |= abs(ours / theirs - 1) > 0.005
        mistakes = " | ".join(percent(m, theirs) for m in mistaken_macs(build(name)))
        print(
            f"| {name} | {ours / 1e9:.4f} G | {theirs / 1e9:.4f} G | {percent(ours, theirs)} "
            f"| {mistakes} |"
        )
    published = torch_macs(build("midenet", {"published_order": True}))
    print(
        f"\nMiDE-Net in the published order, upsampled before the classifier: "
        f"{published / 1e9:.2f} GMAC; deployed {torch_macs(build('midenet')) / 1e9:.2f} GMAC."
    )
    print("\n| layer by hand | ours | by hand | differ |\n| --- | ---: | ---: | ---: |")
    for label, ours, hand in by_hand():
        failed |= abs(ours / hand - 1) > 0.01
        print(f"| {label} | {ours:,} | {hand:,} | {percent(ours, hand)} |")
    return int(failed)


def torch_macs(module: Network) -> int:
    """Half of torch's count, which takes two operations for a multiply-accumulate."""
    module = module.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ghost = module.to("meta")
        ghost(torch.empty(1, 3, HEIGHT, WIDTH, device="meta"))
    return int(counter.get_total_flops()) // 2


def mistaken_macs(module: Network) -> list[int]:
    """Totals with each mistake: square kernels, no strides, no transposed convolutions."""
    totals = [0, 0, 0]

    def hook(layer: nn.Module, inputs: Any, output: Any) -> None:
        assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
        transposed = isinstance(layer, nn.ConvTranspose2d)
        kernel = layer.kernel_size[0] * layer.kernel_size[1]
        channels = layer.in_channels * layer.out_channels
        right = inputs[0] if transposed else output
        wrong = output if transposed else inputs[0]
        plane, other = (t.shape[2] * t.shape[3] for t in (right, wrong))
        totals[0] += plane * channels * layer.kernel_size[0] ** 2
        totals[1] += other * channels * kernel
        totals[2] += 0 if transposed else plane * channels * kernel

    module = module.eval().to("meta")
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            layer.register_forward_hook(hook)
    with torch.no_grad():
        module(torch.empty(1, 3, HEIGHT, WIDTH, device="meta"))
    return totals


def by_hand() -> list[tuple[str, int, int]]:
    graph = from_table("erfnet").graph
    convolutions = [x for x in graph.layers if x.op == "Conv"]
    vertical = next(x for x in convolutions if x.kernel == (3, 1))
    up = [x for x in graph.layers if x.op == "ConvTranspose"][-1]
    return [
        (
            "ERFNet's first convolution: 3->13, 3x3, stride 2, to 256x512",
            graph.macs(convolutions[0]),
            256 * 512 * 13 * 3 * 3 * 3,
        ),
        (
            "ERFNet's first factorised convolution: 64->64, 3x1, on 128x256",
            graph.macs(vertical),
            128 * 256 * 64 * 64 * 3,
        ),
        (
            "ERFNet's second upsampling: 64->16, transposed 3x3, stride 2, from 128x256",
            graph.macs(up),
            128 * 256 * 64 * 16 * 3 * 3,
        ),
    ]


def percent(value: int, of: int) -> str:
    return f"{100 * (value / of - 1):+.2f}%"


if __name__ == "__main__":
    sys.exit(main())
