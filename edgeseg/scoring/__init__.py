"""Pixel-wise anomaly scores: the numpy definition, the head and its native kernels."""
