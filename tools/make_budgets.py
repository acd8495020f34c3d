"""Write the latency budgets of the device profiles that have not been measured.

A budget is the interval of the fastest usual camera (120, 60, 30, 25, 20, 15, 10, 5 or 2 frames a
second) that the upper end of the estimate keeps up with, at 512x1024 in the device's default power
mode. It is what the project promises to hold there, to be replaced once somebody measures:
``python tools/make_budgets.py``.
"""

from pathlib import Path

from edgeseg.networks.zoo import NETWORKS
from edgeseg.profiling.devices import Device, device_names, load_device
from edgeseg.profiling.roofline import estimate
from edgeseg.profiling.subjects import from_table

RATES = (120, 60, 30, 25, 20, 15, 10, 5, 2)
FOLDER = Path(__file__).resolve().parent.parent / "profiles"
NOTE = "# From estimates by tools/make_budgets.py, not from measurements."


def blocks(device: Device) -> list[str]:
    result = []
    mode = device.in_mode(None)
    for network in NETWORKS:
        subject = from_table(network)
        for precision in device.precisions:
            graph = subject.at(precision, None).graph
            high = estimate(graph, subject.head, mode, "void").high_ms
            fitting = [rate for rate in RATES if high <= 1000 / rate]
            interval = 1000 / fitting[0] if fitting else high
            result.append(
                f'[[budgets]]\nnetwork = "{network}"\nprecision = "{precision}"\n'
                f'size = "{subject.size}"\nms = {interval:.1f}\n'
            )
    return result


if __name__ == "__main__":
    for name in device_names():
        if name == "cpu":
            continue  # its budgets are of a measured machine
        path = FOLDER / f"{name}.toml"
        kept = path.read_text(encoding="utf-8").split(NOTE)[0].rstrip()
        parts = [kept, NOTE, *(b.rstrip() for b in blocks(load_device(name)))]
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        print(path)
