"""What tests of several packages share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of tiny encoders, made once."""
    # Not above: it takes seconds to import, and most tests do without.
    from launch.make_encoders import make

    folder = tmp_path_factory.mktemp("encoders") / "tiny"
    make(folder)
    return folder
