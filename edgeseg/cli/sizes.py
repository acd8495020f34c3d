"""Frame sizes on the command line."""

__all__ = ["parse_size"]


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of ``HxW``, in pixels.

    Raises:
        UsageError: not of that form, or a side that no frame has.

    >>> parse_size("512x1024")
    (512, 1024)
    """
    from edgeseg.errors import UsageError

    height, _, width = text.lower().partition("x")
    if height.isascii() and height.isdigit() and width.isascii() and width.isdigit():
        size = int(height), int(width)
        if min(size) >= 8 and max(size) <= 8192:
            return size
    raise UsageError(f"--size '{text}' is not HxW with sides from 8 to 8192, such as 512x1024")
