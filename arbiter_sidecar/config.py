"""The configuration: one table of options, read from flags, environment, file and defaults, in this order.

Every fault is found before anything starts, and all of them are told at once, each with the place it comes from.
"""

from __future__ import annotations

import difflib
import functools
import math
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from arbiter_client.address import default_socket
from arbiter_sidecar.policy import preemption, ranking
from arbiter_sidecar.policy.capacity import parse_bytes
from arbiter_sidecar.policy.quality import DEFAULT_ELASTICITY, DEFAULT_MIN_QUALITY, SOFT_TARGET, QualityPolicy
from arbiter_sidecar.types import MIB, WorkloadType

#: A raw value: text from flags and the environment, a TOML value from the file.
Raw = object
DEVICE_MODES = ("auto", "nvidia", "amd", "host", "static")
LOG_LEVELS = ("debug", "info", "warning", "error")
#: Sizes beyond this, and times beyond ten years, are mistakes in units; arithmetic with them would leave 64 bits.
MAX_BYTES = 1 << 53
MAX_SPAN_S = 315_360_000.0
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class ConfigError(Exception):
    """The configuration has faults; ``faults`` names each with its place."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def default_state_dir() -> Path:
    """Where the server keeps what must survive it, when nobody says anything else."""
    if base := os.environ.get("XDG_STATE_HOME"):
        return Path(base) / "arbiter-sidecar"
    return Path("/var/lib/arbiter-sidecar") if os.getuid() == 0 else Path.home() / ".local/state/arbiter-sidecar"


def _text(raw: Raw) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"is {raw!r}, must be text")
    return raw


def _path(raw: Raw) -> Path:
    text = _text(raw)
    if not text or "\0" in text:
        raise ValueError(f"is {raw!r}, must be a path")
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ValueError(f"is {raw!r}: {error}") from error


def _size(raw: Raw) -> int:
    if isinstance(raw, bool) or not isinstance(raw, (str, int)):
        raise ValueError(f"is {raw!r}, must be a size such as 8GiB")
    size = raw if isinstance(raw, int) else parse_bytes(raw)
    if size <= 0:
        raise ValueError(f"is {raw!r}, must be more than nothing")
    if size > MAX_BYTES:
        raise ValueError(f"is {raw!r}, more than any machine has")
    return size


def _seconds(*, least: float = 0.0) -> Callable[[Raw], float]:
    def parse(raw: Raw) -> float:
        seconds = _span(raw)
        if not least <= seconds <= MAX_SPAN_S:
            raise ValueError(f"is {raw!r}, must be a time of at least {least:g} s and at most ten years")
        return seconds

    return parse


def _span(raw: Raw) -> float:
    if isinstance(raw, (int, float)) and not isinstance(raw, bool):
        return float(raw)
    text = _text(raw).strip()
    number = text.rstrip("hms")
    unit = text[len(number) :] or "s"
    if unit not in _UNITS:
        raise ValueError(f"is {raw!r}, must be a time such as 15s, 500ms or 2m")
    try:
        return float(number) * _UNITS[unit]
    except ValueError:
        raise ValueError(f"is {raw!r}, must be a time such as 15s, 500ms or 2m") from None


def _number(raw: Raw) -> float:
    if isinstance(raw, bool) or not isinstance(raw, (str, int, float)):
        raise ValueError(f"is {raw!r}, must be a number")
    try:
        return float(raw)
    except ValueError:
        raise ValueError(f"is {raw!r}, must be a number") from None


def _share(raw: Raw) -> float:
    share = _number(raw)
    if not (math.isfinite(share) and 0.0 <= share <= 1.0):
        raise ValueError(f"is {raw!r}, must be between 0 and 1")
    return share


def _count(raw: Raw, least: int = 1) -> int:
    number = _number(raw)
    if not (math.isfinite(number) and number >= least and number == int(number)):
        raise ValueError(f"is {raw!r}, must be a whole number of at least {least}")
    return int(number)


def _switch(raw: Raw) -> bool:
    known = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
    text = str(raw).lower()
    if text not in known:
        raise ValueError(f"is {raw!r}, must be true or false")
    return known[text]


def _one_of(*allowed: str) -> Callable[[Raw], str]:
    def parse(raw: Raw) -> str:
        if raw not in allowed:
            raise ValueError(f"is {raw!r}, must be one of {', '.join(allowed)}")
        return str(raw)

    return parse


def _policy(raw: Raw) -> QualityPolicy:
    return QualityPolicy(_one_of(*(policy.value for policy in QualityPolicy))(raw))


def _loopback(raw: Raw) -> str:
    """A TCP address on this machine; anything else would let the whole network in without asking who it is."""
    text = _text(raw)
    host, _, port = text.rpartition(":")
    if not (port.isascii() and port.isdecimal() and int(port) < 65536):
        raise ValueError(f"is {text!r}, must be HOST:PORT")
    if host not in ("127.0.0.1", "[::1]", "localhost"):
        raise ValueError(f"is {text!r}; only loopback (127.0.0.1, [::1], localhost) is served without authentication")
    return text


def _foreign(raw: Raw) -> str:
    """Whose memory is foreign on the host device."""
    text = _text(raw)
    word, colon, place = text.partition(":")
    if (word in ("none", "machine") and not colon) or (word in ("cgroup", "pids") and place):
        return text
    raise ValueError(f"is {text!r}, must be none, machine, cgroup:PATH or pids:FILE")


def _devices(raw: Raw) -> tuple[tuple[str, int], ...]:
    """Static devices: ``name=SIZE,…`` in text, a table ``name = "SIZE"`` in the file."""
    if isinstance(raw, Mapping):
        pairs = [(str(name), size) for name, size in raw.items()]
    else:
        parts = [part.partition("=") for part in _text(raw).split(",") if part]
        pairs = [(name.strip(), size) for name, _, size in parts]
    if any(not (name and name.isprintable()) for name, _ in pairs) or len({name for name, _ in pairs}) < len(pairs):
        raise ValueError(f"is {raw!r}, must be different names with sizes, such as gpu0=24GiB,gpu1=24GiB")
    return tuple((name, _size(size)) for name, size in pairs)


def _by_type(default: Mapping[WorkloadType, float]) -> Callable[[Raw], Mapping[WorkloadType, float]]:
    """A share for each type of workload: a table in the file, ``llm=0.5,image=0.3`` in text."""

    def parse(raw: Raw) -> Mapping[WorkloadType, float]:
        if isinstance(raw, Mapping):
            given = {str(name): value for name, value in raw.items()}
        else:
            given = {name.strip(): value for name, _, value in (part.partition("=") for part in _text(raw).split(","))}
        if unknown := set(given) - set(TYPE_NAMES):
            raise ValueError(f"names {', '.join(sorted(unknown))}; there is {', '.join(TYPE_NAMES)}")
        return {**default, **{TYPE_NAMES[name]: _share(value) for name, value in given.items()}}

    return parse


#: Names of the workload types in configuration.
TYPE_NAMES = {
    "llm": WorkloadType.LLM_INFERENCE,
    "image": WorkloadType.IMAGE_GENERATION,
    "video": WorkloadType.VIDEO_GENERATION,
    "other": WorkloadType.OTHER,
}
_ELASTICITY = dict.fromkeys(WorkloadType, DEFAULT_ELASTICITY)


def _option(key: str, parse: Callable[[Raw], Any], help: str, *, metavar: str = "VALUE") -> Mapping[str, Any]:
    return {"key": key, "parse": parse, "help": help, "metavar": metavar}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that can be configured. Each field is one option; its help is the documentation."""

    socket: Path = field(
        default_factory=lambda: Path(default_socket()),
        metadata=_option("server.socket", _path, "Unix socket to serve on", metavar="PATH"),
    )
    listen: str = field(
        default="",
        metadata=_option("server.listen", _loopback, "also serve on this loopback TCP address", metavar="HOST:PORT"),
    )
    state_dir: Path = field(
        default_factory=default_state_dir,
        metadata=_option("server.state-dir", _path, "directory for what must survive a restart", metavar="DIR"),
    )
    observe_only: bool = field(
        default=False,
        metadata=_option(
            "server.observe-only", _switch, "decide and show everything, and do nothing to anybody", metavar="BOOL"
        ),
    )
    drain_timeout_s: float = field(
        default=20.0,
        metadata=_option(
            "server.drain-timeout", _seconds(), "on SIGTERM, how long to wait for leases to end", metavar="TIME"
        ),
    )
    log_level: str = field(
        default="info",
        metadata=_option("log.level", _one_of(*LOG_LEVELS), f"one of {', '.join(LOG_LEVELS)}", metavar="LEVEL"),
    )
    devices: str = field(
        default="auto",
        metadata=_option("devices.mode", _one_of(*DEVICE_MODES), f"one of {', '.join(DEVICE_MODES)}", metavar="MODE"),
    )
    device_cap_bytes: int | None = field(
        default=None,
        metadata=_option(
            "devices.cap", _size, "use at most this much of each GPU; the reserve is taken from it", metavar="SIZE"
        ),
    )
    static_devices: tuple[tuple[str, int], ...] = field(
        default=(),
        metadata=_option(
            "devices.static", _devices, "devices that cannot be measured, as NAME=SIZE,…", metavar="NAME=SIZE,…"
        ),
    )
    host_budget_bytes: int | None = field(
        default=None,
        metadata=_option("host.budget", _size, "arbitrate exactly this much host memory", metavar="SIZE"),
    )
    host_foreign: str | None = field(
        default=None,
        metadata=_option(
            "host.foreign", _foreign, "whose memory counts as foreign: none, machine, cgroup:PATH or pids:FILE"
        ),
    )
    host_proc: Path | None = field(
        default=None,
        metadata=_option("host.proc", _path, "the host's /proc, where it is mounted in a container", metavar="PATH"),
    )
    sample_interval_s: float = field(
        default=0.5,
        metadata=_option("devices.sample-interval", _seconds(least=0.05), "time between samples", metavar="TIME"),
    )
    probe_timeout_s: float = field(
        default=5.0,
        metadata=_option("devices.probe-timeout", _seconds(least=0.1), "when a driver is given up", metavar="TIME"),
    )
    policy: QualityPolicy = field(
        default=QualityPolicy.ADAPTIVE,
        metadata=_option(
            "quality.policy", _policy, f"one of {', '.join(each.value for each in QualityPolicy)}", metavar="POLICY"
        ),
    )
    soft_target: float = field(
        default=SOFT_TARGET,
        metadata=_option("quality.soft-target", _share, "share of the capacity to stay under", metavar="SHARE"),
    )
    min_quality: Mapping[WorkloadType, float] = field(
        default_factory=lambda: dict(DEFAULT_MIN_QUALITY),
        metadata=_option(
            "quality.minimum", _by_type(DEFAULT_MIN_QUALITY), "minimum quality by type where a request names none"
        ),
    )
    elasticity: Mapping[WorkloadType, float] = field(
        default_factory=lambda: dict(_ELASTICITY),
        metadata=_option(
            "quality.elasticity",
            _by_type(_ELASTICITY),
            "share of its memory that a lease without a declared minimum sheds from quality 1 to 0, by type",
        ),
    )
    ttl_default_s: float = field(
        default=15.0,
        metadata=_option("lease.ttl-default", _seconds(least=1.0), "time to live where none is asked", metavar="TIME"),
    )
    ttl_min_s: float = field(
        default=3.0,
        metadata=_option("lease.ttl-min", _seconds(least=1.0), "shorter times to live are raised", metavar="TIME"),
    )
    ttl_max_s: float = field(
        default=300.0,
        metadata=_option("lease.ttl-max", _seconds(least=1.0), "longer times to live are lowered", metavar="TIME"),
    )
    drain_grace_s: float = field(
        default=10.0,
        metadata=_option(
            "lease.drain-grace", _seconds(), "how long an ended lease may keep memory before an alarm", metavar="TIME"
        ),
    )
    lock_delay_s: float = field(
        default=30.0,
        metadata=_option(
            "lease.lock-delay",
            _seconds(),
            "how long memory stays reserved that cannot be seen to go; 0: not at all",
            metavar="TIME",
        ),
    )
    queue_aging_s: float = field(
        default=ranking.AGING_S,
        metadata=_option(
            "queue.aging", _seconds(least=0.001), "waiting so long counts as one priority more", metavar="TIME"
        ),
    )
    queue_backfill: int = field(
        default=ranking.BACKFILL,
        metadata=_option(
            "queue.backfill",
            functools.partial(_count, least=0),
            "how often others may pass a request that does not fit",
            metavar="COUNT",
        ),
    )
    preemption_gap: int = field(
        default=preemption.LEASE_GAP,
        metadata=_option(
            "preemption.gap", _count, "priorities that one must be above to take from another", metavar="COUNT"
        ),
    )
    preemption_grace_s: float = field(
        default=2.0,
        metadata=_option(
            "preemption.grace", _seconds(least=0.05), "time to give memory back before a lease is taken", metavar="TIME"
        ),
    )
    preemption_shrink_hold_s: float = field(
        default=preemption.SHRINK_HOLD_S,
        metadata=_option(
            "preemption.shrink-hold", _seconds(), "a younger lease is not shrunk for others", metavar="TIME"
        ),
    )
    preemption_revoke_hold_s: float = field(
        default=preemption.REVOKE_HOLD_S,
        metadata=_option(
            "preemption.revoke-hold", _seconds(), "a younger lease is not taken for others", metavar="TIME"
        ),
    )
    preemption_cooldown_s: float = field(
        default=preemption.COOLDOWN_S,
        metadata=_option("preemption.cooldown", _seconds(), "peace after having given memory back", metavar="TIME"),
    )
    kv_tokens: int | None = field(
        default=None,
        metadata=_option(
            "kv.tokens", _count, "KV tokens that the engines of a device share; else by its capacity", metavar="COUNT"
        ),
    )
    kv_engine_cap: float = field(
        default=1.0,
        metadata=_option("kv.engine-cap", _share, "largest share of one engine in a device's tokens", metavar="SHARE"),
    )
    kv_drain_s: float = field(
        default=5.0,
        metadata=_option(
            "kv.drain", _seconds(), "how long an engine may keep more tokens than its budget", metavar="TIME"
        ),
    )
    kv_reservation_s: float = field(
        default=900.0,
        metadata=_option(
            "kv.reservation", _seconds(least=1.0), "when an abandoned reservation returns by itself", metavar="TIME"
        ),
    )
    overuse_slack_bytes: int = field(
        default=512 * MIB,
        metadata=_option(
            "overuse.slack", _size, "what a lease may be measured above what it leased before it counts", metavar="SIZE"
        ),
    )
    overuse_patience_s: float = field(
        default=10.0,
        metadata=_option(
            "overuse.patience", _seconds(), "from a lower quality to the order to give the excess back", metavar="TIME"
        ),
    )
    overuse_revoke: bool = field(
        default=True,
        metadata=_option(
            "overuse.revoke", _switch, "take the lease of a worker that does not give its excess back", metavar="BOOL"
        ),
    )
    enforcer: bool = field(
        default=False,
        metadata=_option(
            "enforcer.enabled", _switch, "end processes that keep the memory of a lease taken from them", metavar="BOOL"
        ),
    )
    enforcer_patience_s: float = field(
        default=2.0,
        metadata=_option("enforcer.patience", _seconds(), "from the end of the lease to SIGTERM", metavar="TIME"),
    )
    enforcer_kill_grace_s: float = field(
        default=5.0,
        metadata=_option("enforcer.kill-grace", _seconds(), "from SIGTERM to SIGKILL", metavar="TIME"),
    )
    max_leases: int = field(
        default=100_000, metadata=_option("limits.leases", _count, "leases at most", metavar="COUNT")
    )
    max_waiting: int = field(
        default=10_000, metadata=_option("limits.waiting", _count, "waiting requests at most", metavar="COUNT")
    )
    max_sessions: int = field(
        default=4_096, metadata=_option("limits.sessions", _count, "open sessions at most", metavar="COUNT")
    )
    max_streams: int = field(
        default=16_384, metadata=_option("limits.streams", _count, "open quality streams at most", metavar="COUNT")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option as people see it.

    Attributes:
        name: Field of ``Config``.
        key: Key in the file, ``section.name``.
        flag: Flag of the command line.
        variable: Environment variable.
        metavar: What its value stands for.
        help: What it does.
        parse: Turns a raw value into the field's; raises ValueError with the problem.
    """

    name: str
    key: str
    flag: str
    variable: str
    metavar: str
    help: str
    parse: Callable[[Raw], Any]


def _flag(key: str) -> str:
    section, _, name = key.partition(".")
    short = {"server": name, "devices.mode": "devices", "quality.policy": "policy"}
    return "--" + short.get(key, short.get(section, key.replace(".", "-")))


#: Every option, in the order in which they are documented.
OPTIONS = tuple(
    Option(
        name=each.name,
        key=each.metadata["key"],
        flag=_flag(each.metadata["key"]),
        variable="ARBITER_" + _flag(each.metadata["key"])[2:].replace("-", "_").upper(),
        metavar=each.metadata["metavar"],
        help=each.metadata["help"],
        parse=each.metadata["parse"],
    )
    for each in fields(Config)
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration and where each value came from."""

    config: Config
    origins: Mapping[str, str]


def load(flags: Mapping[str, str], environ: Mapping[str, str], file: Path | None) -> Loaded:
    """Reads the configuration.

    Args:
        flags: Given flags by field name.
        environ: The environment.
        file: TOML file, if any; absent, the variable ``ARBITER_CONFIG`` may name one.

    Raises:
        ConfigError: With every fault.
    """
    if file is None and environ.get("ARBITER_CONFIG"):
        file = Path(environ["ARBITER_CONFIG"])
    faults: list[str] = []
    table = _read(file, faults) if file is not None else {}
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    faulty: set[str] = set()
    for option in OPTIONS:
        raw: Raw
        if option.name in flags:
            raw, origin = flags[option.name], option.flag
        elif option.variable in environ:
            raw, origin = environ[option.variable], option.variable
        elif option.key in table:
            raw, origin = table[option.key], f"{file}: {option.key}"
        else:
            origins[option.name] = "default"
            continue
        origins[option.name] = origin
        try:
            values[option.name] = option.parse(raw)
        except ValueError as error:
            faulty.add(option.name)
            faults.append(f"{origin} {error}")
    known = {option.key for option in OPTIONS}
    faults += [f"{file}: {key} is unknown{_nearest(key)}" for key in table if key not in known]
    # Where a value has a fault of its own, its default stands in for it, and what that contradicts is no fault.
    config, sound = Config(**values), origins.keys() - faulty
    faults += [fault for names, fault in _across(config) if sound.issuperset(names)]
    if faults:
        raise ConfigError(faults)
    return Loaded(config, origins)


def _read(file: Path, faults: list[str]) -> dict[str, Raw]:
    try:
        content = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError) as error:
        faults.append(f"{file}: cannot be read: {error}")
        return {}
    except tomllib.TOMLDecodeError as error:
        faults.append(f"{file}: is not TOML: {error}")
        return {}
    table: dict[str, Raw] = {}
    for section, entries in content.items():
        if isinstance(entries, dict):
            table |= {f"{section}.{name}": value for name, value in entries.items()}
        else:
            table[section] = entries
    return table


def _nearest(key: str) -> str:
    near = difflib.get_close_matches(key, [option.key for option in OPTIONS], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _across(config: Config) -> Iterator[tuple[tuple[str, ...], str]]:
    """Faults that no single value has, each with the fields that it is about."""
    if not config.ttl_min_s <= config.ttl_default_s <= config.ttl_max_s:
        yield (
            ("ttl_min_s", "ttl_default_s", "ttl_max_s"),
            "lease.ttl-min, lease.ttl-default and lease.ttl-max must not fall: "
            f"{config.ttl_min_s:g} s, {config.ttl_default_s:g} s, {config.ttl_max_s:g} s",
        )
    if config.devices == "static" and not config.static_devices:
        yield ("devices", "static_devices"), "devices.mode is static, but devices.static names no device"
    if config.observe_only and config.enforcer:
        yield ("observe_only", "enforcer"), "enforcer.enabled ends processes, which server.observe-only never does"
    if config.soft_target == 0.0:
        yield ("soft_target",), "quality.soft-target is 0, which would leave nothing to anybody"
