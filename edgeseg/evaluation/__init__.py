"""Judging a bundle or network: metrics, protocols and the evaluation loop."""
