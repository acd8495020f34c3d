"""``edgeseg networks`` shows the terms of the weights that come along."""

import json
import sys

import pytest

from edgeseg.networks.zoo import NETWORKS, shipped_metadata


@pytest.mark.parametrize("as_json", [False, True])
def test_the_terms_of_all_shipped_weights_are_shown(as_json, monkeypatch, capsys):
    from edgeseg.cli import main

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "argv", ["edgeseg", "networks", *(["--json"] if as_json else [])])
    with pytest.raises(SystemExit) as caught:
        main()
    assert not caught.value.code
    out = capsys.readouterr().out
    stated = {n: shipped_metadata(n) for n in NETWORKS if shipped_metadata(n)}
    assert stated
    if as_json:
        rows = {row["network"]: row for row in json.loads(out)["networks"]}
        for name, terms in stated.items():
            assert rows[name]["weights_license"] == terms["license"]
    else:
        for terms in stated.values():
            assert f"{terms['weights_name']}: {terms['license']}" in out
