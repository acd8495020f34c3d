"""Making networks smaller and integer: pruning, calibration, equalization, static INT8."""
