import subprocess
import sys

import numpy as np
import pytest

from edgeseg.bundle import Bundle
from edgeseg.errors import ArtefactError, MissingDependencyError, UsageError
from edgeseg.runtime import backends, library
from edgeseg.runtime.session import Session
from edgeseg.scoring.scorers import SCORERS, anomaly_score, class_map
from tests.bundles import make_bundle, small_body
from tests.conftest import ROOT

BACKENDS = ("onnxruntime", "openvino")


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return Bundle.open(make_bundle(tmp_path_factory.mktemp("bundle") / "small"))


@pytest.fixture(scope="module", params=BACKENDS)
def session(request, bundle):
    pytest.importorskip(request.param)
    with Session(bundle, request.param, threads=2) as opened:
        yield opened


@pytest.fixture
def frame():
    return np.random.default_rng(3).integers(0, 256, (64, 128, 3), dtype=np.uint8)


def test_the_result_is_the_definition_of_the_scorers(session, bundle, frame):
    result = session.run(frame)
    features = session.features(frame)
    logits = bundle.head.logits(bundle.head.channel_first(features))
    assert session.scorer == "void"
    expected = anomaly_score(logits, "void", num_known=19, void_index=19)
    np.testing.assert_array_equal(result.class_map, class_map(logits, num_known=19))
    # One float16 step at 1.
    np.testing.assert_allclose(result.score.astype(np.float32), expected, atol=2**-11)
    assert result.class_map.dtype == np.uint8
    assert result.score.dtype == np.float16
    assert set(result.timings) == {"body", "head"}
    assert all(ms > 0 for ms in result.timings.values())


def test_engines_agree(bundle, frame):
    scores = []
    for name in BACKENDS:
        pytest.importorskip(name)
        with Session(bundle, name, threads=1, score_dtype=np.float32) as opened:
            scores.append(opened.run(frame).score.copy())
    # Both compute the body in float32, in another order of summation.
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_several_scorers_share_one_body_pass(session, bundle, frame):
    features = session.features(frame)
    logits = bundle.head.logits(bundle.head.channel_first(features))
    for scorer in SCORERS:
        got = session.score(features, scorer, 2.0).score.astype(np.float32)
        expected = anomaly_score(logits, scorer, num_known=19, void_index=19, temperature=2.0)
        np.testing.assert_allclose(got, expected, rtol=2**-10, atol=2**-11)
    # The session's own scorer is in use again afterwards.
    again = session.run(frame).score.astype(np.float32)
    np.testing.assert_allclose(
        again, anomaly_score(logits, "void", num_known=19, void_index=19), atol=2**-11
    )


def test_frames_with_gaps_between_rows_give_the_same(session, frame):
    expected = session.run(frame).score.copy()
    wide = np.zeros((64, 140, 3), np.uint8)
    wide[:, :128] = frame
    np.testing.assert_array_equal(session.run(wide[:, :128]).score, expected)


def test_a_read_only_frame_gives_the_same(session, frame):
    expected = session.run(frame).score.copy()
    frame.flags.writeable = False
    np.testing.assert_array_equal(session.run(frame).score, expected)


def test_the_callers_frame_is_read_anew_each_time(session, frame):
    first = session.run(frame).score.copy()
    frame[:] = 255 - frame
    assert (session.run(frame).score != first).any()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (np.zeros((64, 127, 3), np.uint8), r"\[64, 127, 3\]"),
        (np.zeros((128, 64, 3), np.uint8), r"\[128, 64, 3\]"),
        (np.zeros((64, 128), np.uint8), r"\[64, 128\]"),
        (np.zeros((64, 128, 3), np.float32), "float32"),
        ([[0]], "list"),
    ],
)
def test_a_frame_that_does_not_fit_is_refused(session, wrong, says):
    with pytest.raises(UsageError, match=says):
        session.run(wrong)


def test_without_void_the_default_is_msp(tmp_path):
    with Session(make_bundle(tmp_path / "b", void=False), "onnxruntime", threads=1) as session:
        assert session.scorer == "msp"
        with pytest.raises(UsageError, match="no scorer 'void'"):
            session.score(session.features(np.zeros((64, 128, 3), np.uint8)), "void")


def test_the_threshold_belongs_to_the_temperature_it_was_taken_at(bundle):
    with Session(bundle, "onnxruntime", threads=1, scorer="msp") as session:
        assert session.threshold == 0.7
    with Session(bundle, "onnxruntime", threads=1, scorer="msp", temperature=2.0) as session:
        assert session.threshold is None


@pytest.mark.parametrize(
    "options",
    [
        {"threads": 0},
        {"threads": 100000},
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"scorer": "magic"},
        {"score_dtype": np.uint8},
        {"backend": "caffe"},
    ],
)
def test_options_that_cannot_be_are_refused(bundle, options):
    with pytest.raises(UsageError):
        Session(bundle, **{"backend": "onnxruntime", **options})


def test_a_body_that_does_not_fit_the_head_is_refused(tmp_path):
    other = make_bundle(tmp_path / "b", 64, 128, body=small_body(32, 128))
    with pytest.raises(ArtefactError, match=r"\[1, 64, 128, 3\]"):
        Session(other, "onnxruntime", threads=1)


def test_closing_twice_is_fine(bundle):
    session = Session(bundle, "onnxruntime", threads=1)
    session.close()
    session.close()


@pytest.mark.parametrize("name", BACKENDS)
def test_channels_last_features_may_have_rows_and_columns_in_one_axis(tmp_path, name, frame):
    pytest.importorskip(name)
    scores = []
    for layout in ("nchw", "nhwc"):
        folder = make_bundle(tmp_path / layout, layout=layout)
        with Session(folder, name, threads=1) as session:
            assert session.features(frame).ndim == 4
            scores.append(session.run(frame).score.astype(np.float32))
    np.testing.assert_allclose(scores[0], scores[1], atol=2**-10)


# --- the two paths ----------------------------------------------------------------------------

needs_library = pytest.mark.skipif(not library.available(), reason="libedgeseg is not built")


@needs_library
@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_both_paths_give_the_same_bits(bundle, frame, name, dtype):
    pytest.importorskip(name)
    options = {"threads": 1, "scorer": "entropy", "temperature": 1.5, "score_dtype": dtype}
    with (
        Session(bundle, name, path="python", **options) as expected,
        Session(bundle, name, path="library", **options) as session,
    ):
        assert (session.path, session.path_reason) == ("library", None)
        assert (expected.path, expected.path_reason) == (
            "python",
            "the Python package was asked for",
        )
        want, got = expected.run(frame), session.run(frame)
        first = want.score.copy()
        np.testing.assert_array_equal(got.class_map, want.class_map)
        np.testing.assert_array_equal(got.score, first)
        assert set(got.timings) == set(want.timings) == {"body", "head"}
        theirs, ours = expected.features(frame), session.features(frame)
        np.testing.assert_array_equal(ours, theirs)
        for scorer in SCORERS:
            np.testing.assert_array_equal(
                session.score(ours, scorer, 2.0).score, expected.score(theirs, scorer, 2.0).score
            )
        # Features that the engine did not leave there are scored too, and as they are.
        changed = ours + np.float32(0.25)
        np.testing.assert_array_equal(session.score(changed).score, expected.score(changed).score)
        np.testing.assert_array_equal(session.run(frame).score, first)
        plain = {"path", "path_reason"}
        ours, theirs = session.describe(), expected.describe()
        assert {k: v for k, v in ours.items() if k not in plain} == {
            k: v for k, v in theirs.items() if k not in plain
        }


@needs_library
@pytest.mark.parametrize("name", ["auto", *BACKENDS])
def test_the_library_is_the_usual_path(bundle, name, monkeypatch):
    monkeypatch.delenv("EDGESEG_SESSION", raising=False)
    with Session(bundle, name, threads=1) as session:
        assert session.path == session.describe()["path"] == "library"


@needs_library
def test_through_the_library_python_s_engines_stay_out_of_the_process(tmp_path):
    program = (
        "import sys, numpy as np\n"
        "from edgeseg.runtime.session import Session\n"
        f"session = Session({str(make_bundle(tmp_path / 'b'))!r}, 'onnxruntime', threads=1)\n"
        "session.score(session.features(np.zeros((64, 128, 3), np.uint8)))\n"
        "assert not {'onnxruntime', 'openvino'} & set(sys.modules), 'imported'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("library_path", "was not built"),
        ("engine_library", "comes without its C library"),
    ],
)
def test_without_the_library_the_python_path_runs_and_says_why(
    bundle, frame, monkeypatch, tmp_path, broken, says
):
    if broken == "engine_library" and not library.available():
        pytest.skip("libedgeseg is not built")
    missing = (lambda: tmp_path / "none.so") if broken == "library_path" else lambda _: None
    monkeypatch.setattr(library, broken, missing)
    with Session(bundle, "onnxruntime", threads=1) as session:
        assert session.path == "python"
        assert says in session.path_reason
        assert session.describe()["path_reason"] == session.path_reason
        session.run(frame)
    with pytest.raises(MissingDependencyError, match=says):
        Session(bundle, "onnxruntime", threads=1, path="library")


@needs_library
def test_a_library_that_crashes_on_a_bundle_is_passed_over(tmp_path, frame, monkeypatch):
    real = subprocess.run

    def crash(command, **options):
        if '"library": true' in command[-1]:
            dying = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
            command = [sys.executable, "-c", dying]
        return real(command, **options)

    monkeypatch.setattr(backends.subprocess, "run", crash)
    folder = make_bundle(tmp_path / "b", seed=9)  # one that was not tried before
    with Session(folder, "onnxruntime", threads=1) as session:
        assert session.path == "python"
        assert "crashed (SIGSEGV)" in session.path_reason
        session.run(frame)


def test_the_environment_chooses_where_the_caller_does_not(bundle, monkeypatch):
    monkeypatch.setenv("EDGESEG_SESSION", "python")
    with Session(bundle, "onnxruntime", threads=1) as session:
        assert session.path == "python"
    if library.available():
        with Session(bundle, "onnxruntime", threads=1, path="library") as session:
            assert session.path == "library"
    monkeypatch.setenv("EDGESEG_SESSION", "quick")
    with pytest.raises(UsageError, match="EDGESEG_SESSION is 'quick'"):
        Session(bundle, "onnxruntime", threads=1)
    monkeypatch.delenv("EDGESEG_SESSION")
    with pytest.raises(UsageError, match="path is 'quick'"):
        Session(bundle, "onnxruntime", threads=1, path="quick")


@pytest.mark.parametrize("path", ["library", "python"])
def test_a_closed_session_says_so(bundle, frame, path):
    if path == "library" and not library.available():
        pytest.skip("libedgeseg is not built")
    session = Session(bundle, "onnxruntime", threads=1, path=path)
    features = session.features(frame).copy()
    session.close()
    for call in (session.run, session.features):
        with pytest.raises(UsageError, match="closed"):
            call(frame)
    with pytest.raises(UsageError, match="closed"):
        session.score(features)
