"""Flipped bits, cut, empty and swapped files and units: caught before a sample is taken for another; no crash."""

import pytest

from tests.unit.producer.damage import apart, damaged_files, damaged_units

# Of units: a bit between two columns, or of a field that Arrow does not read, changes nothing that is used.
HARMLESS = 0.35


def files(count: int) -> None:
    seen = apart(damaged_files, count)
    assert seen["wrong"] == seen["lost without a word"] == seen["not healed"] == 0, seen
    assert seen["caught"] == count, seen


def units(count: int) -> None:
    seen = apart(damaged_units, count)
    assert seen["wrong"] == 0, seen
    assert seen["caught"] + seen["harmless"] == count and seen["harmless"] < HARMLESS * count, seen


def test_a_damaged_file_never_gives_another_latent_and_heals() -> None:
    files(100)


def test_a_damaged_unit_is_never_taken_for_a_whole_one() -> None:
    units(200)


@pytest.mark.long
def test_two_thousand_damaged_files_never_give_another_latent_and_heal() -> None:
    files(2000)


@pytest.mark.long
def test_two_thousand_damaged_units_are_never_taken_for_whole_ones() -> None:
    units(2000)
