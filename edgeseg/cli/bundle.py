"""``edgeseg bundle``: signing bundles, and checking that they are what was signed."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

__all__ = ["bundle_app", "keygen_command", "sign_command", "verify_command"]

bundle_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Sign a bundle, and check that every file of it is what was signed.",
)

BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="Bundle folder.")]
Passphrase = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file",
        metavar="FILE",
        help="Its first line is the private key's passphrase.",
        show_default="EDGESEG_KEY_PASSPHRASE, else none",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@bundle_app.command("keygen")
def keygen_command(
    key: Annotated[
        Path,
        typer.Argument(metavar="KEY.pem", help="Private key to write; beside it KEY.pub.pem."),
    ],
    passphrase_file: Passphrase = None,
    as_json: AsJson = False,
) -> None:
    """Make an ed25519 key pair: the private one is readable for you alone.

    Neither file is ever overwritten.
    """
    from edgeseg.runtime.signing_keys import make_keys

    public, key_id = make_keys(key, _passphrase(passphrase_file))
    _tell(
        as_json and "keygen",
        {"private_key": str(key), "public_key": str(public), "key_id": key_id},
        f"key {key_id}: '{key}' signs, keep it secret; '{public}' verifies",
    )


@bundle_app.command("sign")
def sign_command(
    bundle: BundleArgument,
    key: Annotated[
        Path, typer.Option("--key", metavar="FILE", help="Private ed25519 key, PEM (PKCS #8).")
    ],
    passphrase_file: Passphrase = None,
    as_json: AsJson = False,
) -> None:
    """Sign every file that is in the bundle now, into signature.json.

    Engines for TensorRT are covered where they were built before: 'run --require-signature' uses
    no others.
    """
    from edgeseg.runtime.signing import sign_bundle

    found = sign_bundle(bundle, key, _passphrase(passphrase_file))
    _tell(
        as_json and "sign",
        {"bundle": str(bundle), "key_id": found.key_id, "files": list(found.files)},
        f"signed {len(found.files)} files of '{bundle}' with key {found.key_id}",
    )


@bundle_app.command("verify")
def verify_command(
    bundle: BundleArgument,
    key: Annotated[Path, typer.Option("--key", metavar="PUB", help="Public ed25519 key, PEM.")],
    as_json: AsJson = False,
) -> None:
    """Check that a bundle is what was signed; exit code 4 where it is not.

    Files that were added, removed or changed count. Engines that TensorRT built later do not: they
    are named, and 'run --require-signature' does not use them.
    """
    from edgeseg.runtime.signing import verify_bundle

    found = verify_bundle(bundle, key)
    text = f"'{bundle}' is what key {found.key_id} signed ({len(found.files)} files)"
    if found.uncovered:
        text += f"; not covered: {', '.join(found.uncovered)}"
    document = {
        "bundle": str(bundle),
        "key_id": found.key_id,
        "files": list(found.files),
        "uncovered": list(found.uncovered),
    }
    _tell(as_json and "verify", document, text)


def _passphrase(file: Path | None) -> bytes | None:
    """Never from the command line, which other users of the machine can read."""
    from edgeseg.errors import InputError, UsageError

    if file is None:
        text = os.environ.get("EDGESEG_KEY_PASSPHRASE")
        return text.encode() if text else None
    try:
        first = file.read_bytes().split(b"\n", 1)[0].rstrip(b"\r")
    except OSError as error:
        raise InputError(
            f"--passphrase-file '{file}' cannot be read ({error.strerror}); check the path"
        ) from None
    if not first:
        raise UsageError(f"--passphrase-file '{file}' has no passphrase in its first line")
    return first


def _tell(json_of: str | Literal[False], document: dict[str, Any], text: str) -> None:
    if json_of:
        text = json.dumps({"schema": f"edgeseg.bundle-{json_of}/1", **document}, indent=1)
    print(text)
