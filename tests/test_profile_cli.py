"""``edgeseg profile``: what it prints, writes and refuses."""

import builtins
import json
import shutil
import sys
from xml.etree import ElementTree

import pytest

from edgeseg.bundle import Bundle
from edgeseg.networks.zoo import NETWORKS, shipped_weights
from edgeseg.profiling.devices import device_names
from tests.bundles import make_bundle, small_body
from tests.test_cli import one_line, run_main

CONTRACT = {
    *("network", "precision", "size", "scorer", "backend", "threads", "params", "macs"),
    *("file_bytes", "latency_ms", "stages_ms", "fps", "budget_ms", "within_budget"),
}
MEASURE = ("--backend", "onnxruntime", "--threads", "1", "--seconds", "0.1")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture
def program(monkeypatch, capfd):
    """``edgeseg profile`` with these options: exit code, stdout, stderr."""
    monkeypatch.delenv("EDGESEG_TRACEBACK", raising=False)

    def run(*options):
        return run_main(monkeypatch, capfd, "profile", *options)

    return run


@pytest.fixture
def document(program):
    """The ``--json`` document of a run that must succeed."""

    def run(*options):
        code, out, err = program(*options, "--json")
        assert code == 0, err
        return json.loads(out)

    return run


@pytest.fixture
def no_torch(monkeypatch, forget_modules):
    """As on a device: neither torch nor onnx can be imported."""
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.split(".")[0] in ("torch", "onnx"):
            raise ImportError(f"No module named '{name}'", name=name)
        return real(name, *args, **kwargs)

    for name in [m for m in sys.modules if m.split(".")[0] in ("torch", "onnx")]:
        monkeypatch.delitem(sys.modules, name)
    forget_modules("edgeseg.export", "edgeseg.networks")
    monkeypatch.setattr(builtins, "__import__", refuse)


def test_estimate_keeps_the_contract(document):
    found = document("erfnet", "midenet", "--device", "orin-nx-16")
    assert found["schema"] == "edgeseg.profile/1"
    assert (found["device"], found["kind"]) == ("orin-nx-16", "estimated")
    assert [row["network"] for row in found["results"]] == ["erfnet", "midenet"]
    for row in found["results"]:
        assert set(row) >= CONTRACT
        assert {"p50", "p90", "p99", "max"} <= set(row["latency_ms"])
        assert row["kind"] == row["verdict"] == "estimated"
        low, high = row["range_ms"]
        assert low < row["latency_ms"]["p50"] < row["latency_ms"]["p99"] == high
        assert (row["precision"], row["scorer"], row["size"]) == ("int8", "void", "512x1024")
        assert row["within_budget"] is (high <= row["budget_ms"])
    assert found["results"][1]["macs"] == 828768256
    assert found["results"][1]["params"] == 63155


def test_all_shipped_networks_without_arguments(document, no_torch):
    shipped = [n for n in NETWORKS if shipped_weights(n) is not None] or list(NETWORKS)
    found = document("--device", "jetson")
    assert [row["network"] for row in found["results"]] == shipped


@pytest.mark.parametrize("name", device_names())
def test_every_device_estimates_every_network(name, document):
    found = document(*NETWORKS, "--device", name, "--estimate")
    assert len(found["results"]) == len(NETWORKS)
    assert all(row["latency_ms"]["p50"] > 0 for row in found["results"])


def test_every_row_for_people_says_estimated(program):
    code, out, err = program(*NETWORKS, "--device", "jetson")
    assert code == 0
    assert "orin-nano-8" in err
    table = out[out.index("Estimated for") :]
    for name in NETWORKS:
        (line,) = [line for line in table.splitlines() if line.strip().startswith(name)]
        assert "estimated" in line


def test_measuring_keeps_the_contract(document, bundle):
    found = document(bundle, *MEASURE, "--scorer", "msp")
    assert (found["device"], found["kind"]) == ("cpu", "measured")
    (row,) = found["results"]
    assert set(row) >= CONTRACT
    assert (row["backend"], row["threads"], row["scorer"]) == ("onnxruntime", 1, "msp")
    assert (row["size"], row["precision"]) == ("64x128", "float32")
    latency = row["latency_ms"]
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
    assert {"body", "head", "decode", "resize", "end_to_end"} <= set(row["stages_ms"])
    assert row["stages_ms"]["end_to_end"] >= row["stages_ms"]["decode"]
    assert row["frames"] >= 30
    assert row["macs"] == 16 * 32 * 64 * 27 + 32 * 64 * 16 * 20 * 4
    assert row["file_bytes"] == Bundle.open(bundle).file_bytes
    assert row["memory_bytes"] is None or row["memory_bytes"] > 1 << 20


def test_shipped_bundle_is_measured_without_torch(document, no_torch):
    from edgeseg.cli.profile_targets import shipped_bundles

    if "midenet" not in shipped_bundles():
        pytest.skip("this checkout has no ready bundle (make ranges)")
    (row,) = document("midenet", *MEASURE)["results"]
    assert (row["kind"], row["precision"], row["network"]) == ("measured", "int8", "midenet")


def test_measuring_another_network_without_torch_is_refused(program, no_torch, tmp_path):
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"")
    code, out, err = program("erfnet", "--weights", weights, *MEASURE)
    assert (code, out) == (3, "")
    assert "edgeseg[build]" in one_line(err)


def test_what_cannot_be_exported_is_estimated_beside_the_rest(monkeypatch, program):
    from edgeseg.cli import profile_job
    from edgeseg.errors import MissingDependencyError

    def refuse(*_):
        raise MissingDependencyError("torch is not installed")

    monkeypatch.setattr(profile_job, "shipped_networks", lambda: ["enet"])
    monkeypatch.setattr(profile_job, "bundle_of", refuse)
    code, out, err = program("--json")
    (row,) = json.loads(out)["results"]
    assert (code, row["kind"], row["verdict"]) == (0, "estimated", "estimated")
    assert "enet is estimated" in err
    assert program("enet")[0] == 3


def test_layers_add_up(document, bundle):
    for options in ((bundle, *MEASURE), ("enet", "--device", "jetson")):
        (row,) = document(*options, "--layers")["results"]
        assert sum(layer["macs"] for layer in row["layers"]) == row["macs"]
        assert row["layers"][-1]["name"] == "head"


def test_layers_for_people(program):
    code, out, _ = program("midenet", "--device", "jetson", "--layers")
    assert code == 0
    assert "est. ms" in out
    assert "128->20 1x1, 20x64x128" in out


def test_estimate_at_another_size_and_precision(document):
    (small,) = document("bisenet", "--device", "nano", "--size", "256x512")["results"]
    (large,) = document("bisenet", "--device", "nano", "--precision", "float32")["results"]
    assert small["precision"] == "float16"
    assert small["macs"] * 3.9 < large["macs"] < small["macs"] * 4.01
    assert small["latency_ms"]["p50"] * 3 < large["latency_ms"]["p50"]


def test_check_of_budgets(program, bundle, tmp_path):
    junit, bench = tmp_path / "out" / "junit.xml", tmp_path / "bench.json"
    options = (bundle, *MEASURE, "--check", "--junit", junit, "--benchmark-json", bench)
    assert program(*options, "--budget-ms", "100000")[0] == 0
    assert ElementTree.parse(junit).find("testsuite").get("failures") == "0"
    code, out, err = program(*options, "--budget-ms", "0.001", "--json")
    assert code == 6
    assert json.loads(out)["check"][0]["state"] == "exceeded"
    assert "exceed" in err
    assert ElementTree.parse(junit).find("testsuite").get("failures") == "1"
    assert json.loads(bench.read_text())[0]["unit"] == "ms"


def test_estimates_are_checked_too(program):
    assert program("midenet", "--device", "agx-orin-64", "--check")[0] == 0
    assert program("bisenet", "--device", "nano", "--check", "--budget-ms", "20")[0] == 6


@pytest.fixture
def ready(monkeypatch, tmp_path):
    """A small reference bundle in place of the ready one."""
    from edgeseg.runtime import ready as module

    reference = make_bundle(tmp_path / "reference", seed=5)
    monkeypatch.setattr(module, "ready_bundle", lambda: reference)


def test_a_slower_graph_is_caught_by_its_baseline(program, ready, bundle, tmp_path):
    baseline = tmp_path / "baseline.json"
    code, out, err = program(bundle, *MEASURE, "--save-baseline", baseline)
    assert code == 0, err
    options = (*MEASURE, "--check", "--baseline", baseline, "--budget-ms", "100000")
    code, _, err = program(bundle, *options)
    assert code == 0, err
    deeper = make_bundle(tmp_path / "deeper", body=_with_another_layer())
    code, out, err = program(deeper, *options)
    assert code == 6
    assert "macs" in err + out
    assert "exceeded" in out


def _with_another_layer() -> bytes:
    onnx = pytest.importorskip("onnx")
    import numpy as np

    model = onnx.load_from_string(small_body(64, 128))
    model.graph.node[-1].output[0] = "before"
    weight = np.zeros((16, 16, 3, 3), np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "more"))
    model.graph.node.append(
        onnx.helper.make_node("Conv", ["before", "more"], ["features"], pads=[1, 1, 1, 1])
    )
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("nothing-there",), 2, "neither a bundle"),
        (("erfnet", "--device", "toaster"), 2, "toaster"),
        (("erfnet", "--device", "nano", "--precision", "int8"), 2, "no fast INT8"),
        (("erfnet", "--device", "jetson", "--size", "100x200"), 2, "divisible by 8"),
        (("erfnet", "--device", "jetson", "--size", "large"), 2, "HxW"),
        (("erfnet", "--device", "jetson", "--mode", "9kW"), 2, "9kW"),
        (("erfnet", "--device", "jetson", "--baseline", "none.json"), 7, "none.json"),
        (("--weights", "w.pth"), 2, "--weights"),
        (("erfnet", "--weights", "w.pth"), 7, "w.pth"),
    ],
)
def test_bad_input_is_one_sentence(program, options, code, words):
    found, out, err = program(*options)
    assert (found, out) == (code, "")
    assert words in one_line(
        err.replace("edgeseg: no jetson found here; 'orin-nano-8' stands for it\n", "")
    )


def test_bundles_that_cannot_be(program, bundle, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(bundle, damaged)
    (damaged / "body.onnx").write_bytes(b"x")
    code, _, err = program(damaged, *MEASURE)
    assert (code, "body.onnx" in one_line(err)) == (4, True)
    code, _, err = program(bundle, *MEASURE, "--size", "128x256")
    assert (code, "64x128" in one_line(err)) == (2, True)
    code, _, err = program(
        make_bundle(tmp_path / "plain", void=False), *MEASURE, "--scorer", "void"
    )
    assert (code, "no scorer 'void'" in one_line(err)) == (2, True)


def test_devices_are_listed(program):
    code, out, _ = program("--list-devices")
    assert code == 0
    assert all(name in out for name in device_names())


def test_devices_are_listed_as_json(program):
    code, out, err = program("--list-devices", "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["schema"] == "edgeseg.profile/1"
    assert [row["name"] for row in document["devices"]] == device_names()
    assert {row["default_of"] for row in document["devices"]} == {None, "jetson", "desktop-gpu"}


def test_fx_networks_give_float16_scores_and_their_stages():
    import numpy as np

    from edgeseg.cli.profile_fx import FXRunner

    class Predictor:
        def logits(self, frame):
            logits = np.zeros((20, *frame.shape[:2]), np.float32)
            logits[3] = 1
            return logits

    runner = FXRunner(Predictor(), (16, 32), "void", 1)
    result = runner.run(np.zeros((16, 32, 3), np.uint8))
    assert (result.class_map == 3).all()
    assert result.score.dtype == np.float16
    assert set(result.timings) == {"body", "head"}


def test_fx_folders_are_measured_alone(program, tmp_path):
    code, _, err = program("midenet", "--weights", tmp_path, "--device", "orin-nx-16")
    assert (code, "torch FX" in one_line(err)) == (2, True)
    code, _, err = program("midenet", "--weights", tmp_path)
    assert code in (2, 4, 7)
    one_line(err)
