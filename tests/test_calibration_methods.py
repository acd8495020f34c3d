"""Calibration methods choose what direct computation on the values would choose."""

import json

import numpy as np
import pytest

pytest.importorskip("torch", reason="quantizing starts from an exported network")
pytest.importorskip("onnx", reason="quantizing needs onnx")

import onnx

from edgeseg.compression.calibration import Ranges, TensorRange, observe
from edgeseg.compression.clipping import (
    METHODS,
    clip_entropy,
    clip_mse,
    clip_percentile,
    clip_ranges,
)
from edgeseg.compression.equalization import equalize
from edgeseg.compression.histograms import BINS, Histogram, collect_histograms
from edgeseg.compression.pooling import pool_by_convolution
from edgeseg.compression.quantize_onnx import balanced_ranges, quantize_body
from edgeseg.compression.rounding import Parts, is_worthwhile, tensors_to_round
from edgeseg.errors import ArtefactError, UsageError
from edgeseg.export.graph import Graph
from edgeseg.export.passes import CONVOLUTIONS
from tests.exported import body_of, frames, run, session


def relu_like(seed=0, count=200_000):
    """Half zeros, the rest with a long tail."""
    rng = np.random.default_rng(seed)
    values = rng.gamma(1.2, 0.5, count) * (rng.random(count) < 0.5)
    return values.astype(np.float32)


def two_sided(seed=0, count=200_000):
    values = np.random.default_rng(seed).laplace(0.1, 0.3, count)
    return np.where(values < 0, 0.4 * values, values).astype(np.float32)


def with_outlier(values):
    return np.append(values, np.float32(40 * np.abs(values).max()))


def histogram(values):
    return Histogram.empty(float(values.min()), float(values.max())).plus(values)


SAMPLES = [relu_like(), two_sided(), with_outlier(relu_like(1)), with_outlier(two_sided(1))]


# --- histograms


@pytest.mark.parametrize("values", SAMPLES, ids=range(4))
def test_a_histogram_counts_as_numpy_does(values):
    ours = histogram(values)
    low, high = min(0, float(values.min())), float(values.max())
    theirs, _ = np.histogram(values[values != 0], BINS, (low, high))
    assert ours.zeros == (values == 0).sum()
    assert ours.counts.sum() == (values != 0).sum()
    # float32 puts what lies on an edge on either side of it.
    assert np.abs(np.cumsum(ours.counts) - np.cumsum(theirs)).max() <= 3e-4 * values.size


def test_parts_add_up_and_nothing_is_lost():
    values = two_sided()
    whole = histogram(values)
    parts = Histogram.empty(float(values.min()), float(values.max()))
    for part in np.array_split(values, 7):
        parts = parts.plus(part.reshape(1, -1, 1, 1))
    assert np.array_equal(parts.counts, whole.counts)
    assert parts.zeros == whole.zeros
    beyond = Histogram.empty(-1, 1).plus(np.float32([-5, 5, 0]))
    assert (beyond.counts[0], beyond.counts[-1], beyond.zeros) == (1, 1, 1)
    assert Histogram.empty(0, 0).plus(np.zeros(3, np.float32)).zeros == 3


@pytest.mark.parametrize("name", ["midenet", "enet"])
def test_histograms_are_of_the_balanced_tensors(name):
    body = body_of(name)
    batch = frames(2, seed=4)
    ranges = observe(body, batch)
    found = collect_histograms(body, batch, ranges)
    balanced = balanced_ranges(body, ranges)
    assert set(found) == set(balanced.tensors)
    # The same tensors of a graph that is balanced.
    graph = Graph(body)
    graph.infer_shapes()
    tensors = sorted(found)[::4]
    pool_by_convolution(graph)
    chosen = [n for n in graph.nodes if n.op_type in CONVOLUTIONS and is_worthwhile(graph, n)]
    equalize(graph, ranges, tensors_to_round(graph, Parts(graph, chosen)))
    probe = graph.unchecked_model()
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(t) for t in tensors)
    engine = session(probe)
    for tensor in tensors:
        values = np.concatenate(
            [engine.run([tensor], {"frame": f[None]})[0].ravel() for f in batch]
        )
        h = found[tensor]
        direct = Histogram.empty(h.low, h.high).plus(values)
        total = values.size
        assert h.counts.sum() + h.zeros == total
        difference = np.cumsum(h.counts) - np.cumsum(direct.counts)
        assert np.abs(difference).max() <= 2e-3 * total + 2


# --- methods, against the values themselves


@pytest.mark.parametrize("values", SAMPLES, ids=range(4))
@pytest.mark.parametrize("percentile", [99.0, 99.99])
def test_percentile_is_that_of_all_values(values, percentile):
    h = histogram(values)
    low, high = clip_percentile(h, percentile)
    expected = np.percentile(values, percentile)
    assert high * h.high == pytest.approx(expected, abs=2 * h.width)
    if h.low < 0:
        expected = np.percentile(values, 100 - percentile)
        assert low * h.low == pytest.approx(expected, abs=2 * h.width)
    else:
        assert low == 1


def quantization_error(values, low, high):
    """Mean squared error of the quantizer with limits ``low`` and ``high``, on the values."""
    scale = (high - low) / 255
    zero = round(-low / scale)
    codes = np.clip(np.rint(values / scale), -zero, 255 - zero)
    return float(np.mean((values - scale * codes) ** 2))


@pytest.mark.parametrize("values", SAMPLES, ids=range(4))
def test_mse_is_the_smallest_error(values):
    h = histogram(values)
    part, same = clip_mse(h)
    assert part == same
    parts = np.linspace(1 / 256, 1, 256)
    errors = [quantization_error(values, p * h.low, p * h.high) for p in parts]
    ours = quantization_error(values, part * h.low, part * h.high)
    assert ours <= 1.05 * min(errors)
    assert ours <= errors[-1]


def divergence_by_hand(counts, zero, last, levels=256):
    """Migacz 2017, slide by slide, in loops."""
    part = last / BINS
    first, end = int(np.floor(zero * (1 - part))), int(np.ceil(zero + (BINS - zero) * part))
    inside = [float(c) for c in counts[first:end]]
    p = list(inside)
    p[0] += sum(map(float, counts[:first]))
    p[-1] += sum(map(float, counts[end:]))
    groups = [[] for _ in range(levels)]
    for i in range(len(inside)):
        groups[i * levels // len(inside)].append(i)
    q = [0.0] * len(inside)
    for group in groups:
        used = [i for i in group if p[i] > 0]
        for i in used:
            q[i] = max(sum(inside[j] for j in group) / len(used), 1e-4)
    p_sum, q_sum = sum(p), sum(q)
    return sum(
        a / p_sum * np.log((a / p_sum) / (b / q_sum)) for a, b in zip(p, q, strict=True) if a > 0
    )


@pytest.mark.parametrize("values", SAMPLES, ids=range(4))
def test_entropy_is_the_smallest_divergence(values):
    h = histogram(values)
    part, same = clip_entropy(h)
    assert part == same
    zero = -h.low / h.width
    candidates = sorted({*range(BINS, 255, -64), round(part * BINS)}, reverse=True)
    by_hand = {last: divergence_by_hand(h.counts, zero, last) for last in candidates}
    assert by_hand[round(part * BINS)] <= min(by_hand.values()) + 1e-9


@pytest.mark.parametrize("choose", [clip_percentile, clip_entropy, clip_mse])
def test_an_outlier_is_cut_off_and_a_full_range_is_not(choose):
    # The squared error of cutting one value off completely may outweigh all the rest.
    limit = 0.999 if choose is clip_mse else 0.2
    assert choose(histogram(with_outlier(relu_like())))[1] < limit
    even = np.linspace(0, 1, 100_000, dtype=np.float32)
    assert choose(histogram(even))[1] > 0.95
    assert choose(Histogram.empty(0, 0)) == (1, 1)
    assert choose(Histogram.empty(0, 1).plus(np.zeros(9, np.float32)))[0] == 1


# --- bias correction


@pytest.mark.parametrize("name", ["midenet", "enet"])
def test_bias_correction_takes_the_mean_error_away(name):
    body, batch = body_of(name), frames(4, seed=4)
    ranges = observe(body, batch)
    reference = run(body, batch)

    def mean_error(correct_bias):
        model = quantize_body(body, ranges, correct_bias=correct_bias).model
        return np.abs((run(model, batch) - reference).mean((0, 1))).mean()

    assert mean_error(True) < 0.75 * mean_error(False)


# --- ranges


def clipped(method, percentile=99.99):
    body, batch = body_of("midenet"), frames(3, seed=4)
    ranges = observe(body, batch)
    return clip_ranges(ranges, collect_histograms(body, batch, ranges), method, percentile)


@pytest.mark.parametrize("method", METHODS)
def test_clips_narrow_the_codes_and_leave_what_was_seen(method):
    body = body_of("midenet")
    observed = observe(body, frames(3, seed=4))
    ranges = clipped(method, 99.0)
    for name, r in ranges.tensors.items():
        assert np.array_equal(r.low, observed.tensors[name].low)
        assert np.array_equal(r.high, observed.tensors[name].high)
    plain = quantize_body(body, observed).activations
    ours = quantize_body(body, ranges).activations
    narrower = [ours[n].scale < 0.999 * a.scale for n, a in plain.items()]
    assert any(narrower) == (method != "minmax")
    assert all(ours[n].scale <= 1.001 * a.scale for n, a in plain.items())
    said = ranges.provenance.get("method", "")
    assert (method in said) == (method != "minmax")


def test_clips_travel_as_json_and_files_without_them_are_read(tmp_path):
    ranges = clipped("percentile", 99.0)
    path = tmp_path / "r.json"
    path.write_text(ranges.to_json())
    document = json.loads(ranges.to_json())
    assert document["schema"] == "edgeseg.calibration/1"
    back = Ranges.load(path)
    for name, r in ranges.tensors.items():
        assert back.tensors[name].clip == pytest.approx(r.clip, rel=1e-4)
        assert ("clip" in document["tensors"][name]) == (r.clip != (1, 1))
    plain = clip_ranges(back, {}, "minmax")
    assert "clip" not in plain.to_json()
    path.write_text(plain.to_json())
    assert all(r.clip == (1, 1) for r in Ranges.load(path).tensors.values())


def test_what_a_gate_left_in_float_travels_too(tmp_path):
    from dataclasses import replace

    path = tmp_path / "r.json"
    ranges = Ranges({"a": TensorRange(*np.float32([[0], [1], [0.5]]))}, 1)
    assert "keep_float" not in ranges.to_json()
    path.write_text(replace(ranges, keep_float=("/x", "/y"), compute_precision="bf16").to_json())
    back = Ranges.load(path)
    assert (back.keep_float, back.compute_precision) == (("/x", "/y"), "bf16")


@pytest.mark.parametrize("clip", [[0, 1], [1, 1.5], [1], ["x", 1], [float("nan"), 1], 3, [-1, 1]])
def test_a_clip_that_cannot_be_is_one_sentence(tmp_path, clip):
    entry = {"low": [0.0], "high": [1.0], "mean": [0.5], "clip": clip}
    base = {"schema": "edgeseg.calibration/1", "frames": 1, "provenance": {}}
    path = tmp_path / "r.json"
    path.write_text(json.dumps(base | {"tensors": {"a": entry}}))
    with pytest.raises(ArtefactError, match=r"r\.json"):
        Ranges.load(path)


@pytest.mark.parametrize("extra", [{"keep_float": "x"}, {"keep_float": [1]},
                                   {"compute_precision": "f16"}])  # fmt: skip
def test_what_was_left_in_float_is_checked(tmp_path, extra):
    base = {"schema": "edgeseg.calibration/1", "frames": 1, "provenance": {}, "tensors": {}}
    path = tmp_path / "r.json"
    path.write_text(json.dumps(base | extra))
    with pytest.raises(ArtefactError, match=r"r\.json"):
        Ranges.load(path)


def test_methods_and_percentiles_that_cannot_be_are_refused():
    with pytest.raises(UsageError, match="minmax"):
        clip_ranges(Ranges({}, 1), {}, "magic")
    for percentile in (50, 101, float("nan")):
        with pytest.raises(UsageError, match="percentile"):
            clip_ranges(Ranges({}, 1), {}, "percentile", percentile)
