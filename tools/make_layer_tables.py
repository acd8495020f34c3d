"""Write the layers of every published network for counts and estimates without torch.

``edgeseg/profiling/graphs/NETWORK.json`` comes from the float32 body that the exporter writes, at
512x1024 with 20 outputs and random weights: layers do not hang on their values. Run it after an
architecture or the exporter's passes changed: ``python tools/make_layer_tables.py [NETWORK ...]``.
"""

import json
import sys
from dataclasses import asdict, replace

import torch

from edgeseg.export.body import export_body
from edgeseg.networks import NETWORKS, build
from edgeseg.networks.counts import count
from edgeseg.profiling.counts import HeadShape
from edgeseg.profiling.fusion import layers_of
from edgeseg.profiling.layers import LayerGraph
from edgeseg.profiling.onnx_reader import parse_onnx
from edgeseg.profiling.subjects import table_path

HEIGHT, WIDTH = 512, 1024


def table(name: str) -> LayerGraph:
    torch.manual_seed(0)
    module = build(name).eval()
    body = export_body(module, HEIGHT, WIDTH, drop_dead=False)
    graph = layers_of(parse_onnx(body.SerializeToString()))
    counts = count(module, HEIGHT, WIDTH)
    told = {
        "network": name,
        "structure": module.structure.to_dict(),
        "params": counts.params,
        "macs": counts.macs,
        "void_index": module.structure.void_index,
        "size_divisor": module.size_divisor,
        "head": asdict(HeadShape.of(module.head_spec())),
    }
    return replace(graph, provenance=told)


def text_of(graph: LayerGraph) -> str:
    """One line a tensor and a layer, so that a change shows as one."""
    document = graph.to_document()
    tensors, layers = document.pop("tensors"), document.pop("layers")
    lines = [f" {json.dumps(k)}: {json.dumps(v)}," for k, v in document.items()]
    lines += [' "tensors": {']
    lines += [",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in tensors.items())]
    lines += [' },\n "layers": [', ",\n".join(f"  {json.dumps(layer)}" for layer in layers), " ]"]
    return "{\n" + "\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    for network in sys.argv[1:] or NETWORKS:
        path = table_path(network)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text_of(table(network)), encoding="utf-8")
        print(path)
