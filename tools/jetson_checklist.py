"""What a person with a Jetson runs: install an archive, try it, measure it in every power mode.

    python3 jetson_checklist.py erfnet-int8-jetson-orin-nano-8.tar.gz

Copy this file and the archive, made by ``edgeseg export --target jetson-…``, to the device; neither
the internet nor anything but Python and JetPack is needed. Power modes and clocks are changed only
after asking, and put back. One JSON file is written, which ``tools/check_jetson_result.py`` checks
and which belongs into ``tools/results/jetson``. ``--dry-run`` says what would be done.
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path

SCHEMA = "edgeseg.jetson-result/1"
VERSIONS = """
import importlib, json
found = {}
for name in ("edgeseg", "numpy", "onnxruntime", "tensorrt", "cv2"):
    try:
        found[name] = str(importlib.import_module(name).__version__)
    except Exception as error:
        found[name] = None
print(json.dumps(found))
"""


class Checklist:
    """One pass over the list; ``result`` is what is written."""

    def __init__(self, options):
        self.options = options
        self.root = options.root
        self.result = {
            "schema": SCHEMA,
            "made_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "archive": {},
            "device": self._device(),
            "versions": {},
            "steps": [],
            "modes": [],
        }

    def run(self):
        """Go on as long as what comes next has what it needs."""
        folder = self._unpack()
        backend = ["--backend", self.options.backend]
        venv = self.options.work.absolute() / "venv"
        self.python = str(venv / "bin" / "python")
        install = ["sh", str(folder / "install.sh"), "--only-install", "--venv", str(venv)]
        install += backend
        if self._step("install", install) != 0:
            return
        with contextlib.suppress(ValueError):
            self.result["versions"] = json.loads(self._ask(self.python, "-c", VERSIONS) or "{}")
        self.bundle = str(folder / "bundle")
        golden = [self.python, "-m", "edgeseg.runtime.golden", self.bundle, *backend]
        if self._step("self-test", golden) != 0:
            return
        self._measure_modes(backend)

    # --- the device ---------------------------------------------------------------------------

    def _device(self):
        release = text(self.root / "etc/nv_tegra_release")
        match = re.search(r"R(\d+).*?REVISION:\s*([\d.]+)", release or "")
        packages = ("dpkg-query", "--show", "--showformat=${Version}", "nvidia-jetpack")
        return {
            "model": text(self.root / "proc/device-tree/model"),
            "l4t": f"{match[1]}.{match[2]}" if match else None,
            "jetpack": self._ask(*packages),
            "kernel": platform.release(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "glibc": platform.libc_ver()[1],
        }

    def _sensors(self):
        """Clocks, temperature, and what holds the clocks down, as the kernel tells now."""
        gpu = [f for f in self.root.glob("sys/class/devfreq/*") if "gpu" in f.name]
        cores = self.root.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq/scaling_cur_freq")
        zones = self.root.glob("sys/class/thermal/thermal_zone*/temp")
        degrees = [d for d in (number(zone, 1e3) for zone in zones) if d and -40 < d < 150]
        cooling = self.root.glob("sys/class/thermal/cooling_device*")
        # Fans cool without taking speed away.
        slowing = [c for c in cooling if "fan" not in (text(c / "type") or "fan")]
        events = self.root.glob("sys/class/hwmon/hwmon*/oc*_event_cnt")
        return {
            "gpu_mhz": number(gpu[0] / "cur_freq", 1e6) if gpu else None,
            "gpu_max_mhz": number(gpu[0] / "max_freq", 1e6) if gpu else None,
            "cpu_mhz": max((number(core, 1e3) or 0 for core in cores), default=None),
            "temperature_c": max(degrees, default=None),
            "cooling": any(number(c / "cur_state") for c in slowing),
            "overcurrent": sum(int(number(e) or 0) for e in events),
        }

    def _power_modes(self):
        """Id and name of the mode in force, and of all that the board has."""
        answer = (self._ask("nvpmodel", "-q") or "").split("\n")
        name = next((a.partition(":")[2].strip() for a in answer if "NV Power Mode" in a), None)
        current = next((a.strip() for a in answer if a.strip().isdigit()), None)
        modes = text(self.root / "etc/nvpmodel.conf") or ""
        listed = re.findall(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+?)\s*>", modes)
        return (current, name), listed

    # --- power modes --------------------------------------------------------------------------

    def _measure_modes(self, backend):
        (current, name), listed = self._power_modes()
        chosen = [m for m in listed if not self.options.modes or m[0] in self.options.modes]
        changed = False
        try:
            for identity, title in chosen or [(current, name)]:
                skipped = None
                if identity != current or changed:
                    skipped = "declined"
                    if self._agrees(f"set power mode {title} (nvpmodel -m {identity})"):
                        changed, skipped = True, self._set_mode(identity)
                if skipped is None:
                    self._measure(identity, title, backend)
                else:
                    self.result["modes"].append({"id": identity, "name": title, "skipped": skipped})
        finally:
            if changed:
                self._step("restore power mode", root(["nvpmodel", "-m", current]), "no\n")

    def _set_mode(self, identity):
        """Why the mode is not in force; ``None`` where it is."""
        command = root(["nvpmodel", "-m", identity])
        if self.options.dry_run:
            print(f"would run: {' '.join(command)}")
            return None
        # Some modes need a reboot, and nvpmodel asks for it: never from here.
        _, out, said = watched_run(command, "no\n", None, None)
        if self._power_modes()[0][0] == identity:
            return None
        return f"not in force after nvpmodel -m, it may need a reboot: {last(said or out)}"

    def _measure(self, identity, title, backend):
        stored = locked = False
        store = self.options.work.absolute() / "clocks.conf"
        if self._agrees(f"lock the clocks at their highest in mode {title} (jetson_clocks)"):
            # jetson_clocks does not store over a file that is there.
            store.unlink(missing_ok=True)
            stored = self._step("store clocks", root(["jetson_clocks", "--store", store])) == 0
        try:
            if stored:
                locked = self._step("lock clocks", root(["jetson_clocks"])) == 0
            command = [self.python, "-m", "edgeseg", "profile", self.bundle, "--device", "jetson"]
            command += [*backend, "--seconds", str(self.options.seconds), "--json"]
            watched = []
            self._step(f"profile {title}", command, watch=watched)
            profile = self.document
        finally:
            if stored:
                self._step("restore clocks", root(["jetson_clocks", "--restore", store]))
        entry = {"id": identity, "name": title, "skipped": None, "clocks_locked": locked}
        self.result["modes"].append({**entry, **summary(watched), "profile": profile})

    def _agrees(self, what):
        if self.options.dry_run:
            print(f"would ask: {what}?")
            return True
        if self.options.yes or self.options.no_power:
            return not self.options.no_power
        answer = input(f"{what}? it is put back afterwards [y/N] ")
        return answer.strip().lower() in ("y", "yes")

    # --- running things -----------------------------------------------------------------------

    def _unpack(self):
        archive = self.options.archive
        digest = hashlib.sha256(archive.read_bytes()).hexdigest()
        self.result["archive"] = {"name": archive.name, "sha256": digest}
        with tarfile.open(archive) as packed:
            top = packed.getnames()[0].partition("/")[0]
            if self.options.dry_run:
                print(f"would unpack '{archive}' into '{self.options.work}'")
            else:
                self.options.work.mkdir(parents=True, exist_ok=True)
                packed.extractall(self.options.work, filter="data")
            described = packed.extractfile(f"{top}/archive.json")
            self.result["archive"]["contents"] = json.load(described)
        return self.options.work.absolute() / top

    def _step(self, name, command, answer="", watch=None):
        """Run a command and note how it went; its exit code. ``document``: JSON that it wrote."""
        command = [str(part) for part in command]
        self.document = None
        print(f"{'would run' if self.options.dry_run else name}: {' '.join(command)}", flush=True)
        if self.options.dry_run:
            return 0
        started = time.monotonic()
        code, out, said = watched_run(command, answer, watch, self._sensors)
        with contextlib.suppress(ValueError):
            self.document = json.loads(out)
        if code:
            print(f"  ended with {code}: {last(said or out)}", flush=True)
        seconds = round(time.monotonic() - started, 1)
        entry = {"name": name, "exit_code": code, "seconds": seconds, "said": last(said)}
        self.result["steps"].append(entry)
        return code

    def _ask(self, *command):
        """What a command that changes nothing answers; ``None`` where it cannot."""
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() or None if done.returncode == 0 else None


def watched_run(command, answer, watch, sensors):
    """Exit code, stdout and stderr; ``watch`` fills with sensors and tegrastats' lines."""
    with contextlib.ExitStack() as stack:
        out, said, stats = (stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(3))
        tegrastats = None
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=said, text=True
            )
        except OSError as error:
            return 127, "", str(error)
        try:
            if watch is not None:
                with contextlib.suppress(OSError):
                    tegrastats = subprocess.Popen(["tegrastats", "--interval", "500"], stdout=stats)
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(answer)
                process.stdin.close()
            while watch is not None and process.poll() is None:
                watch.append(sensors())
                time.sleep(0.25)
            process.wait()
        finally:
            for child in filter(None, (process, tegrastats)):
                child.terminate()
                child.wait()
        texts = [file.seek(0) or file.read() for file in (out, said, stats)]
        if watch is not None:
            watch.append({"tegrastats": texts[2].splitlines()})
        return process.returncode, texts[0], texts[1]


def summary(watched):
    """Clocks, temperatures, power and throttling while a measurement ran."""
    lines = [line for sample in watched for line in sample.get("tegrastats", ())]
    samples = [sample for sample in watched if "tegrastats" not in sample]
    power = [int(n) for line in lines for n in re.findall(r"VDD_IN (\d+)mW", line)]
    load = [int(n) for line in lines for n in re.findall(r"GR3D_FREQ (\d+)%", line)]

    def told(key):
        return [s[key] for s in samples if s[key] is not None]

    def highest(key):
        return max(told(key), default=None)

    overcurrent = told("overcurrent")
    return {
        "clocks": {
            "gpu_lowest_mhz": min(told("gpu_mhz"), default=None),
            "gpu_highest_mhz": highest("gpu_mhz"),
            "gpu_max_mhz": highest("gpu_max_mhz"),
            "cpu_mhz": highest("cpu_mhz"),
        },
        "throttling": {
            "temperature_c": highest("temperature_c"),
            "cooling_active": any(told("cooling")),
            "overcurrent_events": overcurrent[-1] - overcurrent[0] if overcurrent else 0,
        },
        "power_w": round(sum(power) / len(power) / 1000, 2) if power else None,
        "gpu_load_percent": max(load, default=None),
    }


def root(command):
    return command if os.geteuid() == 0 else ["sudo", *command]


def text(path):
    try:
        return path.read_text(errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def number(path, unit=1):
    found = text(path)
    return int(found) / unit if found is not None and found.lstrip("-").isdigit() else None


def last(said):
    return " ".join((said.strip().splitlines() or [""])[-1].split())[:400]


def parse():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("archive", type=Path)
    add("-o", "--output", type=Path, default=Path("jetson-result.json"))
    add("--work", type=Path, default=Path("edgeseg-check"), help="folder to use")
    add("--backend", default="tensorrt", choices=["tensorrt", "onnxruntime"])
    add("--seconds", type=float, default=10, help="of measuring in each mode")
    add("--modes", nargs="*", metavar="ID", help="power modes; default: all")
    add("--yes", action="store_true", help="agree to power modes and clocks")
    add("--no-power", action="store_true", help="leave power modes and clocks alone")
    add("--dry-run", action="store_true", help="only say what would be done")
    add("--root", type=Path, default=Path("/"), help=argparse.SUPPRESS)
    return parser.parse_args()


def main():
    options = parse()
    if not options.archive.is_file():
        raise SystemExit(f"archive '{options.archive}' is not there; name the .tar.gz")
    checklist = Checklist(options)
    result = checklist.result
    try:
        checklist.run()
    except tarfile.TarError:
        raise SystemExit(f"'{options.archive}' is damaged; copy it again") from None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    # What was found before an interruption counts too.
    if result["steps"]:
        partial = options.output.with_name(f".{options.output.name}.partial")
        partial.write_text(json.dumps(result, indent=1) + "\n")
        partial.replace(options.output)
        print(f"written: {options.output}")
    failed = [step["name"] for step in result["steps"] if step["exit_code"]]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
