"""libedgeseg gives what the Python session gives, bit for bit, and says how old it is."""

import ctypes
import gc
import json
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from edgeseg.bundle import Bundle
from edgeseg.data.synthetic import scene
from edgeseg.errors import EdgesegError, MissingDependencyError, UsageError
from edgeseg.runtime import backends, library, library_abi
from edgeseg.runtime.backends import BodySpec
from edgeseg.runtime.backends.native import LibraryBackend
from edgeseg.runtime.library import LibrarySession
from edgeseg.runtime.machine import available_cores
from edgeseg.runtime.regions import analyse
from edgeseg.runtime.session import Session
from edgeseg.scoring.kernels import resize_bilinear
from edgeseg.scoring.scorers import SCORERS
from tests.bundles import make_bundle
from tests.cbuild import CLIB, INCLUDE, build
from tests.conftest import ROOT

ENGINES = ("onnxruntime", "openvino")
READY = ROOT / "edgeseg" / "bundles" / "ready"

pytestmark = pytest.mark.skipif(not library.available(), reason="libedgeseg is not built")


def python_session(folder, engine, **options):
    bundle = Bundle.open(folder)
    body = BodySpec(
        bundle.body_path, bundle.body_sha256, *bundle.size, bundle.manifest.compute_precision
    )
    return Session(bundle, backends.load(engine, body, 1), threads=1, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture(scope="module", params=ENGINES)
def engine(request):
    pytest.importorskip(request.param)
    if library.engine_library(request.param) is None:
        pytest.skip(f"{request.param} has no C library here")
    return request.param


@pytest.fixture
def session(folder, engine):
    with LibrarySession(folder, engine, threads=1) as opened:
        yield opened


@pytest.fixture
def frame():
    return np.random.default_rng(3).integers(0, 256, (64, 128, 3), dtype=np.uint8)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_every_scorer_is_equal_bit_for_bit(tmp_path, engine, frame, layout, dtype):
    folder = make_bundle(tmp_path / "b", layout=layout)
    with (
        python_session(folder, engine, score_dtype=dtype) as expected,
        LibrarySession(folder, engine, threads=1, score_dtype=dtype) as session,
    ):
        session.run(frame)
        features = expected.features(frame)
        for scorer in SCORERS:
            for temperature in (1.0, 2.5):
                want = expected.score(features, scorer, temperature)
                got = session.score(scorer, temperature)
                np.testing.assert_array_equal(got.class_map, want.class_map)
                np.testing.assert_array_equal(got.score, want.score)
                assert got.score.dtype == dtype


@pytest.mark.parametrize("seed", [3, 8])
def test_the_ready_bundle_is_equal_on_road_scenes(engine, seed):
    frame, _ = scene(seed, 512, 1024)
    with python_session(READY, engine) as expected, LibrarySession(READY, engine, threads=1) as s:
        want, got = expected.run(frame), s.run(frame)
        np.testing.assert_array_equal(got.class_map, want.class_map)
        np.testing.assert_array_equal(got.score, want.score)
        assert s.threshold == expected.threshold
        analysis = analyse(want.score, expected.threshold)
        assert (got.peak, got.fraction) == (analysis.peak, analysis.fraction)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_a_python_session_may_run_its_body_in_the_library(tmp_path, engine, frame, layout):
    bundle = Bundle.open(make_bundle(tmp_path / "b", layout=layout))
    with (
        python_session(bundle.path, engine) as expected,
        Session(bundle, LibraryBackend(bundle, engine, 1), threads=1) as session,
    ):
        np.testing.assert_array_equal(session.run(frame).score, expected.run(frame).score)
        np.testing.assert_array_equal(session.features(frame), expected.features(frame))
        assert session.backend_name == engine
        assert session.notes == expected.notes


@pytest.mark.parametrize("shape", [(64, 128), (90, 160), (33, 301), (7, 5)])
@pytest.mark.parametrize("pixels", ["bgr", "rgb"])
def test_a_frame_of_any_size_is_resized_as_python_does(folder, session, engine, shape, pixels):
    frame = np.random.default_rng(4).integers(0, 256, (*shape, 3), dtype=np.uint8)
    small = resize_bilinear(frame, 64, 128, swap_rb=pixels == "rgb")
    with python_session(folder, engine) as expected:
        np.testing.assert_array_equal(
            session.run(frame, pixels=pixels).score, expected.run(small).score
        )


def test_a_frame_of_the_networks_size_is_read_where_it_lies(session, frame):
    other = frame[::-1].copy()
    wide = np.zeros((64, 200, 3), np.uint8)

    def copied(image):
        """Through the library's own buffer, since its rows have gaps."""
        wide[:, :128] = image
        result = session.run(wide[:, :128])
        return result.score.copy()

    expected, mirrored = copied(frame), copied(other)
    assert not np.array_equal(expected, mirrored)
    for image, score in [(frame, expected), (other, mirrored), (frame, expected)]:
        result = session.run(image)
        assert result.timings["resize"] == 0
        np.testing.assert_array_equal(result.score, score)
    frame[:] = other  # a camera's buffer is filled again
    np.testing.assert_array_equal(session.run(frame).score, mirrored)
    odd = np.empty(frame.nbytes + 1, np.uint8)[1:].reshape(frame.shape)
    odd[:] = other
    np.testing.assert_array_equal(session.run(odd).score, mirrored)
    np.testing.assert_array_equal(copied(other), mirrored)


def test_rows_may_have_gaps_and_run_upwards(session, frame):
    expected = session.run(frame).score.copy()
    wide = np.zeros((64, 140, 3), np.uint8)
    wide[:, :128] = frame
    np.testing.assert_array_equal(session.run(wide[:, :128]).score, expected)
    flipped = np.ascontiguousarray(frame[::-1])
    np.testing.assert_array_equal(session.run(flipped[::-1]).score, expected)


# --- NV12 and YUYV ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def to_bgr(tmp_path_factory):
    """The C conversion alone."""
    path = tmp_path_factory.mktemp("yuv") / "yuv.so"
    build(path, "-std=c11", "-O2", "-fPIC", "-shared", f"-I{INCLUDE}", CLIB / "yuv.c")
    convert = ctypes.CDLL(str(path)).yuv_to_bgr
    convert.restype = None
    convert.argtypes = [ctypes.POINTER(library_abi.FrameView), *[ctypes.c_int] * 2, ctypes.c_void_p]

    def call(y, uv, pixels, matrix, range_):
        height, width = y.shape[:2]
        view = library_abi.FrameView(height=height, width=width, pixels=pixels)
        view.matrix, view.range = matrix, range_
        view.plane[0], view.stride[0] = y.ctypes.data, y.strides[0]
        if uv is not None:
            view.plane[1], view.stride[1] = uv.ctypes.data, uv.strides[0]
        out = np.zeros((height, width, 3), np.uint8)
        convert(ctypes.byref(view), 0, height, out.ctypes.data)
        return out

    return call


def exact_bgr(y, u, v, matrix, range_):
    """ITU-R BT.601 and BT.709 in float64, from Kr and Kb."""
    kr, kb = ((0.299, 0.114), (0.2126, 0.0722))[matrix]
    luma = y.astype(float) if range_ else (y.astype(float) - 16) * 255 / 219
    scale = 1.0 if range_ else 255 / 224
    cb, cr = (u.astype(float) - 128) * scale, (v.astype(float) - 128) * scale
    red, blue = luma + 2 * (1 - kr) * cr, luma + 2 * (1 - kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(np.stack([blue, green, red], -1), 0, 255)


@pytest.mark.parametrize("matrix", [0, 1])
@pytest.mark.parametrize("range_", [0, 1])
def test_yuv_is_within_half_a_grey_level_of_the_standard(to_bgr, matrix, range_):
    rng = np.random.default_rng(5)
    y = rng.integers(0, 256, (256, 1030), dtype=np.uint8)
    uv = rng.integers(0, 256, (128, 515, 2), dtype=np.uint8)
    u, v = (uv[..., i].repeat(2, 0).repeat(2, 1) for i in range(2))
    # Half a grey level of rounding, and what three coefficients of 13 bits after the point leave.
    nearest = 0.5 + (255 + 128 + 128) * 2.0**-14
    got = to_bgr(y, uv, 2, matrix, range_)
    assert np.abs(got - exact_bgr(y, u, v, matrix, range_)).max() <= nearest
    packed = np.stack([y, uv.repeat(2, 0).reshape(256, 1030)], -1)
    np.testing.assert_array_equal(to_bgr(packed, None, 3, matrix, range_), got)


def test_yuv_is_what_opencv_makes_of_it(to_bgr):
    bgr, _ = scene(3, 64, 128)
    i420 = cv2.cvtColor(bgr, cv2.COLOR_BGR2YUV_I420)
    uv = i420[64:].reshape(2, 32, 64).transpose(1, 2, 0)
    nv12 = np.ascontiguousarray(np.concatenate([i420[:64], uv.reshape(32, 128)]))
    expected = cv2.cvtColor(nv12, cv2.COLOR_YUV2BGR_NV12)
    got = to_bgr(nv12[:64], nv12[64:], 2, 0, 0)
    assert np.abs(got.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
@pytest.mark.parametrize("range_", ["limited", "full"])
def test_yuv_frames_give_what_their_bgr_gives(session, to_bgr, matrix, range_):
    numbers = ("bt601", "bt709").index(matrix), ("limited", "full").index(range_)
    rng = np.random.default_rng(6)
    nv12 = rng.integers(0, 256, (135, 160), dtype=np.uint8)
    bgr = to_bgr(nv12[:90], nv12[90:], 2, *numbers)
    expected = session.run(bgr).score.copy()
    got = session.run(nv12, pixels="nv12", matrix=matrix, range=range_)
    np.testing.assert_array_equal(got.score, expected)
    yuyv = rng.integers(0, 256, (90, 160, 2), dtype=np.uint8)
    expected = session.run(to_bgr(yuyv, None, 3, *numbers)).score.copy()
    got = session.run(yuyv, pixels="yuyv", matrix=matrix, range=range_)
    np.testing.assert_array_equal(got.score, expected)


# --- the summary ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("scorer", ["maxlogit", "void"])
def test_the_summary_is_that_of_the_python_pipeline(folder, frame, dtype, scorer):
    region = np.zeros((64, 128), bool)
    region[20:50, 10:100] = True
    with LibrarySession(folder, threads=1, score_dtype=dtype, scorer=scorer) as session:
        score = session.run(frame).score.copy()
        values = [float(np.quantile(score.astype(float), q)) for q in (0.0, 0.3, 0.99, 1.0)]
        for threshold in [*values, values[1] + 1e-5, 0.0, -0.0, 1e6, -1e6, 65504.0]:
            for roi in (None, region):
                session._lib.edgeseg_session_set_threshold(session._session, threshold)
                session.set_region(roi)
                got = session.run(frame)
                expected = analyse(score, threshold, roi=roi)
                assert (got.peak, got.fraction) == (expected.peak, expected.fraction)


def test_without_a_threshold_there_is_no_fraction(tmp_path, frame):
    with LibrarySession(make_bundle(tmp_path / "b", thresholds=False), threads=1) as session:
        assert session.threshold is None
        assert session.run(frame).fraction is None


def test_an_empty_region_is_refused(session):
    with pytest.raises(UsageError, match="empty"):
        session.set_region(np.zeros((64, 128), bool))


# --- deadlines --------------------------------------------------------------------------------


def test_a_result_older_than_the_deadline_is_marked_late(folder, frame):
    with LibrarySession(folder, threads=1, deadline_ms=60_000) as session:
        now = time.monotonic_ns()
        assert session.run(frame, captured_mono_ns=now).state == "ok"
        late = session.run(frame, captured_mono_ns=now - 61_000_000_000)
        assert late.state == "late"
        assert late.age_ms > 61_000
        assert late.score is not None


def test_a_frame_too_old_on_arrival_leaves_no_result(folder, frame):
    with LibrarySession(folder, threads=1, deadline_ms=60_000, skip_stale=True) as session:
        first = session.run(frame)
        stale = session.run(frame, captured_mono_ns=time.monotonic_ns() - 61_000_000_000)
        assert (stale.state, stale.class_map, stale.score) == ("stale", None, None)
        assert session.run(frame).sequence == first.sequence + 1


def test_a_capture_time_in_the_future_is_refused(session, frame):
    with pytest.raises(UsageError, match="future"):
        session.run(frame, captured_mono_ns=time.monotonic_ns() + 10**12)


def test_a_capture_time_before_the_clock_began_is_refused(folder, frame):
    # Its age would overflow and so hide every delay.
    with LibrarySession(folder, threads=1, deadline_ms=0.001, skip_stale=True) as session:
        for captured in (-1, -(2**63)):
            with pytest.raises(UsageError, match="negative"):
                session.run(frame, captured_mono_ns=captured)
        assert session.run(frame, captured_mono_ns=1).state == "stale"


def test_results_carry_the_number_of_their_frame(session, frame):
    assert session.run(frame).sequence == 1
    assert session.score("msp").sequence == 1
    assert session.run(frame).sequence == 2
    session.features(frame)
    assert session.score("msp").sequence == 3


def test_features_keep_what_they_lie_in(folder, engine, frame):
    with LibrarySession(folder, engine, threads=1) as kept:
        expected = kept.features(frame).copy()
    features = LibrarySession(folder, engine, threads=1).features(frame)
    gc.collect()
    # Whatever was freed would be used again for these.
    others = [np.full(features.size, 7, np.float32) for _ in range(32)]
    np.testing.assert_array_equal(features, expected)
    assert others[0][0] == 7


def test_a_view_keeps_the_copy_that_it_points_into(session, frame):
    mirrored = frame[:, ::-1]
    first, second = session._view(mirrored, "bgr"), session._view(mirrored, "bgr")
    for view in (first, second):
        assert view.plane[0] == view.owner.ctypes.data
        np.testing.assert_array_equal(view.owner, mirrored)


def test_stages_add_up_to_less_than_the_call(session, frame):
    timings = session.run(frame).timings
    assert timings["body"] > 0
    parts = sum(timings[name] for name in ("convert", "resize", "body", "head", "summary"))
    assert parts <= timings["total"]


# --- engines that fail ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fake_engine(tmp_path_factory):
    path = tmp_path_factory.mktemp("fake") / "fake_ort.so"
    source = ROOT / "tests" / "clib" / "fake_ort.c"
    return build(path, "-std=c11", "-fPIC", "-shared", f"-I{CLIB}", source)


@pytest.fixture
def faulty(fake_engine, folder, monkeypatch):
    monkeypatch.setattr(library, "engine_library", lambda name: fake_engine)
    with LibrarySession(folder, "onnxruntime", threads=1) as opened:
        yield opened


def tell_engine(mode):
    """The C library reads the process's environment, of which os.environ is a copy."""
    setenv = ctypes.CDLL(None).setenv
    setenv(b"FAKE_ORT", mode.encode(), 1)


def test_an_engine_that_fails_is_an_error_and_the_next_frame_runs(faulty, frame):
    first = faulty.run(frame).score.copy()
    try:
        tell_engine("error")
        with pytest.raises(EdgesegError, match="told to fail"):
            faulty.run(frame)
        # What the engine left behind is no result.
        with pytest.raises(UsageError, match="no frame"):
            faulty.score("msp")
    finally:
        tell_engine("")
    np.testing.assert_array_equal(faulty.run(frame).score, first)


def test_a_pixel_whose_features_are_not_finite_has_the_largest_score(faulty, frame):
    try:
        tell_engine("nan")
        result = faulty.run(frame)
    finally:
        tell_engine("")
    assert np.isfinite(result.score).all()
    assert (result.score[-2:, -2:] == 1).all()
    assert result.peak == 1


def test_an_engine_that_takes_too_long_makes_the_result_late(
    fake_engine, folder, frame, monkeypatch
):
    monkeypatch.setattr(library, "engine_library", lambda name: fake_engine)
    with LibrarySession(folder, "onnxruntime", threads=1, deadline_ms=5) as session:
        try:
            tell_engine("slow")  # it sleeps for 20 ms
            result = session.run(frame)
        finally:
            tell_engine("")
    assert result.state == "late"
    assert result.age_ms >= 20
    assert result.timings["body"] >= 20


def test_the_default_is_the_cores_that_python_counts(folder):
    with LibrarySession(folder) as session:
        assert session.describe()["threads"] == min(available_cores(), 64)


def test_a_closed_session_says_so(folder, frame):
    session = LibrarySession(folder, threads=1)
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.run(frame)


def test_an_engine_that_is_too_old_says_so(fake_engine, folder, monkeypatch):
    monkeypatch.setattr(library, "engine_library", lambda name: fake_engine)
    try:
        tell_engine("old")
        with pytest.raises(MissingDependencyError, match=r"0\.0\.0-fake is too old"):
            LibrarySession(folder, "onnxruntime", threads=1)
    finally:
        tell_engine("")


def test_a_library_that_is_no_engine_says_so(folder, monkeypatch):
    monkeypatch.setattr(library, "engine_library", lambda name: library_abi.library_path())
    with pytest.raises(MissingDependencyError, match="no OrtGetApiBase"):
        LibrarySession(folder, "onnxruntime", threads=1)
    with pytest.raises(MissingDependencyError, match="has no ov_"):
        LibrarySession(folder, "openvino", threads=1)


def test_tensorrt_is_missing_and_not_pretended(folder):
    with pytest.raises(MissingDependencyError, match="built without TensorRT"):
        LibrarySession(folder, "tensorrt", threads=1)


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 0},
        {"threads": 65},
        {"temperature": -1.0},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"deadline_ms": 0.0},
        {"threshold": float("inf")},
        {"score_dtype": np.uint8},
        {"scorer": "magic"},
        {"engine": "caffe"},
    ],
)
def test_options_that_cannot_be_are_refused(folder, options):
    with pytest.raises(UsageError):
        LibrarySession(folder, **options)


def test_the_precision_is_never_left_to_the_engine(tmp_path, frame):
    pytest.importorskip("openvino")
    for asked in ("f32", "bf16"):
        folder = make_bundle(tmp_path / asked, compute_precision=asked)
        with (
            LibrarySession(folder, "openvino", threads=1) as session,
            python_session(folder, "openvino") as expected,
        ):
            used = expected.describe()["compute_precision"]
            assert session.describe()["compute_precision"] == {"bfloat16": "bf16"}.get(used, used)
            np.testing.assert_array_equal(session.run(frame).score, expected.run(frame).score)


# --- the tools --------------------------------------------------------------------------------


def tool(name, *arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / name), *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_bench_tells_overhead_and_age(tmp_path):
    pytest.importorskip("onnxruntime")
    folder = make_bundle(tmp_path / "b")
    out = tmp_path / "bench.json"
    options = ("--engines", "onnxruntime", "--threads", 1, "--rounds", 2, "--json", out)
    done = tool("bench_clib.py", folder, *options)
    assert done.returncode in (0, 1), done.stderr  # a small frame holds nothing
    (row,) = json.loads(out.read_text())["rows"]
    assert row["frames"] == 10
    assert 0 < row["overhead_percent"] < 100
    assert row["age"]["p99_own_frames"] >= 1


@pytest.mark.slow
@pytest.mark.data
def test_c_library_and_python_are_equal_on_photos_and_in_eval(shared_data, tmp_path):
    for name in ENGINES:
        pytest.importorskip(name)
    folder, out = make_bundle(tmp_path / "b"), tmp_path / "equal.json"
    options = ("--bundle", folder, "--every", 5, "--json", out)
    done = tool("check_clib.py", "equality", "--data", shared_data, *options)
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert document["equal"] is True
    assert [row["engine"] for row in document["rows"]] == list(ENGINES)
    for row in document["rows"]:
        assert row["maps_compared"]["c_program"] == row["frames"] == 2
        assert row["maps_compared"]["library_float32"] == 2 * (1 + len(SCORERS))
        assert [entry["scorer"] for entry in row["figures"]] == list(SCORERS)


def test_the_tool_of_equality_wants_data():
    done = tool("check_clib.py", "equality")
    assert done.returncode == 2
    assert "--data" in done.stderr
