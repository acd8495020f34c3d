import json
import struct

import numpy as np
import pytest

from edgeseg.errors import ArtefactError, InputError, UsageError
from edgeseg.runtime.tensorrt.calibration_cache import (
    CalibrationCache,
    cache_of_bundle,
    largest_magnitudes,
)
from edgeseg.runtime.tensorrt.calibrator import calibrate, frame_calibrator
from edgeseg.runtime.tensorrt.versions import abilities
from tensorrt_fakes import Behaviour, FakeCuda, fake_tensorrt

# Written as TensorRT does it: 1.0 is 3f800000, 0.0078740157 (1 / 127) is 3c010204.
WRITTEN = b"TRT-8502-EntropyCalibration2\nframe: 3c010204\nblock/Relu: 3f800000\n"


def test_reads_the_documented_form():
    cache = CalibrationCache.parse(WRITTEN)
    assert cache.version == 8502
    assert cache.method == "entropy"
    assert cache.scales == {"frame": np.float32(1 / 127), "block/Relu": 1.0}


def test_renders_the_very_bytes_that_it_read():
    assert CalibrationCache.parse(WRITTEN).render() == WRITTEN


def test_scale_is_the_largest_magnitude_over_127_as_big_endian_float():
    cache = CalibrationCache.of_magnitudes(100300, {"t": 6.25})
    header, line = cache.render().decode().splitlines()
    assert header == "TRT-100300-EntropyCalibration2"
    name, digits = line.split(": ")
    assert name == "t"
    assert struct.unpack(">f", bytes.fromhex(digits))[0] == np.float32(6.25 / 127)


def test_minmax_has_its_own_header():
    cache = CalibrationCache.of_magnitudes(8601, {"t": 1.0}, "minmax")
    assert cache.render().startswith(b"TRT-8601-MinMaxCalibration\n")
    assert CalibrationCache.parse(cache.render()) == CalibrationCache(
        8601, {"t": float(np.float32(1 / 127))}, "minmax"
    )


@pytest.mark.parametrize("seed", range(5))
def test_round_trip_of_any_ranges(seed):
    rng = np.random.default_rng(seed)
    names = [f"/layer{i}: part/Relu_output_{i}" for i in range(40)]
    values = np.exp(rng.uniform(-20, 20, 40))
    cache = CalibrationCache.of_magnitudes(
        8502, dict(zip(names, (float(v) for v in values), strict=True))
    )
    back = CalibrationCache.parse(cache.render())
    assert list(back.scales) == names
    for name, value in cache.scales.items():
        assert back.scales[name] == np.float32(value)


def test_what_lies_below_zero_counts_by_its_magnitude():
    document = {"tensors": {"t": {"low": [-8.0, -1.0], "high": [3.0, 2.0], "mean": [0, 0]}}}
    assert largest_magnitudes(document) == {"t": 8.0}


def test_decided_scales_go_before_observed_ranges():
    quantization = {
        "relu": {"scale": 0.5, "zero_point": 0, "dtype": "uint8", "low": 0, "high": 127.5},
        "spread": {"scale": 0.5, "zero_point": 55, "dtype": "uint8", "low": -27.5, "high": 100},
        "signed": {"scale": 0.5, "zero_point": 0, "dtype": "int8", "low": -64, "high": 63.5},
    }
    document = {"tensors": {"relu": {"low": [0], "high": [9]}}, "quantization": quantization}
    assert largest_magnitudes(document) == {"relu": 127.5, "spread": 100.0, "signed": 63.5}


def test_a_tensor_that_is_always_zero_gets_a_scale_that_divides():
    assert CalibrationCache.of_magnitudes(8502, {"t": 0.0}).scales == {"t": 1.0}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"TRT-8502-LegacyCalibration\nt: 3f800000\n",
        b"TRT-8502-EntropyCalibration2\nt: 3f80\n",
        b"TRT-8502-EntropyCalibration2\nt: zzzzzzzz\n",
        b"TRT-8502-EntropyCalibration2\nno number\n",
        b"\xff\xfe",
    ],
)
def test_refuses_what_is_no_cache(content):
    with pytest.raises(ArtefactError, match="calibrate again"):
        CalibrationCache.parse(content)


@pytest.mark.parametrize("amax", [float("inf"), float("nan"), 1e-40, -1e39])
def test_refuses_scales_that_no_engine_can_use(amax):
    cache = CalibrationCache(8502, {"bad": amax})
    with pytest.raises(ArtefactError, match="'bad'"):
        cache.render()


def test_refuses_a_calibration_file_without_ranges(tmp_path):
    path = tmp_path / "calibration.json"
    for text in ("{}", "[1]", "not json", '{"tensors": {"t": 3}}'):
        path.write_text(text)
        with pytest.raises(ArtefactError, match="export the bundle again"):
            cache_of_bundle(path, 8502)


def test_renders_for_the_version_at_hand(tmp_path):
    path = tmp_path / "calibration.json"
    path.write_text(json.dumps({"tensors": {"t": {"low": [-2], "high": [1]}}}))
    for version, number in (("8.6", 8601), ("10.3", 100300), ("10.16", 101601)):
        have = abilities(fake_tensorrt(version))
        assert have.cache_version == number
        rendered = cache_of_bundle(path, have.cache_version).render()
        assert rendered.startswith(f"TRT-{number}-".encode())


def _frames(count):
    return [np.full((8, 16, 3), 10 * (i + 1), np.uint8) for i in range(count)]


@pytest.mark.parametrize("version", ["8.6", "10.3", "10.16"])
@pytest.mark.parametrize("method", ["entropy", "minmax"])
def test_calibrators_feed_every_frame_and_give_the_cache_back(version, method):
    written = CalibrationCache.of_magnitudes(8601, {"t": 3.0}, method)
    does = Behaviour(calibration_cache=written.render())
    trt, cuda = fake_tensorrt(version, does), FakeCuda()
    with cuda.active():
        cache = calibrate(trt, cuda, b"graph", _frames(3), method)
    batches = [call[1] for call in does.calls if call[0] == "batch"]
    assert [int(b.mean()) for b in batches] == [10, 20, 30]
    assert cache.scales == {"t": pytest.approx(3 / 127)}
    assert {"INT8", "FP16"} <= does.configs[0]._flags
    assert not cuda.memory
    assert all(stream.closed for stream in cuda.streams)


def test_no_frame_is_refused():
    trt, cuda = fake_tensorrt("8.6", Behaviour(calibration_cache=WRITTEN)), FakeCuda()
    with cuda.active(), pytest.raises(InputError, match="no frame"):
        calibrate(trt, cuda, b"graph", [])


def test_frames_of_two_sizes_are_refused_and_memory_goes_back():
    trt, cuda = fake_tensorrt("10.3"), FakeCuda()
    frames = [*_frames(1), np.zeros((8, 8, 3), np.uint8)]
    with cuda.active(), pytest.raises(InputError, match="another size"):
        calibrate(trt, cuda, b"graph", frames)
    assert not cuda.memory


def test_tensorrt_11_has_no_calibrators():
    with pytest.raises(UsageError, match="no calibrators"):
        frame_calibrator(fake_tensorrt("11.4"), FakeCuda(), _frames(1))
