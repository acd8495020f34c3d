"""The bill of materials of a wheel."""

import importlib.metadata
import json
import struct
import sys
import zipfile

import pytest

from tests.conftest import ROOT

pytest.importorskip("cyclonedx.validation.json")
sys.path.insert(0, str(ROOT / "tools"))

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import make_sbom

TERMS = "research only"
METADATA = """Metadata-Version: 2.4
Name: edgeseg
Version: 9.9
License-Expression: Apache-2.0
Requires-Dist: numpy>=1
Requires-Dist: Rich>=1
Requires-Dist: cryptography>=1; extra == "sign"
Requires-Dist: no-such-package-at-all>=1; extra == "gpu"
Requires-Dist: edgeseg[sign]; extra == "all"
Requires-Dist: onnx>=1; platform_system == "Plan9"
Provides-Extra: sign
Provides-Extra: gpu
Provides-Extra: all
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    path = tmp_path_factory.mktemp("dist") / "edgeseg-9.9-py3-none-any.whl"
    metadata = {"__metadata__": {"weights_name": "w", "network": "enet", "license": TERMS}}
    header = json.dumps(metadata).encode()
    manifest = {"network": "enet", "weights_name": "w", "license": TERMS}
    # Any shared object of this interpreter will do.
    library = next((ROOT / "edgeseg" / "lib").glob("libedgeseg.so.*"), None)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("edgeseg-9.9.dist-info/METADATA", METADATA)
        archive.writestr(
            "edgeseg/weights/enet.safetensors", struct.pack("<Q", len(header)) + header
        )
        archive.writestr("edgeseg/bundles/ready/bundle.json", json.dumps(manifest))
        if library is not None:
            archive.write(library, "edgeseg/lib/libedgeseg.so.0")
    return path


@pytest.fixture(scope="module")
def document(wheel):
    return json.loads(make_sbom.bom_text(make_sbom.read_wheel(wheel)))


def component(document, name):
    return next(c for c in document["components"] if c["name"] == name)


def extras(part):
    return [p["value"] for p in part["properties"] if p["name"] == "edgeseg:extra"]


def test_the_document_fits_the_schema(document):
    assert document["specVersion"] == "1.6"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is None
    broken = {**document, "components": [{"name": "x", "type": "no such type"}]}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(broken)) is not None


def test_packages_have_installed_versions_licences_and_who_wants_them(document):
    numpy = component(document, "numpy")
    assert numpy["version"] == importlib.metadata.version("numpy")
    assert numpy["purl"].startswith("pkg:pypi/numpy@")
    assert numpy["licenses"]
    assert extras(numpy) == ["always"]
    assert extras(component(document, "cryptography")) == ["all", "sign"]
    # What is not asked for on this platform is not listed.
    assert "onnx" not in {c["name"] for c in document["components"]}


def test_what_comes_with_a_package_is_listed_and_tied_to_it(document):
    edges = {d["ref"]: d.get("dependsOn", []) for d in document["dependencies"]}
    assert "markdown-it-py" in edges["rich"]
    assert extras(component(document, "markdown-it-py")) == ["always"]
    assert {"numpy", "rich", "cryptography"} <= set(edges["edgeseg"])
    assert "markdown-it-py" not in edges["edgeseg"]


def test_a_package_that_is_not_installed_has_no_version_and_no_licence(document):
    absent = component(document, "no-such-package-at-all")
    assert "version" not in absent
    assert "licenses" not in absent


def test_weights_and_bundles_have_their_terms(document):
    for name in ("edgeseg/weights/enet.safetensors", "edgeseg/bundles/ready"):
        part = component(document, name)
        assert part["type"] == "machine-learning-model"
        assert part["licenses"][0]["license"]["name"] == TERMS
        assert len(part["hashes"][0]["content"]) == 64


def test_the_c_library_says_what_it_links(document):
    found = [c for c in document["components"] if c["name"] == "edgeseg/lib/libedgeseg.so.0"]
    if not found:
        pytest.skip("the C library is not built")
    assert "libc.so" in found[0]["description"]
    assert "ONNX Runtime" in found[0]["description"]


def test_the_same_wheel_gives_the_same_document(wheel, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    first, second = (make_sbom.bom_text(make_sbom.read_wheel(wheel)) for _ in range(2))
    assert first == second
    assert '"timestamp": "2023-11-14T22:13:20+00:00"' in first


def test_both_files_lie_beside_the_wheel(wheel, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make_sbom.py", str(wheel)])
    assert make_sbom.main() == 0
    text = (wheel.parent / "edgeseg-9.9-py3-none-any.licenses.md").read_text()
    assert f"| `edgeseg/weights/enet.safetensors` | weights w of enet | {TERMS} |" in text
    assert (
        "| no-such-package-at-all | - | not installed where this list was made | extra gpu" in text
    )
    assert (wheel.parent / "edgeseg-9.9-py3-none-any.cdx.json").is_file()
    assert capsys.readouterr().out.count("wrote ") == 2


@pytest.mark.parametrize(
    ("stated", "licence"),
    [
        ({"License-Expression": "MIT OR Apache-2.0", "License": "other"}, "MIT OR Apache-2.0"),
        ({"License": "3-Clause BSD License"}, "BSD-3-Clause"),
        ({"Classifier": "License :: OSI Approved :: MIT License"}, "MIT"),
        ({"Classifier": "License :: OSI Approved :: BSD License"}, "BSD License"),
        ({"License": "Terms of Nobody\n\nand a page of text"}, "Terms of Nobody"),
        ({}, "not stated"),
    ],
)
def test_licences_are_spdx_where_they_can_be(stated, licence):
    message = make_sbom.Message()
    for key, value in stated.items():
        message[key] = value
    assert make_sbom.licence_of(message) == licence
