"""Are the C program, libedgeseg behind Python, and the engines' Python packages equal?

``python tools/check_clib.py equality --data DIR`` calls this.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
SET = "RoadAnomaly21"
ENGINES = ("onnxruntime", "openvino")


def equality(data: Path, bundles: Sequence[Path], every: int, threads: int, folder: Path) -> Any:
    """Both statements about every bundle on every engine, as a document.

    Args:
        data: holds the anomaly set.
        bundles: folders; none: the ready one, and ERFNet in float32, exported first.
        every: take every n-th frame.
        threads: of engine and kernels; sums depend on it.
        folder: for what is built and written on the way; empty.
    """
    from edgeseg.bundle import Bundle

    chosen = list(bundles) or [ROOT / "edgeseg" / "bundles" / "ready", _export(folder)]
    frames = _frames(data, folder, every)
    program = _build(folder)
    rows = []
    for path in chosen:
        manifest = Bundle.open(path).manifest
        for engine in ENGINES:
            print(f"{manifest.network} {manifest.precision} on {engine}", file=sys.stderr)
            row = {
                "network": manifest.network,
                "precision": manifest.precision,
                "size": f"{manifest.height}x{manifest.width}",
                "engine": engine,
                "frames": len(frames),
                **_maps(path, engine, threads, frames, program, folder),
                **_figures(path, engine, threads, data, every),
            }
            rows.append(row)
    good = all(row["maps_equal"] and row["figures_equal"] for row in rows)
    return {
        "dataset": SET,
        "every": every,
        "threads": threads,
        "equal": good,
        "rows": rows,
    }


def _export(folder: Path) -> Path:
    target = folder / "erfnet"
    command = [sys.executable, "-m", "edgeseg", "export", "erfnet", "-o", str(target)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return target


def _frames(data: Path, folder: Path, every: int) -> list[tuple[npt.NDArray[np.uint8], Path]]:
    """The set's photos, and each as the PPM file that the C program reads."""
    import cv2

    from edgeseg.cli.eval_targets import open_dataset
    from edgeseg.evaluation.protocols import select

    frames = []
    for sample in select(open_dataset(data, f"anomaly:{SET}", "val"), every):
        image = sample.load_image()
        path = folder / f"{sample.name}.ppm"
        cv2.imwrite(str(path), image)
        frames.append((image, path))
    return frames


def _build(folder: Path) -> Path:
    from edgeseg.runtime.library_abi import library_path

    program = folder / "segment"
    source = ROOT / "edgeseg" / "clib" / "examples" / "segment.c"
    library = library_path()
    command = [
        *os.environ.get("CC", "cc").split(),
        "-std=c11",
        f"-I{ROOT / 'edgeseg' / 'include'}",
        str(source),
        str(library),
        f"-Wl,-rpath,{library.parent}",
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True)
    return program


def _maps(
    bundle: Path,
    engine: str,
    threads: int,
    frames: list[tuple[npt.NDArray[np.uint8], Path]],
    program: Path,
    folder: Path,
) -> dict[str, Any]:
    """Class maps and scores: the C program's and the library's against Python's."""
    from edgeseg.runtime.library import engine_library
    from edgeseg.runtime.session import Session
    from edgeseg.scoring.kernels import resize_bilinear

    output = folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    variable = f"EDGESEG_{engine.upper()}_LIBRARY"
    subprocess.run(
        [
            str(program),
            str(bundle),
            engine,
            str(threads),
            str(output),
            *(str(p) for _, p in frames),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, variable: str(engine_library(engine))},
    )
    compared = {"c_program": 0, "library_float16": 0, "library_float32": 0}
    different = dict(compared)

    def note(key: str, ours: Sequence[Any], theirs: Sequence[Any]) -> None:
        compared[key] += 1
        different[key] += not all(map(np.array_equal, ours, theirs))

    for dtype in ("float16", "float32"):
        with (
            Session(bundle, engine, threads, score_dtype=dtype, path="python") as python,
            Session(bundle, engine, threads, score_dtype=dtype, path="library") as library,
        ):
            for index, (image, _) in enumerate(frames):
                frame = resize_bilinear(image, *python.size)
                expected, got = python.run(frame), library.run(frame)
                maps = expected.class_map, expected.score
                note(f"library_{dtype}", (got.class_map, got.score), maps)
                if dtype == "float16":
                    classes = np.fromfile(output / f"{index}.classes", np.uint8)
                    score = np.fromfile(output / f"{index}.score", np.float16)
                    note("c_program", (classes, score), [m.ravel() for m in maps])
                theirs, ours = python.features(frame), library.features(frame)
                for scorer in python.bundle.manifest.scorers:
                    expected, got = python.score(theirs, scorer), library.score(ours, scorer)
                    note(
                        f"library_{dtype}",
                        (got.class_map, got.score),
                        (expected.class_map, expected.score),
                    )
    return {
        "maps_equal": not any(different.values()),
        "maps_compared": compared,
        "maps_different": different,
    }


def _figures(bundle: Path, engine: str, threads: int, data: Path, every: int) -> dict[str, Any]:
    """What ``edgeseg eval`` prints by either path."""
    from edgeseg.runtime.backends.paths import PATH_VARIABLE

    found = {}
    for path in ("python", "library"):
        command = [sys.executable, "-m", "edgeseg", "eval", str(bundle), "--data", str(data)]
        command += ["--dataset", f"anomaly:{SET}", "--every", str(every), "--backend", engine]
        command += ["--threads", str(threads), "--json"]
        done = subprocess.run(
            command,
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            env={**os.environ, PATH_VARIABLE: path},
        )
        found[path] = json.loads(done.stdout)["results"]
    equal = found["python"] == found["library"]
    return {"figures_equal": equal, "figures": found["python"] if equal else found}
