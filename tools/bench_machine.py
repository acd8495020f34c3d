"""What a benchmark ran on, for the head of its table."""

import importlib.metadata
from typing import Any

from edgeseg.runtime.machine import available_cores, cpu_flags, cpu_model
from edgeseg.scoring import kernels

PACKAGES = ("torch", "onnxruntime", "openvino", "nncf", "numpy")


def describe_machine() -> dict[str, Any]:
    """CPU, vector units that matter, cores, and versions of the engines."""
    flags = cpu_flags()
    units = [f for f in ("avx2", "avx512f", "avx512_vnni", "amx_int8", "neon") if f in flags]
    versions = []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": f"{cpu_model()} ({available_cores()} cores, {', '.join(units)})",
        "versions": ", ".join(versions),
        "kernels": kernels.isa(),
    }
