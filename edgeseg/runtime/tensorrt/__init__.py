"""TensorRT engines: built from a bundle's graphs on the machine that runs them, kept, executed.

Needs numpy and NVIDIA's packages, which are imported where they are used: neither torch nor onnx.
"""
