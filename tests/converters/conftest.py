"""Fixtures that the tests of the converters share."""

from __future__ import annotations

import pytest

from converters.demo_models import DemoModels, build


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoModels:
    """The demo's models, trained and converted; they take a few seconds, so tests only read them."""
    return build(tmp_path_factory.mktemp("demo"))
