"""Time for tests of deadlines."""


class Clock:
    """Monotonic nanoseconds that only pass when told."""

    def __init__(self):
        self.now = 5_000_000_000

    def __call__(self):
        return self.now

    def forward(self, ms):
        self.now += int(ms * 1e6)
