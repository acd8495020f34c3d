"""CPUs, priority and locked memory: had where the system gives them, told where it does not."""

import json
import os
import resource
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from edgeseg.errors import UsageError
from edgeseg.runtime import scheduling
from edgeseg.runtime.scheduling import Scheduler, Scheduling, parse_cpus
from tests.bundles import make_bundle
from tests.conftest import ROOT

ALLOWED = sorted(os.sched_getaffinity(0))


def masks():
    return [os.sched_getaffinity(int(thread)) for thread in os.listdir("/proc/self/task")]


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("3", (3,)), ("2-5,7", (2, 3, 4, 5, 7)), (" 1 , 0-1", (0, 1)), ("4095", (4095,))],
)
def test_lists_of_cpus(text, cpus):
    assert parse_cpus(text) == cpus


@pytest.mark.parametrize(
    "text",
    ["", ",", "1,", "a", "-1", "1-", "5-2", "1--2", "0x1", "4096", "9" * 30, "1;2", "\u0661"],
)
def test_what_is_no_list_of_cpus_is_a_usage_error(text):
    with pytest.raises(UsageError, match="write it as in 2-5,7"):
        parse_cpus(text)


def test_every_thread_is_bound_those_before_and_those_after_and_freed_at_the_end():
    wanted, started, end = {ALLOWED[-1]}, threading.Event(), threading.Event()

    def work():
        started.set()
        end.wait(10)

    before = threading.Thread(target=work)
    before.start()
    started.wait(10)
    try:
        with Scheduler(Scheduling(cpus=tuple(wanted))) as scheduler:
            after = threading.Thread(target=work)
            after.start()
            assert all(mask <= wanted for mask in masks())
            scheduler.settle()
            reached = scheduler.reached["cpus"]
            assert reached["reached"] == sorted(wanted)
            assert reached["threads"] >= 3
            assert scheduler.notes == []
        assert all(mask == set(ALLOWED) for mask in masks())
    finally:
        end.set()
        before.join()
        after.join()


def test_a_thread_that_left_its_cpus_is_brought_back(monkeypatch):
    if len(ALLOWED) < 2:
        pytest.skip("one CPU leaves nowhere to go")
    with Scheduler(Scheduling(cpus=(ALLOWED[0],))) as scheduler:
        strayed = threading.Event()
        end = threading.Event()

        def stray():
            os.sched_setaffinity(0, {ALLOWED[1]})
            strayed.set()
            end.wait(10)

        thread = threading.Thread(target=stray)
        thread.start()
        strayed.wait(10)
        scheduler.settle()
        assert os.sched_getaffinity(thread.native_id) == {ALLOWED[0]}
        end.set()
        thread.join()


def test_cpus_that_are_not_there_are_told_and_nothing_is_bound():
    with Scheduler(Scheduling(cpus=(4090, 4091))) as scheduler:
        scheduler.settle()
        assert os.sched_getaffinity(0) == set(ALLOWED)
    assert scheduler.reached["cpus"]["reached"] is None
    assert len(scheduler.notes) == 1
    assert "--cpus 4090-4091 cannot be had" in scheduler.notes[0]


def test_cpus_of_which_some_are_there_are_told_and_those_are_used():
    with Scheduler(Scheduling(cpus=(ALLOWED[0], 4090))) as scheduler:
        assert os.sched_getaffinity(0) == {ALLOWED[0]}
    assert scheduler.reached["cpus"]["reached"] == [ALLOWED[0]]
    assert f"only {ALLOWED[0]} can be had" in scheduler.notes[0]


def test_the_loop_is_raised_with_its_reader_and_the_watch_comes_first(monkeypatch):
    """With a fake of the system call: whoever runs the tests may not do this."""
    given = {}

    def setscheduler(thread, policy, parameter):
        given[thread] = (policy, parameter.sched_priority)

    monkeypatch.setattr(os, "sched_setscheduler", setscheduler)
    end = threading.Event()
    threads = {
        name: threading.Thread(target=end.wait, args=(10,), name=name)
        for name in ("source", "watch", "sink", "somebody's")
    }
    for thread in threads.values():
        thread.start()
    try:
        with Scheduler(Scheduling(priority=20)) as scheduler:
            scheduler.settle()
            native = {name: thread.native_id for name, thread in threads.items()}
            fifo = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
            assert given[threading.get_native_id()] == (fifo, 20)
            assert not set(native.values()) & set(given)
            calls = []
            on_frame = scheduler.then(calls.append)
            on_frame(1)
            on_frame(2)
            assert calls == [1, 2]
            assert given[native["source"]] == (fifo, 20)
            assert given[native["watch"]] == (fifo, 21)
            assert not {native["sink"], native["somebody's"]} & set(given)
            reached = scheduler.reached["realtime"]
            assert (reached["reached"], reached["threads"]) == (20, len(given))
        assert {policy & ~os.SCHED_RESET_ON_FORK for policy, _ in given.values()} == {0}
    finally:
        end.set()
        for thread in threads.values():
            thread.join()


def test_a_limit_that_ends_at_the_priority_leaves_the_watch_beside_the_loop(monkeypatch):
    given = {}

    def setscheduler(thread, _, parameter):
        if parameter.sched_priority > 20:
            raise PermissionError(1, "Operation not permitted")
        given[thread] = parameter.sched_priority

    monkeypatch.setattr(os, "sched_setscheduler", setscheduler)
    end = threading.Event()
    watch = threading.Thread(target=end.wait, args=(10,), name="watch")
    watch.start()
    with Scheduler(Scheduling(priority=20)) as scheduler:
        scheduler.settle()
        scheduler.then(lambda _: None)(1)
        assert given[watch.native_id] == 20
        assert scheduler.notes == []
    end.set()
    watch.join()


def test_a_priority_that_is_refused_is_told(monkeypatch):
    def refuse(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "sched_setscheduler", refuse)
    with Scheduler(Scheduling(priority=20)) as scheduler:
        scheduler.settle()
        scheduler.then(lambda _: None)(1)
    assert scheduler.reached["realtime"] == {"asked": 20, "reached": None, "threads": 0}
    assert len(scheduler.notes) == 1
    assert "CAP_SYS_NICE" in scheduler.notes[0]


class Libc:
    """Counts what is locked."""

    def __init__(self, answer=0):
        self.answer, self.calls = answer, []

    def mlockall(self, flags):
        self.calls.append(flags)
        return self.answer

    def munlockall(self):
        self.calls.append("freed")


@pytest.fixture
def libc(monkeypatch):
    fake = Libc()
    monkeypatch.setattr(scheduling, "_libc", lambda: fake)
    return fake


def lock():
    with Scheduler(Scheduling(lock_memory=True)) as scheduler:
        scheduler.settle()
    return scheduler


def test_memory_is_locked_now_and_from_now_on_and_freed_at_the_end(libc, monkeypatch):
    monkeypatch.setattr(scheduling, "_may_lock", lambda: True)
    assert lock().notes == []
    assert libc.calls == [3, "freed"]


def test_memory_under_a_limit_is_not_locked_because_an_allocation_would_fail_later(
    libc, monkeypatch
):
    monkeypatch.setattr(scheduling, "_may_lock", lambda: False)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    scheduler = lock()
    assert libc.calls == []
    assert scheduler.reached["memory"]["locked_mb"] is None
    assert "LimitMEMLOCK=infinity" in scheduler.notes[0]
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY,) * 2)
    assert lock().notes == []
    assert libc.calls == [3, "freed"]


def test_memory_that_is_refused_is_told(libc, monkeypatch):
    monkeypatch.setattr(scheduling, "_may_lock", lambda: True)
    libc.answer = -1
    assert "--lock-memory cannot be had" in lock().notes[0]
    assert libc.calls == [3]


def test_a_run_says_what_it_reached(tmp_path):
    cv2 = pytest.importorskip("cv2")
    bundle = make_bundle(tmp_path / "small")
    noise = np.random.default_rng(0).integers(0, 256, (90, 160, 3), dtype=np.uint8)
    assert cv2.imwrite(str(tmp_path / "frame.png"), noise)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "edgeseg", "run", bundle, "--input", tmp_path / "frame.png"),
            *("--backend", "onnxruntime", "--json", "--events", tmp_path / "events.jsonl"),
            *("--cpus", f"{ALLOWED[0]},4090", "--realtime-priority", "1"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["scheduling"]["cpus"]["reached"] == [ALLOWED[0]]
    # Threads follow the CPUs where --threads does not say.
    assert document["threads"] == 1
    assert document["scheduling"]["realtime"]["reached"] in (1, None)
    assert f"only {ALLOWED[0]} can be had" in done.stderr
    events = [json.loads(line) for line in Path(tmp_path / "events.jsonl").read_text().splitlines()]
    (told,) = [event for event in events if event["event"] == "scheduling"]
    assert told["level"] == "warning"
    assert told["cpus"]["reached"] == [ALLOWED[0]]
    assert "can be had" in told["refused"][0]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--cpus", "5-2"),
        ("--cpus", "all"),
        ("--realtime-priority", "0"),
        ("--realtime-priority", "99"),
        ("--realtime-priority", "x"),
    ],
)
def test_wrong_syntax_is_a_usage_error(arguments, monkeypatch, capsys):
    from edgeseg.cli import main

    monkeypatch.setattr(sys, "argv", ["edgeseg", "run", "--input", "x.png", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err
