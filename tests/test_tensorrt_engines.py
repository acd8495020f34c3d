import hashlib
import json
import os
from dataclasses import replace

import pytest

from bundles import make_bundle
from edgeseg.bundle import Bundle, write_bundle
from edgeseg.errors import ArtefactError, InputError, MissingDependencyError, UsageError
from edgeseg.export.tensorrt import add_graphs, build_engines, check_target
from edgeseg.runtime.tensorrt.builder import BuildOptions, build
from edgeseg.runtime.tensorrt.engines import EngineOptions, ensure_engine
from edgeseg.runtime.tensorrt.graphs import graph_name
from edgeseg.runtime.tensorrt.sidecar import Sidecar
from edgeseg.runtime.tensorrt.versions import abilities
from tensorrt_fakes import MAGIC, VERSIONS, Behaviour, FakeCuda, fake_tensorrt

CALIBRATION = json.dumps({"tensors": {"relu": {"low": [-1.0], "high": [2.0]}}}).encode()


@pytest.fixture
def bundle(tmp_path):
    return add_graphs(Bundle.open(make_bundle(tmp_path / "bundle", 16, 32)), ["void"])


@pytest.fixture
def int8_bundle(tmp_path):
    """A float graph that calls itself int8: the fakes do not look into it."""
    plain = Bundle.open(make_bundle(tmp_path / "bundle", 16, 32))
    files = {n: (plain.path / n).read_bytes() for n in plain.manifest.files}
    files["calibration.json"] = CALIBRATION
    write_bundle(plain.path, replace(plain.manifest, precision="int8"), files)
    return add_graphs(Bundle.open(plain.path), ["void"])


def _ensure(bundle, version="10.3", does=None, scorer=None, cuda=None, **options):
    said = []
    cuda = cuda or FakeCuda()
    trt = fake_tensorrt(version, does or Behaviour())
    with cuda.active():
        engine = ensure_engine(
            bundle, scorer, trt, cuda.device, EngineOptions(**options), said.append
        )
    return engine, said


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_flags_fit_the_version(version, precision):
    does = Behaviour()
    trt = fake_tensorrt(version, does)
    build(trt, b"graph", BuildOptions(precision, workspace_bytes=123))
    (config,) = does.configs
    (_, network_flags, network) = next(c for c in does.calls if c[0] == "network")
    assert ("clear", "TF32") in does.calls
    assert config._pools == {"WORKSPACE": 123}
    flags = trt.NetworkDefinitionCreationFlag
    if version == "11.4":
        assert network_flags == 1 << flags.STRONGLY_TYPED
        assert config._flags == {"STRICT_NANS"}
        return
    assert network_flags == 1 << flags.EXPLICIT_BATCH
    expected = {"float32": set(), "float16": {"FP16"}, "int8": {"FP16", "INT8"}}[precision]
    if precision != "float32":
        expected |= {"PREFER_PRECISION_CONSTRAINTS"}
    if version == "10.16":
        expected |= {"STRICT_NANS"}
    assert config._flags == expected
    # The head's real layers stay float32, its integer ones and the body are left alone.
    held = [layer for layer in network._layers if layer.precision is not None]
    names = [] if precision == "float32" else ["head_1_softmax"]
    assert [layer.name for layer in held] == names


def test_an_engine_is_built_once_and_its_sidecar_says_what_for(bundle):
    does = Behaviour()
    engine, said = _ensure(bundle, does=does, scorer="void")
    assert engine.built
    assert engine.path == bundle.path / "void.engine"
    assert "there is none yet" in said[0]
    document = json.loads((bundle.path / "void.engine.json").read_text())
    assert document["key"] == {
        "package": "tensorrt",
        "tensorrt": "10.3.0",
        "cuda": "12.6",
        "gpu": "Orin",
        "compute_capability": "8.7",
        "onnx_sha256": bundle.manifest.files["tensorrt_void.onnx"]["sha256"],
        "precision": "float32",
        "scorer": "void",
        "temperature": 1.0,
        "dla_core": None,
        "calibration_sha256": None,
    }
    content = engine.path.read_bytes()
    assert document["engine_sha256"] == hashlib.sha256(content).hexdigest()
    again, said = _ensure(bundle, does=does, scorer="void")
    assert not again.built
    assert said == []
    assert does.built == 1
    assert (bundle.path / "tensorrt.timing").read_bytes() == b"TIMING"
    assert [p.name for p in bundle.path.iterdir() if p.name.startswith(".void")] == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"version": "10.16"}, "TensorRT 10.3.0 is now 10.16.1.11"),
        ({"cuda": FakeCuda(gpu="Thor")}, "GPU Orin is now Thor"),
        ({"cuda": FakeCuda("8.9")}, "compute capability 8.7 is now 8.9"),
    ],
)
def test_another_machine_builds_again_and_says_why(bundle, change, reason):
    _ensure(bundle)
    engine, said = _ensure(bundle, **change)
    assert engine.built
    assert reason in said[0]
    assert not _ensure(bundle, **change)[0].built


def test_another_cuda_or_graph_builds_again(bundle):
    _ensure(bundle)
    cuda = FakeCuda()
    cuda.device = replace(cuda.device, cuda="13.0")
    _, said = _ensure(bundle, cuda=cuda)
    assert "CUDA 12.6 is now 13.0" in said[0]
    path = bundle.path / "body.engine.json"
    document = json.loads(path.read_text())
    document["key"]["onnx_sha256"] = "0" * 64
    path.write_text(json.dumps(document))
    _, said = _ensure(bundle, cuda=cuda)
    assert "another ONNX graph" in said[0]


def test_an_engine_from_elsewhere_is_refused_and_left_alone(bundle):
    stranger = bundle.path / "body.engine"
    stranger.write_bytes(MAGIC)
    with pytest.raises(ArtefactError, match="not an engine that edgeseg built"):
        _ensure(bundle)
    assert stranger.read_bytes() == MAGIC
    stranger.unlink()
    _ensure(bundle)
    stranger.write_bytes(MAGIC + b"other")
    with pytest.raises(ArtefactError, match="not an engine that edgeseg built"):
        _ensure(bundle)


@pytest.mark.parametrize("text", ["", "{}", '{"schema": "edgeseg.engine/9"}', "[]", "null"])
def test_a_damaged_sidecar_is_refused(bundle, text):
    _ensure(bundle)
    (bundle.path / "body.engine.json").write_text(text)
    with pytest.raises(ArtefactError, match="build it again"):
        _ensure(bundle)


def test_a_failed_build_leaves_nothing_and_keeps_no_old_engine_alive(bundle):
    with pytest.raises(ArtefactError, match="no kernel"):
        _ensure(bundle, does=Behaviour(build_fails_with="Error Code 10: no kernel"))
    assert not [*bundle.path.glob("*.engine"), *bundle.path.glob("*.engine.json")]
    engine, _ = _ensure(bundle)
    content = engine.path.read_bytes()
    with pytest.raises(ArtefactError, match="no kernel"):
        _ensure(bundle, "8.6", Behaviour(build_fails_with="Error Code 10: no kernel"))
    # The one for the other version is still whole.
    assert engine.path.read_bytes() == content
    assert not _ensure(bundle)[0].built


def test_a_write_that_breaks_off_leaves_no_engine(bundle, monkeypatch):
    original = os.replace

    def replace_file(source, target):
        if str(target).endswith(".engine"):
            raise OSError(28, "No space left on device")
        return original(source, target)

    monkeypatch.setattr(os, "replace", replace_file)
    with pytest.raises(InputError, match="No space left"):
        _ensure(bundle)
    monkeypatch.undo()
    assert not (bundle.path / "body.engine").exists()
    assert not [p for p in bundle.path.iterdir() if p.name.startswith(".body")]
    assert _ensure(bundle)[0].built


def test_out_of_memory_while_building_says_what_to_do(bundle):
    does = Behaviour(build_fails_with="Error Code 2: OutOfMemory (no further information)")
    with pytest.raises(ArtefactError, match="smaller workspace"):
        _ensure(bundle, does=does)


def test_the_parser_s_reason_is_told(bundle):
    does = Behaviour(parser_errors=("Non-zero zero point is not supported",))
    with pytest.raises(ArtefactError, match="Non-zero zero point"):
        _ensure(bundle, does=does)


def test_no_device_is_a_missing_dependency(bundle):
    with pytest.raises(MissingDependencyError, match="error: 35"):
        _ensure(bundle, does=Behaviour(no_device=True))


def test_a_timing_cache_of_another_gpu_starts_empty(bundle):
    (bundle.path / "tensorrt.timing").write_bytes(b"of another")
    does = Behaviour(timing_cache_fits=False)
    _ensure(bundle, does=does)
    assert does.configs[0]._cache._content == b""
    assert (bundle.path / "tensorrt.timing").read_bytes() == b"TIMING"


@pytest.mark.parametrize("capability", ["5.3", "6.2"])
def test_int8_on_nano_and_tx2_is_refused(int8_bundle, capability):
    with pytest.raises(UsageError, match="no INT8 arithmetic"):
        _ensure(int8_bundle, cuda=FakeCuda(capability))


def test_int8_where_tensorrt_says_it_is_slow_is_refused(int8_bundle):
    with pytest.raises(UsageError, match="--fp16"):
        _ensure(int8_bundle, "8.6", Behaviour(fast_int8=False))


@pytest.mark.parametrize("version", ["8.0.3.4", "8.2.1.8", "8.4.1.5", "7.2.3.4"])
def test_older_than_8_5_is_refused(version):
    trt = fake_tensorrt("8.6")
    trt.__version__ = version
    with pytest.raises(MissingDependencyError, match=r"older than 8\.5"):
        abilities(trt)


def test_8_5_is_taken():
    trt = fake_tensorrt("8.6")
    trt.__version__ = "8.5.2.2"
    assert abilities(trt).cache_version == 8502


def test_the_dla_takes_scales_from_the_cache_and_reports_what_falls_back(int8_bundle):
    does = Behaviour(dla_cores=2, dla_takes=("conv_0",))
    engine, said = _ensure(int8_bundle, does=does, dla_core=1)
    (config,) = does.configs
    assert config._state["default_device_type"].name == "DLA"
    assert config._state["DLA_core"] == 1
    assert "GPU_FALLBACK" in config._flags
    assert engine.sidecar.gpu_fallback == ("head_1_softmax", "head_2_argmax")
    assert "DLA 1 takes 1 of 3 layers" in said[1]
    assert engine.path.name == "body-dla1.engine"
    graph = next(value for kind, value in [c[:2] for c in does.calls] if kind == "parse")
    assert graph == (int8_bundle.path / graph_name(None, "implicit")).read_bytes()
    cached = next(value for kind, value in [c[:2] for c in does.calls] if kind == "cache")
    assert cached.startswith(b"TRT-100300-EntropyCalibration2\nrelu: ")


def test_a_dla_that_is_not_there_or_cannot_compute_is_refused(bundle, int8_bundle):
    with pytest.raises(UsageError, match="has 0"):
        _ensure(int8_bundle, dla_core=0)
    does = Behaviour(dla_cores=2)
    trt = fake_tensorrt("10.3", does)
    with pytest.raises(UsageError, match="float16 and INT8 only"):
        build(trt, b"graph", BuildOptions("float32", dla_core=0))


def test_tensorrt_11_takes_the_typed_graph_and_no_calibration(int8_bundle):
    does = Behaviour()
    _ensure(int8_bundle, "11.4", does)
    graph = next(value for kind, value in [c[:2] for c in does.calls] if kind == "parse")
    assert graph == (int8_bundle.path / "tensorrt_typed_body.onnx").read_bytes()
    with pytest.raises(UsageError, match="no calibrators"):
        _ensure(int8_bundle, "11.4", calibrated=True)


def test_a_bundle_without_graphs_says_how_to_get_them(tmp_path):
    plain = Bundle.open(make_bundle(tmp_path / "plain", 16, 32))
    with pytest.raises(ArtefactError, match="--target tensorrt"):
        _ensure(plain)


def test_a_scorer_that_the_bundle_lacks_is_refused(tmp_path):
    plain = Bundle.open(make_bundle(tmp_path / "plain", 16, 32, void=False))
    with pytest.raises(UsageError, match="no scorer 'void'"):
        add_graphs(plain, ["void"])


def test_export_builds_body_and_default_scorer_once(tmp_path, monkeypatch):
    bundle = Bundle.open(make_bundle(tmp_path / "bundle", 16, 32))
    monkeypatch.setattr("edgeseg.export.tensorrt.open_cuda", FakeCuda)
    trt = fake_tensorrt("8.6")
    bundle, engines = build_engines(bundle, "tensorrt", trt=trt)
    assert [e.path.name for e in engines] == ["body.engine", "void.engine"]
    assert Sidecar.read(bundle.path / "void.engine.json").key.tensorrt == "8.6.1"
    assert {"body.onnx", "tensorrt_body.onnx", "tensorrt_void.onnx", "tensorrt.json"} <= set(
        bundle.manifest.files
    )
    bundle, engines = build_engines(bundle, "tensorrt", trt=trt)
    assert [e.built for e in engines] == [False, False]
    # Other scorers are other graphs, and the bundle is written anew.
    bundle, engines = build_engines(bundle, "tensorrt", scorers=["msp"], trt=trt)
    assert [e.path.name for e in engines] == ["body.engine", "msp.engine"]
    assert [e.built for e in engines] == [True, True]


def test_a_bundle_that_cannot_be_written_keeps_engines_in_the_cache(bundle, monkeypatch):
    monkeypatch.setattr("edgeseg.runtime.tensorrt.engines.os.access", lambda *_: False)
    engine, _ = _ensure(bundle)
    assert bundle.path not in engine.path.parents
    assert not _ensure(bundle)[0].built


def test_what_cannot_be_built_is_refused_before_the_export(monkeypatch):
    trt = fake_tensorrt("10.3")
    monkeypatch.setattr("edgeseg.export.tensorrt.import_tensorrt", lambda _: trt)
    monkeypatch.setattr("edgeseg.export.tensorrt.open_cuda", lambda: FakeCuda("6.2"))
    with pytest.raises(UsageError, match="no INT8 arithmetic"):
        check_target("tensorrt", "int8")
    check_target("tensorrt", "float16")
    check_target("onnx", "int8")
