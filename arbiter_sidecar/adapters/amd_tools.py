"""AMD GPUs through AMD's own software, for machines whose sysfs is not visible to us.

The module ``amdsmi`` is used when it is installed and works, else the program ``rocm-smi``. Both tell totals only, so
their devices are measured as a whole.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NewType, Protocol, cast

from arbiter_sidecar.policy import capacity
from arbiter_sidecar.types import Attribution, DeviceFacts, DeviceId, DeviceKind, DeviceSample, Process

#: Seconds the program may take; it starts Python and asks every card, which is slow but not this slow.
TOOL_TIMEOUT_S = 5.0
_COMMAND = ("rocm-smi", "--showmeminfo", "vram", "--showuniqueid", "--json")
_TOTAL_KEY, _USED_KEY, _UNIQUE_KEY = "VRAM Total Memory (B)", "VRAM Total Used Memory (B)", "Unique ID"

_Card = NewType("_Card", object)


@dataclass(frozen=True, slots=True)
class Card:
    """One card as a tool describes it.

    Attributes:
        key: What the tool calls it.
        unique_id: What stays with the hardware; empty when the tool does not say.
        total_bytes: Size.
        used_bytes: Use; ``None`` is not reported.
    """

    key: str
    unique_id: str
    total_bytes: int
    used_bytes: int | None


class _AmdSmi(Protocol):
    AmdSmiException: type[Exception]
    AmdSmiMemoryType: _MemoryTypes

    def amdsmi_init(self) -> None: ...
    def amdsmi_shut_down(self) -> None: ...
    def amdsmi_get_processor_handles(self) -> Sequence[_Card]: ...
    def amdsmi_get_gpu_device_uuid(self, card: _Card) -> str: ...
    def amdsmi_get_gpu_memory_total(self, card: _Card, kind: object) -> int: ...
    def amdsmi_get_gpu_memory_usage(self, card: _Card, kind: object) -> int: ...


class _MemoryTypes(Protocol):
    VRAM: object


def find(cap_bytes: int | None) -> tuple[list[ToolProbe], list[str]]:
    """A probe for every card that one of the tools lists, and a line about each tool that could not be asked."""
    notes: list[str] = []
    for name, ask in (("amdsmi", ask_amdsmi), ("rocm-smi", ask_rocm_smi)):
        try:
            cards = ask()
        except OSError as error:
            notes.append(f"{name}: {error}")
            continue
        if cards:
            return [ToolProbe(card, ask=ask, index=i, cap_bytes=cap_bytes) for i, card in enumerate(cards)], notes
        notes.append(f"{name}: lists no card")
    return [], notes


class ToolProbe:
    """Measures one AMD card as a whole by asking the tool that found it."""

    __slots__ = ("_ask", "_facts", "_key")

    def __init__(self, card: Card, *, ask: Callable[[], list[Card]], index: int, cap_bytes: int | None) -> None:
        self._ask = ask
        self._key = card.key
        self._facts = DeviceFacts(
            device_id=DeviceId(card.unique_id or card.key),
            name=f"AMD GPU {card.key}",
            index=index,
            kind=DeviceKind.AMD,
            total_bytes=card.total_bytes,
            capacity_bytes=capacity.usable_bytes(card.total_bytes, cap_bytes),
            attribution=Attribution.DEVICE_ONLY,
        )

    @property
    def facts(self) -> DeviceFacts:
        """What the tool said at the start."""
        return self._facts

    def sample(self, holders: Sequence[Process], guests: Sequence[Process] = ()) -> DeviceSample:
        """Measures the card; no holder or guest is known.

        Raises:
            OSError: The tool could not be asked.
        """
        del guests
        held: dict[Process, int | None] = dict.fromkeys(holders)
        card = next((card for card in self._ask() if card.key == self._key), None)
        if card is None:
            return DeviceSample(self._facts.device_id, None, held, lost=True, detail="the tool lists the card no more")
        return DeviceSample(self._facts.device_id, card.used_bytes, held)

    def close(self) -> None:
        """Nothing to let go of."""


def ask_rocm_smi() -> list[Card]:
    """What the program ``rocm-smi`` says of each card.

    Raises:
        OSError: It is not installed, fails, takes too long or says something else than JSON.
    """
    program = shutil.which(_COMMAND[0])
    if program is None:
        raise FileNotFoundError("the program is not installed")
    try:
        # Both pipes are drained while it runs: output larger than a pipe would otherwise look like a hang.
        done = subprocess.run([program, *_COMMAND[1:]], capture_output=True, timeout=TOOL_TIMEOUT_S, check=True)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(f"no answer within {TOOL_TIMEOUT_S:g} s") from error
    except subprocess.CalledProcessError as error:
        raise OSError(f"failed with exit code {error.returncode}") from error
    return parse_rocm_smi(done.stdout.decode("utf-8", "replace"))


def parse_rocm_smi(text: str) -> list[Card]:
    """The cards in the JSON that ``rocm-smi`` prints; entries without a total are left out.

    Raises:
        OSError: The text is not such JSON.
    """
    # Warnings may stand before the object.
    try:
        document: object = json.loads(text[max(0, text.find("{")) :])
    except ValueError as error:
        raise OSError(f"the answer is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise OSError("the answer is no JSON object")
    cards: list[Card] = []
    for key, fields in document.items():
        total = _bytes(fields, _TOTAL_KEY)
        if total is not None:
            unique = fields.get(_UNIQUE_KEY, "")
            digits = str(unique).removeprefix("0x")
            unique_id = f"GPU-{digits}" if digits.isalnum() and digits.strip("0") else ""
            cards.append(Card(str(key), unique_id, total, _bytes(fields, _USED_KEY)))
    return cards


def ask_amdsmi() -> list[Card]:
    """What the module ``amdsmi`` says of each card.

    Raises:
        OSError: It is not installed, finds no ROCm, or fails.
    """
    smi = _load_amdsmi()
    try:
        smi.amdsmi_init()
        try:
            return [_amdsmi_card(smi, card, index) for index, card in enumerate(smi.amdsmi_get_processor_handles())]
        finally:
            smi.amdsmi_shut_down()
    except smi.AmdSmiException as error:
        raise OSError(f"failed: {error}") from error


def _load_amdsmi() -> _AmdSmi:
    try:
        # Without ROCm the import prints to standard output and fails with the name of the library it looked for.
        with contextlib.redirect_stdout(io.StringIO()):
            return cast("_AmdSmi", importlib.import_module("amdsmi"))
    except ImportError as error:
        raise FileNotFoundError("the module is not installed") from error
    except (KeyError, AttributeError, OSError) as error:
        raise OSError(f"the module does not load: {error!r}") from error


def _amdsmi_card(smi: _AmdSmi, card: _Card, index: int) -> Card:
    kind = smi.AmdSmiMemoryType.VRAM
    return Card(
        key=f"card{index}",
        unique_id=smi.amdsmi_get_gpu_device_uuid(card),
        total_bytes=smi.amdsmi_get_gpu_memory_total(card, kind),
        used_bytes=smi.amdsmi_get_gpu_memory_usage(card, kind),
    )


def _bytes(fields: object, key: str) -> int | None:
    if not isinstance(fields, Mapping):
        return None
    text = str(fields.get(key, ""))
    return int(text) if text.isdecimal() else None
