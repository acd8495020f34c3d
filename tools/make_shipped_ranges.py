r"""Observe the activation ranges of shipped weights into ``calibration_data/NETWORK.json``.

    python tools/make_shipped_ranges.py midenet --source "Cityscapes, train" \
        --frames ../shared/data/cityscapes/leftImg8bit/train

Run it after the weights changed. ``edgeseg export NETWORK --int8`` then needs no frames.
"""

import argparse
import sys
from pathlib import Path

from edgeseg.errors import EdgesegError
from edgeseg.export.body import export_body
from edgeseg.export.exporter import calibration_frames, observe_frames
from edgeseg.networks import NETWORKS
from edgeseg.networks.checkpoints import load_network
from edgeseg.networks.zoo import shipped_weights

ROOT = Path(__file__).resolve().parent.parent
HEIGHT, WIDTH = 512, 1024
MAX_FRAMES = 64


def ranges_json(
    network: str, folder: Path, weights: Path, limit: int, source: str, widen: float | None
) -> str:
    """The file's text; ``source`` says in a few words what the frames are.

    Raises:
        EdgesegError: weights or frames that cannot be read.
    """
    module = load_network(network, weights)
    frames = calibration_frames(folder, HEIGHT, WIDTH, limit)
    body = export_body(module, HEIGHT, WIDTH)
    ranges = observe_frames(module, body, folder, frames, widen=widen)
    ranges.provenance["source"] = source
    thresholds = ranges.provenance["thresholds"]
    # Five significant digits, as the ranges: what is written should not pretend to more.
    ranges.provenance["thresholds"] = {k: float(f"{v:.5g}") for k, v in thresholds.items()}
    return ranges.to_json()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--frames", type=Path, required=True, metavar="DIR", help="of images")
    parser.add_argument("--limit", type=int, default=MAX_FRAMES, help="images to use at most")
    parser.add_argument("--source", help="what the frames are, a few words; default: DIR")
    parser.add_argument(
        "--widen",
        type=float,
        metavar="SHARE",
        help="how far towards the ranges of harsher forms, 0 to 1; default: the network's",
    )
    parser.add_argument("--output", type=Path, help="default: calibration_data/NETWORK.json")
    options = parser.parse_args()
    weights = shipped_weights(options.network)
    if weights is None:
        print(f"no weights of {options.network} are shipped", file=sys.stderr)
        return 4
    try:
        source = options.source or options.frames.name
        text = ranges_json(
            options.network, options.frames, weights, options.limit, source, options.widen
        )
    except EdgesegError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    target = options.output or ROOT / "calibration_data" / f"{options.network}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")
    print(f"{target}: {len(text.encode())} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
