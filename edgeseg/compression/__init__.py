"""Making networks smaller and integer: calibration, equalization, static INT8."""
