"""The command ``arbiter``: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

import arbiter_client
from arbiter.v1 import arbiter_service_pb2, lease_pb2, state_service_pb2
from arbiter_client import cli, plain, tables, terms
from tests.client.scripted_server import GUARD_S

if TYPE_CHECKING:
    from tests.client.scripted_server import ScriptedServer

#: Seconds since 1970 at which the tables are drawn.
WALL = 1_700_000_000


def picture() -> state_service_pb2.GetStateResponse:
    state = state_service_pb2.GetStateResponse(
        version="1.2.3", server_epoch=4, quality_policy="adaptive", draining=True, notes=["no GPU was found"]
    )
    state.uptime.FromSeconds(65)
    state.devices.add(
        device_id="host",
        kind=state_service_pb2.DeviceKind.DEVICE_KIND_HOST,
        health=state_service_pb2.DeviceHealth.DEVICE_HEALTH_OK,
        capacity_bytes=4 << 30,
        granted_bytes=3 << 30,
        foreign_bytes=5,
        available_bytes=1 << 30,
        pressure=0.75,
        level=state_service_pb2.PressureLevel.PRESSURE_LEVEL_HIGH,
    )
    state.leases.add(
        lease_id="abc",
        holder="llm-server",
        workload_type=lease_pb2.WorkloadType.WORKLOAD_TYPE_LLM_INFERENCE,
        priority=lease_pb2.Priority.PRIORITY_HIGH,
        state=lease_pb2.LeaseState.LEASE_STATE_ACTIVE,
        device_id="host",
        memory_bytes=3 << 30,
        measured_memory_bytes=1 << 29,
        expire_time=Timestamp(seconds=WALL + 12),
        directive=lease_pb2.Directive(quality=0.625),
    )
    state.leases.add(
        lease_id="d",
        holder="x\x1b[2Jy\n",
        workload_type=lease_pb2.WorkloadType.ValueType(77),
        end_reason=lease_pb2.EndReason.END_REASON_ORPHANED,
        ttl=terms.duration(15),
    )
    state.waiting.add(request_id="r1", holder="img", memory_bytes=1 << 30, waited=terms.duration(3), reason="no room")
    return state


def run(server: ScriptedServer, *arguments: str) -> int:
    return cli.main(["--address", server.address, *arguments])


def test_state_shows_everything_aligned(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script.state = picture()
    assert run(server, "state") == 0
    out = capsys.readouterr().out
    assert out.startswith("arbiter 1.2.3  epoch 4  policy adaptive  up 1m05s  draining\n")
    assert "note: no GPU was found" in out
    assert "r1" in out
    assert "\x1b" not in out


def test_tables_say_what_is_left_and_what_is_unknown() -> None:
    text = tables.leases(picture().leases, WALL, colour=False)
    header, first, second = text.split("\n")
    assert header.split()[-1] == "TTL"
    assert first.split() == [
        "abc",
        "llm-server",
        "llm_inference",
        "high",
        "active",
        "host",
        "0.62",
        "3.0GiB",
        "512.0MiB",
        "12s",
    ]
    assert second.split()[-2:] == ["-", "15s"]
    assert "orphaned" in second
    assert "77" in second
    assert header.index("GRANTED") + len("GRANTED") == first.index("3.0GiB") + len("3.0GiB")


def test_tables_let_no_name_steer_the_terminal() -> None:
    text = tables.state(picture(), WALL, colour=False)
    assert "\x1b" not in text
    assert "x�[2Jy�" in text


def test_tables_say_when_there_is_nothing() -> None:
    text = tables.state(state_service_pb2.GetStateResponse(version="1"), WALL, colour=False)
    assert "no devices" in text
    assert "no leases" in text


def test_tables_are_bold_only_with_colour() -> None:
    assert "\x1b[1m" in tables.leases(picture().leases, WALL, colour=True)


def test_state_as_json_has_integers_and_every_field(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script.state = picture()
    assert run(server, "state", "--json") == 0
    out = json.loads(capsys.readouterr().out)
    assert out["devices"][0]["capacity_bytes"] == 4 << 30
    assert out["devices"][0]["kind"] == "DEVICE_KIND_HOST"
    assert "measured_bytes" not in out["devices"][0]
    assert out["leases"][0]["handle"] == 0
    assert out["leases"][0]["measured_memory_bytes"] == 1 << 29
    assert out["leases"][0]["directive"]["revision"] == 0
    assert out["leases"][1]["labels"] == {}
    assert out["uptime"] == "65s"
    assert out["draining"] is True


def test_plain_keeps_integers_in_lists_and_maps() -> None:
    beat = arbiter_service_pb2.HeartbeatRequest(handles=[2**64 - 1])
    assert plain.to_plain(beat)["handles"] == [2**64 - 1]
    event = state_service_pb2.Event(fields={"bytes": "12"})
    assert plain.to_plain(event)["fields"] == {"bytes": "12"}


def test_leases_prints_the_leases_alone(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script.state = picture()
    assert run(server, "leases") == 0
    assert capsys.readouterr().out.startswith("LEASE")
    assert run(server, "leases", "--json") == 0
    assert [lease["lease_id"] for lease in json.loads(capsys.readouterr().out)] == ["abc", "d"]


@pytest.mark.parametrize("kind", ["lease", "request", "device"])
def test_explain_finds_out_what_the_id_names(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    answer = state_service_pb2.ExplainResponse(summary="it is full", rule="soft target")
    answer.findings.add(name="pressure", value="0.9")
    server.script.explanations[f"{kind}_id:it"] = answer
    for arguments in (("explain", "it"), ("explain", "it", f"--{kind}")):
        assert run(server, *arguments) == 0
        assert capsys.readouterr().out == "it is full\nrule: soft target\n  pressure  0.9\n"
    assert run(server, "explain", "--json", "it") == 0
    assert json.loads(capsys.readouterr().out)["findings"] == [{"name": "pressure", "value": "0.9"}]


def test_explain_fails_when_nothing_has_that_id(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(server, "explain", "it") == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "nothing called it [DEVICE_NOT_FOUND]" in streams.err


def test_watch_prints_events_from_where_it_was_told(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (1, 2, 3):
        server.script.events.append(
            state_service_pb2.Event(
                sequence=number,
                time=Timestamp(seconds=3661),
                kind=state_service_pb2.EventKind.EVENT_KIND_LEASE_GRANTED,
                lease_id="abc",
                fields={"quality": "1.0", "bytes": "5"},
            )
        )
    assert run(server, "watch", "--after", "1", "--once") == 0
    assert capsys.readouterr().out == "01:01:01.000Z  #2  lease_granted  lease=abc  bytes=5  quality=1.0\n"
    assert run(server, "watch", "events", "--after", "2", "--once", "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["events"][0]["sequence"] for line in lines] == [3]


def test_watch_prints_directives(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(server, "watch", "--quality", "a", "b") == 0
    assert capsys.readouterr().out == (
        "revision 1  a  quality 0.500  limit 1.0GiB  pressure\nrevision 1  b  quality 0.500  limit 1.0GiB  pressure\n"
    )


def test_quality_lines_name_ends_and_draining() -> None:
    message = arbiter_service_pb2.StreamQualityResponse(draining=True)
    message.ended.add(lease_id="a", end_reason=lease_pb2.EndReason.END_REASON_EXPIRED)
    assert tables.quality(message) == "ended  a  expired\nthe arbiter is going away"


def test_failure_names_the_address_and_the_next_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["state", "--address", "/nonexistent/arbiter.sock"]) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "unix:/nonexistent/arbiter.sock" in streams.err
    assert "arbiter-sidecar serve" in streams.err


def test_the_address_may_come_before_or_after_the_command(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["--address", server.address, "leases"]) == 0
    assert cli.main(["leases", "--address", server.address]) == 0
    monkeypatch.setenv("ARBITER_ADDRESS", server.address)
    assert cli.main(["leases"]) == 0
    assert capsys.readouterr().out == "no leases\n" * 3


def test_an_address_that_is_none_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["state", "--address", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["explain"], ["watch", "--after", "x"], ["explain", "a", "--lease", "--device"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 2
    assert "usage: arbiter" in capsys.readouterr().err


def test_version_prints_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["version"]) == 0
    assert capsys.readouterr().out == arbiter_client.__version__ + "\n"


def start(server: ScriptedServer, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-m", "arbiter_client.cli", "--address", server.address, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_a_closed_pipe_ends_it_quietly(server: ScriptedServer) -> None:
    server.script.events.extend(state_service_pb2.Event(sequence=number) for number in range(1, 2000))
    process = start(server, "watch")
    assert process.stdout is not None
    assert "#1" in process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(GUARD_S) == 0


def test_ctrl_c_ends_it_quietly(server: ScriptedServer) -> None:
    server.script.events.append(state_service_pb2.Event(sequence=1))
    # Tests that run in the background ignore the signal, and a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start(server, "watch")
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    assert "#1" in process.stdout.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=GUARD_S)
    assert (out, err, process.returncode) == ("", "", 130)
