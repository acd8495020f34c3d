"""``edgeseg eval --merge``: the figures of all shards, and whether they are of what was named."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeseg.cli.eval_targets import parse_scorers
from edgeseg.cli.sizes import parse_size

if TYPE_CHECKING:
    from edgeseg.evaluation.state import EvaluationState, Identity

__all__ = ["merged"]


def merged(merge: list[str], rest: list[str], options: Mapping[str, Any]) -> "EvaluationState":
    """The state of all files: ``--merge A B``, ``--merge A,B`` and ``--merge A --merge B`` are one.

    Args:
        merge: what ``--merge`` names.
        rest: the arguments: more files, and the network or bundle that the files must be of.
        options: of ``eval``, those that were given: they change nothing any more, so they must be
            what the files were made with.

    Raises:
        UsageError: the files are no whole, or of something else than what was named.
    """
    from edgeseg.evaluation.state import merge_files
    from edgeseg.networks.zoo import NETWORKS

    targets = [name for name in rest if name in NETWORKS or Path(name).is_dir()]
    paths = [Path(name) for entry in merge for name in _split_list(entry)]
    state = merge_files([*paths, *(Path(name) for name in rest if name not in targets)])
    for name in targets:
        _check_target(name, state.identity)
    for option, value in options.items():
        _check_option(option, value, state.identity)
    return state


def _split_list(entry: str) -> list[str]:
    return [entry] if Path(entry).exists() else [part for part in entry.split(",") if part]


def _check_target(name: str, identity: "Identity") -> None:
    from edgeseg.bundle import Bundle
    from edgeseg.errors import UsageError
    from edgeseg.networks.zoo import NETWORKS

    if name in NETWORKS and not (Path(name) / "bundle.json").is_file():
        if name != identity.network:
            raise UsageError(
                f"the files to merge are of {identity.network}, not of {name}; leave it out or "
                "give others"
            )
    elif Bundle.open(name).network_sha256 != identity.artefact:
        raise UsageError(
            f"the files to merge are not of the bundle '{name}'; leave it out or give others"
        )


def _check_option(option: str, value: Any, identity: "Identity") -> None:
    from edgeseg.errors import UsageError

    asked: Any
    have: Any
    if option == "--weights":
        asked, have = _digest(value), identity.artefact
    elif option == "--dataset":
        kind, _, folder = value.partition(":")
        asked, have = (Path(folder).name if kind == "anomaly" else value), identity.dataset
    elif option in ("--scorer", "--components") and identity.kind != "anomaly":
        return  # labelled sets have none, whatever is asked for
    elif option == "--scorer":
        asked = ",".join(sorted(set(parse_scorers(value))))
        have = ",".join(sorted(s.name for s in identity.scorers))
    elif option == "--temperature":
        asked, have = value, next((s.temperature for s in identity.scorers), value)
    elif option == "--size":
        asked, have = parse_size(value), (identity.height, identity.width)
    elif option == "--split":
        asked, have = value, identity.split or value
    elif option == "--backend":
        asked, have = value, identity.backend if value != "auto" else value
    else:
        names = {"--score-type": "score_dtype"}
        asked, have = value, getattr(identity, names.get(option, option.removeprefix("--")))
    if asked != have:
        shown = "x".join(map(str, have)) if isinstance(have, tuple) else have
        told = f"{option} {value}" if value is not True else option
        found = "have none" if have is False else f"were made with {str(shown)[:40]}"
        raise UsageError(
            f"{told} does not fit the files to merge, which {found}; leave it out or give others"
        )


def _digest(weights: Path) -> str:
    from edgeseg.compression.fx_folder import MANIFEST
    from edgeseg.errors import InputError

    path = weights / MANIFEST if weights.is_dir() else weights
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(
            f"--weights '{path}' cannot be read ({error.strerror}); check the path"
        ) from None
