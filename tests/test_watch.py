"""The heartbeat and the thread behind it: what stops them, and what must not."""

import os
import socket
import threading
import time

import numpy as np
import pytest

from edgeseg.runtime.deadline import Deadline, Problem
from edgeseg.runtime.events import EventLog
from edgeseg.runtime.frames import Frame, now_utc
from edgeseg.runtime.pipeline import Pipeline
from edgeseg.runtime.session import Session
from edgeseg.runtime.supervisor import Supervisor
from edgeseg.runtime.watch import Watch
from edgeseg.runtime.watchdog import Notifier
from tests.bundles import make_bundle
from tests.clock import Clock

pytest.importorskip("cv2")
SIZE = (64, 128)


class Camera:
    label, live, fps, length, skipped = "camera", True, None, None, 0

    def __init__(self, clock=time.monotonic_ns):
        self.clock = clock

    def __iter__(self):
        image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        yield Frame(0, image, "#0", "f0", now_utc(), self.clock(), 0.1)

    def close(self):
        pass


class Quiet:
    """What a watch asks a pipeline for."""

    def __init__(self, listen=lambda: None):
        self.supervisor = Supervisor(Deadline(100.0, "safe", recover_after=3), live=True)
        self.listen = listen


@pytest.mark.parametrize("deadline", [None, Deadline(50), Deadline(60_000, "drop")])
def test_the_heartbeat_stops_in_a_hang_with_and_without_a_policy(tmp_path, monkeypatch, deadline):
    clock, beats, during = Clock(), [], []
    notifier = Notifier("/nowhere", 3.0)
    monkeypatch.setattr(notifier, "alive", beats.append)
    with Session(make_bundle(tmp_path / "b", *SIZE), "onnxruntime", threads=1) as session:
        pipeline = Pipeline(session, Camera(clock), deadline=deadline, clock=clock)
        watch = Watch(pipeline, notifier, clock=lambda: clock() / 1e9)

        def hangs(image, real):
            before = len(beats)
            for _ in range(5):
                clock.forward(1501)
                watch.tick()
            during.append(len(beats) - before)
            return real(image)

        for name in ("run", "features"):
            real = getattr(session, name)
            monkeypatch.setattr(session, name, lambda image, real=real: hangs(image, real))
        report = pipeline.run()
        assert report.error is None
        assert during[0] == 0
        clock.forward(1501)
        watch.tick()
        assert len(beats) == 1
    notifier.close()


def test_an_engine_that_raises_without_a_policy_is_no_hang(tmp_path, monkeypatch):
    def raises(image):
        raise RuntimeError("device lost")

    with Session(make_bundle(tmp_path / "b", *SIZE), "onnxruntime", threads=1) as session:
        monkeypatch.setattr(session, "run", raises)
        pipeline = Pipeline(session, Camera())
        with pytest.raises(RuntimeError):
            pipeline.run()
        assert pipeline.supervisor.busy_ms() == 0


def test_a_name_that_is_no_text_does_not_end_the_heartbeat(tmp_path):
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "n.sock"))
    manager.settimeout(5)
    notifier = Notifier(str(tmp_path / "n.sock"), 0.3)
    pipeline = Quiet()
    name = os.fsdecode(b"cam\xe9ra_01.png")
    pipeline.supervisor.judge(name, 200.0, Problem("late", "it was late"))
    watch = Watch(pipeline, notifier)
    watch.tick()
    assert manager.recv(200) == b"WATCHDOG=1\nSTATUS=cam?ra_01.png: it was late"
    notifier.close()
    manager.close()


def test_the_thread_survives_what_fails_in_it_and_tells_it_once():
    rounds, again = [], threading.Event()

    def fails():
        rounds.append(1)
        if len(rounds) == 4:
            again.set()
        raise ValueError("broken")

    events = EventLog()
    with Watch(Quiet(fails), Notifier(), events=events):
        assert again.wait(5)
    assert [(event["event"], event["detail"]) for event in events.recent] == [
        ("watch_failed", "ValueError: broken")
    ]
