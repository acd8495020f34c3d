"""``--target jetson-…``: one archive that installs and runs on a Jetson without the internet."""
