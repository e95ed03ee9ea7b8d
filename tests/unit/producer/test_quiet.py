"""Silence that threads share ends with the last of them, and never before."""

import threading
import warnings

import pytest

from producer.quiet import quiet


def test_nothing_warns_inside_and_all_is_as_before_after() -> None:
    before = list(warnings.filters)
    with quiet():
        warnings.warn("odd metadata", UserWarning, stacklevel=1)
    assert list(warnings.filters) == before
    with pytest.raises(UserWarning, match="loud"):
        warnings.warn("loud", UserWarning, stacklevel=1)


def test_one_who_leaves_early_does_not_break_the_silence_of_another() -> None:
    before = list(warnings.filters)
    entered, leave = threading.Event(), threading.Event()

    def first() -> None:
        with quiet():
            entered.set()
            assert leave.wait(30)

    thread = threading.Thread(target=first)
    thread.start()
    assert entered.wait(30)
    with quiet():
        leave.set()
        thread.join(30)
        warnings.warn("odd metadata", UserWarning, stacklevel=1)
    assert list(warnings.filters) == before
