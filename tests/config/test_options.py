"""Every option takes what it promises, refuses everything else, and can be found."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest

from arbiter_sidecar import config, config_values
from arbiter_sidecar.config import OPTIONS, Config, ConfigError, Option
from arbiter_sidecar.policy.balance import Objective
from arbiter_sidecar.policy.quality import QualityPolicy
from arbiter_sidecar.types import WorkloadType

BY_NAME = {option.name: option for option in OPTIONS}
TEN_YEARS = 315_360_000.0

#: Values that no option takes, whatever it is about.
#: Options that are on or off.
SWITCHES = ("server.observe-only", "overuse.revoke", "enforcer.enabled")
NEVER: list[object] = [True, [], ["a"], object(), None]
BAD_PATHS: list[object] = ["", "a\0b", 3, "~nobody-has-this-name/x"]
BAD_TIMES: list[object] = [
    "",
    "s",
    "soon",
    "1 day",
    "5x",
    "-1s",
    "nan",
    "inf",
    "1e400",
    "11y",
    math.nan,
    math.inf,
    -0.5,
]
BAD_SIZES: list[object] = ["", "0", "-1", "8 GiBs", "1e9", "eight", 0, -5, 1.5, "9007199254740993", "99999999TiB"]
BAD_SHARES: list[object] = ["", "50%", "-0.1", "1.1", "nan", math.nan, math.inf, 2]
BAD_COUNTS: list[object] = ["", "0", "-1", "1.5", "many", "nan", "inf", 0, 2.5]

GOOD: list[tuple[str, object, object]] = [
    ("socket", "/run/x.sock", Path("/run/x.sock")),
    ("socket", "~/x.sock", Path.home() / "x.sock"),
    ("state_dir", "relative/dir", Path("relative/dir")),
    ("host_proc", "/host/proc", Path("/host/proc")),
    ("listen", "127.0.0.1:7000", "127.0.0.1:7000"),
    ("listen", "[::1]:0", "[::1]:0"),
    ("listen", "localhost:65535", "localhost:65535"),
    ("drain_timeout_s", "0", 0.0),
    ("drain_timeout_s", "1.5m", 90.0),
    ("drain_timeout_s", " 20s ", 20.0),
    ("drain_timeout_s", 3, 3.0),
    ("drain_timeout_s", "2h", 7200.0),
    ("probe_timeout_s", "100ms", 0.1),
    ("sample_interval_s", 0.05, 0.05),
    ("ttl_default_s", "1", 1.0),
    ("ttl_min_s", "1000ms", 1.0),
    ("ttl_max_s", TEN_YEARS, TEN_YEARS),
    ("drain_grace_s", "0s", 0.0),
    ("lock_delay_s", "0s", 0.0),
    ("log_level", "debug", "debug"),
    ("devices", "host", "host"),
    ("device_cap_bytes", "8g", 8 << 30),
    ("device_cap_bytes", 123, 123),
    ("host_budget_bytes", "1.5GB", 1_500_000_000),
    ("host_budget_bytes", str(1 << 53), 1 << 53),
    ("static_devices", "gpu0=24GiB,gpu1=1k", (("gpu0", 24 << 30), ("gpu1", 1024))),
    ("static_devices", {"a": 1}, (("a", 1),)),
    ("static_devices", "", ()),
    ("host_foreign", "none", "none"),
    ("host_foreign", "machine", "machine"),
    ("host_foreign", "cgroup:kubepods/x", "cgroup:kubepods/x"),
    ("host_foreign", "pids:/run/list", "pids:/run/list"),
    ("policy", "llm_first", QualityPolicy.LLM_FIRST),
    ("soft_target", "0.5", 0.5),
    ("soft_target", 1, 1.0),
    ("balance_objective", "latency", Objective.LATENCY),
    ("balance_threshold", "2", 2.0),
    ("balance_min_speedup", 1, 1.0),
    ("balance_min_samples", "256", 256),
    ("balance_interval_s", "100ms", 0.1),
    ("max_leases", "1", 1),
    ("max_waiting", "1e3", 1000),
    ("max_sessions", 5, 5),
    ("max_streams", 5.0, 5),
]
BAD: list[tuple[str, object]] = [
    *((name, raw) for name in ("socket", "state_dir", "host_proc") for raw in BAD_PATHS),
    *(
        ("listen", raw)
        for raw in (
            "",
            "7000",
            ":7000",
            "0.0.0.0:1",
            "[::]:1",
            "10.0.0.1:1",
            "localhost",
            "localhost:65536",
            "::1:5",
            "localhost:x",
            "127.0.0.1:-1",
        )
    ),
    *(
        (name, raw)
        for name in ("drain_timeout_s", "sample_interval_s", "probe_timeout_s", "ttl_default_s", "ttl_min_s")
        for raw in BAD_TIMES
    ),
    *((name, raw) for name in ("ttl_max_s", "drain_grace_s", "lock_delay_s") for raw in BAD_TIMES),
    ("sample_interval_s", "49ms"),
    ("probe_timeout_s", "99ms"),
    *((name, "999ms") for name in ("ttl_default_s", "ttl_min_s", "ttl_max_s")),
    ("log_level", "loud"),
    ("log_level", "INFO"),
    ("devices", "gpu"),
    *((name, raw) for name in ("device_cap_bytes", "host_budget_bytes") for raw in BAD_SIZES),
    *(("static_devices", raw) for raw in ("gpu0", "=1", "a=1,a=2", "a=0", "a\nb=1", {"a": "x"}, {"": 1}, 3)),
    *(("host_foreign", raw) for raw in ("", "some", "none:x", "machine:", "cgroup:", "pids:", "cgroup", 3)),
    ("policy", "fair"),
    *(("soft_target", raw) for raw in BAD_SHARES),
    ("balance_objective", "speed"),
    *((name, raw) for name in ("balance_threshold", "balance_min_speedup") for raw in (0.99, "nan", "inf", "fast")),
    *(("balance_min_samples", raw) for raw in (0, 257, 1.5)),
    ("balance_interval_s", "99ms"),
    *(
        (name, raw)
        for name in ("min_quality", "elasticity")
        for raw in ("", "llm", "llm=2", "cat=0.5", {"llm": "x"}, {"cat": 0.5}, {"llm": math.nan}, 0.5)
    ),
    *((name, raw) for name in ("max_leases", "max_waiting", "max_sessions", "max_streams") for raw in BAD_COUNTS),
]


@pytest.mark.parametrize(("name", "raw", "parsed"), GOOD)
def test_value_is_taken_when_it_is_good(name: str, raw: object, parsed: object) -> None:
    found = BY_NAME[name].parse(raw)
    assert found == parsed
    assert type(found) is type(parsed)


@pytest.mark.parametrize(("name", "raw"), BAD)
def test_value_is_refused_when_it_is_bad(name: str, raw: object) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        BY_NAME[name].parse(raw)


@pytest.mark.parametrize(
    ("option", "raw"),
    [
        pytest.param(option, raw, id=f"{option.key}-{type(raw).__name__}{place}")
        for option in OPTIONS
        for place, raw in enumerate(NEVER)
        if not (isinstance(raw, bool) and option.key in SWITCHES)
    ],
)
def test_value_is_refused_when_it_is_of_no_sensible_kind(option: Option, raw: object) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        option.parse(raw)


@pytest.mark.parametrize(("name", "raw"), [(name, raw) for name, raw in BAD if isinstance(raw, str)])
def test_flag_is_named_when_its_value_is_bad(name: str, raw: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load({name: raw}, {}, None)
    [fault] = caught.value.faults
    assert fault.startswith(BY_NAME[name].flag + " ")


def test_shares_by_type_keep_the_others_when_one_is_given() -> None:
    parsed: Any = BY_NAME["min_quality"].parse("llm=0.7, image=0")
    assert parsed[WorkloadType.LLM_INFERENCE] == 0.7
    assert parsed[WorkloadType.IMAGE_GENERATION] == 0.0
    assert parsed[WorkloadType.VIDEO_GENERATION] == Config().min_quality[WorkloadType.VIDEO_GENERATION]


def test_every_option_can_be_found() -> None:
    for names in (
        [option.key for option in OPTIONS],
        [option.flag for option in OPTIONS],
        [option.variable for option in OPTIONS],
    ):
        assert len(set(names)) == len(OPTIONS)
    for option in OPTIONS:
        assert re.fullmatch(r"[a-z]+\.[a-z]+(-[a-z]+)*", option.key)
        assert re.fullmatch(r"--[a-z]+(-[a-z]+)*", option.flag)
        assert re.fullmatch(r"ARBITER_[A-Z]+(_[A-Z]+)*", option.variable)
        assert option.variable not in {"ARBITER_CONFIG", "ARBITER_ADDRESS"}
        assert len(option.help) > 5
        assert option.metavar.isupper() or "=" in option.metavar
        assert "_s" not in option.flag


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_default_is_taken_when_it_is_written_out(option: Option) -> None:
    default = getattr(Config(), option.name)
    if isinstance(default, Path):
        assert option.parse(str(default)) == default
    elif isinstance(default, float):
        assert option.parse(f"{default}") == default
    elif isinstance(default, int):
        assert option.parse(str(default)) == default
    elif option.name in ("min_quality", "elasticity"):
        names = {kind: name for name, kind in config_values.TYPE_NAMES.items()}
        assert option.parse(",".join(f"{names[kind]}={share}" for kind, share in default.items())) == default
    else:
        assert default in ((), "", None, "info", "auto", QualityPolicy.ADAPTIVE, Objective.THROUGHPUT)
