"""Measuring on another machine over ssh: nothing needs to be installed there, nothing stays."""
