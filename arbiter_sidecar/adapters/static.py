"""Devices that only the configuration knows: accelerators that we cannot measure, and tests."""

from __future__ import annotations

from collections.abc import Sequence

from arbiter_sidecar.types import Attribution, DeviceFacts, DeviceId, DeviceKind, DeviceSample, Process


class StaticProbe:
    """A device of exactly the configured size, of which nothing can be measured."""

    __slots__ = ("_facts",)

    def __init__(self, *, name: str, size_bytes: int, index: int = 0) -> None:
        """
        Raises:
            ValueError: The name is empty or the size is not positive.
        """
        if not name:
            raise ValueError("a static device needs a name")
        if size_bytes <= 0:
            raise ValueError(f"static device {name}: the size is {size_bytes} bytes, it must be positive")
        self._facts = DeviceFacts(
            device_id=DeviceId(name),
            name=name,
            index=index,
            kind=DeviceKind.STATIC,
            total_bytes=size_bytes,
            capacity_bytes=size_bytes,
            attribution=Attribution.SELF_REPORTED,
        )

    @property
    def facts(self) -> DeviceFacts:
        """What was configured."""
        return self._facts

    def sample(self, holders: Sequence[Process], guests: Sequence[Process] = ()) -> DeviceSample:
        """Nothing is known of any holder or guest; never fails."""
        del guests
        return DeviceSample(self._facts.device_id, used_bytes=None, held_bytes=dict.fromkeys(holders))

    def close(self) -> None:
        """Nothing to let go of."""
