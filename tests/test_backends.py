import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeseg.bundle import Bundle
from edgeseg.errors import ArtefactError, MissingDependencyError, UsageError
from edgeseg.runtime import backends, cache, machine, selection
from edgeseg.runtime.backends import BodySpec, open_backend
from tests.bundles import make_bundle, small_body

REAL_RUN = subprocess.run


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def body(tmp_path):
    bundle = Bundle.open(make_bundle(tmp_path / "bundle"))
    return BodySpec(bundle.body_path, bundle.body_sha256, 64, 128, "f32")


@pytest.fixture(params=["onnxruntime", "openvino"])
def engine(request):
    pytest.importorskip(request.param)
    return request.param


class FakeEngine:
    def __init__(self, name, milliseconds=0.0):
        self.name = name
        self.closed = False
        self.seconds = milliseconds / 1000

    def infer(self, frame):
        import time

        time.sleep(self.seconds)
        return np.zeros((1, 16, 32, 64), np.float32)

    def describe(self):
        return {"backend": self.name}

    def close(self):
        self.closed = True


def test_features_are_a_view_that_the_next_frame_overwrites(engine, body):
    backend = open_backend(engine, body, 1, trial=False)
    frame = np.full((1, 64, 128, 3), 200, np.uint8)
    first = backend.infer(frame)
    kept = first.copy()
    second = backend.infer(np.zeros_like(frame))
    assert first.__array_interface__["data"] == second.__array_interface__["data"]
    assert (kept != second).any()
    backend.close()


def test_an_unknown_engine_is_a_usage_error(body):
    with pytest.raises(UsageError, match="'caffe' is unknown"):
        open_backend("caffe", body, 1)


def test_an_engine_that_is_missing_says_what_to_install(body, monkeypatch):
    monkeypatch.setattr(backends.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install openvino"):
        open_backend("openvino", body, 1)
    with pytest.raises(MissingDependencyError, match="pip install onnxruntime"):
        selection.open_quickest(body, 1)


def test_onnxruntime_on_another_provider_is_an_error(body, monkeypatch):
    ort = pytest.importorskip("onnxruntime")
    real = ort.InferenceSession

    class Silent(real):
        def get_providers(self):
            return ["AzureExecutionProvider"]

    monkeypatch.setattr(ort, "InferenceSession", Silent)
    with pytest.raises(MissingDependencyError, match="instead of CPUExecutionProvider"):
        open_backend("onnxruntime", body, 1, trial=False)


@pytest.mark.parametrize("trial", [True, False])
def test_a_damaged_graph_is_one_sentence(engine, body, tmp_path, trial):
    path = tmp_path / "broken.onnx"
    path.write_bytes(small_body(64, 128)[:700])
    broken = BodySpec(path, "0" * 64, 64, 128, "f32")
    with pytest.raises(ArtefactError, match=r"broken\.onnx") as caught:
        open_backend(engine, broken, 1, trial=trial)
    assert "\n" not in str(caught.value)


def test_a_graph_with_another_input_name_is_refused(engine, tmp_path):
    path = tmp_path / "image.onnx"
    path.write_bytes(small_body(64, 128, name="image"))
    with pytest.raises(ArtefactError, match="'image'"):
        open_backend(engine, BodySpec(path, "0" * 64, 64, 128, "f32"), 1, trial=False)


def test_a_crash_of_the_engine_becomes_a_sentence(body, monkeypatch):
    """The child dies of SIGSEGV, as OpenVINO's compiler did on one graph."""

    def crash(command, **options):
        dying = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
        return REAL_RUN([sys.executable, "-c", dying], **options)

    monkeypatch.setattr(backends.subprocess, "run", crash)
    with pytest.raises(ArtefactError, match="crashed \\(SIGSEGV\\)"):
        open_backend("onnxruntime", body, 1)
    # A crash is not remembered as a success.
    with pytest.raises(ArtefactError, match="crashed"):
        open_backend("onnxruntime", body, 1)


def test_a_graph_is_tried_in_a_child_once_per_machine(body, monkeypatch):
    calls = []

    def count(command, **options):
        calls.append(command)
        return REAL_RUN(command, **options)

    monkeypatch.setattr(backends.subprocess, "run", count)
    open_backend("onnxruntime", body, 1).close()
    open_backend("onnxruntime", body, 1).close()
    assert len(calls) == 1


def test_the_child_works_wherever_the_user_stands(body, tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit('the wrong numpy')")
    monkeypatch.chdir(tmp_path)
    open_backend("onnxruntime", body, 1).close()


def test_auto_takes_the_quicker_engine_and_remembers(body, monkeypatch):
    monkeypatch.setattr(selection, "available_backends", lambda: ["openvino", "onnxruntime"])
    opened = []

    def opener(name, body, threads):
        opened.append(FakeEngine(name, {"openvino": 4, "onnxruntime": 0.5}[name]))
        return opened[-1]

    assert selection.open_quickest(body, 2, opener=opener).name == "onnxruntime"
    slower = next(engine for engine in opened if engine.name == "openvino")
    assert slower.closed
    opened.clear()
    assert selection.open_quickest(body, 2, opener=opener).name == "onnxruntime"
    assert [engine.name for engine in opened] == ["onnxruntime"]
    # Another thread count is another question.
    opened.clear()
    selection.open_quickest(body, 1, opener=opener)
    assert len(opened) == 2


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"null",
        b'{"answer": {"backend": "openvino"}}',
        b'{"question": {}, "answer": {"backend": "openvino"}}',
        b"x" * 100_000,
    ],
)
def test_a_damaged_or_foreign_cache_is_ignored(body, cache_home, monkeypatch, content):
    monkeypatch.setattr(selection, "available_backends", lambda: ["openvino", "onnxruntime"])

    def opener(name, body, threads):
        return FakeEngine(name, {"openvino": 4, "onnxruntime": 0.5}[name])

    selection.open_quickest(body, 2, opener=opener)
    (entry,) = (cache_home / "edgeseg" / "quickest").glob("*.json")
    entry.write_bytes(content)
    assert selection.open_quickest(body, 2, opener=opener).name == "onnxruntime"
    assert json.loads(entry.read_bytes())["answer"]["backend"] == "onnxruntime"


def test_an_engine_that_refuses_the_graph_is_passed_over(body, monkeypatch):
    monkeypatch.setattr(selection, "available_backends", lambda: ["openvino", "onnxruntime"])

    def opener(name, body, threads):
        if name == "openvino":
            raise ArtefactError("no")
        return FakeEngine(name)

    assert selection.open_quickest(body, 2, opener=opener).name == "onnxruntime"

    def none(name, body, threads):
        raise ArtefactError(f"{name} refuses")

    with pytest.raises(ArtefactError, match="openvino refuses; onnxruntime refuses"):
        selection.open_quickest(body, 1, opener=none)


def test_a_cache_that_cannot_be_written_is_no_error(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    cache.remember("loaded", {"a": 1}, True)
    assert cache.recall("loaded", {"a": 1}) is None


def test_a_relative_cache_home_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / ".cache" / "edgeseg"


def test_threads_default_to_what_the_process_may_use():
    count = machine.available_cores()
    assert 1 <= count <= len(os.sched_getaffinity(0))


def test_hyper_threads_are_not_counted(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(machine, "_siblings", lambda cpu: f"{cpu % 2},{cpu % 2 + 2}")
    monkeypatch.setattr(machine, "_cgroup_quota", lambda: None)
    assert machine.available_cores() == 2
    # As libedgeseg counts: whole cores, and no thread that the quota would stop.
    monkeypatch.setattr(machine, "_siblings", str)
    for quota, cores in ((0.5, 1), (1.9, 1), (2.5, 2), (3.0, 3), (9.0, 4)):
        monkeypatch.setattr(machine, "_cgroup_quota", lambda quota=quota: quota)
        assert machine.available_cores() == cores


def test_running_never_imports_torch(tmp_path):
    bundle = make_bundle(tmp_path / "bundle")
    program = (
        "import sys, numpy as np\n"
        "from edgeseg.runtime.session import Session\n"
        "import edgeseg.runtime.job\n"
        f"Session({str(bundle)!r}, 'onnxruntime').run(np.zeros((64, 128, 3), np.uint8))\n"
        "assert not {'torch', 'onnx'} & set(sys.modules), 'heavy'\n"
    )
    root = Path(__file__).resolve().parents[1]
    done = REAL_RUN(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
