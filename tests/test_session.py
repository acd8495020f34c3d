import numpy as np
import pytest

from edgeseg.bundle import Bundle
from edgeseg.errors import ArtefactError, UsageError
from edgeseg.runtime.session import Session
from edgeseg.scoring.scorers import SCORERS, anomaly_score, class_map
from tests.bundles import make_bundle, small_body

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
