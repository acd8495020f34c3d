"""Torch FX post-training static INT8: a network that is quantized, kept, loaded and evaluated.

The scheme is that of Jacob et al. 2018, see :mod:`edgeseg.compression.fx_graph`. What is quantized
is the body; the head, and the layer that gives the outputs, stay float: eight bits of a logit tie
most pixels of an anomaly score.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from edgeseg import __version__
from edgeseg.compression.fx_folder import (
    ENGINES,
    MANIFEST,
    WEIGHTS,
    Recipe,
    read_manifest,
    write_folder,
)
from edgeseg.compression.fx_network import (
    BODY,
    FXCounts,
    FXNetwork,
    FXPredictor,
    all_tensors,
    check_machine,
    default_activation_bits,
    default_engine,
    float_operations,
    fx_counts,
    graphs_module,
    head_layers,
)
from edgeseg.compression.fx_published import published_structure, read_published, rename_published
from edgeseg.errors import ArtefactError, InputError, UsageError
from edgeseg.networks.base import Network
from edgeseg.networks.checkpoints import read_weights
from edgeseg.networks.registry import network_class

__all__ = [
    "FXCounts",
    "FXNetwork",
    "FXPredictor",
    "default_activation_bits",
    "default_engine",
    "float_operations",
    "fx_counts",
    "load_fx",
    "quantize_fx",
    "save_fx",
]

UInt8 = npt.NDArray[np.uint8]
Progress = Callable[[int, int], None]

_COMPARED: Final = 2


def quantize_fx(
    network: Network,
    frames: Sequence[UInt8],
    *,
    engine: str | None = None,
    activation_bits: int | None = None,
    float_modules: Sequence[str] = (),
    progress: Progress | None = None,
) -> FXNetwork:
    """Prepare, calibrate on frames, convert.

    Args:
        network: float network in eval mode; it stays as it is.
        frames: uint8 ``[H, W, 3]`` BGR at the network's size.
        engine: ``x86`` or ``qnnpack``; ``None``: this machine's.
        activation_bits: 7 or 8; ``None``: what the engine adds up right on this machine.
        float_modules: paths of modules to leave float, ``encoder.initial_block`` for example.
        progress: called with the frames done, and in all.

    Raises:
        UsageError: no such engine or module, or a size that does not fit.
        MissingDependencyError: this torch has no FX quantization, or not that engine.
        InputError: there is no frame.
    """
    if not frames:
        raise InputError("there is no frame to calibrate with; give a folder that holds images")
    graphs = graphs_module()
    chosen = engine or default_engine()
    bits = activation_bits or default_activation_bits(chosen)
    if chosen not in ENGINES:
        raise UsageError(f"engine '{chosen}' is unknown; choose one of {', '.join(ENGINES)}")
    if bits not in (7, 8):
        raise UsageError(f"activations of {bits} bits cannot be had; choose 7 or 8")
    known = {name for name, _ in network.named_modules()} - {""}
    for name in float_modules:
        if name not in known:
            examples = ", ".join(name for name, _ in network.named_children())
            raise UsageError(f"'{name}' is no module of the network; it has {examples}")
    for frame in frames[:1]:
        network.check_size(*frame.shape[:2])
    names = list(float_modules)
    if network.head_kind == "bilinear":
        # The classifier is part of the body there.
        names += [name for name, m in network.named_modules() if m is network.last_layer()]
    recipe = Recipe(chosen, bits, tuple(dict.fromkeys(names)))
    check_machine(recipe, "this network")
    graph = graphs.build(network, recipe, frames, progress)
    quantized = FXNetwork(_deployed(network), graph, recipe)
    equal = [_equal_labels(network, quantized, graphs.as_input(f)) for f in frames[:_COMPARED]]
    quantized.calibration = {
        "frames": len(frames),
        "size": "{}x{}".format(*frames[0].shape[:2]),
        "method": "histogram",
        "equal_labels_percent": 100 * float(np.mean(equal)),
        "compared_frames": len(equal),
    }
    return quantized


def save_fx(network: FXNetwork, destination: Path, source: str = "") -> dict[str, Any]:
    """Write the folder ``destination``: see :mod:`edgeseg.compression.fx_folder`.

    Args:
        network: quantized.
        destination: folder.
        source: name of the folder of the calibration frames.

    Returns:
        What ``fx.json`` holds.

    Raises:
        UsageError: ``destination`` holds something else.
        InputError: it cannot be written to.
    """
    from safetensors.torch import save

    calibration = dict(network.calibration) | ({"source": source} if source else {})
    fields = {
        "network": network.structure.network,
        "structure": network.structure.to_dict(),
        "precision": "int8",
        "weights_name": network.provenance.get("weights_name", ""),
        "license": network.provenance.get("license", ""),
        "torch": torch.__version__,
        "created_by": f"edgeseg {__version__}",
        "calibration": calibration,
        "float_operations": float_operations(network),
    }
    return write_folder(destination, network.recipe, fields, save(all_tensors(network)))


def load_fx(name: str, path: Path) -> FXNetwork:
    """A quantized network from a folder of :func:`save_fx`, or from a published FX state dict.

    Args:
        name: ``enet``, ``erfnet``, ``bisenet`` or ``midenet``.
        path: folder, or file.

    Raises:
        InputError: there is no such folder or file.
        ArtefactError: damaged, float, of another network, or made by another torch.
        MissingDependencyError: this torch has no FX quantization, or not that engine.
    """
    if path.is_dir() or not path.exists():
        return _load_folder(name, path)
    tensors = read_published(path)
    graphs = graphs_module()
    found, fields = published_structure(path, tensors)
    _check_name(name, found, path)
    # All published ones come from engines that take seven bits.
    recipe = Recipe(default_engine(), 7, whole=True)
    network = _fresh(name, fields)
    graph = graphs.build(network, recipe, None)
    given = graphs.expanded(rename_published(path, tensors, network, graphs.attributes(graph)))
    expected = graphs.state(graph)
    for key, value in given.items():
        # Weights with one scale for all channels are a case of one scale each.
        if key.endswith((".scales", ".zero_points")) and key in expected and value.ndim == 0:
            given[key] = value.expand(expected[key].shape).contiguous()
    _check_tensors(path, given, expected)
    graphs.fill(graph, recipe, given)
    network.provenance = {"weights_name": path.stem, "license": ""}
    return FXNetwork(network, graph, recipe)


def _equal_labels(network: Network, quantized: FXNetwork, x: Tensor) -> float:
    known = network.structure.num_known
    with torch.inference_mode():
        ours, theirs = (m(x)[:, :known].argmax(1) for m in (quantized, network))
        return float((ours == theirs).float().mean())


def _load_folder(name: str, folder: Path) -> FXNetwork:
    document, recipe = read_manifest(folder)
    _check_name(name, document["network"], folder)
    check_machine(recipe, f"'{folder}'")
    graphs = graphs_module()
    path = folder / WEIGHTS
    given = read_weights(path).tensors
    try:
        spec = network_class(name).structure_class.from_dict(document["structure"])
    except ArtefactError as error:
        raise ArtefactError(f"'{folder / MANIFEST}' cannot be used: {error}") from None
    # A damaged structure must not fill the memory: a parameter takes at least a byte in the file.
    with torch.device("meta"):
        ghost = network_class(name)(spec)
    if sum(p.numel() for p in ghost.parameters()) > path.stat().st_size:
        raise ArtefactError(
            f"'{folder / MANIFEST}' describes a larger network than {WEIGHTS} holds; copy it "
            "again or quantize again"
        )
    unknown = set(recipe.float_modules) - {key for key, _ in ghost.named_modules()}
    if unknown:
        raise ArtefactError(f"'{folder / MANIFEST}' names no module of {name}; quantize again")
    network = _fresh(name, document["structure"])
    graph = graphs.build(network, recipe, None)
    quantized = FXNetwork(network, graph, recipe)
    made = f"{folder}' (torch {document.get('torch', 'unknown')}; here {torch.__version__}"
    _check_tensors(Path(made), given, all_tensors(quantized))
    body = {k.removeprefix(BODY): v for k, v in given.items() if k.startswith(BODY)}
    graphs.fill(graph, recipe, body)
    for prefix, module in {} if recipe.whole else head_layers(quantized.shell).items():
        part = {k.removeprefix(prefix): v for k, v in given.items() if k.startswith(prefix)}
        module.load_state_dict(part, assign=True)
    quantized.provenance = {k: str(document.get(k, "")) for k in ("weights_name", "license")}
    calibration = document.get("calibration")
    quantized.calibration = dict(calibration) if isinstance(calibration, dict) else {}
    return quantized


def _deployed(network: Network) -> Network:
    """The network without the heads that only training uses."""
    fields = network.structure.to_dict()
    if "auxiliary" not in fields:
        return network
    with torch.device("meta"):
        lean = type(network).from_dict(fields | {"auxiliary": False})
    keys = set(lean.state_dict())
    state = {k: v for k, v in network.state_dict().items() if k in keys}
    lean.load_state_dict(state, assign=True)
    lean.provenance = dict(network.provenance)
    return lean


def _fresh(name: str, structure: Mapping[str, Any]) -> Network:
    with torch.random.fork_rng(devices=[]):
        return network_class(name).from_dict(structure).eval()


def _check_name(name: str, found: str, path: Path) -> None:
    if found != name:
        raise ArtefactError(
            f"'{path}' holds {found[:40]}, not {name}; give {found[:40]} as the network, or another"
        )


def _check_tensors(path: Path, given: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise ArtefactError unless keys, shapes, types and values are such as a graph can have."""
    again = "quantize the float weights again"
    for what, keys in (
        ("lacks", expected.keys() - given),
        ("has no place for", given.keys() - expected),
    ):
        if keys:
            raise ArtefactError(f"'{path}' {what} '{min(keys)[:80]}'; {again}")
    for key, form in expected.items():
        value = given[key]
        if value.shape != form.shape or value.dtype != form.dtype:
            raise ArtefactError(
                f"'{path}' has '{key}' as {list(value.shape)} {value.dtype}, and "
                f"{list(form.shape)} {form.dtype} is needed; {again}"
            )
        right = bool(torch.isfinite(value).all()) if value.is_floating_point() else True
        leaf = key.rpartition(".")[2].rpartition("_scale_")
        if key.endswith((".scale", ".scales")) or leaf[1]:
            right = right and bool((value > 0).all())
        elif key.endswith(".running_var"):
            right = right and bool((value >= 0).all())
        elif "zero_point" in key:
            right = bool(((value >= -128) & (value <= 255)).all())
        if not right:
            raise ArtefactError(
                f"'{path}' has values in '{key}' that no calibration gives; {again}"
            )
