"""Measuring with a clock of our own: percentiles, stages, verdicts, ratios, energy."""

import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from edgeseg.profiling import latency
from edgeseg.profiling.latency import Effort, measure, noise_frame, percentiles, ratios
from edgeseg.profiling.state import (
    BUSY,
    COMPARABLE,
    THROTTLED,
    EnergyMeter,
    MachineState,
    look,
    reset_peak_memory,
    verdict,
)

QUIET = MachineState(
    governor="performance",
    clock_mhz=2000.0,
    temperature_c=50.0,
    power_mode="MAXN",
    throttle_count=0,
    idle_seconds=0.0,
    steal_seconds=0.0,
    own_seconds=0.0,
    wall_seconds=0.0,
)


class Clock:
    """Nanoseconds that only sessions move."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now


class FakeSession:
    """Takes as long as ``times`` says, in turn."""

    size = (16, 32)
    threads = 1

    def __init__(self, clock, *times_ms):
        self.clock, self.times, self.count = clock, times_ms, 0

    def run(self, frame):
        assert frame.shape == (16, 32, 3)
        assert frame.dtype == np.uint8
        ms = self.times[self.count % len(self.times)]
        self.count += 1
        self.clock.now += int(ms * 1e6)
        return SimpleNamespace(timings={"body": 0.75 * ms, "head": 0.25 * ms})


@pytest.fixture
def quick(monkeypatch):
    """No second look at the real machine, whose state is not what is tested."""
    states = iter([QUIET, replace(QUIET, wall_seconds=10.0, idle_seconds=10.0)])
    monkeypatch.setattr(latency, "look", lambda: next(states))


def test_every_frame_counts_after_the_warm_up(quick):
    clock = Clock()
    session = FakeSession(clock, 10.0)
    seen = []
    found = measure(
        session,
        Effort(warmup_seconds=0.05, seconds=0.2, outer_frames=2),
        clock=clock,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert len(found.latency_ms) == 30  # at least min_frames, though 0.2 s were over before
    assert set(found.latency_ms) == {10.0}
    assert (found.fps, found.jitter_ms) == (100.0, 0.0)
    assert found.stages_ms["body"] == 7.5
    assert found.stages_ms["head"] == 2.5
    assert seen[-1] == (30, 30)
    assert found.memory_bytes is None or found.memory_bytes > 1 << 20


def test_warm_up_goes_by_time_and_is_not_counted(quick):
    clock = Clock()
    session = FakeSession(clock, *[50.0] * 4, *[10.0] * 1000)
    found = measure(session, Effort(warmup_seconds=0.2, seconds=0, outer_frames=1), clock=clock)
    assert found.latency_ms.max() == 10.0


def test_percentiles():
    levels = percentiles(np.arange(1, 1001))
    assert levels == {"p50": 500.5, "p90": 900.1, "p95": 950.05, "p99": 990.01, "max": 1000.0}


def test_frames_have_no_flat_areas():
    frame = noise_frame((64, 100))
    assert frame.shape == (64, 100, 3)
    assert frame.std() > 30
    assert not np.array_equal(frame, noise_frame((64, 100), seed=1))


def test_ratio_stays_where_the_machine_slows_down():
    """Both sessions get slower over time, as on a machine that heats up."""

    class Heating(FakeSession):
        def run(self, frame):
            self.times = (self.base * (1 + self.clock.now / 1e9),)
            return super().run(frame)

    clock = Clock()
    own, reference = Heating(clock, 0), Heating(clock, 0)
    own.base, reference.base = 20.0, 10.0
    found = ratios(own, reference, 10, clock=clock)
    assert len(found) == 10
    assert np.median(found) == pytest.approx(2.0, rel=0.2)


def test_a_neighbour_that_slows_single_frames_does_not_show_in_a_ratio():
    clock = Clock()
    # Three of a turn's five counted frames are disturbed, so their median would be.
    own = FakeSession(clock, 20.0, 20.0, 90.0, 20.0, 90.0, 20.0, 90.0)
    found = ratios(own, FakeSession(clock, 10.0), 4, clock=clock)
    assert found == pytest.approx([2.0] * 4)


def after(**changes):
    return replace(QUIET, wall_seconds=10.0, idle_seconds=8.0, own_seconds=2.0, **changes)


def test_verdicts():
    assert verdict(QUIET, after(), (10, 10), 1) == (COMPARABLE, [])
    for changed in ({"throttle_count": 3}, {"clock_mhz": 1500.0}, {"power_mode": "15W"}):
        text, reasons = verdict(QUIET, after(**changed), (10, 10), 1)
        assert text == THROTTLED
        assert len(reasons) == 1
    text, reasons = verdict(QUIET, after(), (10, 13), 1)
    assert text == THROTTLED
    assert "1.30 times" in reasons[0]
    busy = replace(after(), idle_seconds=4.0)
    assert verdict(QUIET, busy, (10, 10), 1) == (
        BUSY,
        ["other processes used 40% of the processor"],
    )
    # A drift beside other load is the other load's.
    assert verdict(QUIET, busy, (10, 13), 1)[0] == BUSY
    unknown = replace(QUIET, idle_seconds=None, clock_mhz=None, throttle_count=None)
    assert verdict(unknown, unknown, (10, 10), 1)[0] == COMPARABLE


def test_state_is_read_from_the_system(tmp_path):
    cpu = tmp_path / "sys/devices/system/cpu"
    for core in (0, 1):
        folder = cpu / f"cpu{core}"
        (folder / "cpufreq").mkdir(parents=True)
        (folder / "thermal_throttle").mkdir()
        (folder / "cpufreq/scaling_cur_freq").write_text("1800000\n")
        (folder / "thermal_throttle/core_throttle_count").write_text("2\n")
    (cpu / "cpu0/cpufreq/scaling_governor").write_text("powersave\n")
    for zone, heat in enumerate((41000, 55500)):
        folder = tmp_path / f"sys/class/thermal/thermal_zone{zone}"
        folder.mkdir(parents=True)
        (folder / "temp").write_text(f"{heat}\n")
    (tmp_path / "var/lib/nvpmodel").mkdir(parents=True)
    (tmp_path / "var/lib/nvpmodel/status").write_text("pmode:0002")
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text("cpu  100 0 50 800 50 0 0 30 0 0\n")
    state = look(tmp_path)
    assert (state.governor, state.clock_mhz, state.throttle_count) == ("powersave", 1800.0, 4)
    assert (state.temperature_c, state.power_mode) == (55.5, "0002")
    assert state.idle_seconds == 8.5
    assert state.steal_seconds == 0.3
    empty = look(tmp_path / "nothing")
    assert set(empty.to_document().values()) == {None}


def test_energy_by_rapl(tmp_path):
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    counter.parent.mkdir(parents=True)
    counter.write_text("1000000")
    meter = EnergyMeter(tmp_path)
    assert meter.source == "rapl"
    meter.start()
    counter.write_text("3500000")
    assert meter.stop() == 2.5
    meter.start()
    counter.write_text("0")  # it wrapped around
    assert meter.stop() is None


def test_energy_by_a_boards_sensors(tmp_path):
    hwmon = tmp_path / "sys/class/hwmon/hwmon3"
    hwmon.mkdir(parents=True)
    (hwmon / "name").write_text("ina3221\n")
    for channel, label, amps in ((1, "VDD_IN", 2000), (2, "VDD_CPU", 700)):
        (hwmon / f"in{channel}_label").write_text(label)
        (hwmon / f"in{channel}_input").write_text("5000")
        (hwmon / f"curr{channel}_input").write_text(str(amps))
    meter = EnergyMeter(tmp_path)
    assert meter.source == "ina3221"
    # The total alone: the processor's part is in it.
    assert meter._power() == 10.0
    assert EnergyMeter(tmp_path / "nothing").source is None


MEMORY = """
import json
import numpy as np
from edgeseg.profiling.state import peak_memory_bytes, reset_peak_memory

seen = [peak_memory_bytes()]
block = np.ones(120 << 20, np.uint8)
seen.append(peak_memory_bytes())
del block
reset = reset_peak_memory()
seen.append(peak_memory_bytes())
block = np.ones(40 << 20, np.uint8)
seen.append(peak_memory_bytes())
print(json.dumps([reset, seen]))
"""


def test_peak_memory_sees_what_was_used():
    # In a process of its own: what ran before in this one may have left room for the block.
    told = subprocess.run([sys.executable, "-c", MEMORY], check=True, capture_output=True).stdout
    reset, (start, large, freed, small) = json.loads(told)
    if start is None:
        pytest.skip("this kernel does not tell")
    assert large - start > 100 << 20
    if not reset:
        pytest.skip("this kernel does not let a process reset its peak")
    assert large - freed > 80 << 20
    assert 20 << 20 < small - freed < 80 << 20


@pytest.mark.parametrize("allowed", [True, False])
def test_a_peak_that_cannot_be_reset_is_not_reported(quick, monkeypatch, allowed):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(latency, "reset_peak_memory", lambda: allowed)
    monkeypatch.setattr(latency, "peak_memory_bytes", lambda: 5 << 20)
    clock = Clock()
    found = measure(FakeSession(clock, 10.0), Effort(0.05, 0.2, outer_frames=2), clock=clock)
    assert found.memory_bytes == (5 << 20 if allowed else None)


def test_a_kernel_that_refuses_the_reset(monkeypatch):
    def refuse(_path, _text):
        raise PermissionError(13, "refused")

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    assert reset_peak_memory() is False
