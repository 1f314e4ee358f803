"""Fixtures that the tests of the converters share."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from converters.demo_models import DemoModels, build

# PyTorch is a gigabyte that only `make torch` installs.
collect_ignore = [] if find_spec("torch") else ["test_torch.py"]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> DemoModels:
    """The demo's models, trained and converted; they take a few seconds, so tests only read them."""
    return build(tmp_path_factory.mktemp("demo"))
