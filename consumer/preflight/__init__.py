"""The checks before the first step."""
