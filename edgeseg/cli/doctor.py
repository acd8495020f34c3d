"""``edgeseg doctor``: what this machine can run, and why not."""

from typing import Annotated, Any

import typer

__all__ = ["doctor_command"]


def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what this machine can run, and why not.

    Engines, processor, GPU, JetPack, power mode, clocks, cameras. Exits with 3 where
    'edgeseg run' cannot work.
    """
    from edgeseg.runtime.doctor import examine

    found = examine()
    if as_json:
        import json

        print(json.dumps({"schema": "edgeseg.doctor/1", **found.document}))
    else:
        print("\n".join(_lines(found.document)))
    if found.problems:
        raise typer.Exit(3)


def _lines(doc: dict[str, Any]) -> list[str]:
    cpu, native, vision, gpu = doc["cpu"], doc["kernels"], doc["opencv"], doc["gpu"]
    rows = [
        ("edgeseg", f"{doc['version']}, Python {doc['python']}, {doc['system']}"),
        (
            "processor",
            f"{cpu['model']}, {cpu['cores']} cores to use of {cpu['logical']} logical",
        ),
        ("", ", ".join(cpu["flags"]) or "no vector extensions that matter here"),
        ("clock", _clock(cpu)),
        ("kernels", f"native, {native['isa']}" if native["native"] else native["reason"]),
    ]
    for name, engine in doc["library"]["engines"].items():
        runs = f"runs {name}" if engine["usable"] else f"not {name}: {engine['reason']}"
        rows.append(("libedgeseg", runs))
    for name, engine in doc["backends"].items():
        told = engine["version"] or "unknown version"
        if engine["usable"] and "providers" in engine:
            told += f" ({', '.join(engine['providers'])})"
        rows.append((name, told if engine["usable"] else f"no: {engine['reason']}"))
    if vision["usable"]:
        able = " and ".join(
            f"{'with' if vision[key] else 'without'} {label}"
            for key, label in (("ffmpeg", "FFmpeg"), ("gstreamer", "GStreamer (csi://)"))
        )
        rows.append(("opencv", f"{vision['version']}, {able}"))
    else:
        rows.append(("opencv", f"no: {vision['reason']}"))
    rows.append(("torch", doc["torch"] or "not installed (only building bundles needs it)"))
    if gpu["present"]:
        rows += [
            ("gpu", ", ".join(str(value) for value in device.values())) for device in gpu["devices"]
        ]
    else:
        rows.append(("gpu", f"none: {gpu['reason']}"))
    if doc["jetson"] is not None:
        told = (f"{key} {value}" for key, value in doc["jetson"].items() if value is not None)
        rows.append(("jetson", ", ".join(told)))
    for camera in doc["cameras"]:
        access = "" if camera["readable"] else ", no permission (join the group 'video')"
        rows.append(("camera", f"{camera['device']} {camera['name'] or ''}{access}"))
    if not doc["cameras"]:
        rows.append(("camera", "none: there is no /dev/video*"))
    rows.append(("bundle", doc["ready_bundle"] or "none comes with this installation"))
    rows += [("problem", problem) for problem in doc["problems"]]
    rows.append(("result", "edgeseg run works" if doc["can_run"] else "edgeseg run cannot work"))
    return [f"{name:<12} {value}" for name, value in rows]


def _clock(cpu: dict[str, Any]) -> str:
    parts = [
        f"{cpu['clock_mhz']} MHz" if cpu["clock_mhz"] else "unknown",
        f"at most {cpu['max_clock_mhz']} MHz" if cpu["max_clock_mhz"] else "",
        f"governor {cpu['governor']}" if cpu["governor"] else "no frequency governor visible",
    ]
    return ", ".join(filter(None, parts))
