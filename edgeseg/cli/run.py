"""``edgeseg run``: class map and anomaly score for every frame of a source."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

__all__ = ["run_command"]


class Scorer(str, Enum):
    """Names of the scorers; a bundle may have fewer."""

    msp = "msp"
    maxlogit = "maxlogit"
    entropy = "entropy"
    void = "void"
    energy = "energy"


class BackendName(str, Enum):
    """Engines."""

    auto = "auto"
    onnxruntime = "onnxruntime"
    openvino = "openvino"
    onnxruntime_cuda = "onnxruntime-cuda"
    onnxruntime_tensorrt = "onnxruntime-tensorrt"
    tensorrt = "tensorrt"


class OnMissName(str, Enum):
    """What happens to a frame past its deadline."""

    drop = "drop"
    reuse = "reuse"
    safe = "safe"


class ViewName(str, Enum):
    """What the saved pictures show."""

    overlay = "overlay"
    classes = "classes"
    score = "score"
    both = "both"


def run_command(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="Bundle folder.", show_default="the ready INT8 bundle"),
    ] = None,
    camera: Annotated[
        int | None, typer.Option("--camera", min=0, help="Camera number, as in /dev/videoN.")
    ] = None,
    input_uri: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="URI",
            help="Image, folder (searched recursively), video file, file_%03d.png, camera number, "
            "v4l2:///dev/videoN, csi://N or rtsp://….",
        ),
    ] = None,
    scorer: Annotated[
        Scorer | None,
        typer.Option("--scorer", help="Anomaly score.", show_default="void, else msp"),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", help="T > 0.", show_default="the bundle's"),
    ] = None,
    backend: Annotated[
        BackendName,
        typer.Option(
            "--backend",
            help="Inference engine; auto measures the installed ones once and remembers.",
        ),
    ] = BackendName.auto,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, max=256, show_default="physical cores"),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            "--save",
            metavar="DIR|FILE.mp4",
            help="Write a video, or per frame into a folder: overlay, class map, score as float16 "
            ".npy and as picture.",
        ),
    ] = None,
    jsonl: Annotated[
        Path | None,
        typer.Option(
            "--jsonl",
            metavar="FILE",
            help="Write a JSON line per frame; boxes [x, y, w, h] and areas are in the source's "
            "pixels, at most 50 regions, the largest first.",
        ),
    ] = None,
    view: Annotated[
        ViewName,
        typer.Option(
            "--view",
            help="What pictures show: classes with what passes the threshold, classes alone, "
            "score alone, or both side by side.",
        ),
    ] = ViewName.overlay,
    threshold: Annotated[
        float | None,
        typer.Option(
            "--threshold", help="Score from which a pixel counts.", show_default="the bundle's"
        ),
    ] = None,
    roi: Annotated[
        Path | None,
        typer.Option(
            "--roi",
            metavar="MASK.png",
            help="Only pixels that are not black in this mask count; stretched to the frame.",
        ),
    ] = None,
    deadline_ms: Annotated[
        float | None,
        typer.Option(
            "--deadline-ms",
            metavar="MS",
            help="Age at which a frame's result is too late; marked late unless --on-miss.",
        ),
    ] = None,
    on_miss: Annotated[
        OnMissName | None,
        typer.Option(
            "--on-miss",
            help="Past the deadline: drop the frame, reuse the last result in time, or call "
            "everything anomalous and stop with exit code 8. Also starts with a self-test, and "
            "counts frames as missed that the camera or the engine spoiled.",
        ),
    ] = None,
    max_misses: Annotated[
        int | None,
        typer.Option(
            "--max-misses",
            min=1,
            help="Consecutive misses that lead into the safe state.",
            show_default="1 with safe, else no limit",
        ),
    ] = None,
    recover_after: Annotated[
        int | None,
        typer.Option(
            "--recover-after",
            min=1,
            help="Consecutive frames in time that lead out of the safe state.",
            show_default="it ends the run",
        ),
    ] = None,
    self_test: Annotated[
        bool,
        typer.Option("--self-test", help="Check the engine and the kernels on one frame first."),
    ] = False,
    reconnect: Annotated[
        float | None,
        typer.Option(
            "--reconnect",
            metavar="SECONDS",
            help="Look for a lost camera for so long.",
            show_default="its loss ends the run with exit code 7",
        ),
    ] = None,
    as_camera: Annotated[
        bool,
        typer.Option(
            "--as-camera",
            help="Play files at their own rate (25 a second without one), over and over, newest "
            "frame only.",
        ),
    ] = False,
    events: Annotated[
        Path | None,
        typer.Option(
            "--events",
            metavar="FILE",
            help="Write what happens (losses, misses, states, heat) as JSON lines; begun again "
            "at 8 MB, with the part before as FILE.1.",
        ),
    ] = None,
    serve: Annotated[
        str | None,
        typer.Option(
            "--serve",
            metavar="HOST:PORT",
            help="Show the run in a browser, with /healthz and /metrics. Other hosts than this "
            "one need a token: EDGESEG_TOKEN, else a new one is printed.",
        ),
    ] = None,
    cpus: Annotated[
        str | None,
        typer.Option(
            "--cpus",
            metavar="LIST",
            help="Run on these CPUs alone, as in 2-5,7: every thread of the process.",
            show_default="all that are allowed",
        ),
    ] = None,
    realtime_priority: Annotated[
        int | None,
        typer.Option(
            "--realtime-priority",
            metavar="N",
            min=1,
            max=98,
            help="SCHED_FIFO priority of the threads of the loop: frames, engine, scoring.",
            show_default="normal scheduling",
        ),
    ] = None,
    lock_memory: Annotated[
        bool, typer.Option("--lock-memory", help="Keep all memory from being swapped out.")
    ] = False,
    require_signature: Annotated[
        Path | None,
        typer.Option(
            "--require-signature",
            metavar="PUB",
            help="Run only what 'edgeseg bundle sign' signed with the private key of this public "
            "one; else exit code 4.",
        ),
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", min=1, help="Stop after so many frames.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as one JSON document.")
    ] = False,
) -> None:
    """Run a bundle on images, a video or a camera. Needs no torch.

    Prints how many frames it read, the frame rate, the latency (uint8 frame at network size to
    class map and score) and the median time of every stage. Ctrl-C finishes the outputs first.

    In the safe state every line says that all of the frame is anomalous, with the state "safe";
    while no frame comes, such a line without a frame is written every second. A run that ends
    there exits with 8. Under systemd, NOTIFY_SOCKET and WATCHDOG_USEC are honoured.

    What --cpus, --realtime-priority and --lock-memory ask for and the system refuses is told, and
    the run goes on without.
    """
    from edgeseg.errors import UsageError
    from edgeseg.networks.zoo import NETWORKS
    from edgeseg.runtime.job import Job, run_job
    from edgeseg.runtime.scheduling import Scheduling, parse_cpus

    if (camera is None) == (input_uri is None):
        raise UsageError(
            "give exactly one of --camera N and --input FILE; the argument is the BUNDLE"
        )
    if bundle is not None and str(bundle) in NETWORKS and not bundle.exists():
        raise UsageError(
            f"'{bundle}' is a network, and run takes a bundle; make one with 'edgeseg export "
            f"{bundle} --int8' and give export/{bundle}-int8"
        )
    report = run_job(
        Job(
            uri=str(camera) if input_uri is None else input_uri,
            bundle=bundle,
            scorer=scorer.value if scorer else None,
            temperature=temperature,
            backend=backend.value,
            threads=threads,
            save=save,
            jsonl=jsonl,
            view=view.value,
            threshold=threshold,
            roi=roi,
            deadline_ms=deadline_ms,
            on_miss=on_miss.value if on_miss else None,
            max_misses=max_misses,
            recover_after=recover_after,
            frames=frames,
            reconnect_s=reconnect,
            as_camera=as_camera,
            self_test=self_test,
            events=events,
            serve=serve,
            scheduling=Scheduling(
                cpus=None if cpus is None else parse_cpus(cpus),
                priority=realtime_priority,
                lock_memory=lock_memory,
            ),
            require_signature=require_signature,
        )
    )
    if as_json:
        import json

        print(json.dumps({"schema": "edgeseg.run/1", **report.document}, allow_nan=False))
    else:
        print(report.text())
    if report.error is not None:
        raise report.error
    if report.interrupted:
        raise typer.Exit(130)
