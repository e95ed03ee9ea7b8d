"""Readers of raw image-text pairs, one file a kind."""
