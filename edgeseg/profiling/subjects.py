"""What is profiled: a bundle, or a network of which only the layers are known.

Layers of the published networks, with 20 outputs, lie beside this module as JSON, written by
``tools/make_layer_tables.py`` from their exported float32 bodies: counts and estimates of a
network need neither torch nor weights.
"""

import json
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from edgeseg.bundle import Bundle
from edgeseg.errors import ArtefactError, UsageError
from edgeseg.profiling.counts import Counts, HeadShape, count
from edgeseg.profiling.fusion import layers_of
from edgeseg.profiling.layers import LayerGraph
from edgeseg.profiling.onnx_reader import read_onnx
from edgeseg.runtime.session import default_scorer
from edgeseg.scoring.scorers import valid_scorers

__all__ = ["Subject", "from_bundle", "from_table", "table_path"]


@dataclass(frozen=True, slots=True)
class Subject:
    """Something with counts."""

    label: str
    """What the user called it."""
    network: str
    graph: LayerGraph
    head: HeadShape
    params: int
    macs_network: int
    """Of the network as published, at :attr:`LayerGraph.base_size`. INT8 bodies may do more, where
    a pooling or a concatenation became a convolution."""
    scorers: tuple[str, ...]
    scorer: str
    """The default one."""
    divisor: int = 8
    file_bytes: int = 0
    bundle: Bundle | None = None

    @property
    def precision(self) -> str:
        """``float32``, ``float16`` or ``int8``."""
        return self.graph.precision

    @property
    def size(self) -> str:
        """``HxW``."""
        return "{}x{}".format(*self.graph.size)

    def choose_scorer(self, scorer: str | None) -> str:
        """``scorer``, or the default one; UsageError where it does not have it."""
        chosen = scorer or self.scorer
        if chosen not in self.scorers:
            raise UsageError(
                f"'{self.label}' has no scorer '{chosen}'; it has {', '.join(self.scorers)}"
            )
        return chosen

    def counts(self, scorer: str) -> Counts:
        """Totals at the subject's size."""
        return count(self.graph, self.head, scorer, params=self.params, file_bytes=self.file_bytes)

    def at(self, precision: str | None, size: tuple[int, int] | None) -> "Subject":
        """Another precision or size, for an estimate.

        Raises:
            UsageError: a size that the network cannot take, or a precision that is not to be had.
        """
        graph = self.graph
        if precision is not None:
            graph = graph.at_precision(precision)
        if size is not None:
            graph = graph.resized(*size, divisor=self.divisor)
        if graph is self.graph:
            return self
        changed = graph.size != self.graph.size or graph.precision != self.graph.precision
        return replace(self, graph=graph, file_bytes=0 if changed else self.file_bytes)


def from_bundle(bundle: Bundle, label: str | None = None) -> Subject:
    """A bundle's own graph and head.

    Raises:
        ArtefactError: the graph cannot be counted.
    """
    manifest = bundle.manifest
    try:
        graph = layers_of(read_onnx(bundle.body_path), manifest.precision)
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ArtefactError(
            f"'{bundle.body_path}' cannot be counted ({error}); export the bundle again"
        ) from None
    head = HeadShape.of(bundle.head)
    told = manifest.counts
    # BatchNorms are folded in the graph; bundles of others may not say how many parameters it had.
    own = sum(layer.weights for layer in graph.layers) + head.weights
    macs = sum(graph.macs(layer) for layer in graph.layers) + head.macs(graph.size)
    try:
        params, published = int(told.get("params", own)), int(told.get("macs", macs))
    except (TypeError, ValueError):
        raise ArtefactError(
            f"bundle '{bundle.path}' counts its parameters or operations with something that is "
            "no number; export it again"
        ) from None
    return Subject(
        label=label or str(bundle.path),
        network=manifest.network,
        graph=graph,
        head=head,
        params=params,
        macs_network=published,
        scorers=tuple(manifest.scorers),
        scorer=default_scorer(bundle),
        divisor=32 if manifest.network == "bisenet" else 8,
        file_bytes=bundle.file_bytes,
        bundle=bundle,
    )


def from_table(network: str) -> Subject:
    """A published network, in float32 at 512x1024, with a void output.

    Raises:
        ArtefactError: the table is missing or damaged.
    """
    path = table_path(network)
    try:
        document = json.loads(path.read_bytes())
        graph = LayerGraph.from_document(document)
        told = graph.provenance
        head = HeadShape(**told["head"])
        return Subject(
            label=network,
            network=network,
            graph=graph,
            head=head,
            params=told["params"],
            macs_network=told["macs"],
            scorers=valid_scorers(told["void_index"]),
            scorer="void",
            divisor=told["size_divisor"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtefactError(
            f"the layers of {network} in '{path}' cannot be read ({error}); install edgeseg again"
        ) from None


def table_path(network: str) -> Path:
    """Where a network's layers lie."""
    folder = Path(str(resources.files("edgeseg"))) / "profiling" / "graphs"
    return folder / f"{network}.json"
