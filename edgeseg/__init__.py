"""Edge deployment of real-time anomaly segmentation for road scenes.

Importing the package costs nothing: every heavy dependency (torch, OpenCV, ONNX Runtime,
OpenVINO) is imported by the module that needs it, when it needs it.

ONNX Runtime's packages report their use to their maker; the import turns that off, unless
``ORT_DISABLE_TELEMETRY`` says otherwise.
"""

import os

__all__ = ["__version__"]

__version__ = "0.1.0"

# Read once, where the engine's library is loaded: a call of its Python package is too late.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
