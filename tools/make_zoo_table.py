"""Count every network's parameters and MACs into ``edgeseg/networks/zoo.json``.

Run it after an architecture changed: ``python tools/make_zoo_table.py``. ``edgeseg networks``
reads the file, so that it needs no torch.
"""

import json
from pathlib import Path

from edgeseg.networks import NETWORKS, build
from edgeseg.networks.counts import count

HEIGHT, WIDTH = 512, 1024
TARGET = Path(__file__).resolve().parent.parent / "edgeseg" / "networks" / "zoo.json"


def table() -> str:
    """The file's text."""
    networks = {}
    for name in NETWORKS:
        module = build(name)
        counts = count(module, HEIGHT, WIDTH)
        networks[name] = {
            "params": counts.params,
            "params_training": counts.params_training,
            "macs": counts.macs,
            "macs_size": f"{HEIGHT}x{WIDTH}",
            "num_outputs": module.structure.num_outputs,
            "size_divisor": module.size_divisor,
            "head": module.head_kind,
        }
    return json.dumps({"schema": "edgeseg.zoo/1", "networks": networks}, indent=1) + "\n"


if __name__ == "__main__":
    TARGET.write_text(table(), encoding="utf-8")
    print(TARGET)
