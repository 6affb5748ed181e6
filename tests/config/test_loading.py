"""Where values come from, which of them wins, and how everything that is wrong is told at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from arbiter_sidecar import config, config_values
from arbiter_sidecar.config import Config, ConfigError, Loaded

TOML = """
[server]
socket = "/file.sock"
drain-timeout = "7s"
[log]
level = "warning"
[lease]
ttl-max = "100s"
"""


def load(
    flags: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None, file: Path | None = None
) -> Loaded:
    return config.load(flags or {}, environ or {}, file)


def faults(
    flags: Mapping[str, str] | None = None, environ: Mapping[str, str] | None = None, file: Path | None = None
) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(flags, environ, file)
    assert str(caught.value) == "\n".join(caught.value.faults)
    return caught.value.faults


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "arbiter.toml"
    path.write_text(TOML)
    return path


def test_defaults_hold_when_nothing_is_said() -> None:
    loaded = load()
    assert set(loaded.origins.values()) == {"default"}
    assert set(loaded.origins) == {option.name for option in config.OPTIONS}
    assert loaded.config == Config()
    assert (loaded.config.ttl_default_s, loaded.config.ttl_min_s, loaded.config.ttl_max_s) == (15.0, 3.0, 300.0)


def test_flag_wins_over_variable_wins_over_file_wins_over_default(file: Path) -> None:
    environ = {"ARBITER_SOCKET": "/environ.sock", "ARBITER_DRAIN_TIMEOUT": "8s"}
    loaded = load({"socket": "/flag.sock"}, environ, file)
    assert loaded.config.socket == Path("/flag.sock")
    assert loaded.config.drain_timeout_s == 8.0
    assert loaded.config.log_level == "warning"
    assert loaded.config.ttl_default_s == 15.0
    assert loaded.origins["socket"] == "--socket"
    assert loaded.origins["drain_timeout_s"] == "ARBITER_DRAIN_TIMEOUT"
    assert loaded.origins["log_level"] == f"{file}: log.level"
    assert loaded.origins["ttl_default_s"] == "default"


def test_file_is_named_by_the_environment_when_no_flag_names_one(file: Path, tmp_path: Path) -> None:
    environ = {"ARBITER_CONFIG": str(file)}
    assert load(environ=environ).config.log_level == "warning"
    other = tmp_path / "other.toml"
    other.write_text('[log]\nlevel = "debug"\n')
    assert load(environ=environ, file=other).config.log_level == "debug"
    assert load(environ={"ARBITER_CONFIG": ""}).config.log_level == "info"


def test_other_variables_are_left_alone_when_they_look_alike() -> None:
    # Kubernetes makes such variables for a service that is called arbiter.
    environ = {"ARBITER_SERVICE_HOST": "10.0.0.1", "ARBITER_PORT": "tcp://10.0.0.1:80", "ARBITER_ADDRESS": "x:1"}
    assert set(load(environ=environ).origins.values()) == {"default"}


def test_every_fault_is_told_when_there_are_many(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        '[lease]\nttl-min = "soon"\nttl-minn = "3s"\n[quality]\nsoft-target = 0\n[log]\nlevel = 3\n[x]\ny = 1\n'
    )
    told = faults({"host_budget_bytes": "lots", "devices": "static"}, {"ARBITER_LIMITS_LEASES": "0"}, path)
    assert told == [
        f"{path}: log.level is 3, must be one of debug, info, warning, error",
        "--host-budget 'lots' is not a size: write a number with an optional suffix, such as 512MiB, 8g or 1.5GB",
        f"{path}: lease.ttl-min is 'soon', must be a time such as 15s, 500ms or 2m",
        "ARBITER_LIMITS_LEASES is '0', must be a whole number of at least 1",
        f"{path}: lease.ttl-minn is unknown; did you mean lease.ttl-min?",
        f"{path}: x.y is unknown",
        "devices.mode is static, but devices.static names no device",
        "quality.soft-target is 0, which would leave nothing to anybody",
    ]


def test_times_to_live_are_compared_when_all_of_them_are_sound() -> None:
    [told] = faults({"ttl_min_s": "20s"})
    assert "lease.ttl-min, lease.ttl-default and lease.ttl-max must not fall: 20 s, 15 s, 300 s" in told
    [told] = faults({"ttl_max_s": "10s"})
    assert "3 s, 15 s, 10 s" in told
    # With a default in the place of a bad value, a comparison would accuse the wrong one.
    [told] = faults({"ttl_min_s": "soon", "ttl_default_s": "2s"})
    assert told.startswith("--lease-ttl-min ")
    assert load({"ttl_min_s": "15s", "ttl_max_s": "15s"}).config.ttl_max_s == 15.0


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[server", "is not TOML"),
        (b"a = \xff", "cannot be read"),
        (b"server = 3", "server is unknown"),
        (b"[server]\nsockt = '/x'", "server.sockt is unknown; did you mean server.socket?"),
        (b"[server]\ndrain_timeout = '1s'", "did you mean server.drain-timeout?"),
    ],
)
def test_file_is_named_when_it_is_bad(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    [told] = faults(file=path)
    assert told.startswith(f"{path}: ")
    assert problem in told


def test_file_is_named_when_it_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        [told] = faults(file=path)
        assert told.startswith(f"{path}: cannot be read")


def test_other_faults_are_told_when_the_file_cannot_be_read(tmp_path: Path) -> None:
    assert len(faults({"log_level": "loud"}, {}, tmp_path / "none.toml")) == 2


def test_tables_are_read_when_the_file_has_them(tmp_path: Path) -> None:
    path = tmp_path / "tables.toml"
    path.write_text(
        '[devices]\nmode = "static"\nsample-interval = 0.25\n[devices.static]\ngpu0 = "24GiB"\ngpu1 = 1024\n'
        "[quality.minimum]\nllm = 0.6\n[quality.elasticity]\nvideo = 0.9\n[limits]\nleases = 10\n"
    )
    found = load(file=path).config
    assert found.static_devices == (("gpu0", 24 << 30), ("gpu1", 1024))
    assert found.sample_interval_s == 0.25
    assert found.max_leases == 10
    assert [found.min_quality[kind] for kind in config_values.TYPE_NAMES.values()] == [0.6, 0.3, 0.25, 0.4]
    assert [found.elasticity[kind] for kind in config_values.TYPE_NAMES.values()] == [0.5, 0.5, 0.9, 0.5]
