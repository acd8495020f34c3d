import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from edgeseg.runtime import job
from edgeseg.runtime.deadline import Problem
from edgeseg.runtime.selftest import SelfTest
from tests.bundles import make_bundle

cv2 = pytest.importorskip("cv2")
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("bundle") / "small")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index in range(3):
        noise = rng.integers(0, 256, (90, 160, 3), dtype=np.uint8)
        assert cv2.imwrite(str(folder / f"f_{index:03d}.png"), noise)
    return folder


def test_a_folder_of_images_to_everything_it_can_write(edgeseg, bundle, images, tmp_path):
    code, out, err = edgeseg(
        "run", bundle, "--input", images, "--save", tmp_path / "out", "--jsonl",
        tmp_path / "l.jsonl", "--backend", "onnxruntime", "--threads", 1, "--json",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    assert document["schema"] == "edgeseg.run/1"
    assert document["frames"] == 3
    assert document["corrupt"] == 0
    assert document["backend"] == "onnxruntime"
    assert document["scorer"] == "void"
    assert document["threshold"] == 0.3
    assert set(document["latency_ms"]) == {"p50", "p90", "p99", "max"}
    assert document["outputs"] == [str(tmp_path / "out"), str(tmp_path / "l.jsonl")]
    assert len(list((tmp_path / "out").iterdir())) == 12
    assert len((tmp_path / "l.jsonl").read_text().splitlines()) == 3
    assert not list(tmp_path.rglob(".*"))


def test_a_pattern_to_a_video_with_a_summary_for_people(edgeseg, bundle, images, tmp_path):
    code, out, _ = edgeseg(
        "run", bundle, "--input", images / "f_%03d.png", "--save", tmp_path / "v.mp4",
        "--view", "both", "--backend", "onnxruntime", "--frames", 2,
    )  # fmt: skip
    assert code == 0
    assert "2 frames, 0 corrupt" in out
    assert "latency ms: p50" in out
    assert f"wrote {tmp_path / 'v.mp4'}" in out
    capture = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 2
    capture.release()


def test_a_corrupt_image_is_told_on_stderr_and_counted(edgeseg, bundle, images, tmp_path):
    for path in images.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "f_001.png").write_bytes(b"no image")
    code, out, err = edgeseg("run", bundle, "--input", tmp_path, "--json")
    assert code == 0
    assert json.loads(out)["corrupt"] == 1
    assert "f_001.png" in err


def test_the_region_of_interest_limits_what_counts(edgeseg, bundle, images, tmp_path):
    mask = np.zeros((45, 80), np.uint8)
    mask[:, 40:] = 255
    assert cv2.imwrite(str(tmp_path / "roi.png"), mask)
    code, _, err = edgeseg(
        "run", bundle, "--input", images, "--roi", tmp_path / "roi.png", "--threshold", "0.02",
        "--jsonl", tmp_path / "l.jsonl", "--backend", "onnxruntime",
    )  # fmt: skip
    assert code == 0, err
    boxes = [
        region["box"]
        for line in (tmp_path / "l.jsonl").read_text().splitlines()
        for region in json.loads(line)["regions"]
    ]
    assert boxes
    assert all(box[0] >= 80 for box in boxes)


def test_without_a_threshold_it_says_so_and_gives_the_peak(edgeseg, images, tmp_path):
    bare = make_bundle(tmp_path / "bare", thresholds=False)
    code, _, err = edgeseg(
        "run", bare, "--input", images, "--jsonl", tmp_path / "l.jsonl", "--frames", 1,
        "--backend", "onnxruntime",
    )  # fmt: skip
    assert code == 0
    assert "--threshold" in err
    record = json.loads((tmp_path / "l.jsonl").read_text())
    assert record["anomaly_fraction"] is None
    assert record["anomaly_max"] is not None


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        ([], 2, "--camera"),
        (["--camera", "0", "--input", "x"], 2, "exactly one"),
        (["--input", "nowhere.mp4"], 7, "nowhere.mp4"),
        (["--camera", "983"], 7, "983"),
        (["--input", "IMAGES", "--scorer", "magic"], 2, "magic"),
        (["--input", "IMAGES", "--temperature", "0"], 2, "temperature"),
        (["--input", "IMAGES", "--threshold", "nan"], 2, "--threshold"),
        (["--input", "IMAGES", "--backend", "caffe"], 2, "caffe"),
        (["--input", "IMAGES", "--backend", "tensorrt"], 3, "tensorrt"),
        (["--input", "IMAGES", "--on-miss", "drop"], 2, "--deadline-ms"),
        (["--input", "IMAGES", "--deadline-ms", "-1"], 2, "--deadline-ms"),
        (["--input", "IMAGES", "--max-misses", "3"], 2, "--on-miss"),
        (["--input", "IMAGES", "--recover-after", "3"], 2, "--on-miss"),
        (
            [
                *("--input", "IMAGES", "--deadline-ms", "9", "--on-miss", "drop"),
                *("--recover-after", "3"),
            ],
            2,
            "--max-misses",
        ),
        (["--input", "IMAGES", "--reconnect", "-1"], 2, "--reconnect"),
        (["--input", "IMAGES", "--serve", "8080"], 2, "HOST:PORT"),
        (["--input", "IMAGES", "--serve", "256.1.1.1:80"], 2, "256.1.1.1"),
        (["--input", "IMAGES", "--roi", "missing.png"], 7, "missing.png"),
        (["--input", "IMAGES", "--save", "x.avi"], 2, "x.avi"),
        (["--input", "IMAGES", "--frames", "0"], 2, "--frames"),
        ([], 2, "give exactly one of --camera N and --input FILE"),
        (["--input", "IMAGES", "--threads", "0"], 2, "--threads"),
    ],
)
def test_bad_requests_end_with_one_sentence_and_their_code(
    edgeseg, bundle, images, arguments, code, says
):
    arguments = [images if a == "IMAGES" else a for a in arguments]
    got, out, err = edgeseg("run", bundle, *arguments)
    assert got == code
    assert out == ""
    assert says in err
    assert "Traceback" not in err


def test_a_scorer_that_the_bundle_lacks_is_a_usage_error(edgeseg, images, tmp_path):
    known = make_bundle(tmp_path / "known", void=False)
    code, _, err = edgeseg("run", known, "--input", images, "--scorer", "void")
    assert code == 2
    assert "no scorer 'void'" in err


def test_bundles_that_are_missing_or_damaged(edgeseg, images, tmp_path):
    assert edgeseg("run", tmp_path / "none", "--input", images)[0] == 7
    code, _, err = edgeseg("run", "erfnet", "--input", images)
    assert code == 2
    assert "'edgeseg export erfnet --int8'" in err
    damaged = make_bundle(tmp_path / "damaged")
    content = (damaged / "body.onnx").read_bytes()
    (damaged / "body.onnx").write_bytes(content[:-1] + b"\0")
    code, _, err = edgeseg("run", damaged, "--input", images)
    assert code == 4
    assert "body.onnx" in err


def test_nothing_is_reported_to_the_makers_of_an_engine(bundle, images, tmp_path):
    """ONNX Runtime's package queues reports in the cache folder, unless it is told not to."""
    environment = {k: v for k, v in os.environ.items() if k != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / ".cache")}
    command = ["run", bundle, "--input", images, "--backend", "onnxruntime"]
    subprocess.run([sys.executable, "-m", "edgeseg", *command], env=environment, check=True)
    assert not [p for p in tmp_path.rglob("*") if "microsoft" in str(p).lower()]


def test_a_deadline_that_is_missed_in_safe_mode_exits_with_8(edgeseg, bundle, images, tmp_path):
    code, _, err = edgeseg(
        "run", bundle, "--input", images, "--deadline-ms", "0.001", "--on-miss", "safe",
        "--jsonl", tmp_path / "l.jsonl", "--backend", "onnxruntime",
    )  # fmt: skip
    assert code == 8
    assert "safe state" in err
    assert json.loads((tmp_path / "l.jsonl").read_text())["state"] == "safe"


def test_in_time_with_a_policy_is_the_run_without_one_and_a_self_test(
    edgeseg, bundle, images, tmp_path
):
    common = ["run", bundle, "--input", images, "--backend", "onnxruntime", "--json"]
    code, out, _ = edgeseg(*common, "--jsonl", tmp_path / "a.jsonl")
    assert code == 0
    assert "supervision" not in json.loads(out)
    code, out, err = edgeseg(
        *common, "--jsonl", tmp_path / "b.jsonl", "--deadline-ms", "60000", "--on-miss", "safe",
        "--events", tmp_path / "e.jsonl",
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    assert document["supervision"]["states"] == {"ok": 3}
    assert document["stages_ms"]["body"] > 0
    assert document["supervision"]["self_test"] is True
    assert document["outputs"] == [str(tmp_path / "b.jsonl"), str(tmp_path / "e.jsonl")]
    timed = {"captured_at", "captured_mono_ns", "age_ms", "latency_ms"}
    first, second = (
        [
            {key: value for key, value in json.loads(line).items() if key not in timed}
            for line in (tmp_path / name).read_text().splitlines()
        ]
        for name in ("a.jsonl", "b.jsonl")
    )
    assert first == second
    events = [json.loads(line)["event"] for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    assert [e for e in events if not e.startswith(("machine", "clock"))] == [
        "run_started", "self_test", "run_ended",
    ]  # fmt: skip


def test_a_self_test_that_fails_ends_in_the_safe_state_before_any_frame(
    edgeseg, bundle, images, tmp_path, monkeypatch
):
    problem = Problem("head_differs", "the head kernel differs from its definition")
    monkeypatch.setattr(job, "self_test", lambda _: SelfTest(problem, "definition", 9.0, 0.5))
    code, _, err = edgeseg(
        "run", bundle, "--input", images, "--self-test", "--backend", "onnxruntime",
        "--jsonl", tmp_path / "l.jsonl", "--save", tmp_path / "v.mp4",
    )  # fmt: skip
    assert code == 8
    assert "head kernel differs" in err
    assert json.loads((tmp_path / "l.jsonl").read_text())["state"] == "self_test_failed"
    assert [p.name for p in tmp_path.iterdir()] == ["l.jsonl"]


def test_the_live_view_goes_with_the_run(bundle, images, tmp_path):
    lines = tmp_path / "l.jsonl"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "edgeseg", "run", bundle, "--input", images, "--as-camera"),
            *("--backend", "onnxruntime", "--threads", "1", "--jsonl", lines),
            *("--serve", "127.0.0.1:0"),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = process.stderr.readline().split()[-1]
        waited = time.monotonic() + 30
        while time.monotonic() < waited and not (lines.exists() and lines.stat().st_size):
            time.sleep(0.01)
        with urllib.request.urlopen(f"{url}healthz", timeout=10) as answer:
            assert json.loads(answer.read())["state"] == "ok"
        with urllib.request.urlopen(f"{url}stream.mjpg?view=both", timeout=10) as answer:
            assert b"image/jpeg" in answer.read(2000)
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    states = {json.loads(line)["state"] for line in lines.read_text().splitlines()}
    assert states == {"ok"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_a_whole_video(bundle, tmp_path, number):
    clip = tmp_path / "long.mp4"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"mp4v"), 20, (160, 120))
    picture = np.full((120, 160, 3), 90, np.uint8)
    for _ in range(3000):
        writer.write(picture)
    writer.release()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "edgeseg", "run", bundle, "--input", clip),
            *("--backend", "onnxruntime", "--threads", "1"),
            *("--save", tmp_path / "out.mp4", "--jsonl", tmp_path / "l.jsonl"),
        ],
        cwd=ROOT,
        env=os.environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    lines = tmp_path / "l.jsonl"
    waited = time.monotonic() + 30
    while time.monotonic() < waited and process.poll() is None:
        if lines.exists() and lines.stat().st_size > 1000:
            break
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert b"wrote" in out
    written = len(lines.read_text().splitlines())
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert 0 < capture.get(cv2.CAP_PROP_FRAME_COUNT) == written < 3000
    capture.release()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.data
def test_a_real_clip_end_to_end(edgeseg, bundle, shared_data, tmp_path):
    code, out, err = edgeseg(
        "run", bundle, "--input", shared_data / "video" / "highway_960x540.mp4", "--json",
        "--save", tmp_path / "v.mp4", "--frames", 30,
    )  # fmt: skip
    assert code == 0, err
    document = json.loads(out)
    assert document["frames"] == 30
    assert document["corrupt"] == 0
