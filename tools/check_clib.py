"""Run libedgeseg under sanitizers, valgrind and a counter of allocations, or against Python.

    python tools/check_clib.py [address] [thread] [valgrind] [allocations] [--engines fake,...]
    python tools/check_clib.py equality --data DIR [--bundle DIR ...] [--every N] [--json FILE]

Without a name, all but ``equality``: that runs the frames of RoadAnomaly21 through the C program,
through libedgeseg from Python and through the engines' Python packages, and `edgeseg eval` by both
paths; class maps and scores must be equal bit for bit, the figures to the last digit.

The others build the library's sources together with tests/clib/exercise.c in a
temporary folder. ``fake`` is a small engine that the tests bring along: it lets a checker see the
library alone. The installed engines can be named too; what they do wrong or allocate is told apart
from what the library does. ThreadSanitizer and valgrind take the fake engine only: they know
nothing of the locks in libraries that were built without them, or of the newest instructions.

Prints one line per check and engine; exits 1 where one found something, and 0 where a tool is
missing, which it says.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CLIB, NATIVE, TESTS = (ROOT / p for p in ("edgeseg/clib", "edgeseg/scoring/native", "tests/clib"))
FLAGS = ["-std=gnu11", "-g", "-O1", "-fno-omit-frame-pointer"]
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
    "valgrind": [],
    "allocations": [],
}
FRAMES = 50
# Leaks of the engines, at their exit, are theirs. RTLD_NODELETE keeps their names readable.
ENGINE_LEAKS = "leak:libonnxruntime\nleak:libopenvino\nleak:libtbb\n"
# The last one: OpenVINO's threads (TBB) load a library in a way that this sanitizer cannot follow.
MISSING = (
    "cannot find -l",
    "unrecognized",
    "not found",
    "unexpected memory mapping",
    "RTLD_DEEPBIND flag which is incompatible",
)


def sources() -> list[str]:
    kernels = (p for p in NATIVE.glob("*.c") if p.name != "histogram.c")
    return [str(p) for p in (*sorted(CLIB.glob("*.c")), *sorted(kernels))]


def run(command: list[str], **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **env}
    )


def compile_c(output: Path, *arguments: str) -> None:
    compiler = os.environ.get("CC", "cc").split()
    includes = [f"-I{folder}" for folder in (ROOT / "edgeseg/include", CLIB, NATIVE)]
    done = run([*compiler, *FLAGS, *includes, *arguments, "-o", str(output)])
    if done.returncode:
        raise RuntimeError(done.stderr)


def build(folder: Path, check: str) -> Path:
    """The exercise with the library's sources in it, so that all of it is instrumented."""
    program = folder / f"exercise_{check}"
    libraries = ["-lpthread", "-lm", "-ldl"]
    if check == "allocations":  # told apart by the file that the caller lies in
        library = folder / "libedgeseg.so.0"
        compile_c(library, "-fPIC", "-shared", *sources(), *libraries)
        compile_c(
            folder / "count_malloc.so", "-fPIC", "-shared", str(TESTS / "count_malloc.c"), "-ldl"
        )
        rpath = f"-Wl,-rpath,{folder}"
        compile_c(program, str(TESTS / "exercise.c"), str(library), rpath, "-lpthread", "-lm")
    else:
        exercise = str(TESTS / "exercise.c")
        compile_c(program, *SANITIZERS[check], exercise, *sources(), *libraries)
    return program


def engine(name: str, folder: Path) -> tuple[str, str]:
    """Name and shared library of an engine, as the exercise takes them."""
    if name == "fake":
        return "onnxruntime", str(folder / "fake_ort.so")
    from edgeseg.runtime.library import engine_library

    found = engine_library(name)
    if found is None:
        raise RuntimeError(f"{name} is not found")
    return name, str(found)


def damaged_bundles(bundle: Path, folder: Path) -> Iterator[str]:
    """Bundles with one fault each; the reader must refuse them, and touch no memory beyond."""
    manifest = (bundle / "bundle.json").read_bytes()
    head = (bundle / "head.safetensors").read_bytes()
    for number, text in enumerate(
        [
            b"",
            b"{",
            b"[" * 100000,
            b'{"schema": "edgeseg.bundle/1"}',
            b"\xff\xfe" + manifest,
            *(manifest[:size] for size in range(0, len(manifest), len(manifest) // 40)),
            *(
                manifest[:at] + byte + manifest[at + 1 :]
                for at in range(0, len(manifest), len(manifest) // 60)
                for byte in (b'"', b"\\", b"}", b"9")
            ),
        ]
    ):
        yield str(copy(bundle, folder / f"manifest{number}", "bundle.json", text))
    for number, content in enumerate(
        [
            b"",
            b"\0" * 8,
            b"\xff" * 8 + head[8:],
            *(head[:at] + b"\x7f" + head[at + 1 :] for at in range(0, 200, 7)),
            *(head[:size] for size in range(0, len(head), len(head) // 10)),
        ]
    ):
        target = copy(bundle, folder / f"head{number}", "head.safetensors", content)
        relist(target)
        yield str(target)


def copy(bundle: Path, target: Path, name: str, content: bytes) -> Path:
    shutil.copytree(bundle, target)
    (target / name).write_bytes(content)
    return target


def relist(bundle: Path) -> None:
    """Make the manifest agree with the files, so that their content is what is refused."""
    import hashlib

    path = bundle / "bundle.json"
    manifest = json.loads(path.read_text())
    for name, entry in manifest["files"].items():
        content = (bundle / name).read_bytes()
        entry.update(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    path.write_text(json.dumps(manifest))


def command(check: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """What goes before the program, and its environment."""
    if check == "valgrind":
        # It knows no AVX-512.
        options = ["--error-exitcode=9", "--leak-check=full", "--errors-for-leak-kinds=definite"]
        return ["valgrind", "--quiet", *options], {"EDGESEG_ISA": "avx2"}
    if check == "thread":
        # gcc 12's runtime cannot live with as many random bits as newer kernels put into addresses.
        setarch = shutil.which("setarch")
        return [setarch, "-R"] if setarch else [], {"TSAN_OPTIONS": "halt_on_error=1"}
    if check == "address":
        (folder / "leaks").write_text(ENGINE_LEAKS)
        return [], {"LSAN_OPTIONS": f"suppressions={folder / 'leaks'}:print_suppressions=0"}
    return [], {}


def perform(check: str, name: str, program: Path, bundle: Path, folder: Path) -> bool:
    before, env = command(check, folder)
    if check == "allocations":
        env = {"LD_PRELOAD": str(folder / "count_malloc.so")}
        arguments = ["repeat", str(bundle), *engine(name, folder), str(FRAMES)]
    else:
        arguments = ["run", str(bundle), *engine(name, folder)]
    done = run([*before, str(program), *arguments], **env)
    text = done.stdout + done.stderr
    if any(word in text for word in MISSING) and done.returncode:
        print(f"{check} {name}: not run ({text.strip().splitlines()[-1][:200]})")
        return True
    good = done.returncode == 0 and done.stdout.endswith("ok\n")
    counted = done.stdout.removesuffix("ok\n").splitlines()
    if check == "allocations":
        good = good and not any(line.startswith(("libedgeseg", "exercise")) for line in counted)
        good = good and not (name == "fake" and counted)
        rest = f" ({'; '.join(counted)} of the engine)" if counted else ""
        print(f"{check} {name}: {'ok, none by the library' if good else 'FAILED'} in {FRAMES} "
              f"frames{rest}")  # fmt: skip
    else:
        print(f"{check} {name}: {'ok' if good else 'FAILED'}")
    if not good:
        print(text, file=sys.stderr)
    return good


def read_damaged(check: str, program: Path, bundle: Path, folder: Path) -> bool:
    folders = list(damaged_bundles(bundle, folder / f"damaged_{check}"))
    before, env = command(check, folder)
    done = run([*before, str(program), "open", *folders], **env)
    answers = done.stdout.splitlines()
    good = done.returncode == 0 and len(answers) == len(folders)
    print(f"{check}, {len(folders)} damaged bundles: {'ok' if good else 'FAILED'}, "
          f"{sum(a != 'ok' for a in answers)} refused")  # fmt: skip
    if not good:
        print(done.stdout[-2000:] + done.stderr, file=sys.stderr)
    return good


def compare(options: argparse.Namespace) -> int:
    from clib_equality import equality

    with tempfile.TemporaryDirectory() as name:
        document = equality(
            options.data, options.bundle, options.every, options.threads, Path(name)
        )
    text = json.dumps(document, indent=1) + "\n"
    if options.json is None:
        print(text, end="")
    else:
        partial = options.json.with_name(f".{options.json.name}.partial")
        partial.write_text(text)
        partial.replace(options.json)
    print("equal" if document["equal"] else "DIFFERENT", file=sys.stderr)
    return 0 if document["equal"] else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    checks = [*SANITIZERS, "equality", []]
    parser.add_argument("checks", nargs="*", choices=checks, metavar="CHECK")
    parser.add_argument("--engines", default="fake", help="fake, onnxruntime, openvino")
    parser.add_argument("--data", type=Path, help="of equality: holds the anomaly sets")
    parser.add_argument(
        "--bundle", type=Path, action="append", default=[], help="default: ready, and ERFNet"
    )
    parser.add_argument("--every", type=int, default=1, help="take every N-th frame")
    parser.add_argument("--threads", type=int, default=2, help="of equality")
    parser.add_argument("--json", type=Path, help="of equality: default stdout")
    options = parser.parse_args()
    if "equality" in options.checks:
        if options.data is None or len(options.checks) > 1:
            parser.error("equality needs --data DIR, and no other check beside it")
        return compare(options)
    from tests.bundles import make_bundle

    good = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = make_bundle(folder / "bundle")
        compile_c(folder / "fake_ort.so", "-fPIC", "-shared", str(TESTS / "fake_ort.c"))
        for check in options.checks or list(SANITIZERS):
            if check == "valgrind" and shutil.which("valgrind") is None:
                print("valgrind: not run (it is not installed)")
                continue
            try:
                program = build(folder, check)
            except RuntimeError as error:
                missing = any(word in str(error) for word in MISSING)
                print(f"{check}: {'not run' if missing else 'FAILED'} ({error})")
                good = good and missing
                continue
            for engine_name in options.engines.split(","):
                if check in ("thread", "valgrind") and engine_name != "fake":
                    continue
                good = perform(check, engine_name, program, bundle, folder) and good
            if check == "address":
                good = read_damaged(check, program, bundle, folder) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
