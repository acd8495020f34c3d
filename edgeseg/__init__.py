"""Edge deployment of real-time anomaly segmentation for road scenes.

Importing the package costs nothing: every heavy dependency (torch, OpenCV, ONNX Runtime,
OpenVINO) is imported by the module that needs it, when it needs it.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
