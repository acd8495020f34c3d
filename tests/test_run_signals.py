"""How a run ends from outside: a self-test that hangs, and signals before the first frame."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from edgeseg.runtime.ending import Signals, bounded
from edgeseg.runtime.signing import sign_bundle
from edgeseg.runtime.signing_keys import make_keys
from tests.bundles import make_bundle

cv2 = pytest.importorskip("cv2")
ROOT = Path(__file__).resolve().parents[1]
SIZE = (64, 128)

HANGS = """
import sys, threading
from edgeseg.cli import main
from edgeseg.runtime import job

job._TEST_S, job._STOP_S = {limit}, 0.3

def hangs(session):
    print("testing", flush=True)
    threading.Event().wait()

job.self_test = hangs
sys.argv[0] = "edgeseg"
main()
"""

OPENS = """
import subprocess, sys
from edgeseg.cli import main
from edgeseg.runtime import job

class Session:
    def __init__(self, *_):
        child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
        subprocess.run([sys.executable, "-c", child])

job.Session = Session
sys.argv[0] = "edgeseg"
main()
"""


@pytest.fixture
def start(tmp_path):
    """Starts a program with arguments of ``run``; gives the process and the line it says first."""
    folder = make_bundle(tmp_path / "small", *SIZE)
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((*SIZE, 3), np.uint8))
    (tmp_path / "tmp").mkdir()
    with ExitStack() as stack:

        def call(program, *arguments):
            process = subprocess.Popen(
                [
                    *(sys.executable, "-c", program, "run", folder, "--input", tmp_path / "a.png"),
                    *("--backend", "onnxruntime", "--threads", "1", *arguments),
                ],
                cwd=ROOT,
                env={**os.environ, "TMPDIR": str(tmp_path / "tmp")},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            stack.callback(process.kill)
            assert process.stdout is not None
            return process, process.stdout.readline().strip()

        yield call


def outputs(tmp_path):
    (tmp_path / "out").mkdir()
    return [
        *("--save", tmp_path / "out" / "v.mp4", "--jsonl", tmp_path / "out" / "l.jsonl"),
        *("--events", tmp_path / "out" / "e.jsonl"),
    ]


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def left(tmp_path):
    return sorted(path.name for path in (tmp_path / "out").iterdir())


def test_a_self_test_that_hangs_ends_in_the_safe_state(start, tmp_path):
    process, _ = start(HANGS.format(limit=0.3), "--self-test", *outputs(tmp_path))
    _, err = process.communicate(timeout=30)
    assert process.returncode == 8, err
    assert "the self-test failed: the engine has not answered for 0.3 s" in err
    assert [line["state"] for line in records(tmp_path / "out" / "l.jsonl")] == ["self_test_failed"]
    told = records(tmp_path / "out" / "e.jsonl")
    assert [event["event"] for event in told] == ["run_started", "self_test", "run_ended"]
    assert told[1]["passed"] is False
    assert left(tmp_path) == ["e.jsonl", "l.jsonl"]


def test_a_signal_ends_a_self_test_that_hangs(start, tmp_path):
    process, said = start(HANGS.format(limit=60), "--self-test", *outputs(tmp_path))
    assert said == "testing"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert (tmp_path / "out" / "l.jsonl").read_text() == ""
    assert left(tmp_path) == ["e.jsonl", "l.jsonl"]


def test_a_signal_while_the_engine_opens_leaves_no_copy_and_no_child(start, tmp_path):
    pytest.importorskip("cryptography")
    public, _ = make_keys(tmp_path / "fleet.pem")
    sign_bundle(tmp_path / "small", tmp_path / "fleet.pem")
    process, child = start(OPENS, "--require-signature", public)
    assert [path.name[:17] for path in (tmp_path / "tmp").iterdir()] == ["edgeseg-verified-"]
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert list((tmp_path / "tmp").iterdir()) == []
    with pytest.raises(ProcessLookupError):
        os.kill(int(child), 0)


def test_signals_raise_at_first_and_set_the_stop_later():
    stop = threading.Event()
    before = signal.getsignal(signal.SIGTERM)
    for number in (signal.SIGINT, signal.SIGTERM):
        with pytest.raises(KeyboardInterrupt), Signals(stop):
            signal.raise_signal(number)
    assert not stop.is_set()
    with Signals(stop) as signals:
        signals.gentle()
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()
        assert signal.getsignal(signal.SIGTERM) == before  # the next one ends the process
    assert signal.getsignal(signal.SIGTERM) == before


def test_what_ends_in_time_is_not_given_up():
    told, stop = [], threading.Event()
    with bounded(told.append, stop, limit_s=0.15, stop_s=0.15):
        time.sleep(0.05)
    stop.set()
    time.sleep(0.3)
    assert told == []


@pytest.mark.parametrize("stopped", [True, False])
def test_what_does_not_end_in_time_is_given_up_once(stopped):
    told, given_up, stop = [], threading.Event(), threading.Event()

    def give_up(interrupted):
        told.append(interrupted)
        given_up.set()

    limit, after_stop = (60, 0.1) if stopped else (0.1, 60)
    with bounded(give_up, stop, limit_s=limit, stop_s=after_stop):
        if stopped:
            stop.set()
        assert given_up.wait(10)
        time.sleep(0.2)
    assert told == [stopped]
