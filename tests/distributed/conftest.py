"""What the tests on several ranks share."""

from collections.abc import Iterator

import pytest

from tests.distributed.ranks import Ranks


@pytest.fixture(scope="session")
def ranks() -> Iterator[Ranks]:
    """Runs functions on gloo ranks."""
    forked = Ranks()
    yield forked
    forked.close()
