"""``edgeseg weights``: which weights there are, and getting those that others publish."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from edgeseg.networks.download import Progress
    from edgeseg.networks.published import Published

__all__ = ["describe_weights", "fetch_command", "list_command", "weights_app"]

weights_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="List the weights that there are, and fetch those that others publish.",
)


def describe_weights() -> dict[str, Any]:
    """The document that ``edgeseg weights list --json`` prints; asks no server.

    ``path`` is where a file is, or null; a cached one was verified just now. ``cached`` is null
    for weights that come with the package.
    """
    from edgeseg.networks.published import PUBLISHED, weights_folder
    from edgeseg.networks.zoo import NETWORKS, ZOO, shipped_metadata, shipped_weights

    rows: list[dict[str, Any]] = []
    for network in NETWORKS:
        shipped, metadata = shipped_weights(network), shipped_metadata(network)
        if shipped is not None:
            rows.append(
                {
                    "name": metadata.get("weights_name") or shipped.stem,
                    "network": network,
                    "source": "shipped",
                    "about": f"{ZOO[network].title}, comes with edgeseg",
                    "terms": metadata.get("license"),
                    "address": None,
                    "git_blob": None,
                    "cached": None,
                    "path": str(shipped),
                }
            )
        for entry in PUBLISHED.values():
            if entry.network == network:
                path = entry.cached()
                rows.append(
                    {
                        "name": entry.name,
                        "network": network,
                        "source": "published",
                        "about": entry.about,
                        "terms": entry.terms,
                        "address": entry.address,
                        "git_blob": entry.blob,
                        "cached": path is not None,
                        "path": str(path) if path else None,
                    }
                )
    return {"schema": "edgeseg.weights/1", "cache": str(weights_folder()), "weights": rows}


@weights_app.command("list")
def list_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List shipped and published weights: network, terms, address, and where they are cached."""
    document = describe_weights()
    if as_json:
        print(json.dumps(document, indent=1))
        return
    # Lines, not a table: addresses are to be copied whole.
    for row in document["weights"]:
        state = {None: "shipped", True: "cached", False: "not fetched"}[row["cached"]]
        print(f"{row['name']} ({row['network']}, {state}): {row['about']}")
        for key in ("terms", "address", "path"):
            if row[key]:
                print(f"  {key:<8} {row[key]}")
    print("'edgeseg weights fetch NAME' downloads published ones, for --weights of other commands")


@weights_app.command("fetch")
def fetch_command(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="One of the published in 'edgeseg weights list'.")
    ],
    accept_terms: Annotated[
        bool, typer.Option("--accept-terms", help="Accept the terms without being asked.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Download published weights into the cache, verify them and print their path.

    Shows size and terms first and asks once. A broken download goes on where it stopped. The
    environment's https_proxy and no_proxy hold; EDGESEG_WEIGHTS_MIRROR names another server with
    the same paths.
    """
    from edgeseg.networks.published import find_published

    entry = find_published(name)
    path = entry.cached()
    downloaded = path is None
    if path is None:
        _agree(entry, accept_terms)
        with _progress() as report:
            path = entry.fetch(report)
    if as_json:
        document = {
            "schema": "edgeseg.weights/1",
            "name": entry.name,
            "network": entry.network,
            "terms": entry.terms,
            "address": entry.address,
            "git_blob": entry.blob,
            "size_bytes": path.stat().st_size,
            "path": str(path),
            "downloaded": downloaded,
        }
        print(json.dumps(document, indent=1))
        return
    told = "downloaded and verified" if downloaded else "already here, verified"
    print(
        f"edgeseg: {name} is {told}; use it as in 'edgeseg eval {entry.network} --weights PATH'",
        file=sys.stderr,
    )
    print(path)


def _agree(entry: "Published", accepted: bool) -> None:
    """Show size and terms, and return once the user accepts."""
    from edgeseg.errors import UsageError

    if not accepted and not (_is_terminal(sys.stdin) and _is_terminal(sys.stderr)):
        raise UsageError(
            f"'{entry.name}' has terms to accept ({entry.terms}) and there is no terminal to ask "
            "on; add --accept-terms if you accept them"
        )
    address, size = entry.address, entry.size()
    told = "unknown" if size is None else f"{size / 1e6:.1f} MB"
    for line in (f"{entry.name}: {entry.about}", f"  from  {address}", f"  size  {told}"):
        print(line, file=sys.stderr)
    print(f"  terms {entry.terms}", file=sys.stderr)
    if accepted:
        return
    print("Accept the terms and download? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError(f"the terms of '{entry.name}' were not accepted; nothing was downloaded")


def _is_terminal(stream: Any) -> bool:
    return stream is not None and not stream.closed and bool(stream.isatty())


@contextmanager
def _progress() -> "Iterator[Progress | None]":
    """A progress bar on stderr, on a terminal only; yields the callback or ``None``."""
    if not _is_terminal(sys.stderr):
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    with Progress(
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("download", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
