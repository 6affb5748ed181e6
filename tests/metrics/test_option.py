"""The option, and the server as a process with it."""

from __future__ import annotations

import re
import signal
import socket
from pathlib import Path

import pytest

from arbiter_sidecar import config
from arbiter_sidecar.config import ConfigError
from tests.cli.command import STATIC, calling, run, said
from tests.cli.test_serve import PATIENT, await_event, await_exit
from tests.metrics.scraping import get, numbers
from tests.running import running_server

[OPTION] = [option for option in config.OPTIONS if option.key == "metrics.listen"]


@pytest.mark.parametrize(
    ("raw", "parsed"),
    [
        ("127.0.0.1:9464", "127.0.0.1:9464"),
        ("localhost:0", "localhost:0"),
        ("[::1]:1", "[::1]:1"),
        ("unix:/run/m.sock", "unix:/run/m.sock"),
        ("unix:m.sock", "unix:m.sock"),
        ("unix:~/m.sock", f"unix:{Path.home()}/m.sock"),
    ],
)
def test_address_is_taken_when_only_this_machine_can_reach_it(raw: str, parsed: str) -> None:
    assert OPTION.parse(raw) == parsed


@pytest.mark.parametrize(
    "raw", ["", "9464", ":9464", "0.0.0.0:1", "[::]:1", "10.0.0.1:1", "localhost", "localhost:65536", "unix:", "a:b:1"]
)
def test_address_is_refused_when_others_can_reach_it_or_nobody_can(raw: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        OPTION.parse(raw)


def test_socket_is_refused_when_calls_come_there() -> None:
    with pytest.raises(ConfigError, match=r"metrics\.listen is server\.socket"):
        config.load({"metrics_listen": "unix:/run/a.sock", "socket": "/run/a.sock"}, {}, None)


def test_nothing_is_served_when_nobody_asks_for_it(tmp_path: Path) -> None:
    with running_server(tmp_path, *STATIC) as server:
        assert said(server.log, "serving")["metrics"] == ""
        listening = Path(f"/proc/{server.process.pid}/net/tcp").read_text(encoding="ascii")
        inodes = {Path(link).readlink().name for link in Path(f"/proc/{server.process.pid}/fd").iterdir()}
        # Local sockets in state LISTEN (0A) that belong to the process.
        found = re.findall(r"^ *\d+: \S+ \S+ 0A (?:\S+ +){5}(\d+)", listening, re.MULTILINE)
        assert not [inode for inode in found if f"socket:[{inode}]" in inodes]


@pytest.mark.parametrize("kind", ["tcp", "unix"])
async def test_process_serves_its_metrics_until_it_has_gone(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "metrics.sock"
    wanted = "127.0.0.1:0" if kind == "tcp" else f"unix:{path}"
    with running_server(tmp_path, *PATIENT, "--metrics-listen", wanted) as server, calling(server.address) as caller:
        served = said(server.log, "serving")["metrics"]
        assert path.exists() is (kind == "unix")
        lease = caller.lease(holder="somebody")
        caller.beat(lease)
        found = numbers(await get(served))
        assert found.get("arbiter_device_granted_bytes", device="gpu0") == lease.memory_bytes
        assert found.sum("arbiter_leases", holder="somebody") == 1
        assert found.sum("grpc_server_handled_total", grpc_method="Heartbeat", grpc_code="OK") == 1
        assert found.get("arbiter_epoch") == 1
        server.process.send_signal(signal.SIGTERM)
        await_event(server.log, "draining")
        assert numbers(await get(served)).get("arbiter_draining") == 1
        caller.release(lease)
        assert await_exit(server.process, server.log) == 0
    assert not path.exists()
    assert "Traceback" not in server.log.text


def test_server_does_not_start_when_the_address_is_taken(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        flags = ("--socket", str(tmp_path / "a.sock"), "--state-dir", str(tmp_path / "state"), *STATIC)
        ran = run("serve", *flags, "--metrics-listen", f"127.0.0.1:{other.getsockname()[1]}")
    assert ran.code == 1
    assert "cannot serve metrics on 127.0.0.1:" in ran.errors
    assert "Traceback" not in ran.errors
    assert not (tmp_path / "a.sock").exists()
