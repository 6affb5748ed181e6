"""Domain errors carry a sentence, a code, a reason and what the sentence mentions."""

from __future__ import annotations

import pytest

from arbiter_sidecar import errors


def test_message_is_the_docstring_when_none_is_given() -> None:
    assert errors.LeaseNotFound().message == "No such lease; allocate again."
    assert errors.LeaseNotFound().metadata() == {}


def test_metadata_repeats_numbers_as_text() -> None:
    error = errors.ExceedsCapacity("9 bytes do not fit into 8", requested_bytes=9, capacity_bytes=8, device_id="gpu0")
    assert str(error) == error.message == "9 bytes do not fit into 8"
    assert error.metadata() == {"requested_bytes": "9", "capacity_bytes": "8", "device_id": "gpu0"}


def test_invalid_request_names_every_field() -> None:
    error = errors.InvalidRequest([("holder", "is empty"), ("memory_bytes", "is 0, must be at least 1")])
    assert error.message == "holder: is empty; memory_bytes: is 0, must be at least 1"
    assert error.metadata() == {"fields": "holder,memory_bytes"}
    assert error.violations == (("holder", "is empty"), ("memory_bytes", "is 0, must be at least 1"))


@pytest.mark.parametrize("error", errors.ArbiterError.__subclasses__(), ids=lambda error: error.__name__)
def test_retry_is_promised_when_waiting_helps(error: type[errors.ArbiterError]) -> None:
    waits = error.code in {"UNAVAILABLE", "RESOURCE_EXHAUSTED"}
    assert (error.retry_after_s is not None) is waits
