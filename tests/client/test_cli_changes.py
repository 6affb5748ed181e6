"""``arbiter preempt`` and ``arbiter release``: what they ask, print and leave behind."""

from __future__ import annotations

import io
import json
import signal
from typing import TYPE_CHECKING

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2, lease_pb2
from arbiter_client import Donation, Preemption, RejectedDonor, cli, preemption, tables, terms
from tests.client import scripted_server
from tests.client.scripted_server import GUARD_S
from tests.client.test_cli import start

if TYPE_CHECKING:
    from pathlib import Path

    from tests.client.scripted_server import ScriptedServer

PASSED_OVER = (RejectedDonor("f", "priority_gap"),)
DRAFT = Preemption(
    donations=(Donation("d", "trainer", 1 << 30), Donation("e", "x\x1b[2J", 1 << 29)), rejected=PASSED_OVER
)
TAKEN = Preemption(
    plan_id="plan-7-1",
    donations=(Donation("d", "trainer", 1 << 30, 1 << 30, "CONFIRMED"), Donation("e", "y", 1 << 29, 0, "PARTIAL")),
    confirmed_bytes=1 << 30,
    rejected=PASSED_OVER,
)
ASK = ("preempt", "--device", "gpu0", "--memory", "1.5GiB")


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        return True


def run(server: ScriptedServer, *arguments: str) -> int:
    return cli.main(["--address", server.address, *arguments])


@pytest.fixture
def server(server: ScriptedServer) -> ScriptedServer:
    server.script.draft = preemption.to_message(DRAFT)
    server.script.preemption = preemption.to_message(TAKEN)
    return server


def test_preempt_shows_who_gave_what_and_who_was_passed_over(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(server, *ASK, "--priority", "high", "--timeout", "1.5", "--partial", "--yes") == 0
    streams = capsys.readouterr()
    assert streams.out == (
        "LEASE  HOLDER      GIVES  CONFIRMED  OUTCOME\n"
        "d      trainer    1.0GiB     1.0GiB  confirmed\n"
        "e      y        512.0MiB         0B  partial\n"
        "1.0GiB came free in plan-7-1\n\n"
        "PASSED OVER  WHY\n"
        "f            priority gap\n"
    )
    assert streams.err == ""
    draft, asked = server.preemptions
    assert (draft.dry_run, asked.dry_run) == (True, False)
    assert (asked.device_id, asked.lease_id, asked.memory_bytes) == ("gpu0", "", 3 << 29)
    assert (asked.priority, asked.allow_partial) == (lease_pb2.Priority.PRIORITY_HIGH, True)
    assert asked.timeout == terms.duration(1.5)


def test_preempt_may_be_for_a_lease(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(server, "preempt", "--lease", "l", "--memory", "5", "--json") == 0
    assert [(asked.lease_id, asked.device_id) for asked in server.preemptions] == [("l", "")] * 2
    out = json.loads(capsys.readouterr().out)
    assert (out["plan_id"], out["confirmed"]) == ("plan-7-1", 1 << 30)
    assert out["donations"][0] == {
        "lease_id": "d",
        "holder": "trainer",
        "planned": 1 << 30,
        "confirmed": 1 << 30,
        "outcome": "DONATION_OUTCOME_CONFIRMED",
    }
    assert out["rejected"] == [{"lease_id": "f", "reason": "priority_gap"}]


def test_a_dry_run_changes_nothing_and_asks_nobody(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    assert run(server, *ASK, "--dry-run") == 0
    streams = capsys.readouterr()
    assert [asked.dry_run for asked in server.preemptions] == [True]
    assert "1.5GiB would be taken" in streams.out
    assert "priority gap" in streams.out
    assert "\x1b" not in streams.out
    assert streams.err == ""


@pytest.mark.parametrize(("typed", "code", "asked"), [("y\n", 0, 2), ("YES\n", 0, 2), ("n\n", 1, 1), ("", 1, 1)])
def test_somebody_at_a_terminal_decides(
    server: ScriptedServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    typed: str,
    code: int,
    asked: int,
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    assert run(server, *ASK) == code
    streams = capsys.readouterr()
    assert len(server.preemptions) == asked
    assert "take 1.5GiB? [y/N] " in streams.err
    assert "trainer" in streams.err
    assert ("nothing was taken" in streams.err) is (code == 1)
    assert ("plan-7-1" in streams.out) is (code == 0)


def test_yes_asks_nobody(
    server: ScriptedServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", Terminal())
    assert run(server, *ASK, "--yes") == 0
    assert capsys.readouterr().err == ""


def test_a_refusal_says_who_was_passed_over_and_why(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script.draft = preemption.to_message(Preemption(rejected=PASSED_OVER))
    assert run(server, *ASK) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "f            priority gap\n" in streams.err
    assert "nobody can be made to give 1.5GiB [NO_DONOR]" in streams.err
    assert [asked.dry_run for asked in server.preemptions] == [True]


def test_a_dry_run_that_finds_nobody_fails_too(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script.draft = preemption.to_message(Preemption(rejected=PASSED_OVER))
    assert run(server, *ASK, "--dry-run", "--json") == 1
    streams = capsys.readouterr()
    assert json.loads(streams.out)["rejected"] == [{"lease_id": "f", "reason": "priority_gap"}]
    assert streams.err.startswith("arbiter: nobody can be made to give 1.5GiB [NO_DONOR]")
    assert run(server, *ASK, "--dry-run") == 1
    assert capsys.readouterr().out.startswith("nobody gives anything\n\nPASSED OVER  WHY\n")


def test_too_little_in_time_is_a_refusal(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script.preempt_errors.append(scripted_server.error(grpc.StatusCode.FAILED_PRECONDITION, "NO_DONOR"))
    assert run(server, *ASK) == 1
    streams = capsys.readouterr()
    assert streams.out == ""
    assert "priority gap" in streams.err
    assert "no_donor [NO_DONOR]" in streams.err


def test_ctrl_c_ends_it_quietly_and_asks_for_nothing_more(server: ScriptedServer) -> None:
    server.script.holds_preemptions = True
    # Tests that run in the background ignore the signal, and a child would inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = start(server, *ASK, "--yes")
    signal.signal(signal.SIGINT, before)
    server.wait(lambda: len(server.preemptions) == 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=GUARD_S)
    assert (out, err, process.returncode) == ("", "", 130)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("preempt", "--memory", "1GiB"), "one of the arguments --device --lease is required"),
        (("preempt", "--device", "d", "--lease", "l", "--memory", "1"), "not allowed with"),
        (("preempt", "--device", "d"), "--memory"),
        (("preempt", "--device", "d", "--memory", "lots"), "'lots' is not an amount of memory"),
        (("preempt", "--device", "d", "--memory", "1", "--timeout", "soon"), "'soon' is not a number of seconds"),
        (("preempt", "--device", "d", "--memory", "1", "--priority", "urgent"), "invalid choice"),
        (("release", "l"), "--fence"),
    ],
)
def test_wrong_usage_says_what_is_wrong(
    arguments: tuple[str, ...], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 2
    assert complaint in capsys.readouterr().err


def test_release_gives_a_lease_back_by_its_fence(server: ScriptedServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(server, "release", "l", "--fence", "7") == 0
    assert capsys.readouterr().out == "released\n"
    assert [(given.lease_id, given.fence) for given in server.releases] == [("l", 7)]


def test_nobody_there_is_told_by_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (ASK, ("release", "l", "--fence", "7")):
        assert cli.main(["--address", f"{tmp_path}/none.sock", *arguments]) == 1
        assert "arbiter-sidecar serve" in capsys.readouterr().err


def test_quality_lines_show_reclaims() -> None:
    message = arbiter_service_pb2.StreamQualityResponse(reclaim_cancelled=["r0"])
    told = message.directives.add(lease_id="a", revision=3, quality=0.5, memory_limit_bytes=1 << 30)
    told.reclaim.reclaim_id = "r1"
    told.reclaim.memory_bytes = 1 << 29
    told.reclaim.level = lease_pb2.ReclaimLevel.RECLAIM_LEVEL_HARD
    told.reclaim.grace.FromMilliseconds(1500)
    assert tables.quality(message) == (
        "revision 3  a  quality 0.500  limit 1.0GiB  unspecified  give 512.0MiB in 1.5s  hard  r1\nno longer wanted  r0"
    )
