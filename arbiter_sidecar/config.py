"""The configuration: one table of options, read from flags, environment, file and defaults, in this order.

Every fault is found before anything starts, and all of them are told at once, each with the place it comes from.
"""

from __future__ import annotations

import difflib
import functools
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from arbiter_client.address import default_socket
from arbiter_sidecar.config_values import (
    Raw,
    as_by_type,
    as_count,
    as_devices,
    as_foreign,
    as_loopback,
    as_objective,
    as_one_of,
    as_path,
    as_policy,
    as_ratio,
    as_samples,
    as_scraped,
    as_seconds,
    as_share,
    as_size,
    as_switch,
)
from arbiter_sidecar.policy import balance, preemption, ranking
from arbiter_sidecar.policy.balance import Objective
from arbiter_sidecar.policy.quality import DEFAULT_ELASTICITY, DEFAULT_MIN_QUALITY, SOFT_TARGET, QualityPolicy
from arbiter_sidecar.types import MIB, WorkloadType

DEVICE_MODES = ("auto", "nvidia", "amd", "host", "static")
LOG_LEVELS = ("debug", "info", "warning", "error")


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


_ELASTICITY = dict.fromkeys(WorkloadType, DEFAULT_ELASTICITY)


def _option(key: str, parse: Callable[[Raw], Any], help: str, *, metavar: str = "VALUE") -> Mapping[str, Any]:
    return {"key": key, "parse": parse, "help": help, "metavar": metavar}


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything that can be configured. Each field is one option; its help is the documentation."""

    socket: Path = field(
        default_factory=lambda: Path(default_socket()),
        metadata=_option("server.socket", as_path, "Unix socket to serve on", metavar="PATH"),
    )
    listen: str = field(
        default="",
        metadata=_option("server.listen", as_loopback, "also serve on this loopback TCP address", metavar="HOST:PORT"),
    )
    state_dir: Path = field(
        default_factory=default_state_dir,
        metadata=_option("server.state-dir", as_path, "directory for what must survive a restart", metavar="DIR"),
    )
    observe_only: bool = field(
        default=False,
        metadata=_option(
            "server.observe-only", as_switch, "decide and show everything, and do nothing to anybody", metavar="BOOL"
        ),
    )
    drain_timeout_s: float = field(
        default=20.0,
        metadata=_option(
            "server.drain-timeout", as_seconds(), "on SIGTERM, how long to wait for leases to end", metavar="TIME"
        ),
    )
    log_level: str = field(
        default="info",
        metadata=_option("log.level", as_one_of(*LOG_LEVELS), f"one of {', '.join(LOG_LEVELS)}", metavar="LEVEL"),
    )
    metrics_listen: str = field(
        default="",
        metadata=_option(
            "metrics.listen", as_scraped, "serve metrics on this loopback HOST:PORT or unix:PATH", metavar="ADDRESS"
        ),
    )
    devices: str = field(
        default="auto",
        metadata=_option("devices.mode", as_one_of(*DEVICE_MODES), f"one of {', '.join(DEVICE_MODES)}", metavar="MODE"),
    )
    device_cap_bytes: int | None = field(
        default=None,
        metadata=_option(
            "devices.cap", as_size, "use at most this much of each GPU; the reserve is taken from it", metavar="SIZE"
        ),
    )
    static_devices: tuple[tuple[str, int], ...] = field(
        default=(),
        metadata=_option(
            "devices.static", as_devices, "devices that cannot be measured, as NAME=SIZE,…", metavar="NAME=SIZE,…"
        ),
    )
    host_budget_bytes: int | None = field(
        default=None,
        metadata=_option("host.budget", as_size, "arbitrate exactly this much host memory", metavar="SIZE"),
    )
    host_foreign: str | None = field(
        default=None,
        metadata=_option(
            "host.foreign", as_foreign, "whose memory counts as foreign: none, machine, cgroup:PATH or pids:FILE"
        ),
    )
    host_proc: Path | None = field(
        default=None,
        metadata=_option("host.proc", as_path, "the host's /proc, where it is mounted in a container", metavar="PATH"),
    )
    sample_interval_s: float = field(
        default=0.5,
        metadata=_option("devices.sample-interval", as_seconds(least=0.05), "time between samples", metavar="TIME"),
    )
    probe_timeout_s: float = field(
        default=5.0,
        metadata=_option("devices.probe-timeout", as_seconds(least=0.1), "when a driver is given up", metavar="TIME"),
    )
    policy: QualityPolicy = field(
        default=QualityPolicy.ADAPTIVE,
        metadata=_option(
            "quality.policy", as_policy, f"one of {', '.join(each.value for each in QualityPolicy)}", metavar="POLICY"
        ),
    )
    soft_target: float = field(
        default=SOFT_TARGET,
        metadata=_option("quality.soft-target", as_share, "share of the capacity to stay under", metavar="SHARE"),
    )
    min_quality: Mapping[WorkloadType, float] = field(
        default_factory=lambda: dict(DEFAULT_MIN_QUALITY),
        metadata=_option(
            "quality.minimum", as_by_type(DEFAULT_MIN_QUALITY), "minimum quality by type where a request names none"
        ),
    )
    elasticity: Mapping[WorkloadType, float] = field(
        default_factory=lambda: dict(_ELASTICITY),
        metadata=_option(
            "quality.elasticity",
            as_by_type(_ELASTICITY),
            "share of its memory that a lease without a declared minimum sheds from quality 1 to 0, by type",
        ),
    )
    ttl_default_s: float = field(
        default=15.0,
        metadata=_option(
            "lease.ttl-default", as_seconds(least=1.0), "time to live where none is asked", metavar="TIME"
        ),
    )
    ttl_min_s: float = field(
        default=3.0,
        metadata=_option("lease.ttl-min", as_seconds(least=1.0), "shorter times to live are raised", metavar="TIME"),
    )
    ttl_max_s: float = field(
        default=300.0,
        metadata=_option("lease.ttl-max", as_seconds(least=1.0), "longer times to live are lowered", metavar="TIME"),
    )
    drain_grace_s: float = field(
        default=10.0,
        metadata=_option(
            "lease.drain-grace", as_seconds(), "how long an ended lease may keep memory before an alarm", metavar="TIME"
        ),
    )
    lock_delay_s: float = field(
        default=30.0,
        metadata=_option(
            "lease.lock-delay",
            as_seconds(),
            "how long memory stays reserved that cannot be seen to go; 0: not at all",
            metavar="TIME",
        ),
    )
    queue_aging_s: float = field(
        default=ranking.AGING_S,
        metadata=_option(
            "queue.aging", as_seconds(least=0.001), "waiting so long counts as one priority more", metavar="TIME"
        ),
    )
    queue_backfill: int = field(
        default=ranking.BACKFILL,
        metadata=_option(
            "queue.backfill",
            functools.partial(as_count, least=0),
            "how often others may pass a request that does not fit",
            metavar="COUNT",
        ),
    )
    preemption_gap: int = field(
        default=preemption.LEASE_GAP,
        metadata=_option(
            "preemption.gap", as_count, "priorities that one must be above to take from another", metavar="COUNT"
        ),
    )
    preemption_grace_s: float = field(
        default=2.0,
        metadata=_option(
            "preemption.grace",
            as_seconds(least=0.05),
            "time to give memory back before a lease is taken",
            metavar="TIME",
        ),
    )
    preemption_shrink_hold_s: float = field(
        default=preemption.SHRINK_HOLD_S,
        metadata=_option(
            "preemption.shrink-hold", as_seconds(), "a younger lease is not shrunk for others", metavar="TIME"
        ),
    )
    preemption_revoke_hold_s: float = field(
        default=preemption.REVOKE_HOLD_S,
        metadata=_option(
            "preemption.revoke-hold", as_seconds(), "a younger lease is not taken for others", metavar="TIME"
        ),
    )
    preemption_cooldown_s: float = field(
        default=preemption.COOLDOWN_S,
        metadata=_option("preemption.cooldown", as_seconds(), "peace after having given memory back", metavar="TIME"),
    )
    kv_tokens: int | None = field(
        default=None,
        metadata=_option(
            "kv.tokens", as_count, "KV tokens that the engines of a device share; else by its capacity", metavar="COUNT"
        ),
    )
    kv_engine_cap: float = field(
        default=1.0,
        metadata=_option(
            "kv.engine-cap", as_share, "largest share of one engine in a device's tokens", metavar="SHARE"
        ),
    )
    kv_drain_s: float = field(
        default=5.0,
        metadata=_option(
            "kv.drain", as_seconds(), "how long an engine may keep more tokens than its budget", metavar="TIME"
        ),
    )
    kv_reservation_s: float = field(
        default=900.0,
        metadata=_option(
            "kv.reservation", as_seconds(least=1.0), "when an abandoned reservation returns by itself", metavar="TIME"
        ),
    )
    balance_objective: Objective = field(
        default=Objective.THROUGHPUT,
        metadata=_option(
            "balance.objective",
            as_objective,
            f"one of {', '.join(each.value for each in Objective)}",
            metavar="OBJECTIVE",
        ),
    )
    balance_threshold: float = field(
        default=balance.IMBALANCE_THRESHOLD,
        metadata=_option(
            "balance.threshold",
            as_ratio,
            "how much longer than ideal the longest stage of a split model may be",
            metavar="RATIO",
        ),
    )
    balance_min_speedup: float = field(
        default=balance.MIN_SPEEDUP,
        metadata=_option("balance.min-speedup", as_ratio, "layers do not move for a smaller gain", metavar="RATIO"),
    )
    balance_min_samples: int = field(
        default=balance.MIN_SAMPLES,
        metadata=_option(
            "balance.min-samples", as_samples, "forward passes that make the cost of a shard credible", metavar="COUNT"
        ),
    )
    balance_interval_s: float = field(
        default=balance.INTERVAL_S,
        metadata=_option("balance.interval", as_seconds(least=0.1), "time between two evaluations", metavar="TIME"),
    )
    overuse_slack_bytes: int = field(
        default=512 * MIB,
        metadata=_option(
            "overuse.slack",
            as_size,
            "what a lease may be measured above what it leased before it counts",
            metavar="SIZE",
        ),
    )
    overuse_patience_s: float = field(
        default=10.0,
        metadata=_option(
            "overuse.patience",
            as_seconds(),
            "from a lower quality to the order to give the excess back",
            metavar="TIME",
        ),
    )
    overuse_revoke: bool = field(
        default=True,
        metadata=_option(
            "overuse.revoke", as_switch, "take the lease of a worker that does not give its excess back", metavar="BOOL"
        ),
    )
    enforcer: bool = field(
        default=False,
        metadata=_option(
            "enforcer.enabled",
            as_switch,
            "end processes that keep the memory of a lease taken from them",
            metavar="BOOL",
        ),
    )
    enforcer_patience_s: float = field(
        default=2.0,
        metadata=_option("enforcer.patience", as_seconds(), "from the end of the lease to SIGTERM", metavar="TIME"),
    )
    enforcer_kill_grace_s: float = field(
        default=5.0,
        metadata=_option("enforcer.kill-grace", as_seconds(), "from SIGTERM to SIGKILL", metavar="TIME"),
    )
    max_leases: int = field(
        default=100_000, metadata=_option("limits.leases", as_count, "leases at most", metavar="COUNT")
    )
    max_waiting: int = field(
        default=10_000, metadata=_option("limits.waiting", as_count, "waiting requests at most", metavar="COUNT")
    )
    max_sessions: int = field(
        default=4_096, metadata=_option("limits.sessions", as_count, "open sessions at most", metavar="COUNT")
    )
    max_streams: int = field(
        default=16_384, metadata=_option("limits.streams", as_count, "open quality streams at most", metavar="COUNT")
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
    if config.metrics_listen == f"unix:{config.socket}":
        yield ("metrics_listen", "socket"), f"metrics.listen is server.socket: {config.socket}; they must differ"
    if config.observe_only and config.enforcer:
        yield ("observe_only", "enforcer"), "enforcer.enabled ends processes, which server.observe-only never does"
    if config.soft_target == 0.0:
        yield ("soft_target",), "quality.soft-target is 0, which would leave nothing to anybody"
