"""Golden outputs: passed where the bundle is run as it was made, and nowhere else."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from typer.testing import CliRunner

from edgeseg.bundle import BODY, HEAD, Bundle, write_bundle
from edgeseg.cli import app
from edgeseg.errors import ArtefactError
from edgeseg.runtime import golden
from edgeseg.runtime.golden import (
    GOLDEN,
    check_golden,
    golden_of,
    golden_outputs,
    main,
    make_golden,
)
from edgeseg.runtime.golden_frame import golden_frame
from edgeseg.runtime.selftest import self_test
from edgeseg.runtime.session import Session
from edgeseg.safetensors import read_safetensors, write_safetensors
from tests.bundles import make_bundle, small_body
from tests.conftest import ROOT

READY = ROOT / "edgeseg" / "bundles" / "ready"
TOLERANCE = golden.TOLERANCES["int8"]


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def with_files(bundle, destination, manifest=None, **files):
    content = {name: (bundle.path / name).read_bytes() for name in bundle.manifest.files}
    names = {"body": BODY, "head": HEAD, "golden": GOLDEN}
    content |= {names[name]: data for name, data in files.items()}
    return Bundle.open(write_bundle(destination, manifest or bundle.manifest, content))


def with_golden(folder, destination, backend="onnxruntime"):
    bundle = Bundle.open(folder)
    with Session(bundle, backend, threads=1, score_dtype=np.float32) as session:
        return with_files(
            bundle, destination, golden=make_golden(golden_outputs(session), TOLERANCE)
        )


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    return with_golden(make_bundle(folder / "plain"), folder / "golden")


def checked(bundle, backend="onnxruntime", **options):
    with Session(bundle, backend, threads=1, **options) as session:
        return check_golden(session)


def test_the_frame_is_always_the_same():
    frame = golden_frame(64, 128)
    assert (frame.dtype, frame.shape) == (np.uint8, (64, 128, 3))
    # Of another frame every golden output would be another: then its version must be.
    assert [int(frame[..., c].sum(dtype=np.int64)) for c in range(3)] == [1056813, 1002605, 953718]
    assert frame[20, 33].tolist() == [171, 193, 108]
    assert golden_frame(8, 8).shape == (8, 8, 3)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("path", ["python", "auto"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_every_engine_and_path_passes(bundle, backend, path, dtype):
    pytest.importorskip(backend)
    found = checked(bundle, backend, path=path, score_dtype=dtype)
    assert found.passed
    assert found.equal_classes == 1.0
    assert set(found.score_error) == {
        f"{scorer}@{t}" for scorer in bundle.manifest.scorers for t in (1, 2)
    }


def test_it_is_listed_and_a_few_kilobytes(bundle):
    assert bundle.manifest.files[GOLDEN]["bytes"] < 13_000
    content = bytearray((bundle.path / GOLDEN).read_bytes())
    content[-1] ^= 1
    (bundle.path / GOLDEN).write_bytes(content)
    try:
        with pytest.raises(ArtefactError, match="sha256 differs"):
            Bundle.open(bundle.path)
    finally:
        content[-1] ^= 1
        (bundle.path / GOLDEN).write_bytes(content)


def test_other_weights_fail(bundle, tmp_path):
    other = with_files(bundle, tmp_path / "other", body=small_body(64, 128, seed=1))
    assert not checked(other).passed
    with Session(other, "onnxruntime", threads=1) as session:
        test = self_test(session)
    assert test.reference == "stored"
    assert test.problem is not None
    assert test.problem.kind == "golden_differs"


def test_a_head_with_its_signs_turned_fails(bundle, tmp_path):
    head = read_safetensors(bundle.path / HEAD)
    turned = write_safetensors({**head, "weight": -head["weight"]})
    assert not checked(with_files(bundle, tmp_path / "turned", head=turned)).passed


def test_channels_in_the_wrong_order_fail(bundle):
    with Session(bundle, "onnxruntime", threads=1) as session:
        run, features = session.run, session.features
        session.run = lambda frame: run(np.ascontiguousarray(frame[..., ::-1]))
        session.features = lambda frame: features(np.ascontiguousarray(frame[..., ::-1]))
        assert not check_golden(session).passed


def test_an_ignored_temperature_fails(bundle):
    with Session(bundle, "onnxruntime", threads=1) as session:
        score = session.score
        session.score = lambda features, scorer=None, _=None: score(features, scorer, 1.0)
        found = check_golden(session)
    assert not found.passed
    wrong = {name for name, error in found.score_error.items() if error > found.tolerance[2]}
    # MaxLogit knows no temperature but as a factor.
    assert {"msp@2", "entropy@2", "void@2"} <= wrong
    assert not {name for name in wrong if name.endswith("@1")}


def test_another_scorer_fails(bundle):
    with Session(bundle, "onnxruntime", threads=1) as session:
        score = session.score
        session.score = lambda features, _=None, t=None: score(features, "msp", t)
        assert not check_golden(session).passed


def test_nan_does_not_pass(bundle):
    with Session(bundle, "onnxruntime", threads=1, score_dtype=np.float32) as session:
        score = session.score

        def broken(*arguments):
            result = score(*arguments)
            result.score[:] = np.nan
            return result

        session.score = broken
        found = check_golden(session)
    assert not found.passed
    assert np.isfinite(found.worst_score)


def test_at_another_temperature_than_the_stored_ones_classes_and_features_are_compared(bundle):
    found = checked(bundle, temperature=7.0)
    assert found.passed
    assert "void@7" not in found.score_error


@pytest.mark.parametrize(
    "change",
    [
        {"version": np.array([9], np.int32)},
        {"classes": np.zeros((4, 4), np.uint8)},
        {"score_void": np.full((2, 16, 32), np.nan, np.float16)},
    ],
)
def test_golden_outputs_that_cannot_be_read_are_no_pass(bundle, tmp_path, change):
    stored = read_safetensors(bundle.path / GOLDEN)
    other = with_files(bundle, tmp_path / "b", golden=write_safetensors({**stored, **change}))
    with Session(other, "onnxruntime", threads=1) as session:
        problem = self_test(session).problem
    assert problem is not None
    assert problem.kind == "golden_unusable"
    assert main([str(other.path), "--backend", "onnxruntime"]) == 4


def test_a_bundle_without_them_has_the_other_self_test(tmp_path, capsys):
    plain = make_bundle(tmp_path / "plain")
    with Session(plain, "onnxruntime", threads=1) as session:
        test = self_test(session)
    assert (test.reference, test.problem) == ("definition", None)
    assert main([str(plain), "--backend", "onnxruntime"]) == 4
    assert "holds no golden outputs" in capsys.readouterr().err


def test_the_command_s_exit_codes(bundle, tmp_path, capsys):
    assert main([str(bundle.path), "--backend", "onnxruntime", "--threads", "1", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "edgeseg.golden/1"
    assert document["passed"] is True
    assert document["session"]["backend"] == "onnxruntime"
    other = with_files(bundle, tmp_path / "other", body=small_body(64, 128, seed=1))
    assert main([str(other.path), "--backend", "onnxruntime", "--threads", "1"]) == 8
    assert capsys.readouterr().out.startswith("FAILED on onnxruntime: ")
    assert main([str(tmp_path)]) == 4
    assert main([str(tmp_path / "nowhere")]) == 7
    assert main([str(bundle.path), "--backend", "caffe"]) == 2
    (other.path / BODY).write_bytes(b"cut")
    assert main([str(other.path)]) == 4
    assert "Traceback" not in capsys.readouterr().err


def test_it_runs_as_a_module(bundle):
    command = [sys.executable, "-m", "edgeseg.runtime.golden", str(bundle.path)]
    done = subprocess.run(
        [*command, "--backend", "onnxruntime", "--threads", "1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("passed on onnxruntime")
    assert not done.stderr


def test_the_tolerance_grows_with_what_engines_here_differ_by_and_has_a_limit(bundle):
    base = golden.TOLERANCES["float32"]
    assert golden.tolerance_of("float32", []) == base
    far = golden.Agreement(0.93, 0.02, {"msp@1": 0.05}, base)
    least, _, error = golden.tolerance_of("float32", [far])
    assert least == pytest.approx(0.86)
    assert error == pytest.approx(0.1)
    wrong = golden.Agreement(0.1, 0.9, {"msp@1": 5.0}, base)
    assert golden.tolerance_of("float32", [wrong]) == golden.LIMIT


def test_export_s_outputs_are_the_same_each_time_and_hold_on_every_engine(bundle):
    files = {name: (bundle.path / name).read_bytes() for name in (BODY, HEAD)}
    first, again = (golden_of(bundle.manifest, files) for _ in range(2))
    assert first is not None
    assert first == again
    content, agreement = first
    assert content == make_golden(
        {k: v for k, v in read_safetensors(bundle.path / GOLDEN).items() if k != "tolerance"},
        golden.TOLERANCES["float32"],
    )
    assert agreement["engine"] == "onnxruntime"
    assert all(entry["passed"] for entry in agreement["others"].values())


# --- a network with trained weights, as INT8 ----------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return with_golden(READY, tmp_path_factory.mktemp("ready") / "golden")


def edited(bundle, destination, edit):
    model = onnx.load(bundle.body_path)
    edit(model.graph)
    return with_files(bundle, destination, body=model.SerializeToString())


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_engines_that_round_differently_pass(trained, backend):
    pytest.importorskip(backend)
    assert checked(trained, backend).passed


def test_bfloat16_passes(trained, tmp_path):
    pytest.importorskip("openvino")
    manifest = replace(trained.manifest, compute_precision="bf16")
    assert checked(with_files(trained, tmp_path / "b", manifest), "openvino").passed


@pytest.mark.parametrize("of_weights", [True, False])
@pytest.mark.parametrize("place", [0.25, 0.5, 0.75])
def test_a_scale_of_a_middle_layer_twice_as_large_fails(trained, tmp_path, of_weights, place):
    def double(graph):
        constants = {entry.name: entry for entry in graph.initializer}
        nodes = [
            node
            for node in graph.node
            if node.op_type == "DequantizeLinear" and (node.input[0] in constants) is of_weights
        ]
        node = nodes[int(place * len(nodes))]
        value = numpy_helper.to_array(constants[node.input[1]])
        graph.initializer.append(numpy_helper.from_array(value * np.float32(2), "doubled"))
        node.input[1] = "doubled"

    assert not checked(edited(trained, tmp_path / "b", double)).passed


def test_the_ready_bundle_passes_on_what_is_here(monkeypatch):
    if GOLDEN not in Bundle.open(READY).manifest.files:
        pytest.skip("the ready bundle was made without golden outputs (make ranges)")
    for backend in ("onnxruntime", "openvino"):
        pytest.importorskip(backend)
        assert main([str(READY), "--backend", backend]) == 0


def test_a_run_of_a_bundle_with_other_weights_ends_before_the_first_frame(bundle, tmp_path):
    cv2 = pytest.importorskip("cv2")
    other = with_files(bundle, tmp_path / "other", body=small_body(64, 128, seed=1))
    cv2.imwrite(str(tmp_path / "a.png"), golden_frame(64, 128))
    lines = tmp_path / "lines.jsonl"
    options = ["--backend", "onnxruntime", "--threads", "1", "--self-test", "--jsonl", str(lines)]
    for folder, code, state in ((bundle.path, 0, "ok"), (other.path, 8, "self_test_failed")):
        result = CliRunner().invoke(
            app, ["run", str(folder), "--input", str(tmp_path / "a.png"), *options]
        )
        error = getattr(result.exception, "exit_code", None) if result.exit_code == 1 else None
        assert (error or result.exit_code) == code
        (line,) = lines.read_text().splitlines()
        assert json.loads(line)["state"] == state
