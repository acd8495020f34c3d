"""Engines that an export made are those that a run uses."""

import os
import subprocess
from dataclasses import replace

import pytest

from bundles import make_bundle
from edgeseg.bundle import Bundle
from edgeseg.errors import MissingDependencyError
from edgeseg.export.tensorrt import add_graphs
from edgeseg.runtime.backends import onnxruntime_tensorrt
from edgeseg.runtime.backends import tensorrt as backend_module
from edgeseg.runtime.tensorrt import engines as engines_module
from edgeseg.runtime.tensorrt import gpu_head
from edgeseg.runtime.tensorrt.builder import BuiltEngine
from edgeseg.runtime.tensorrt.engines import EngineOptions, ensure_engine
from tensorrt_fakes import Behaviour, FakeCuda, fake_tensorrt

TARGETS = ("8.6", "8.9")


@pytest.fixture
def bundle(tmp_path):
    return add_graphs(Bundle.open(make_bundle(tmp_path / "bundle", 16, 32)), ["void"])


@pytest.fixture
def rtx(monkeypatch):
    """A TensorRT-RTX whose builds are a few bytes."""
    have = replace(
        engines_module.abilities(fake_tensorrt("11.4", Behaviour())), package="tensorrt_rtx"
    )
    monkeypatch.setattr(engines_module, "abilities", lambda _: have)
    monkeypatch.setattr(
        engines_module,
        "build",
        lambda *_: BuiltEngine(b"engine", b"", gpu_fallback=(), layers=1, seconds=1.0),
    )


def _ensure(bundle, capability=None, gpu="RTX 4090"):
    said = []
    options = None if capability else EngineOptions(compute_capabilities=TARGETS)
    device = FakeCuda(capability, gpu=gpu).device if capability else None
    return ensure_engine(bundle, "void", None, device, options, said.append), said


@pytest.mark.parametrize("capability", TARGETS)
def test_an_engine_built_ahead_of_time_is_used_on_every_gpu_of_its_list(bundle, rtx, capability):
    built, _ = _ensure(bundle)
    engine, said = _ensure(bundle, capability)
    assert (engine.built, engine.path, said) == (False, built.path, [])
    assert not _ensure(bundle)[0].built


def test_a_gpu_that_is_not_in_the_list_gets_its_own_engine(bundle, rtx):
    _ensure(bundle)
    engine, (reason,) = _ensure(bundle, "12.0")
    assert engine.built
    assert "compute capability 8.6,8.9 is now 12.0" in reason
    # One built here is for this GPU alone.
    assert _ensure(bundle, "12.0", gpu="another")[0].built


def test_another_release_builds_again_what_was_built_ahead(bundle, rtx, monkeypatch):
    _ensure(bundle)
    newer = replace(engines_module.abilities(None), version="99")
    monkeypatch.setattr(engines_module, "abilities", lambda _: newer)
    engine, (reason,) = _ensure(bundle, "8.6")
    assert engine.built
    assert "is now 99" in reason


def test_engines_in_a_folder_that_cannot_be_written_to_are_used(bundle, rtx, monkeypatch):
    built, _ = _ensure(bundle)
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and access(path, mode))
    engine, said = _ensure(bundle, "8.6")
    assert (engine.built, engine.path, said) == (False, built.path, [])
    other, _ = _ensure(bundle, "12.0")
    assert other.built
    assert other.path.parent != bundle.path
    assert built.path.read_bytes() == b"engine"


@pytest.mark.parametrize("version", ["8.6", "10.3", "10.16"])
@pytest.mark.parametrize("open_it", ["open_scoring_engine", "open_kernel_engine"])
def test_a_bundle_exported_for_a_dla_runs_on_it(tmp_path, monkeypatch, version, open_it):
    plain = Bundle.open(make_bundle(tmp_path / "bundle", 16, 32))
    bundle = add_graphs(plain, ["void"], dla_core=1)
    asked = []

    def stop(trt, graph, options):
        asked.append(options.dla_core)
        raise MissingDependencyError("enough")

    monkeypatch.setattr(engines_module, "build", stop)
    monkeypatch.setattr(backend_module, "find_cubin", lambda *_: b"cubin")
    opener = getattr(backend_module, open_it)
    more = () if open_it == "open_scoring_engine" else (1.0,)
    trt = fake_tensorrt(version, Behaviour(dla_cores=2))
    with pytest.raises(MissingDependencyError, match="enough"):
        opener(bundle, "void", *more, trt=trt, cuda=FakeCuda())
    again = add_graphs(bundle, ["void"])
    with pytest.raises(MissingDependencyError, match="enough"):
        opener(again, "void", *more, trt=trt, cuda=FakeCuda())
    assert asked == [1, None]


def test_a_cache_that_cannot_be_written_costs_time_only(bundle, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))

    def nvcc(command, **_):
        with open(command[command.index("-o") + 1], "wb") as out:
            out.write(b"cubin")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(gpu_head.shutil, "which", lambda _: "nvcc")
    monkeypatch.setattr(gpu_head.subprocess, "run", nvcc)
    assert gpu_head.find_cubin("8.7", 20) == b"cubin"
    assert onnxruntime_tensorrt._kept_in(bundle) is None
    assert "trt_engine_cache_path" not in onnxruntime_tensorrt.provider_options("int8", None)


def test_a_compiler_that_hangs_is_a_missing_dependency(monkeypatch):
    def hang(command, timeout, **_):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(gpu_head.shutil, "which", lambda _: "nvcc")
    monkeypatch.setattr(gpu_head.subprocess, "run", hang)
    with pytest.raises(MissingDependencyError, match="timed out"):
        gpu_head.find_cubin("8.7", 19)
