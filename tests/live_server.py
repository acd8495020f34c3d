"""A live view of a run that tests make up, its server on the loopback, and who asks it."""

import contextlib
import http.client
import time

import numpy as np

from edgeseg.runtime.deadline import Deadline
from edgeseg.runtime.events import EventLog
from edgeseg.runtime.live.server import LiveServer
from edgeseg.runtime.live.view import LiveView
from edgeseg.runtime.overlay import HeatScale, Painter
from edgeseg.runtime.report import Report
from edgeseg.runtime.shots import Shot
from edgeseg.runtime.supervisor import Supervisor
from edgeseg.taxonomy import PALETTE

__all__ = [
    "ABOUT",
    "SIZE",
    "ask",
    "attached_view",
    "line",
    "opened",
    "painters",
    "shot",
    "streaming",
    "wait",
]

SIZE = (64, 128)
ABOUT = {
    "network": "erfnet",
    "weights": 'a "b"\\c',
    "precision": "int8",
    "size": "64x128",
    "scorer": "void",
    "backend": "fake",
    "threshold": 0.3,
}


# --- the run


def painters(view, threshold):
    limit = 0.3 if threshold is None else threshold
    return Painter(PALETTE, HeatScale("void", 19, limit), view)


def shot(seed=0, state="ok", reason=""):
    rng = np.random.default_rng(seed)
    return Shot(
        f"f{seed}",
        rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8),
        rng.integers(0, 19, SIZE, dtype=np.uint8),
        rng.random(SIZE).astype(np.float16),
        "3 ms",
        state,
        reason,
    )


def line(index=0, state="ok", latency=12.0, age=20.0):
    return {
        "frame": index,
        "latency_ms": latency,
        "age_ms": age,
        "anomaly_max": 0.9,
        "anomaly_fraction": 0.01,
        "state": state,
    }


class FakeRun:
    """What a view asks of a pipeline."""

    def __init__(self, deadline=None):
        self.supervisor = Supervisor(deadline, live=True)
        self.report = Report()
        self.skipped = 4
        self.machine = None


def attached_view():
    """A view of a run that has a deadline of 50 ms."""
    made = LiveView(painters, ABOUT)
    run = FakeRun(Deadline(50, "safe", recover_after=3))
    made.attach(run, run, EventLog())
    made.run = run
    return made


# --- the server


def opened(view, **environment):
    """A server of the view on the loopback, at a free port."""
    return LiveServer(("127.0.0.1", 0), view, environment=environment)


def ask(server, path, host=None, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    connection.putrequest(method, path, skip_host=True)
    if host != "":
        connection.putheader("Host", host or f"127.0.0.1:{server.port}")
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    content = answer.read().decode()
    connection.close()
    return answer, content


@contextlib.contextmanager
def streaming(server, query=""):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request("GET", f"/stream.mjpg{query}")
        yield connection.getresponse()
    finally:
        connection.close()


def wait(condition):
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.005)
    return False
