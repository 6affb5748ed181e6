"""Workers of a split model, a real arbiter, and the command that moves their layers."""

from __future__ import annotations

import io
import json
import time
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

import arbiter_client
from arbiter.v1 import arbiter_service_pb2
from arbiter_client import cli
from tests.running import running_server

GUARD_S = 60.0
FLAGS = ("--devices", "static", "--devices-static", "card=8GiB", "--balance-min-samples", "10")


def arbiter(address: str, *words: str) -> tuple[int, str]:
    """Exit code and output of the command."""
    out = io.StringIO()
    with redirect_stdout(out):
        code = cli.main(["--address", address, *words])
    return code, out.getvalue()


def until(address: str, *words: str, said: str) -> str:
    """The output of the command when it says so; within a generous time it must."""
    deadline = time.monotonic() + GUARD_S
    while True:
        code, output = arbiter(address, *words)
        if code == 0 and said in output:
            return output
        assert time.monotonic() < deadline, output
        time.sleep(0.1)


def test_command_shows_advice_and_has_it_followed(tmp_path: Path) -> None:
    with running_server(tmp_path, *FLAGS) as server, ExitStack() as stack:
        client = stack.enter_context(arbiter_client.connect_blocking(server.address))
        assert arbiter(server.address, "balance") == (0, "no split models\n")
        leases = {}
        for position, (name, seconds) in enumerate({"fast": 0.008, "slow": 0.08}.items()):
            shard = arbiter_service_pb2.Shard(group="llama", name=name, position=position, layers=8)
            wanted = client.lease(name, memory="1GiB", workload_type="llm", ttl=60, shard=shard)
            leases[name] = stack.enter_context(wanted)
            timer = arbiter_client.ShardTimer(leases[name])
            for _ in range(10):
                timer.add(seconds)
            timer.tell()
        shown = until(server.address, "balance", "llama", said="layers should move")
        assert "slow live 8-15 10.00ms 80.00ms 15-15 10.00ms" in [" ".join(line.split()) for line in shown.splitlines()]
        assert "7 layers would move, throughput ×5.33, time of one request ÷3.52" in shown
        listed = until(server.address, "balance", said="layers should move")
        assert listed.splitlines()[1].split()[:4] == ["llama", "default", "2", "16"]
        applied = until(server.address, "balance", "llama", "--apply", said="applied balance-")
        assert "again in" in applied
        for name, lease in leases.items():
            directive = next(told for told in lease.directives(timeout=GUARD_S) if told.shard and told.shard.plan_id)
            assert directive.shard is not None
            layers = (directive.shard.layer_begin, directive.shard.layer_end)
            assert layers == {"fast": (0, 15), "slow": (15, 16)}[name]
            lease.applied(directive)
        deadline = time.monotonic() + GUARD_S
        while (state := json.loads(arbiter(server.address, "balance", "--json")[1]))[0]["moving"]:
            assert time.monotonic() < deadline, state
            time.sleep(0.05)
        assert [shard["confirmed"] for shard in state[0]["shards"]] == [True, True]
        assert "nothing is applied" in arbiter(server.address, "balance", "llama", "--apply")[1]
        answer = json.loads(arbiter(server.address, "balance", "llama", "--json")[1])
        assert answer["outcome"] == "BALANCE_OUTCOME_TOO_SOON"


def test_command_fails_with_the_reason_when_there_is_no_such_model(tmp_path: Path) -> None:
    with running_server(tmp_path, *FLAGS) as server:
        assert arbiter(server.address, "balance", "nothing")[0] == 1
