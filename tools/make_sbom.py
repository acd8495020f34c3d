"""What a wheel is made of and needs, with the terms: CycloneDX 1.6 and a list for people.

    python tools/make_sbom.py dist/edgeseg-*.whl

Writes ``NAME.cdx.json`` and ``NAME.licenses.md`` beside the wheel: packages that it needs at run
time, by extra, with versions and licences from the metadata of those installed here; the shared
objects in it with what they link; weights and bundles in it with their terms. The document is held
against CycloneDX' schema before it is written. SOURCE_DATE_EPOCH sets its date.
"""

import argparse
import hashlib
import importlib.metadata
import json
import os
import struct
import subprocess
import sys
import tempfile
import uuid
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email import message_from_bytes
from email.message import Message
from pathlib import Path

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output import make_outputter
from cyclonedx.schema import OutputFormat, SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

NAME = "edgeseg"
VERSION = SchemaVersion.V1_6
UNKNOWN = "not stated"
ABSENT = "not installed where this list was made"
# What packages say instead of an SPDX identifier.
SPDX = {
    "Apache 2.0": "Apache-2.0",
    "License :: OSI Approved :: Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "License :: OSI Approved :: MIT License": "MIT",
    "ISC License": "ISC",
    "3-Clause BSD License": "BSD-3-Clause",
}


@dataclass
class Part:
    """Something in the wheel, or something that it needs."""

    name: str
    version: str | None
    terms: str
    kind: ComponentType = ComponentType.LIBRARY
    sha256: str | None = None
    about: str = ""
    extras: set[str] = field(default_factory=set)
    """Of the wheel; ``""`` stands for every installation."""
    needs: set[str] = field(default_factory=set)


@dataclass
class Wheel:
    """A wheel and its parts."""

    path: Path
    metadata: Message
    packages: dict[str, Part]
    """Everything that it needs at run time, whatever needs it, by canonical name."""
    direct: set[str]
    """Names of those that it asks for itself."""
    inside: list[Part]

    @property
    def sha256(self) -> str:
        """Of the file."""
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def read_wheel(path: Path) -> Wheel:
    """Look into a wheel, and up what it needs."""
    with zipfile.ZipFile(path) as archive:
        names = sorted(archive.namelist())
        metadata = next(n for n in names if n.endswith(".dist-info/METADATA"))
        head = message_from_bytes(archive.read(metadata))
        inside = []
        for name in names:
            content = archive.read(name) if name.endswith((".safetensors", "bundle.json")) else b""
            if ".so" in Path(name).suffixes:
                inside.append(_shared_object(name, archive.read(name), head))
            elif name.startswith("edgeseg/weights/") and name.endswith(".safetensors"):
                inside.append(_weights(name, content))
            elif name.endswith("/bundle.json"):
                inside.append(_bundle(name, content))
    return Wheel(path, head, *packages(head), inside)


def packages(head: Message) -> tuple[dict[str, Part], set[str]]:
    """See the fields of :class:`Wheel`."""
    found: dict[str, Part] = {}
    direct: set[str] = set()
    required = [Requirement(text) for text in head.get_all("Requires-Dist", [])]
    for extra in ("", *head.get_all("Provides-Extra", [])):
        direct |= _follow(_chosen(required, {extra}), extra, required, found, set())
    for part in found.values():
        if "" in part.extras:
            part.extras = {""}
    return found, direct


def _follow(
    requirements: Iterable[Requirement],
    extra: str,
    own: list[Requirement],
    found: dict[str, Part],
    seen: set[tuple[str, frozenset[str]]],
) -> set[str]:
    """Add what ``requirements`` bring; returns the names of the direct ones."""
    direct = set()
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if name == NAME:  # edgeseg[opencv] in another extra
            if key not in seen:
                seen.add(key)
                direct |= _follow(_chosen(own, requirement.extras), extra, own, found, seen)
            continue
        direct.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            found.setdefault(name, Part(name, None, ABSENT)).extras.add(extra)
            continue
        part = found.setdefault(
            name, Part(name, distribution.version, licence_of(distribution.metadata))
        )
        part.extras.add(extra)
        if key not in seen:
            seen.add(key)
            needed = [Requirement(text) for text in distribution.requires or []]
            chosen = _chosen(needed, requirement.extras or {""})
            part.needs |= _follow(chosen, extra, own, found, seen)
    return direct


def _chosen(requirements: Iterable[Requirement], extras: Iterable[str]) -> Iterator[Requirement]:
    """Those that hold on this platform with one of ``extras``."""
    for requirement in requirements:
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras):
            yield requirement


def licence_of(metadata: Message) -> str:
    """SPDX expression where a package states one, else what it says."""
    expression = metadata.get("License-Expression")
    if expression:
        return str(expression)
    stated = [line.strip() for line in (metadata.get("License") or "").splitlines()[:1]]
    classifiers = [c for c in metadata.get_all("Classifier", []) if c.startswith("License ::")]
    for text in (*stated, *classifiers):
        if text in SPDX:
            return SPDX[text]
    last = [text.rsplit(" :: ", 1)[-1] for text in classifiers]
    return next((text for text in (*stated, *last) if text), UNKNOWN)


def _shared_object(name: str, content: bytes, head: Message) -> Part:
    with tempfile.NamedTemporaryFile(suffix=".so") as file:
        file.write(content)
        file.flush()
        told = subprocess.run(
            ["readelf", "--dynamic", file.name], capture_output=True, text=True, check=True
        ).stdout
    linked = [line.split("[")[1].split("]")[0] for line in told.splitlines() if "(NEEDED)" in line]
    about = f"C, no code of others; links {', '.join(sorted(linked)) or 'nothing'}"
    if "libedgeseg" in name:
        about += "; loads ONNX Runtime or OpenVINO when it runs"
    return Part(
        name, head["Version"], str(head["License-Expression"]), sha256=_sha256(content), about=about
    )


def _weights(name: str, content: bytes) -> Part:
    (length,) = struct.unpack_from("<Q", content)
    stated = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    about = f"weights {stated.get('weights_name', '?')} of {stated.get('network', '?')}"
    terms = stated.get("license", UNKNOWN)
    return Part(name, None, terms, ComponentType.MACHINE_LEARNING_MODEL, _sha256(content), about)


def _bundle(name: str, content: bytes) -> Part:
    manifest = json.loads(content)
    about = f"bundle of {manifest['network']}, weights {manifest['weights_name']}; its bundle.json"
    terms = manifest["license"] or UNKNOWN
    kind = ComponentType.MACHINE_LEARNING_MODEL
    return Part(str(Path(name).parent), None, terms, kind, _sha256(content), about)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def bom_text(wheel: Wheel) -> str:
    """The CycloneDX document.

    Raises:
        ValueError: it does not fit the schema.
    """
    bom = Bom()
    head = wheel.metadata
    root = _component(
        Part(NAME, head["Version"], str(head["License-Expression"]), sha256=wheel.sha256)
    )
    bom.metadata.component = root
    bom.serial_number = uuid.uuid5(uuid.NAMESPACE_URL, f"{wheel.path.name}#{wheel.sha256}")
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    now = datetime.now(timezone.utc).replace(microsecond=0)
    bom.metadata.timestamp = datetime.fromtimestamp(int(epoch), timezone.utc) if epoch else now
    made = {name: _component(part) for name, part in wheel.packages.items()}
    inside = [_component(part) for part in wheel.inside]
    for component in (*made.values(), *inside):
        bom.components.add(component)
    bom.register_dependency(root, [*inside, *(made[name] for name in wheel.direct)])
    for name, part in wheel.packages.items():
        bom.register_dependency(made[name], [made[n] for n in part.needs])
    text = make_outputter(bom, OutputFormat.JSON, VERSION).output_as_string(indent=1)
    problem = JsonStrictValidator(VERSION).validate_str(text)
    if problem is not None:
        raise ValueError(f"the document does not fit CycloneDX' schema: {problem}")
    return text


def _component(part: Part) -> Component:
    packaged = not part.sha256 and part.kind is ComponentType.LIBRARY
    purl = PackageURL("pypi", None, part.name, part.version) if packaged else None
    extras = sorted(extra or "always" for extra in part.extras)
    return Component(
        name=part.name,
        version=part.version,
        type=part.kind,
        bom_ref=part.name,
        purl=purl,
        description=part.about or None,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=part.sha256)] if part.sha256 else [],
        # None for what is not known: a licence by that name is not one.
        licenses=(
            [LicenseFactory().make_from_string(part.terms)]
            if part.terms not in (UNKNOWN, ABSENT)
            else []
        ),
        properties=[Property(name="edgeseg:extra", value=extra) for extra in extras],
    )


def licence_list(wheel: Wheel) -> str:
    """The same as Markdown."""
    head = wheel.metadata
    lines = [
        f"# Licences of {wheel.path.name}",
        "",
        f"The code of {NAME} {head['Version']} is under {head['License-Expression']}. Packages are "
        "those installed where this list was made; pip may choose other versions.",
        "",
        "## In the wheel",
        "",
        "| file | what | terms |",
        "|---|---|---|",
        *(f"| `{part.name}` | {part.about} | {part.terms} |" for part in wheel.inside),
        "",
        "## Needed at run time",
        "",
        "| package | version | licence | for |",
        "|---|---|---|---|",
    ]
    for name, part in sorted(wheel.packages.items()):
        extras = sorted(part.extras)
        told = "every installation" if extras == [""] else f"extra {', '.join(extras)}"
        lines.append(f"| {name} | {part.version or '-'} | {part.terms} | {told} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("wheels", metavar="WHEEL", type=Path, nargs="+")
    for path in parser.parse_args().wheels:
        wheel = read_wheel(path)
        for suffix, text in ((".cdx.json", bom_text(wheel)), (".licenses.md", licence_list(wheel))):
            out = path.with_name(path.stem + suffix)
            out.write_text(text.rstrip() + "\n", encoding="utf-8")
            print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
