"""What the other commands wrote, read back and put on one page that needs no network."""
