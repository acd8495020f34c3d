"""``python -m edgeseg`` is the same program as the ``edgeseg`` script."""

from edgeseg.cli import main

if __name__ == "__main__":
    main()
