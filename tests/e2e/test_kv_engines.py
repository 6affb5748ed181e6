"""Engines in processes of their own share KV tokens: by weight, over deaths, and when one resists."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from arbiter.v1 import state_service_pb2 as pb
from arbiter.v1 import state_service_pb2_grpc
from tests.client.scripted_server import until
from tests.e2e.conftest import Start
from tests.e2e.watching import events_of
from tests.running import Running, running_server

if TYPE_CHECKING:
    import subprocess

TOTAL = 4096
FLAGS = ("--devices", "host", "--host-budget", "1GiB", "--kv-tokens", str(TOTAL))


class Scene:
    """A server and what it shows."""

    def __init__(self, server: Running, channel: grpc.Channel, start: Start) -> None:
        self._address = server.address
        self._states = state_service_pb2_grpc.StateServiceStub(channel)
        self._start = start

    def engine(self, name: str, weight: int = 1, mode: str = "obeys") -> subprocess.Popen[str]:
        """Starts an engine and returns when it has its lease."""
        process = self._start("kv_engine", self._address, name, weight, mode)
        assert says(process).startswith("leased ")
        return process

    def budgets(self) -> dict[str, int]:
        """Tokens of each engine that lives."""
        return {engine.holder: engine.budget_tokens for engine in self.picture().kv_engines}

    def picture(self) -> pb.GetStateResponse:
        """Everything."""
        return self._states.GetState(pb.GetStateRequest(), timeout=30)

    def until_budgets(self, **budgets: int) -> None:
        """Waits until the engines have these budgets; the sum never passes what there is."""

        def reached() -> bool:
            found = self.budgets()
            assert sum(found.values()) <= TOTAL
            return found == budgets

        until(reached)


def says(process: subprocess.Popen[str]) -> str:
    """The next line of an engine."""
    assert process.stdout is not None
    return process.stdout.readline()


def test_budgets_follow_weights_and_the_death_of_an_engine(tmp_path: Path, start: Start) -> None:
    with running_server(tmp_path, *FLAGS) as server, grpc.insecure_channel(server.address) as channel:
        scene = Scene(server, channel, start)
        scene.engine("chat")
        scene.until_budgets(chat=TOTAL)
        batch = scene.engine("batch", weight=3)
        scene.until_budgets(chat=TOTAL // 4, batch=TOTAL // 4 * 3)
        batch.kill()
        scene.until_budgets(chat=TOTAL)
        (device,) = scene.picture().devices
        assert (device.kv_total_tokens, device.kv_charged_tokens) == (TOTAL, TOTAL)


def test_nothing_stays_reserved_when_an_engine_dies_while_it_waits(tmp_path: Path, start: Start) -> None:
    with running_server(tmp_path, *FLAGS) as server, grpc.insecure_channel(server.address) as channel:
        scene = Scene(server, channel, start)
        waiting = scene.engine("batch", mode="reserves")
        until(lambda: [each.reserved_tokens for each in scene.picture().kv_engines] == [TOTAL])
        scene.engine("chat")
        waiting.kill()
        scene.until_budgets(chat=TOTAL)


def test_engine_that_keeps_too_much_is_ordered_to_free_it_and_pressed(tmp_path: Path, start: Start) -> None:
    flags = (*FLAGS, "--kv-drain", "500ms", "--preemption-grace", "1s")
    with (
        running_server(tmp_path, *flags) as server,
        grpc.insecure_channel(server.address) as channel,
        events_of(channel) as events,
    ):
        scene = Scene(server, channel, start)
        stubborn = scene.engine("batch", mode="stubborn")
        assert says(stubborn) == f"budget {TOTAL} \n"
        scene.engine("chat")
        lowered, lowered_at = events.until(pb.EVENT_KIND_KV_BUDGET_CHANGED)
        while lowered.holder != "batch" or lowered.fields["tokens"] != str(TOTAL // 2):
            lowered, lowered_at = events.until(pb.EVENT_KIND_KV_BUDGET_CHANGED)
        ordered, ordered_at = events.until(pb.EVENT_KIND_RECLAIM_REQUESTED, lowered.lease_id)
        assert ordered.fields["kv_tokens"] == str(TOTAL // 2)
        assert ordered_at - lowered_at > 0.4
        events.until(pb.EVENT_KIND_RECLAIM_ESCALATED, lowered.lease_id)
        heard = ""
        while not heard.endswith(" hard\n"):
            heard = says(stubborn)
        assert heard == f"budget {TOTAL // 2} hard\n"
        # What it keeps is given to nobody.
        assert scene.budgets() == {"batch": TOTAL // 2, "chat": 0}
        stubborn.kill()
        scene.until_budgets(chat=TOTAL)
