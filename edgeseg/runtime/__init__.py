"""Running a bundle on a device: sources, inference backends, the session, sinks. Never torch."""
