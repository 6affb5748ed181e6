"""The server as a process: one for each socket and state directory, and gone in good order when told to."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import grpc
import pytest

from arbiter_sidecar.rpc.server import MAX_REQUEST_BYTES
from tests.cli.command import STATIC, calling, lines, run, said
from tests.running import GUARD_S, Log, launched, running_server, serve_command

#: Leases must end by themselves within this, so that only the test decides when.
PATIENT = (*STATIC, "--drain-timeout", "300s")


def await_event(log: Log, event: str) -> None:
    """Returns when the log tells of the event."""
    until = time.monotonic() + GUARD_S
    while f'"event": "{event}"' not in log.text:
        assert time.monotonic() < until, log.text
        time.sleep(0.01)


def await_exit(process: subprocess.Popen[str], log: Log) -> int:
    """The exit code."""
    try:
        return process.wait(GUARD_S)
    except subprocess.TimeoutExpired:
        raise AssertionError(log.text) from None


def test_server_serves_and_goes_in_good_order(tmp_path: Path) -> None:
    with running_server(tmp_path, *STATIC, "--listen", "127.0.0.1:0") as server:
        line = said(server.log, "serving")
        assert (line["pid"], line["epoch"], line["devices"]) == (server.process.pid, 1, ["gpu0"])
        assert line["socket"] == str(server.socket)
        assert stat.S_IMODE(server.socket.stat().st_mode) == 0o660
        with calling(server.address) as local, calling(line["listen"]) as remote:
            lease = local.lease()
            assert [each.lease_id for each in remote.state().leases] == [lease.lease_id]
            assert remote.state().notes
        # Two thousand ids, as many as a subscription may name, fit into one request.
        assert 2000 * (len(lease.lease_id) + 2) < MAX_REQUEST_BYTES
        server.process.send_signal(signal.SIGTERM)
        assert await_exit(server.process, server.log) == 0
        assert not server.socket.exists()
    assert lines(server.log)[-1]["event"] == "stopped"
    assert server.process.stdout is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["arbiter.sock.lock", "state"]
    assert stat.S_IMODE((tmp_path / "state").stat().st_mode) == 0o700


def test_interrupt_ends_it_too(tmp_path: Path) -> None:
    with running_server(tmp_path, *STATIC) as server:
        server.process.send_signal(signal.SIGINT)
        assert await_exit(server.process, server.log) == 0
    assert not server.socket.exists()
    assert "Traceback" not in server.log.text


@pytest.mark.parametrize("shared", ["socket", "state"])
def test_second_server_is_refused_and_the_first_untouched(tmp_path: Path, shared: str) -> None:
    with running_server(tmp_path, *STATIC) as server, calling(server.address) as caller:
        lease = caller.lease()
        inode = server.socket.stat().st_ino
        other = {"socket": str(tmp_path / "other.sock"), "state": str(tmp_path / "other")}
        other[shared] = str(server.socket if shared == "socket" else tmp_path / "state")
        second = run("serve", "--socket", other["socket"], "--state-dir", other["state"], *STATIC)
        assert second.code == 75
        assert "another server is running" in second.errors
        assert f"process {server.process.pid}" in second.errors
        assert server.socket.stat().st_ino == inode
        assert not (tmp_path / "other.sock").exists()
        assert caller.beat(lease).results
        with calling(server.address) as fresh:
            assert fresh.state().server_epoch == 1


def test_it_waits_for_leases_when_it_is_told_to_go(tmp_path: Path) -> None:
    with running_server(tmp_path, *PATIENT) as server, calling(server.address) as caller:
        lease = caller.lease()
        health = ("health", "--address", server.address, "--service")
        assert run(*health, "readiness").code == 0
        server.process.send_signal(signal.SIGTERM)
        await_event(server.log, "draining")
        assert caller.beat(lease).draining
        with pytest.raises(grpc.RpcError) as caught:
            caller.lease()
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        ready, alive = run(*health, "readiness"), run(*health, "liveness")
        assert (ready.code, ready.output) == (1, "NOT_SERVING\n")
        assert (alive.code, alive.output) == (0, "SERVING\n")
        assert server.process.poll() is None
        caller.release(lease)
        assert await_exit(server.process, server.log) == 0
    assert not server.socket.exists()


def test_second_signal_ends_the_waiting(tmp_path: Path) -> None:
    with running_server(tmp_path, *PATIENT) as server, calling(server.address) as caller:
        caller.lease(ttl={"seconds": 300})
        server.process.send_signal(signal.SIGTERM)
        await_event(server.log, "draining")
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert await_exit(server.process, server.log) == 0
    assert not server.socket.exists()
    assert "Traceback" not in server.log.text


def test_epoch_and_fences_grow_when_it_starts_again_however_it_ended(tmp_path: Path) -> None:
    command = serve_command(tmp_path, *STATIC)
    with launched(command) as (process, log), calling(f"unix:{tmp_path}/arbiter.sock") as caller:
        first = caller.lease()
        assert caller.state().server_epoch == 1
        process.kill()
        process.wait(GUARD_S)
    assert (tmp_path / "arbiter.sock").is_socket()
    with running_server(tmp_path, *STATIC) as server, calling(server.address) as caller:
        assert caller.state().server_epoch == 2
        again = caller.lease()
        assert again.fence > first.fence
        assert again.lease_id != first.lease_id
        with pytest.raises(grpc.RpcError) as caught:
            caller.release(first)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    assert "Traceback" not in log.text


def refused(tmp_path: Path, *flags: str) -> str:
    """What a server says that cannot start for a reason of its own making."""
    ran = run("serve", "--state-dir", str(tmp_path / "state"), *STATIC, *flags)
    assert ran.code == 1
    assert "Traceback" not in ran.errors
    [told] = [line for line in ran.errors.splitlines() if not line.startswith("{")]
    assert told.startswith("arbiter-sidecar: ")
    return told


def test_file_is_left_alone_when_it_stands_in_the_way(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("text")
    assert "is no socket" in refused(tmp_path, "--socket", str(path))
    assert path.read_text() == "text"


def test_path_is_refused_when_it_is_too_long(tmp_path: Path) -> None:
    assert "107 bytes" in refused(tmp_path, "--socket", str(tmp_path / ("x" * 120)))


def test_socket_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        inode = path.stat().st_ino
        assert "somebody else" in refused(tmp_path, "--socket", str(path))
        assert path.stat().st_ino == inode


def test_nothing_is_left_when_the_port_is_taken(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        told = refused(tmp_path, "--socket", str(tmp_path / "s.sock"), "--listen", f"127.0.0.1:{port}")
    assert str(port) in told
    assert not (tmp_path / "s.sock").exists()


def test_state_directory_is_named_when_it_cannot_be_made(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    assert str(path) in refused(tmp_path, "--socket", str(tmp_path / "s.sock"), "--state-dir", str(path / "state"))


def test_epoch_is_not_guessed_when_its_file_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "epoch").write_bytes(b"\xff\xfe")
    assert "does not hold an epoch" in refused(tmp_path, "--socket", str(tmp_path / "s.sock"))
    assert (tmp_path / "state" / "epoch").read_bytes() == b"\xff\xfe"


def test_every_log_line_is_json_and_harmless_when_names_are_hostile(tmp_path: Path) -> None:
    names = ['"},{"event": "serving"', "back\\slash", "Bär 图像 🦄", "%s {x} \\n \\x1b[2J", "x" * 128]
    with running_server(tmp_path, *STATIC, "--log-level", "debug") as server, calling(server.address) as caller:
        leases = [caller.lease(holder=name, request_id=name, memory_bytes=1 << 20) for name in names]
        for lease in leases:
            caller.beat(lease)
            caller.release(lease)
        for hostile in ("a\nb", "\x1b[2J", "\N{RIGHT-TO-LEFT OVERRIDE}"):
            with pytest.raises(grpc.RpcError):
                caller.lease(holder=hostile)
    granted = [line for line in lines(server.log) if line["event"] == "lease_granted"]
    assert [line["holder"] for line in granted] == names
    assert all({"timestamp", "level", "sequence"} <= set(line) for line in granted)
    for lease in leases:
        assert str(lease.handle) not in server.log.text
        assert str(lease.fence) not in server.log.text


def test_nothing_is_logged_for_a_call_that_changes_nothing(tmp_path: Path) -> None:
    with running_server(tmp_path, *STATIC) as server, calling(server.address) as caller:
        before = len(lines(server.log))
        for _ in range(20):
            caller.state()
        with pytest.raises(grpc.RpcError):
            caller.lease(memory_bytes=-1)
        assert len(lines(server.log)) == before


def test_host_memory_is_served_when_a_budget_is_given(tmp_path: Path) -> None:
    flags = ("--devices", "host", "--host-budget", "64MiB")
    with running_server(tmp_path, *flags) as server, calling(server.address) as caller:
        [device] = caller.state().devices
        assert (device.device_id, device.capacity_bytes) == ("host", 64 << 20)
        lease = caller.lease(memory_bytes=32 << 20, pids=[os.getpid()])
        assert lease.pids_visible
