"""Check result files of ``tools/jetson_checklist.py`` before they are committed.

Prints a line a fault. Exits with 1 where there is one: a field that is missing or of another type,
a step that failed, or no mode in which the latency was really measured.
"""

import argparse
import json
import sys
from pathlib import Path

SCHEMA = "edgeseg.jetson-result/1"
TEXT, FLAG, COUNT, MAYBE_TEXT, MAYBE_NUMBER = "text", "flag", "count", "text or null", "number"
KINDS = {
    TEXT: (str,),
    FLAG: (bool,),
    COUNT: (int,),
    MAYBE_TEXT: (str, type(None)),
    MAYBE_NUMBER: (int, float, type(None)),
}
FIELDS = {
    "made_at": TEXT,
    "archive.name": TEXT,
    "archive.sha256": TEXT,
    "archive.contents.target": TEXT,
    "archive.contents.network": TEXT,
    "archive.contents.precision": TEXT,
    "device.model": TEXT,
    "device.l4t": TEXT,
    "device.jetpack": MAYBE_TEXT,
    "device.kernel": TEXT,
    "device.python": TEXT,
    "versions.edgeseg": TEXT,
    "versions.tensorrt": MAYBE_TEXT,
}
OF_MODE = {
    "clocks_locked": FLAG,
    "clocks.gpu_lowest_mhz": MAYBE_NUMBER,
    "clocks.gpu_highest_mhz": MAYBE_NUMBER,
    "throttling.temperature_c": MAYBE_NUMBER,
    "throttling.cooling_active": FLAG,
    "throttling.overcurrent_events": COUNT,
    "power_w": MAYBE_NUMBER,
    "gpu_load_percent": MAYBE_NUMBER,
}


def faults(result):
    """What is wrong with a result file, a phrase each."""
    if not isinstance(result, dict) or result.get("schema") != SCHEMA:
        return [f"schema is not {SCHEMA!r}"]
    found = [*wrong(result, FIELDS, "")]
    steps, modes = result.get("steps"), result.get("modes")
    if not isinstance(steps, list) or not isinstance(modes, list):
        return [*found, "steps or modes is not a list"]
    for step in steps:
        if step.get("exit_code") != 0:
            found.append(f"step '{step.get('name')}' ended with {step.get('exit_code')}")
    measured = 0
    for mode in modes:
        name = f"mode {mode.get('name')}"
        if mode.get("skipped") is not None:
            continue
        found += wrong(mode, OF_MODE, f"{name}: ")
        profile = mode.get("profile") or {}
        if profile.get("kind") != "measured":
            found.append(f"{name}: profile is {profile.get('kind')}, not measured")
            continue
        rows = profile.get("results", [])
        good = [r for r in rows if 0 < r["latency_ms"]["p50"] <= r["latency_ms"]["p99"]]
        measured += bool(rows) and len(good) == len(rows)
    if not measured:
        found.append("no mode has a measured latency")
    return found


def wrong(values, fields, prefix):
    for path, kind in fields.items():
        value = values
        for key in path.split("."):
            value = value.get(key, KeyError) if isinstance(value, dict) else KeyError
        fits = isinstance(value, KINDS[kind]) and (kind == FLAG or not isinstance(value, bool))
        if not fits:
            told = "missing" if value is KeyError else repr(value)
            yield f"{prefix}{path} is {told}, not {kind}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("files", type=Path, nargs="+")
    failed = False
    for path in parser.parse_args().files:
        try:
            found = faults(json.loads(path.read_bytes()))
        except (OSError, ValueError) as error:
            found = [f"cannot be read ({error})"]
        for fault in found:
            print(f"{path}: {fault}")
        failed = failed or bool(found)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
