"""A model split over three workers, one of them slow: the arbiter says how layers should move, and that pays as told.

    python -m examples.pipeline [--items N] [--out DIR]

Exit code 0 when the throughput rose by what was predicted within 15 %, 1 when not, 2 on wrong usage, 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing import connection
from pathlib import Path
from typing import TYPE_CHECKING

import arbiter_client
from arbiter.v1 import balance_service_pb2
from examples import options
from examples.first_light.processes import Children, wait_for_line
from examples.pipeline import layers, plumbing, stage, verdict
from examples.pipeline.flow import Flow

if TYPE_CHECKING:
    from types import FrameType

#: The workers in pipeline order; the one in the middle computes everything twice.
STAGES = ("a", "b", "c")
SLOW = "b"
#: Items that are measured in each half, and what is needed before the arbiter believes a shard.
ITEMS = 60
MIN_SAMPLES = 20
#: Everything waited for takes about a second.
_GUARD_S = 60.0
_PAUSE_S = 0.1


class Demonstration:
    """One run; its processes end with it.

    Args:
        folder: For sockets and logs.
        items: Items that are measured in each half.
    """

    def __init__(self, folder: Path, items: int) -> None:
        self._folder = folder
        self._items = items
        self._began = time.monotonic()
        self._children = Children(folder)
        self._address = f"unix:{folder}/arbiter.sock"

    def run(self) -> verdict.Result:
        """Measures, follows the advice, measures again.

        Raises:
            RuntimeError: A process failed, or there was no advice.
            OSError: A process could not be started.
        """
        try:
            self._start()
            with (
                connection.Listener(str(self._folder / "out.sock"), "AF_UNIX") as listener,
                arbiter_client.connect_blocking(self._address) as client,
            ):
                source = plumbing.connect(self._folder / f"{STAGES[0]}.sock")
                with Flow(source, listener.accept()) as flow:
                    return self._measure(flow, arbiter_client.Balance(client.channel, client.address))
        finally:
            self._children.stop_all()

    def _start(self) -> None:
        flags = ("--devices", "static", "--devices-static", "card=1GiB", "--drain-timeout", "2s")
        quick = ("--balance-min-samples", str(MIN_SAMPLES), "--balance-interval", "1s")
        place = ("--socket", f"{self._folder}/arbiter.sock", "--state-dir", f"{self._folder}/state")
        arbiter = self._children.start("arbiter", "arbiter_sidecar", "serve", *place, *flags, *quick)
        wait_for_line(arbiter, '"event": "serving"', _GUARD_S)
        self._say("the arbiter serves")
        each = layers.LAYERS // len(STAGES)
        for position, name in enumerate(STAGES):
            following = STAGES[position + 1] if position + 1 < len(STAGES) else "out"
            child = self._children.start(
                name,
                "examples.pipeline.stage",
                *("--address", self._address, "--name", name, "--position", str(position), "--layers", str(each)),
                *("--listen", f"{self._folder}/{name}.sock", "--forward", f"{self._folder}/{following}.sock"),
                *(("--twice",) if name == SLOW else ()),
            )
            wait_for_line(child, '"event": "leased"', _GUARD_S)

    def _measure(self, flow: Flow, balance: arbiter_client.Balance) -> verdict.Result:
        before = flow.measure(self._items)
        self._say(f"layers divided evenly: {before:.1f} items/s")
        plan = self._advice(balance)
        suggested = {each.shard: (each.layer_begin, each.layer_end) for each in plan.assignment}
        self._say(f"{plan.plan_id}: {self._shown(suggested)}, throughput ×{plan.throughput_gain:.2f} predicted")
        # Nothing is under way now, so that no item meets a layer twice or never.
        balance.apply(stage.GROUP, plan_id=plan.plan_id)
        served = self._settled(balance)
        self._say(f"every shard has confirmed: {self._shown(served)}")
        after = flow.measure(self._items)
        self._say(f"layers divided as suggested: {after:.1f} items/s, ×{after / before:.2f}")
        return verdict.Result(
            before=before,
            after=after,
            predicted=plan.throughput_gain,
            suggested=suggested,
            served=served,
            wrong=flow.wrong,
            items=flow.items,
        )

    def _advice(self, balance: arbiter_client.Balance) -> balance_service_pb2.BalancePlan:
        deadline = time.monotonic() + _GUARD_S
        while True:
            answer = balance.evaluate(stage.GROUP)
            if answer.outcome == balance_service_pb2.BALANCE_OUTCOME_REBALANCE:
                for shard in answer.group.shards:
                    spent = shard.layer_time.ToNanoseconds() / 1e6
                    self._say(f"  {shard.name}: {spent:.2f} ms per layer, by {shard.samples} passes")
                return answer.group.plan
            if time.monotonic() > deadline:
                raise RuntimeError(f"there is no advice: {answer}")
            time.sleep(_PAUSE_S)

    def _settled(self, balance: arbiter_client.Balance) -> verdict.Division:
        stream = balance.watch(stage.GROUP)
        try:
            while (message := stream.next()) is not None:
                for group in message.groups:
                    if not group.moving:
                        return {each.name: (each.layer_begin, each.layer_end) for each in group.shards}
        finally:
            stream.cancel()
        raise RuntimeError("the arbiter has gone")

    @staticmethod
    def _shown(division: verdict.Division) -> str:
        return " ".join(f"{name} {begin}-{end - 1}" for name, (begin, end) in division.items())

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {text}", flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demonstration; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.pipeline", description=__doc__.split("\n\n")[0])
    parser.add_argument("--items", type=int, default=ITEMS, help=f"items measured in each half (default: {ITEMS})")
    parser.add_argument("--out", type=Path, help="folder for logs (default: a temporary one)")
    chosen = parser.parse_args(arguments)
    if chosen.items < MIN_SAMPLES:
        parser.error(f"--items must be {MIN_SAMPLES} at least: the arbiter believes no fewer")
    signal.signal(signal.SIGTERM, _interrupt)
    # For the workers, which inherit it: here nobody is measured.
    options.one_thread_for_algebra()
    with tempfile.TemporaryDirectory(prefix="arbiter-pipeline-") as temporary:
        folder = chosen.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            result = Demonstration(folder, chosen.items).run()
        except KeyboardInterrupt:
            print("interrupted; nothing is left running")
            return 130
        except (RuntimeError, OSError, arbiter_client.ArbiterClientError) as error:
            print(f"FAILED\n  - {error}")
            return 1
    problems = verdict.judge(result)
    if problems:
        print("FAILED", *(f"  - {problem}" for problem in problems), sep="\n")
        return 1
    print(
        f"OK: throughput ×{result.gain:.2f}, ×{result.predicted:.2f} was predicted; "
        f"all {result.items} results are those of the whole model"
    )
    return 0


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
