"""The CUDA kernel without a GPU: its arithmetic on the host, its cubins from the compiler."""

import ctypes
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from conftest import ROOT
from edgeseg.errors import ArtefactError
from edgeseg.scoring.cuda import (
    SOURCES,
    CudaHead,
    kernel_argument,
    launch,
    packed_weights,
    resources,
)
from edgeseg.scoring.head import Head, IsoMaxPlus
from edgeseg.scoring.scorers import SCORERS, anomaly_score, class_map

sys.path.insert(0, str(ROOT / "tools"))

import compile_cuda

OUTPUTS = 20
COMPILER = shutil.which("g++") or shutil.which("c++")


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The pixels of the kernel's own source in plain loops."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    path = tmp_path_factory.mktemp("cuda") / "head_host.so"
    flags = ["-std=c++14", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    source = [f"-DEDGESEG_OUTPUTS={OUTPUTS}", str(SOURCES / "head_host.cpp"), "-o", str(path)]
    subprocess.run([COMPILER, *flags, *source], check=True)
    return ctypes.CDLL(str(path))


# What head.cu takes from CUDA, for one thread after another. A block runs twice: all weights are in
# shared memory when its threads come round again.
ONE_BY_ONE = """
#include <stddef.h>
#define __global__
#define __shared__
#define __launch_bounds__(...)
struct uchar2 { unsigned char x, y; };
struct ushort2 { unsigned short x, y; };
static uchar2 make_uchar2(unsigned char x, unsigned char y) { return uchar2{x, y}; }
static ushort2 make_ushort2(unsigned short x, unsigned short y) { return ushort2{x, y}; }
static struct { unsigned x, y; } threadIdx, blockIdx, blockDim;
static void __syncthreads() {}
extern "C" { float weight[16384]; }
#include "head.cu"
extern "C" void run_grid(const struct cuda_head *head, unsigned columns, unsigned rows) {
    blockDim.x = 128;
    for (blockIdx.y = 0; blockIdx.y < rows; blockIdx.y++)
        for (blockIdx.x = 0; blockIdx.x < columns; blockIdx.x++)
            for (int round = 0; round < 2; round++)
                for (threadIdx.x = 0; threadIdx.x < blockDim.x; threadIdx.x++)
                    edgeseg_head(*head);
}
"""


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """The kernel itself, its threads one after another on the host."""
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("grid")
    (folder / "grid.cpp").write_text(ONE_BY_ONE)
    flags = ["-std=c++14", "-O2", "-shared", "-fPIC", f"-I{SOURCES}"]
    source = [f"-DEDGESEG_OUTPUTS={OUTPUTS}", str(folder / "grid.cpp")]
    path = folder / "grid.so"
    subprocess.run([COMPILER, *flags, *source, "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


def _head(kind, *, layout="nhwc", isomax=False, seed=0):
    rng = np.random.default_rng(seed)
    size = {"deconv2x2": 2, "deconv3x3": 3}.get(kind)
    return Head(
        kind=kind,
        num_outputs=OUTPUTS,
        num_known=19,
        void_index=19,
        factor={"bilinear": 8, "identity": 1}.get(kind, 2),
        weight=None if size is None else _normal(rng, 16, OUTPUTS, size, size),
        bias=None if size is None else _normal(rng, OUTPUTS),
        isomax=IsoMaxPlus(-1.7, _normal(rng, OUTPUTS)) if isomax else None,
        layout=layout,
    )


def _normal(rng, *shape):
    return rng.normal(0, 0.7, shape).astype(np.float32)


def _features(head, rows, columns, seed=1):
    rng = np.random.default_rng(seed)
    shape = (rows, columns, head.channels_in)
    # Logits within 25, as trained networks have them: at 35 the definition's own float32 sums are
    # 1e-5 apart in another order.
    values = rng.normal(0, 1, shape).astype(np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1) if head.layout == "nchw" else values)


def _run(library, head, features, scorer, temperature, *, half):
    rows, columns = features.shape[:2] if head.layout == "nhwc" else features.shape[1:]
    height, width = rows * head.factor, columns * head.factor
    labels = np.full((height, width), 255, np.uint8)
    scores = np.full((height, width), -1, np.float16 if half else np.float32)
    weight, bias, prototypes = packed_weights(head)
    argument = kernel_argument(head, height, width, scorer, temperature)
    argument.features = features.ctypes.data
    argument.weight = weight.ctypes.data if weight.size else None
    argument.bias = bias.ctypes.data if bias.size else None
    argument.prototypes = prototypes.ctypes.data if prototypes.size else None
    argument.class_map = labels.ctypes.data
    setattr(argument, "score_half" if half else "score_float", scores.ctypes.data)
    if hasattr(library, "run_grid"):
        columns, lines, _ = launch(head, height, width).grid
        library.run_grid(ctypes.byref(argument), columns, lines)
    else:
        library.edgeseg_head_on_host(ctypes.byref(argument))
    return labels, scores


def _defined(head, features, scorer, temperature):
    logits = head.logits(head.channel_first(features))
    options = {"num_known": 19, "void_index": 19, "temperature": temperature}
    return logits, class_map(logits, num_known=19), anomaly_score(logits, scorer, **options)


def _equal_up_to_near_ties(labels, wanted, logits):
    best = np.sort(logits[:19], axis=0)
    tied = best[-1] - best[-2] < 1e-5
    return bool(((labels == wanted) | tied).all())


@pytest.mark.parametrize("kind", ["deconv2x2", "deconv3x3", "bilinear", "identity"])
@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("temperature", [1.0, 2.15])
def test_the_source_computes_the_definition(host, kind, scorer, layout, temperature):
    head = _head(kind, layout=layout)
    features = _features(head, 9, 13)
    labels, scores = _run(host, head, features, scorer, temperature, half=False)
    logits, wanted_labels, wanted = _defined(head, features, scorer, temperature)
    assert _equal_up_to_near_ties(labels, wanted_labels, logits)
    np.testing.assert_allclose(scores, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["deconv2x2", "bilinear"])
@pytest.mark.parametrize("scorer", SCORERS)
def test_isomax_comes_after_the_upsampling(host, kind, scorer):
    head = _head(kind, isomax=True)
    features = _features(head, 8, 8)
    labels, scores = _run(host, head, features, scorer, 1.0, half=False)
    logits, wanted_labels, wanted = _defined(head, features, scorer, 1.0)
    assert _equal_up_to_near_ties(labels, wanted_labels, logits)
    np.testing.assert_allclose(scores, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["deconv2x2", "deconv3x3", "bilinear", "identity"])
@pytest.mark.parametrize("columns", [13, 300, 301])
@pytest.mark.parametrize("half", [False, True])
def test_the_grid_writes_every_pixel_as_the_loop_does(host, grid, kind, columns, half):
    head = _head(kind)
    features = _features(head, 9, columns)
    wanted = _run(host, head, features, "entropy", 1.0, half=half)
    given = _run(grid, head, features, "entropy", 1.0, half=half)
    for ours, theirs in zip(given, wanted, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("scorer", SCORERS)
def test_a_pixel_that_is_not_finite_gets_the_highest_score(host, scorer):
    head = _head("identity")
    features = _features(head, 4, 6)
    for x, value in enumerate((np.nan, np.inf, -np.inf)):
        features[0, x, 3] = value
        features[1, x, 19] = value  # the void output counts too
    features[2, 0] = np.nan
    features[2, 1] = -np.inf
    labels, scores = _run(host, head, features, scorer, 1.0, half=True)
    with np.errstate(invalid="ignore"):
        _, wanted_labels, wanted = _defined(head, features, scorer, 1.0)
    np.testing.assert_array_equal(labels, wanted_labels)
    np.testing.assert_allclose(
        scores.astype(np.float32), wanted.astype(np.float16).astype(np.float32), rtol=2e-3
    )
    assert (scores[:2, :3] == scores.max()).all()


@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("temperature", [1e-3, 1.0, 1e3])
def test_large_logits_neither_overflow_nor_become_nan(host, scorer, temperature):
    head = _head("identity")
    features = _features(head, 4, 6) * np.float32(1e4)
    _, scores = _run(host, head, features, scorer, temperature, half=False)
    _, _, wanted = _defined(head, features, scorer, temperature)
    assert np.isfinite(scores).all()
    np.testing.assert_allclose(scores, wanted, atol=1e-5, rtol=1e-6)


def test_half_rounds_as_numpy_does(host):
    host.edgeseg_half_bits.argtypes = [ctypes.c_float]
    host.edgeseg_half_bits.restype = ctypes.c_ushort
    rng = np.random.default_rng(0)
    values = np.concatenate(
        [
            rng.normal(0, 1, 500),
            10.0 ** rng.uniform(-9, 5, 1500),
            [0.0, -0.0, 65504.0, 65519.0, 65520.0, 2**-24, 2**-25, 3 * 2**-25, 2**-14, np.inf],
            1 + np.arange(64) * 2.0**-12,
        ]
    ).astype(np.float32)
    with np.errstate(over="ignore"):
        wanted = values.astype(np.float16).view(np.uint16)
    given = [host.edgeseg_half_bits(float(v)) for v in values]
    np.testing.assert_array_equal(np.array(given, np.uint16), wanted)


def test_the_argument_has_the_source_s_layout(host):
    assert host.edgeseg_cuda_head_bytes() == ctypes.sizeof(CudaHead)


@pytest.mark.parametrize(
    ("kind", "shared"),
    [("deconv2x2", 4 * 2 * 16 * 20), ("deconv3x3", 4 * 9 * 16 * 20), ("bilinear", 0)],
)
def test_a_launch_covers_every_pixel_once(kind, shared):
    plan = launch(_head(kind), 512, 1000)
    assert plan.shared_bytes == shared
    assert plan.shared_bytes <= 48 << 10
    assert plan.grid[0] * plan.block[0] * 2 >= 1000
    # Rows: blocks come in pairs of a parity, four rows each.
    rows = [
        (block >> 1) * 8 + 2 * r + (block & 1) for block in range(plan.grid[1]) for r in range(4)
    ]
    assert sorted(rows)[:512] == list(range(512))


def _compiled(architecture, outputs):
    made = compile_cuda.compile_head(architecture, outputs, compile_cuda.find_nvrtc())
    if made is None:
        pytest.skip(f"no compiler for sm_{architecture}: nvcc, or 'make .venv-rtx/.installed'")
    return resources(made[1])


@pytest.mark.slow
@pytest.mark.parametrize("architecture", compile_cuda.ARCHITECTURES)
@pytest.mark.parametrize("outputs", compile_cuda.OUTPUTS)
def test_compiles_without_spilling(architecture, outputs):
    used = _compiled(architecture, outputs)
    assert used.local_bytes == 0
    # 128 threads of up to 72 registers: seven blocks of a 64 K register file at a time.
    assert outputs < used.registers <= 72
    assert used.static_shared_bytes <= 1024


@pytest.mark.slow
def test_a_kernel_that_spills_is_told_apart(tmp_path, monkeypatch, capsys):
    shutil.copy(SOURCES / "head_pixel.h", tmp_path)
    source = (SOURCES / "head.cu").read_text()
    tight = source.replace("__launch_bounds__(128, 7)", "__launch_bounds__(128, 12)")
    assert tight != source
    (tmp_path / "head.cu").write_text(tight)
    monkeypatch.setattr(compile_cuda, "SOURCES", tmp_path)
    # 40 registers do not hold 20 logits and what is computed from them.
    assert _compiled(87, 20).local_bytes > 0
    arguments = ["compile_cuda.py", "--arch", "87", "--outputs", "20"]
    monkeypatch.setattr(sys, "argv", arguments)
    assert compile_cuda.main() == 1
    assert "bytes are spilled" in capsys.readouterr().err


def test_the_committed_figures_are_of_every_architecture_and_spill_nothing():
    rows = json.loads((ROOT / "tools" / "results" / "cuda_kernels.json").read_text())["rows"]
    wanted = [(a, o) for a in compile_cuda.ARCHITECTURES for o in compile_cuda.OUTPUTS]
    assert [(row["architecture"], row["outputs"]) for row in rows] == wanted
    assert not any(row["local_bytes"] for row in rows)


def test_what_is_no_cubin_is_refused():
    for content in (b"", b"\x7fELF", b"\x7fELF\x02\x01" + bytes(100), b"PK" * 50):
        with pytest.raises(ArtefactError, match="not a cubin"):
            resources(content)
