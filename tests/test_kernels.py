"""The native kernels agree with the numpy definition and with Pillow, whatever the size."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from edgeseg.errors import ArtefactError, UsageError
from edgeseg.scoring import _numpy_kernels, kernels, library, resizing
from edgeseg.scoring.head import Head, IsoMaxPlus
from edgeseg.scoring.scorers import (
    SCORERS,
    anomaly_score,
    class_map,
    score_range,
    valid_scorers,
)

ROOT = Path(__file__).parent.parent
NATIVE = ROOT / "edgeseg/scoring/native"
KINDS = ("deconv2x2", "deconv3x3", "bilinear", "identity")
SIZES = ((1, 1), (3, 5), (2, 64), (5, 67), (3, 130))
ISAS = tuple(
    name
    for name in kernels.ISAS
    if name == "scalar" or (name == "neon") == (platform.machine() == "aarch64")
)

needs_library = pytest.mark.skipif(
    not kernels.available(), reason="the native kernels are not built"
)


def make_head(
    kind: str,
    layout: str = "nchw",
    *,
    outputs: int = 20,
    known: int = 19,
    void: int | None = 19,
    channels: int = 16,
    factor: int = 8,
    isomax: bool = False,
    seed: int = 0,
) -> Head:
    rng = np.random.default_rng(seed)
    weight = bias = None
    if kind.startswith("deconv"):
        k, factor = int(kind[-1]), 2
        weight = rng.normal(size=(channels, outputs, k, k)).astype(np.float32) * 0.5
        bias = rng.normal(size=outputs).astype(np.float32)
    prototypes = rng.normal(size=outputs).astype(np.float32)
    return Head(
        kind,
        outputs,
        known,
        void,
        1 if kind == "identity" else factor,
        weight,
        bias,
        IsoMaxPlus(-1.3, prototypes) if isomax else None,
        layout,
    )


def make_features(head: Head, h: int, w: int, seed: int = 1) -> np.ndarray:
    """Features [C, h, w] that give logits between about -20 and 20."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(head.channels_in, h, w)).astype(np.float32) * 4


def as_layout(head: Head, features: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(features.transpose(1, 2, 0) if head.layout == "nhwc" else features)


def run(head: Head, features: np.ndarray, scorer: str, temperature: float = 1.0, **options):
    _, h, w = features.shape
    with kernels.HeadKernel(
        head, h * head.factor, w * head.factor, scorer, temperature, **options
    ) as kernel:
        return kernel.run(as_layout(head, features))


def definition(head: Head, features: np.ndarray, scorer: str, temperature: float = 1.0):
    with np.errstate(all="ignore"):
        logits = head.logits(features)
    classes = class_map(logits, num_known=head.num_known)
    score = anomaly_score(
        logits,
        scorer,
        num_known=head.num_known,
        void_index=head.void_index,
        temperature=temperature,
    )
    ordered = np.sort(logits[: head.num_known], axis=0)
    with np.errstate(all="ignore"):
        margin = ordered[-1] - ordered[-2] if len(ordered) > 1 else np.ones(ordered.shape[1:])
    return classes, score, margin


def check(result, expected) -> None:
    """Labels equal but for near ties; scores within 1e-5 (and one float16 step)."""
    (classes, score), (true_classes, true_score, margin) = result, expected
    near = margin < 1e-4  # sums of 16 products of size 10 in another order
    assert np.array_equal(classes[~near], true_classes[~near])
    assert near.mean() < 0.01
    error = np.abs(score.astype(np.float64) - true_score)
    # Float32 rounding of logits of size 20 is about 1e-5.
    limit = 1e-5 * np.maximum(1.0, np.abs(true_score))
    if score.dtype == np.float16:
        limit = limit + np.spacing(np.abs(true_score).astype(np.float16)).astype(np.float64)
    assert (error <= limit).all(), error.max()


@pytest.fixture(params=ISAS)
def forced_isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("EDGESEG_ISA", request.param)
    if kernels.isa() != request.param:
        pytest.skip(f"{request.param} is not available on this machine")
    return request.param


@needs_library
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_definition(forced_isa: str, kind: str, layout: str) -> None:
    for number, (h, w) in enumerate(SIZES):
        head = make_head(kind, layout, isomax=number == 2)
        features = make_features(head, h, w, seed=number)
        for scorer in SCORERS:
            temperature = (1.0, 2.15, 0.5)[number % 3]
            expected = definition(head, features, scorer, temperature)
            for dtype in (np.float32, np.float16):
                result = run(head, features, scorer, temperature, threads=2, score_dtype=dtype)
                check(result, expected)


@needs_library
@pytest.mark.parametrize(
    "shape",
    [
        {"outputs": 1, "known": 1, "void": None, "channels": 1},
        {"outputs": 7, "known": 4, "void": 6, "channels": 33},
        {"outputs": 19, "known": 19, "void": None, "channels": 5},
        {"outputs": 64, "known": 60, "void": 61, "channels": 16},
    ],
)
def test_any_number_of_channels(forced_isa: str, shape: dict) -> None:
    for kind in KINDS:
        for layout in ("nchw", "nhwc"):
            head = make_head(kind, layout, factor=3, **shape)
            features = make_features(head, 3, 35)
            for scorer in valid_scorers(head.void_index):
                check(
                    run(head, features, scorer, score_dtype=np.float32),
                    definition(head, features, scorer),
                )


@needs_library
@pytest.mark.parametrize("factor", [1, 2, 3, 4, 5, 7, 8, 16, 32])
def test_every_bilinear_factor(factor: int) -> None:
    head = make_head("bilinear", factor=factor)
    for h, w in ((1, 1), (2, 3), (3, 66)):
        features = make_features(head, h, w)
        check(
            run(head, features, "void", score_dtype=np.float32),
            definition(head, features, "void"),
        )


@needs_library
@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("kind", KINDS)
def test_broken_logits_never_look_calm(forced_isa: str, kind: str, scorer: str) -> None:
    for layout in ("nchw", "nhwc"):
        head = make_head(kind, layout, factor=3)
        features = make_features(head, 6, 21)
        rng = np.random.default_rng(3)
        for value in (np.nan, np.inf, -np.inf):
            for _ in range(4):
                c, y, x = (rng.integers(n) for n in features.shape)
                features[c, y, x] = value
        features[-1, 0, 0] = np.nan  # void alone, in the kinds without weights
        features[:, 5, 20] = np.nan
        with np.errstate(all="ignore"):
            logits = head.logits(features)
        broken = ~np.isfinite(logits).all(axis=0)
        assert broken.any()
        assert not broken.all()
        classes, score = run(head, features, scorer, score_dtype=np.float32)
        true_classes, true_score, _ = definition(head, features, scorer)
        highest = np.float32(score_range(scorer, head.num_known)[1])
        assert (score[broken] == highest).all()
        assert np.allclose(score[~broken], true_score[~broken], rtol=1e-5, atol=1e-5)
        assert np.array_equal(classes, true_classes)


@needs_library
def test_first_of_equal_logits_wins() -> None:
    head = make_head("identity")
    classes, _ = run(head, np.full((20, 2, 37), 1.5, np.float32), "msp")
    assert not classes.any()


@needs_library
@pytest.mark.parametrize("temperature", [1e-35, 1e-6, 0.01, 100.0, 1e6, 1e35])
@pytest.mark.parametrize("scorer", SCORERS)
def test_extreme_temperatures(forced_isa: str, scorer: str, temperature: float) -> None:
    head = make_head("identity")
    features = make_features(head, 4, 33)
    check(
        run(head, features, scorer, temperature, score_dtype=np.float32),
        definition(head, features, scorer, temperature),
    )


@needs_library
def test_huge_but_finite_logits_are_not_broken(forced_isa: str) -> None:
    head = make_head("identity")
    features = np.full((20, 1, 3), -3e38, np.float32)
    features[4] = 3e38
    for scorer in SCORERS:
        check(
            run(head, features, scorer, score_dtype=np.float32),
            definition(head, features, scorer),
        )


@needs_library
def test_sure_pixels_keep_their_digits(forced_isa: str) -> None:
    """1 - max p of a sure pixel is 1e-9, which 1 - p in float32 would make 0 or 6e-8."""
    head = make_head("identity")
    features = np.zeros((20, 1, 40), np.float32)
    features[3] = np.linspace(5, 40, 40, dtype=np.float32)
    for scorer in ("msp", "entropy", "void"):
        _, score = run(head, features, scorer, score_dtype=np.float32)
        _, expected, _ = definition(head, features, scorer)
        # 3e-15: the rounding of the definition itself, which is in float64.
        assert np.allclose(score, expected, rtol=2e-5, atol=3e-15)


@needs_library
@pytest.mark.parametrize("kind", KINDS)
def test_same_bits_in_every_run_and_with_every_number_of_threads(kind: str) -> None:
    head = make_head(kind, "nhwc")
    features = make_features(head, 19, 70)
    for scorer in SCORERS:
        first = run(head, features, scorer, threads=1)
        for threads in (1, 2, 3, 8):
            again = run(head, features, scorer, threads=threads)
            assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@needs_library
def test_a_pixel_does_not_depend_on_the_width_of_the_frame() -> None:
    for kind in ("deconv2x2", "bilinear", "identity"):
        head = make_head(kind)
        features = make_features(head, 2, 131)
        _, whole = run(head, features, "msp", score_dtype=np.float32)
        _, part = run(head, features[:, :, :70], "msp", score_dtype=np.float32)
        inside = 69 * head.factor  # bilinear pixels further right see the edge
        assert np.array_equal(whole[:, :inside], part[:, :inside])


def test_outputs_are_reused_and_scorer_changes() -> None:
    head = make_head("deconv2x2")
    features = make_features(head, 4, 6)
    classes, score = np.empty((8, 12), np.uint8), np.empty((8, 12), np.float16)
    with kernels.HeadKernel(head, 8, 12, "msp", 1.0, threads=1) as kernel:
        kernel.set_scorer("energy", 2.0)
        result = kernel.run(features[None], classes, score)
    assert result[0] is classes
    assert result[1] is score
    check(result, definition(head, features, "energy", 2.0))


def test_refuses_what_does_not_fit() -> None:
    head = make_head("deconv2x2")
    with pytest.raises(ArtefactError, match="multiple of 2"):
        kernels.HeadKernel(head, 7, 8, "msp", 1.0)
    with pytest.raises(UsageError, match="void"):
        kernels.HeadKernel(make_head("identity", void=None), 8, 8, "void", 1.0)
    with pytest.raises(UsageError, match="temperature"):
        kernels.HeadKernel(head, 8, 8, "msp", 0.0)
    with pytest.raises(UsageError, match="threads"):
        kernels.HeadKernel(head, 8, 8, "msp", 1.0, threads=0)
    with pytest.raises(UsageError, match="float64"):
        kernels.HeadKernel(head, 8, 8, "msp", 1.0, score_dtype=np.float64)
    kernel = kernels.HeadKernel(head, 8, 8, "msp", 1.0, threads=1)
    with pytest.raises(ArtefactError, match="needs features"):
        kernel.run(np.zeros((16, 4, 5), np.float32))
    with pytest.raises(ArtefactError, match="float64"):
        kernel.run(np.zeros((16, 4, 4)))
    with pytest.raises(ArtefactError, match="contiguous"):
        kernel.run(np.zeros((16, 4, 8), np.float32)[:, :, ::2])
    with pytest.raises(UsageError, match="out_score"):
        kernel.run(np.zeros((16, 4, 4), np.float32), None, np.empty((8, 8), np.float32))
    kernel.close()
    kernel.close()
    with pytest.raises(UsageError, match="closed"):
        kernel.run(np.zeros((16, 4, 4), np.float32))


def test_unknown_isa_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGESEG_ISA", "mmx")
    with pytest.raises(UsageError, match="mmx"):
        kernels.isa()


# --- resize -------------------------------------------------------------------------------


def pillow(frame: np.ndarray, height: int, width: int) -> np.ndarray:
    image = Image.fromarray(np.ascontiguousarray(frame))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def check_resize(got: np.ndarray, frame: np.ndarray, height: int, width: int) -> None:
    expected = pillow(frame, height, width)
    if int(PIL.__version__.split(".")[0]) >= 13:
        assert np.array_equal(got, expected), (frame.shape, height, width)
    else:
        # Before 13 Pillow went across first in every case.
        assert np.abs(got.astype(int) - expected).max() <= 1


def resize_cases() -> Iterator[tuple[np.ndarray, int, int]]:
    rng = np.random.default_rng(5)
    for number in range(120):
        h, w, height, width = (int(n) for n in rng.integers(1, 90, 4))
        h = int(rng.integers(300, 700)) if number % 9 == 0 else h
        w = int(rng.integers(300, 700)) if number % 7 == 0 else w
        height = h if number % 6 == 0 else height
        width = w if number % 5 == 0 else width
        whole = rng.integers(0, 256, (h + 2, w + 3, 3), dtype=np.uint8)
        if number % 4 == 0:
            whole[:] = 255
        frame = whole[1:-1, 2:-1]
        yield (frame[::-1] if number % 2 else frame), height, width


@needs_library
def test_resize_equals_pillow(forced_isa: str) -> None:
    for number, (frame, height, width) in enumerate(resize_cases()):
        got = kernels.resize_bilinear(frame, height, width, threads=1 + number % 3)
        check_resize(got, frame, height, width)
        swapped = kernels.resize_bilinear(frame, height, width, threads=2, swap_rb=True)
        assert np.array_equal(swapped[:, :, ::-1], got)


@needs_library
@pytest.mark.parametrize("size", [(1080, 1920), (720, 1280), (540, 960), (480, 640)])
def test_resize_of_camera_frames_equals_pillow(size: tuple[int, int]) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    check_resize(kernels.resize_bilinear(frame, 512, 1024), frame, 512, 1024)


def test_numpy_resize_equals_pillow() -> None:
    for frame, height, width in resize_cases():
        out = np.empty((height, width, 3), np.uint8)
        _numpy_kernels.resize(frame, height, width, False, out)
        check_resize(out, frame, height, width)


def test_resize_takes_any_strides_and_an_output() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    out = np.empty((9, 8, 3), np.uint8)
    view = frame[:, ::2]
    assert kernels.resize_bilinear(view, 9, 8, out=out) is out
    check_resize(out, view, 9, 8)


def test_resize_refuses_what_is_no_frame() -> None:
    frame = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(UsageError, match="uint8"):
        kernels.resize_bilinear(frame.astype(np.float32), 2, 2)
    with pytest.raises(UsageError, match="h, w, 3"):
        kernels.resize_bilinear(frame[:, :, :1], 2, 2)
    with pytest.raises(UsageError, match="sides"):
        kernels.resize_bilinear(frame, 0, 2)
    with pytest.raises(UsageError, match="overlaps"):
        kernels.resize_bilinear(frame, 4, 4, out=frame)
    with pytest.raises(UsageError, match="contiguous"):
        kernels.resize_bilinear(frame, 2, 2, out=np.zeros((2, 3, 3), np.uint8))


# --- histogram ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def histograms() -> tuple[np.ndarray, np.ndarray]:
    return tuple(np.zeros(kernels.HISTOGRAM_SIZE, np.uint32) for _ in range(2))


@needs_library
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_histogram_counts_every_labelled_pixel_in_its_bin(histograms, dtype, threads) -> None:
    rng = np.random.default_rng(threads)
    scores = rng.normal(size=200_001) * np.exp(rng.normal(size=200_001) * 3)
    scores = np.clip(scores, -65504, 65504).astype(dtype)
    scores[:8] = [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 65504, 6e-8]
    scores[1000:50_000] = 0.25
    labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), scores.size)
    positive, negative = (h for h in histograms)
    for label, histogram in ((1, positive), (0, negative)):
        histogram[:] = 0
        bins = _numpy_kernels.histogram_bins(scores[labels == label])
        where, counts = np.unique(bins, return_counts=True)
        histogram[where] -= counts.astype(np.uint32)
    kernels.score_histogram(scores, labels, positive, negative, threads)
    assert not positive.any()
    assert not negative.any()


def test_bins_keep_the_order_of_scores() -> None:
    scores = np.array([-np.inf, -65504, -1, -6e-8, 0, 6e-8, 0.5, 0.5001, 65504, np.inf, np.nan])
    bins = _numpy_kernels.histogram_bins(scores.astype(np.float32)).astype(int)
    assert (np.diff(bins) > 0).all()
    zeros = np.array([0.0, -0.0], np.float32)
    assert len(set(_numpy_kernels.histogram_bins(zeros))) == 1


def test_histogram_refuses_other_arrays(histograms) -> None:
    positive, negative = histograms
    scores, labels = np.zeros(3, np.float32), np.zeros(3, np.uint8)
    with pytest.raises(UsageError, match="float64"):
        kernels.score_histogram(scores.astype(np.float64), labels, positive, negative)
    with pytest.raises(UsageError, match="labels"):
        kernels.score_histogram(scores, labels[:2], positive, negative)
    with pytest.raises(UsageError, match="positive"):
        kernels.score_histogram(scores, labels, positive[:5], negative)


# --- without the library -------------------------------------------------------------------


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(library, "load", lambda: None)
    library.warn_missing.cache_clear()
    resizing._resizers.clear()
    yield
    library.warn_missing.cache_clear()
    resizing._resizers.clear()


@pytest.mark.usefixtures("no_library")
def test_numpy_takes_over_with_one_warning(histograms) -> None:
    head = make_head("deconv3x3", "nhwc")
    features = make_features(head, 3, 5)
    features[0, 0, 0] = np.inf
    with pytest.warns(RuntimeWarning, match="compiler") as caught:  # noqa: PT031
        classes, score = run(head, features, "void")
        frame = np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)
        small = kernels.resize_bilinear(frame, 4, 5, swap_rb=True)
        positive, negative = histograms
        positive[:] = 0
        kernels.score_histogram(
            np.float16([0.5, 0.5]), np.uint8([1, 0]), positive, negative, threads=1
        )
    assert len(caught) == 1
    assert not kernels.available()
    assert kernels.isa() == "numpy"
    expected = definition(head, features, "void")
    assert np.array_equal(classes, expected[0])
    assert np.array_equal(score, expected[1].astype(np.float16))
    assert score.max() == 1.0
    check_resize(small[:, :, ::-1], frame, 4, 5)
    assert positive.sum() == 1


# --- the C sources alone --------------------------------------------------------------------


def exercise(
    tmp_path: Path, compiler: list[str], flags: list[str], run_with: list[str], *options: str
) -> str:
    program = tmp_path / "exercise"
    sources = [str(ROOT / "tests/native/exercise.c"), *map(str, sorted(NATIVE.glob("*.c")))]
    command = [*compiler, "-std=gnu11", *flags, f"-I{NATIVE}", *sources, "-o", str(program)]
    built = subprocess.run(
        [*command, "-lpthread", "-lm"], capture_output=True, text=True, check=False
    )
    if "cannot find -l" in built.stderr or "unrecognized" in built.stderr:
        pytest.skip(f"this compiler has no {' '.join(flags)}")
    assert built.returncode == 0, built.stderr
    command = [*run_with, str(program), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    if "FATAL: ThreadSanitizer: unexpected memory mapping" in done.stderr:
        pytest.skip("ThreadSanitizer cannot run with this kernel's memory layout")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def compiler() -> list[str]:
    found = os.environ.get("CC", "").split() or [shutil.which("cc") or ""]
    if not found[0]:
        pytest.skip("no C compiler")
    return found


def test_clean_under_address_and_undefined_behaviour_sanitizers(tmp_path: Path) -> None:
    flags = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    assert exercise(tmp_path, compiler(), flags, []).startswith("ok scalar")


@pytest.mark.slow
def test_clean_under_thread_sanitizer(tmp_path: Path) -> None:
    assert exercise(tmp_path, compiler(), ["-O1", "-fsanitize=thread"], []).startswith("ok")


def test_sources_compile_without_warnings(tmp_path: Path) -> None:
    flags = "-std=c11 -O2 -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror -fsyntax-only"
    for source in sorted(NATIVE.glob("*.c")):
        done = subprocess.run(
            [*compiler(), *flags.split(), str(source)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_runs_on_aarch64(tmp_path: Path) -> None:
    cross = shutil.which("aarch64-linux-gnu-gcc")
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if cross is None or emulator is None:
        pytest.skip("needs aarch64-linux-gnu-gcc and qemu-aarch64 (Debian: gcc-aarch64-linux-gnu "
                    "libc6-dev-arm64-cross qemu-user)")  # fmt: skip
    output = exercise(tmp_path, [cross], ["-O2", "-static"], [emulator], "short")
    assert output == "ok scalar neon\n"


@needs_library
def test_a_forked_child_can_go_on(tmp_path: Path) -> None:
    script = (
        "import os, numpy as np\n"
        "from edgeseg.scoring import kernels\n"
        "f = np.zeros((50, 60, 3), np.uint8)\n"
        "plan = kernels.Resizer(50, 60, 20, 30, threads=2)\n"
        "plan.run(f)\n"
        "pid = os.fork()\n"
        "plan.run(f); plan.close()\n"
        "kernels.resize_bilinear(f, 20, 30, threads=2)\n"
        "if pid: raise SystemExit(os.waitpid(pid, 0)[1])\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60, cwd=ROOT)


@needs_library
def test_a_child_forked_during_a_call_of_another_thread_can_go_on() -> None:
    script = (
        "import os, threading, numpy as np\n"
        "from edgeseg.scoring import kernels\n"
        "f = np.zeros((200, 300, 3), np.uint8)\n"
        "plan = kernels.Resizer(200, 300, 100, 150, threads=2)\n"
        "stop = threading.Event()\n"
        "def loop():\n"
        "    while not stop.is_set(): plan.run(f)\n"
        "thread = threading.Thread(target=loop)\n"
        "thread.start()\n"
        "for _ in range(5):\n"
        "    pid = os.fork()\n"
        "    if not pid:\n"
        "        for _ in range(3): plan.run(f)\n"
        "        os._exit(0)\n"
        "    if os.waitpid(pid, 0)[1]: os._exit(1)\n"
        "stop.set(); thread.join()\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60, cwd=ROOT)
