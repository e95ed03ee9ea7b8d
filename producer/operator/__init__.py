"""Judgements of raw samples, one file each."""
