"""What tests of the adapters may ask for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import fake_nvml
from tests.adapters.child import Child


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The fake NVIDIA driver, compiled."""
    return fake_nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def driver(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., fake_nvml.FakeDriver]:
    """Puts cards into the fake driver of this process."""
    fake_nvml.load(nvml_library)

    def insert(*cards: fake_nvml.FakeCard) -> fake_nvml.FakeDriver:
        made = fake_nvml.FakeDriver(tmp_path / "nvml", *cards)
        monkeypatch.setenv(fake_nvml.STATE_VARIABLE, str(made.path))
        return made

    return insert


@pytest.fixture
def child() -> Iterator[Child]:
    """A running program that holds what it is told to."""
    with Child() as started:
        yield started
