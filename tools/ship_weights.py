"""Put the final weights of a training run into the package.

    python tools/ship_weights.py erfnet --run logs/erfnet-1 --name edgeseg-erfnet

Convolutions as float16, everything else as float32: BatchNorm statistics have too wide a range.
The metadata keeps recipe, steps, hours and terms.
"""

import argparse
import sys
from pathlib import Path

import torch

from edgeseg.errors import EdgesegError
from edgeseg.networks import NETWORKS
from edgeseg.networks.checkpoints import load_network, read_weights, save_network

ROOT = Path(__file__).resolve().parent.parent
RESERVED = ("format", "network", "structure")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--run", type=Path, required=True, help="output folder of edgeseg train")
    parser.add_argument("--name", required=True, help="name of the weights")
    options = parser.parse_args()
    source = options.run / f"{options.network}.safetensors"
    target = ROOT / "edgeseg" / "weights" / source.name
    try:
        module = load_network(options.network, source)
        metadata = read_weights(source).metadata
    except EdgesegError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.data = parameter.data.to(torch.float16)
    kept = {k: v for k, v in metadata.items() if k not in RESERVED}
    save_network(module, target, {**kept, "weights_name": options.name})
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
