"""Values of the configuration, read from text or TOML. Each reader raises ValueError, which says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from arbiter_sidecar.policy import balance
from arbiter_sidecar.policy.balance import Objective
from arbiter_sidecar.policy.capacity import parse_bytes
from arbiter_sidecar.policy.quality import QualityPolicy
from arbiter_sidecar.types import WorkloadType

#: A raw value: text from flags and the environment, a TOML value from the file.
Raw = object
#: Sizes beyond this, and times beyond ten years, are mistakes in units; arithmetic with them would leave 64 bits.
MAX_BYTES = 1 << 53
MAX_SPAN_S = 315_360_000.0
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
#: Names of the workload types in configuration.
TYPE_NAMES = {
    "llm": WorkloadType.LLM_INFERENCE,
    "image": WorkloadType.IMAGE_GENERATION,
    "video": WorkloadType.VIDEO_GENERATION,
    "other": WorkloadType.OTHER,
}


def as_text(raw: Raw) -> str:
    """Text."""
    if not isinstance(raw, str):
        raise ValueError(f"is {raw!r}, must be text")
    return raw


def as_path(raw: Raw) -> Path:
    """A path; ``~`` is the home of whoever starts the server."""
    text = as_text(raw)
    if not text or "\0" in text:
        raise ValueError(f"is {raw!r}, must be a path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"is {raw!r}: {error}") from error


def as_size(raw: Raw) -> int:
    """Bytes, above 0."""
    if isinstance(raw, bool) or not isinstance(raw, (str, int)):
        raise ValueError(f"is {raw!r}, must be a size such as 8GiB")
    size = raw if isinstance(raw, int) else parse_bytes(raw)
    if size <= 0:
        raise ValueError(f"is {raw!r}, must be more than nothing")
    if size > MAX_BYTES:
        raise ValueError(f"is {raw!r}, more than any machine has")
    return size


def as_seconds(*, least: float = 0.0) -> Callable[[Raw], float]:
    """A reader of times of at least ``least`` seconds."""

    def parse(raw: Raw) -> float:
        seconds = as_span(raw)
        if not least <= seconds <= MAX_SPAN_S:
            raise ValueError(f"is {raw!r}, must be a time of at least {least:g} s and at most ten years")
        return seconds

    return parse


def as_span(raw: Raw) -> float:
    """Seconds, of a number or a text such as 15s, 500ms or 2m."""
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        return float(raw)
    text = as_text(raw).strip()
    number = text.rstrip("hms")
    unit = text[len(number) :] or "s"
    if unit not in _UNITS:
        raise ValueError(f"is {raw!r}, must be a time such as 15s, 500ms or 2m")
    try:
        return float(number) * _UNITS[unit]
    except ValueError:
        raise ValueError(f"is {raw!r}, must be a time such as 15s, 500ms or 2m") from None


def as_number(raw: Raw) -> float:
    """A number."""
    if isinstance(raw, bool) or not isinstance(raw, (str, int, float)):
        raise ValueError(f"is {raw!r}, must be a number")
    try:
        return float(raw)
    except ValueError:
        raise ValueError(f"is {raw!r}, must be a number") from None


def as_share(raw: Raw) -> float:
    """A number in [0,1]."""
    share = as_number(raw)
    if not (math.isfinite(share) and 0.0 <= share <= 1.0):
        raise ValueError(f"is {raw!r}, must be between 0 and 1")
    return share


def as_count(raw: Raw, least: int = 1) -> int:
    """A whole number of at least ``least``."""
    number = as_number(raw)
    if not (math.isfinite(number) and number >= least and number == int(number)):
        raise ValueError(f"is {raw!r}, must be a whole number of at least {least}")
    return int(number)


def as_switch(raw: Raw) -> bool:
    """Yes or no."""
    known = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
    text = str(raw).lower()
    if text not in known:
        raise ValueError(f"is {raw!r}, must be true or false")
    return known[text]


def as_one_of(*allowed: str) -> Callable[[Raw], str]:
    """A reader of one of these words."""

    def parse(raw: Raw) -> str:
        if raw not in allowed:
            raise ValueError(f"is {raw!r}, must be one of {', '.join(allowed)}")
        return str(raw)

    return parse


def as_policy(raw: Raw) -> QualityPolicy:
    """A quality policy."""
    return QualityPolicy(as_one_of(*(policy.value for policy in QualityPolicy))(raw))


def as_objective(raw: Raw) -> Objective:
    """What balancing makes small."""
    return Objective(as_one_of(*(objective.value for objective in Objective))(raw))


def as_ratio(raw: Raw) -> float:
    """A number of at least 1."""
    ratio = as_number(raw)
    if not (math.isfinite(ratio) and ratio >= 1.0):
        raise ValueError(f"is {raw!r}, must be a number of at least 1")
    return ratio


def as_samples(raw: Raw) -> int:
    """How many samples of a shard are needed; at most as many as are kept."""
    count = as_count(raw)
    if count > balance.WINDOW:
        raise ValueError(f"is {raw!r}, more than the {balance.WINDOW} that are kept")
    return count


def as_loopback(raw: Raw) -> str:
    """A TCP address on this machine; anything else would let the whole network in without asking who it is."""
    text = as_text(raw)
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and int(port) < 65536):
        raise ValueError(f"is {text!r}, must be HOST:PORT")
    if host not in ("127.0.0.1", "[::1]", "localhost"):
        raise ValueError(f"is {text!r}; only loopback (127.0.0.1, [::1], localhost) is served without authentication")
    return text


def as_scraped(raw: Raw) -> str:
    """Where metrics are served: a TCP address on this machine, or a Unix socket as ``unix:PATH``."""
    scheme, colon, place = as_text(raw).partition(":")
    return f"unix:{as_path(place)}" if (scheme, colon) == ("unix", ":") else as_loopback(raw)


def as_foreign(raw: Raw) -> str:
    """Whose memory is foreign on the host device."""
    text = as_text(raw)
    word, colon, place = text.partition(":")
    if (word in ("none", "machine") and not colon) or (word in ("cgroup", "pids") and place):
        return text
    raise ValueError(f"is {text!r}, must be none, machine, cgroup:PATH or pids:FILE")


def as_devices(raw: Raw) -> tuple[tuple[str, int], ...]:
    """Static devices: ``name=SIZE,…`` in text, a table ``name = "SIZE"`` in the file."""
    if isinstance(raw, Mapping):
        pairs = [(str(name), size) for name, size in raw.items()]
    else:
        parts = [part.partition("=") for part in as_text(raw).split(",") if part]
        pairs = [(name.strip(), size) for name, _, size in parts]
    if any(not (name and name.isprintable()) for name, _ in pairs) or len({name for name, _ in pairs}) < len(pairs):
        raise ValueError(f"is {raw!r}, must be different names with sizes, such as gpu0=24GiB,gpu1=24GiB")
    return tuple((name, as_size(size)) for name, size in pairs)


def as_by_type(default: Mapping[WorkloadType, float]) -> Callable[[Raw], Mapping[WorkloadType, float]]:
    """A share for each type of workload: a table in the file, ``llm=0.5,image=0.3`` in text."""

    def parse(raw: Raw) -> Mapping[WorkloadType, float]:
        if isinstance(raw, Mapping):
            given = {str(name): value for name, value in raw.items()}
        else:
            given = {
                name.strip(): value for name, _, value in (part.partition("=") for part in as_text(raw).split(","))
            }
        if unknown := set(given) - set(TYPE_NAMES):
            raise ValueError(f"names {', '.join(sorted(unknown))}; there is {', '.join(TYPE_NAMES)}")
        return {**default, **{TYPE_NAMES[name]: as_share(value) for name, value in given.items()}}

    return parse
