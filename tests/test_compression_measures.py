"""What the compression table measures: accuracy once for each set, speed in turns, operations."""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeseg.bundle import Bundle, replace_manifest
from edgeseg.compression.calibration import observe
from edgeseg.compression.quantize_onnx import quantize_body
from edgeseg.export.exporter import export_bundle
from tests.bundles import make_bundle, small_body
from tests.compression_documents import SETS
from tests.conftest import ROOT
from tests.exported import body_of, frames, network

sys.path.insert(0, str(ROOT / "tools"))

import compression_measures as measures

# --- accuracy


class FakeEvaluation:
    """Stands in for a network and the evaluation loop."""

    def __init__(self, stop_at: int = 0) -> None:
        self.stop_at, self.opened = stop_at, 0
        self.ran: list[tuple[str, int, bool]] = []

    def open(self, stack: Any, *_: Any) -> tuple[Any, tuple[int, int], list[str]]:
        self.opened += 1
        names = ("network", "precision", "artefact", "backend", "score_dtype")
        fields = dict.fromkeys(names, "")
        return SimpleNamespace(scorers=("void", "msp"), **fields), (64, 128), []

    def run(self, predictor: Any, data: Any, specs: Any, size: Any, every: int, _: str) -> Any:
        if self.stop_at and len(self.ran) + 1 == self.stop_at:
            raise KeyboardInterrupt
        self.ran.append((data.folder.name, every, isinstance(predictor, measures.Noisy)))
        results = [{"scorer": s.name, "auprc_percent": 10.0, "fpr95_percent": None} for s in specs]
        return SimpleNamespace(results=lambda: results, miou_percent=lambda: 61.5, frames=3)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data"
    for name in ("anomaly/RoadAnomaly21", "anomaly/Mine/labels_masks", *measures.MIOU_SETS):
        (folder / name).mkdir(parents=True)
    for reader in ("AnomalySet", "open_cityscapes"):
        monkeypatch.setattr(measures, reader, lambda path: SimpleNamespace(folder=path))
    return folder


def judge(data: Path, fake: FakeEvaluation, bundle: Path, noise: int = 0) -> dict[str, Any]:
    store = measures.Store(data.parent / "measurements.json")
    accuracy = measures.Accuracy(store, data, 2, "openvino", None, fake.run, fake.open)
    return accuracy.measure("erfnet", bundle, measures.known_sets(data), noise)


def test_sets_are_found_and_absent_ones_left_out(data: Path, tmp_path: Path) -> None:
    assert measures.known_sets(data) == (*SETS, "Mine")
    fake = FakeEvaluation()
    figures = judge(data, fake, make_bundle(tmp_path / "b"))
    assert set(figures) == {"cityscapes", "cityscapes256", "RoadAnomaly21", "Mine"}
    assert [(n, e) for n, e, _ in fake.ran] == [
        ("cityscapes", 2), ("cityscapes256", 10), ("RoadAnomaly21", 2), ("Mine", 2),
    ]  # fmt: skip
    assert figures["Mine"] == {"frames": 3, "scorers": {"void": [10.0, None], "msp": [10.0, None]}}


def test_each_set_is_measured_once_and_goes_on(data: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        judge(data, FakeEvaluation(stop_at=3), bundle)
    rest = FakeEvaluation()
    judge(data, rest, bundle)
    assert [n for n, _, _ in rest.ran] == ["RoadAnomaly21", "Mine"]
    idle = FakeEvaluation()
    judge(data, idle, bundle)
    assert not idle.opened
    noisy = FakeEvaluation()
    judge(data, noisy, bundle, noise=1)
    assert [(n, disturbed) for n, _, disturbed in noisy.ran][:1] == [("cityscapes", True)]
    other = FakeEvaluation()
    judge(data, other, make_bundle(tmp_path / "c", seed=3))
    assert len(other.ran) == 4


def test_digest_is_of_what_is_computed(tmp_path: Path) -> None:
    first = measures.digest(make_bundle(tmp_path / "a"))
    assert measures.digest(make_bundle(tmp_path / "b", thresholds=False)) == first
    assert measures.digest(make_bundle(tmp_path / "c", seed=2)) != first
    assert measures.digest(make_bundle(tmp_path / "d", compute_precision="bf16")) != first


def test_noise_is_of_one_grey_level_and_differs_by_frame() -> None:
    seen: list[Any] = []
    fields = dict.fromkeys(("network", "precision", "artefact", "backend", "score_dtype"), "")
    inner = SimpleNamespace(scorers=(), predict=lambda f, _: seen.append(f), **fields)
    noisy = measures.Noisy(inner, 1)
    grey = np.full((8, 16, 3), 100, np.uint8)
    noisy.predict(grey, [])
    noisy.predict(grey, [])
    assert set(np.unique(seen[0])) == {99, 100, 101}
    assert (seen[0] != seen[1]).any()


# --- speed


def time_it(
    tmp_path: Path, paths: Mapping[str, Path], turns: int, log: list[str]
) -> dict[str, dict[str, Any]]:
    @contextmanager
    def opener(_: str, paths: Mapping[str, Path], __: Any) -> Iterator[dict[str, Any]]:
        names = [f"{row} {engine}" for row in paths for engine in measures.ENGINES]
        yield {name: lambda frame, n=name: log.append(n) for name in names}

    store = measures.Store(tmp_path / "speed.json")
    frame = np.zeros((8, 16, 3), np.uint8)
    return measures.Speed(store, [frame], turns, None, opener, 0).measure("erfnet", paths)


def test_one_kind_of_measurement_is_forgotten(tmp_path: Path) -> None:
    store = measures.Store(tmp_path / "store.json")
    for key in ("speed a", "accuracy b"):
        store.put(key, {"value": 1})
    store.forget("speed")
    assert list(store.entries) == ["accuracy b"]


def test_rows_are_timed_in_turns_and_more_turns_go_on(tmp_path: Path) -> None:
    paths = {"float32": make_bundle(tmp_path / "a"), "int8": make_bundle(tmp_path / "b", seed=1)}
    log: list[str] = []
    found = time_it(tmp_path, paths, 2, log)
    burst = measures.WARM + measures.BURST
    timed = log[4:]
    assert len(timed) == 2 * 4 * burst
    # Another one begins in the second turn.
    assert timed[0] == "float32 onnxruntime"
    assert timed[4 * burst] == "float32 openvino"
    assert found["float32"]["openvino"]["times_faster"] == 1
    log.clear()
    time_it(tmp_path, paths, 3, log)
    assert len(log) == 4 + 4 * burst
    log.clear()
    time_it(tmp_path, paths, 3, log)
    assert not log


def test_ratio_is_within_turns() -> None:
    turns = [
        {"float32 openvino": 40.0, "int8 openvino": 20.0},
        {"float32 openvino": 400.0, "int8 openvino": 200.0},
        {"float32 openvino": 40.0, "int8 openvino": 40.0},
    ]
    found = measures.summarize(turns)
    assert found["int8"]["openvino"] == {"ms": 40.0, "fps": 25.0, "times_faster": 2.0}
    alone = measures.summarize([{"int8 openvino": 5.0}])
    assert alone["int8"]["openvino"]["times_faster"] is None


# --- operations and bytes


def test_multiply_accumulates_are_those_of_the_convolutions() -> None:
    model = onnx.load_model_from_string(small_body(64, 128))
    assert measures.body_macs(model) == (0, 16 * 32 * 64 * 27)


def quantized_convolution(*, rounded_input: bool) -> onnx.ModelProto:
    weight = np.arange(-54, 54).reshape(4, 3, 3, 3).astype(np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "scale", "none"], ["dw"]),
        helper.make_node("Conv", ["d" if rounded_input else "x", "dw"], ["y"]),
    ]
    constants = {"scale": np.float32(0.1), "zero": np.uint8(0), "none": np.int8(0), "w": weight}
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_integer_is_what_takes_integers_twice() -> None:
    macs = 4 * 36 * 27
    assert measures.body_macs(quantized_convolution(rounded_input=True)) == (macs, 0)
    assert measures.body_macs(quantized_convolution(rounded_input=False)) == (0, macs)


def test_convolutions_that_pool_are_no_operations_of_the_network() -> None:
    body = body_of("enet")
    whole = quantize_body(body, observe(body, frames(2))).model
    before = measures.body_macs(body)
    integer, floating = measures.body_macs(whole)
    assert before[0] == 0
    # The initial block alone has another form.
    assert before[1] <= integer + floating < 1.1 * before[1]
    convolutions = sum(n.op_type in ("Conv", "ConvTranspose") for n in whole.graph.node)
    assert convolutions > sum(n.op_type in ("Conv", "ConvTranspose") for n in body.graph.node)


def test_float_layers_of_an_integer_bundle_are_not_counted_as_integer(tmp_path: Path) -> None:
    bundle = Bundle.open(make_bundle(tmp_path / "b"))
    macs, body, head = 10**9, 16 * 32 * 64 * 27, 32 * 64 * 16 * 20 * 4
    replace_manifest(bundle, replace(bundle.manifest, counts={"params": 5, "macs": macs}))
    floating = measures.counts(bundle.path)
    assert floating["macs_integer"] == 0
    assert floating["macs_deployed"] == body + head
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measures, "body_macs", lambda _: (7, body))
        assert measures.counts(bundle.path)["macs_integer"] == macs - body - head


def test_counts_of_a_bundle_are_those_of_its_network(tmp_path: Path) -> None:
    bundle = export_bundle(network("erfnet"), tmp_path / "b", height=64, width=128)
    found = measures.counts(bundle.path)
    assert found["macs_deployed"] == found["macs"] == bundle.manifest.counts["macs"]
    assert found["macs_integer"] == 0
    assert found["bytes"] == bundle.file_bytes
