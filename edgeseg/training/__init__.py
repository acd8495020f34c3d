"""Losses, recipes and the training loop. Its modules import torch; the package does not."""
