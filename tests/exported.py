"""Networks with random weights and their exported bodies, made once for all tests that use them.

Weights are random, but BatchNorms have the statistics of what they see, gains of either sign and
offsets; so every layer is alive, as in a trained network.
"""

from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch

from edgeseg.export.body import export_body
from edgeseg.networks import build

__all__ = [
    "HEIGHT",
    "WIDTH",
    "body_of",
    "frames",
    "network",
    "on_openvino",
    "relative_error",
    "run",
    "session",
    "torch_logits",
]

HEIGHT, WIDTH = 64, 128

# The published widths of BiSeNet take seconds to export; every layer is there in this one.
_SLIM = {
    "bisenet": {
        "layers": (16, 32, 48, 64),
        "inner": ((16, 16), (32, 32), (48, 48), (64, 64)),
        "context": (32, 32, 32),
        "spatial": (16, 16, 16, 32),
        "fusion": 64,
        "classifier": 64,
    }
}


@cache
def network(name, *, stem=None, **structure):
    """A network in eval mode.

    ``stem``: "gains" makes the initial block's gains positive, "loss" negative, "slopes" makes them
    positive and its slopes negative.
    ``structure``: hashable values.
    """
    torch.manual_seed(0)
    module = build(name, {**_SLIM.get(name, {}), **structure})
    generator = torch.Generator().manual_seed(1)
    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for path, m in module.named_modules():
            if isinstance(m, torch.nn.BatchNorm2d):
                sign = torch.where(torch.rand(m.weight.shape, generator=generator) < 0.3, -1, 1)
                # Residual branches of full strength would make a deep network of random weights
                # chaotic: it would blow the rounding of a frame up to the size of its output.
                low, high = (0.1, 0.2) if path.endswith((".bn2", ".bn3")) else (0.5, 1.0)
                m.weight.copy_(sign * m.weight.uniform_(low, high, generator=generator))
                m.bias.uniform_(-0.2, 0.2, generator=generator)
                m.momentum = None  # average of all batches
            elif isinstance(m, torch.nn.PReLU):
                m.weight.uniform_(0.05, 0.4, generator=generator)
            elif isinstance(m, torch.nn.Dropout2d):
                m.p = 0.0
        if stem is not None:
            module.initial.bn.weight.abs_()
        if stem == "loss":
            module.initial.bn.weight.neg_()
        if stem == "slopes":
            module.initial.act.weight.neg_()
        module.train()
        module.body(as_input(frames(2, seed=9)))
    for m in norms:
        if m.running_mean.ndim:
            m.running_mean += (
                0.1 * m.running_var.sqrt() * torch.randn(m.running_mean.shape, generator=generator)
            )
    return module.eval()


@cache
def body_of(name, *, drop_dead=True, **structure):
    """The exported float body of :func:`network`."""
    return export_body(network(name, **structure), HEIGHT, WIDTH, drop_dead=drop_dead)


def frames(count, seed=0, height=HEIGHT, width=WIDTH):
    """Frames uint8 ``[H, W, 3]`` with blocks of several sizes, edges and noise."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        frame = rng.integers(0, 200, (height, width, 3)) // 4
        for block in (8, 16, 32):
            coarse = rng.integers(0, 200, (height // block, width // block, 3)) // 4
            frame = frame + np.repeat(np.repeat(coarse, block, 0), block, 1)
        result.append(frame.astype(np.uint8))
    return result


def as_input(batch):
    """Frames as torch's float RGB input in [0, 1]."""
    rgb = np.stack(batch)[..., ::-1].transpose(0, 3, 1, 2)
    return torch.from_numpy(np.ascontiguousarray(rgb)).float() / 255


def torch_logits(module, frame):
    """Logits ``[C, H, W]`` of a frame by torch."""
    with torch.inference_mode():
        return module(as_input([frame]))[0].numpy()


def session(model: onnx.ModelProto) -> ort.InferenceSession:
    """ONNX Runtime on one thread: the machine that tests has others to do."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run(model, batch):
    """Features of every frame, ``[N, h * w, C]``."""
    engine = session(model)
    return np.concatenate([engine.run(None, {"frame": frame[None]})[0] for frame in batch])


def on_openvino(model, batch):
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()),
        "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1},
    )
    return np.concatenate([compiled({"frame": f[None]})["features"].copy() for f in batch])


def relative_error(result, reference):
    """Mean squared error over the variance of the reference."""
    return float(np.mean((result - reference) ** 2) / np.var(reference))
