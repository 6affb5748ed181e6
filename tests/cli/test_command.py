"""What the command says about itself, its configuration and a server's health."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from arbiter_sidecar import __version__, cli, config
from tests.cli.command import STATIC, run
from tests.running import running_server


def test_version_is_told() -> None:
    ran = run("--version")
    assert (ran.code, ran.output) == (0, f"arbiter-sidecar {__version__}\n")


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("sing",),
        ("serve", "--no-such-flag"),
        ("serve", "extra"),
        ("check-config", "--socket"),
        ("health", "--socket", "x"),
    ],
    ids=" ".join,
)
def test_usage_is_told_when_words_are_wrong(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    assert caught.value.code == 2
    assert "usage: arbiter-sidecar" in capsys.readouterr().err


def test_every_fault_is_told_when_settings_are_wrong(tmp_path: Path) -> None:
    state = tmp_path / "state"
    ran = run(
        *("serve", "--listen", "0.0.0.0:7000", "--log-level", "loud", "--state-dir", str(state)),
        environment={"ARBITER_LEASE_TTL_MIN": "soon"},
    )
    assert ran.code == 2
    told = ran.errors.splitlines()
    assert len(told) == 3
    assert all(line.startswith("arbiter-sidecar: ") for line in told)
    assert "only loopback" in told[0]
    assert told[1].startswith("arbiter-sidecar: --log-level ")
    assert told[2].startswith("arbiter-sidecar: ARBITER_LEASE_TTL_MIN ")
    assert not state.exists()


def test_every_setting_is_shown_with_its_origin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "c.toml"
    file.write_text('[lease]\nttl-max = "100s"\n')
    monkeypatch.setenv("ARBITER_LOG_LEVEL", "error")
    words = ("check-config", "--config", str(file), "--devices-static", "gpu0=1GiB", "--policy", "balanced")
    assert cli.main(words) == 0
    rows = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    table = {row[0]: [cell.strip() for cell in row[1:] if cell.strip()] for row in rows}
    assert list(table) == [option.key for option in config.OPTIONS]
    assert table["lease.ttl-max"] == ["100.0", f"{file}: lease.ttl-max"]
    assert table["log.level"] == ["error", "ARBITER_LOG_LEVEL"]
    assert table["quality.policy"] == ["balanced", "--policy"]
    assert table["devices.static"] == ['{"gpu0": 1073741824}', "--devices-static"]
    assert table["host.budget"] == ["-", "default"]
    assert cli.main((*words, "--json")) == 0
    shown = json.loads(capsys.readouterr().out)
    assert list(shown) == [option.key for option in config.OPTIONS]
    assert shown["lease.ttl-max"] == {"value": 100.0, "origin": f"{file}: lease.ttl-max"}
    assert shown["devices.static"]["value"] == {"gpu0": 1 << 30}
    assert shown["quality.minimum"]["value"] == {"llm": 0.4, "image": 0.3, "video": 0.25, "other": 0.4}


def test_check_config_fails_as_serve_would(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(("check-config", "--devices", "static", "--host-foreign", "everybody")) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert len(told.err.splitlines()) == 2
    assert not list(tmp_path.iterdir())


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(("serve", "--help"))
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for option in config.OPTIONS:
        assert option.flag in text
        assert option.variable in text


def test_health_answers_with_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running_server(tmp_path, *STATIC) as server:
        for address in (server.address, str(server.socket)):
            assert cli.main(("health", "--address", address)) == 0
            assert capsys.readouterr().out == "SERVING\n"
        assert cli.main(("health", "--address", server.address, "--service", "arbiter.v1.ArbiterService")) == 0
        assert cli.main(("health", "--address", server.address, "--service", "nobody")) == 1
        assert "knows no service 'nobody'" in capsys.readouterr().err
    assert cli.main(("health", "--address", server.address, "--timeout", "0.2")) == 1
    assert "no answer from" in capsys.readouterr().err


def test_health_is_wrong_usage_when_the_address_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(("health", "--address", "nowhere")) == 2
    assert "nowhere" in capsys.readouterr().err
