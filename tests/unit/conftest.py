"""Settings of the unit tests."""

from hypothesis import settings

# The same examples on every run and machine: a red CI is red again at home. No deadline, since machines are shared.
settings.register_profile("repeatable", derandomize=True, deadline=None, database=None, max_examples=50)
settings.load_profile("repeatable")
