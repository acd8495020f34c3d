"""The run in a browser: pictures, state and figures, without holding back the loop."""
