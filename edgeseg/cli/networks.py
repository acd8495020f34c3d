"""``edgeseg networks``: what can be built, trained and run."""

import json
from typing import Annotated, Any

import typer

__all__ = ["describe_networks", "networks_command"]


def describe_networks() -> dict[str, Any]:
    """The document that ``edgeseg networks --json`` prints; needs no torch."""
    from edgeseg.networks.zoo import NETWORKS, ZOO, counts, shipped_metadata, shipped_weights

    rows = []
    for name in NETWORKS:
        weights, terms = shipped_weights(name), shipped_metadata(name)
        table = counts(name)
        rows.append(
            {
                "network": name,
                "title": ZOO[name].title,
                "paper": ZOO[name].paper,
                "params": table["params"],
                "params_training": table["params_training"],
                "macs": table["macs"],
                "macs_size": table["macs_size"],
                "size_divisor": table["size_divisor"],
                "num_outputs": table["num_outputs"],
                "head": table["head"],
                "weights": weights.name if weights else None,
                "weights_name": terms.get("weights_name"),
                "weights_license": terms.get("license"),
            }
        )
    return {"schema": "edgeseg.networks/1", "networks": rows}


def networks_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the networks: parameters, MACs at 512x1024, heads, shipped weights and their terms."""
    document = describe_networks()
    if as_json:
        print(json.dumps(document, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    size = document["networks"][0]["macs_size"]
    table = Table(title=f"Networks (20 outputs, MACs at {size}, training-only heads not counted)")
    table.add_column("network")
    for column in ("parameters", "MACs"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("head", "sides", "shipped weights"):
        table.add_column(column)
    for row in document["networks"]:
        table.add_row(
            row["network"],
            f"{row['params']:,}",
            f"{row['macs'] / 1e9:.2f} G",
            row["head"],
            f"n x {row['size_divisor']}",
            row["weights_name"] or row["weights"] or "none",
        )
    console = Console()
    console.print(table)
    for row in document["networks"]:
        if row["weights_license"]:
            console.print(f"{row['weights_name']}: {row['weights_license']}", highlight=False)
    for row in document["networks"]:
        console.print(f"{row['title']}: {row['paper']}", style="dim", highlight=False)
