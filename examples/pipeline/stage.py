"""One worker of a pipeline: leases, serves the layers that it is told to, times them, and moves when it is told to.

    python -m examples.pipeline.stage --name b --position 1 --layers 4 --listen IN --forward OUT [--twice]

Exit code 0 at the end of the stream or when asked to stop, 1 on failure, 3 when the lease is lost.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from multiprocessing import connection
from pathlib import Path
from typing import TypeAlias

import arbiter_client
from arbiter.v1 import arbiter_service_pb2
from examples import options, worker_loop
from examples.journal import Journal
from examples.pipeline import layers, plumbing
from examples.stop import Stop, StopAsked

#: Name of the model.
GROUP = "pipeline"
#: How often a stage without work looks up.
_LOOK_UP_S = 0.05
#: The shortest time to live there is: latencies come with the heartbeats, and here everything is quick.
_TTL_S = 3.0

Link: TypeAlias = "connection.Connection[plumbing.Item, plumbing.Item]"


class Stage:
    """A worker at its place in the pipeline.

    Args:
        lease: Its lease.
        times: How often it computes each layer; more than once is slow.
        journal: Is told what happens.
    """

    __slots__ = ("_journal", "_lease", "_obeyed", "_span", "_timer", "_times")

    def __init__(self, lease: arbiter_client.BlockingLease, times: int, journal: Journal) -> None:
        self._lease = lease
        self._times = times
        self._journal = journal
        self._timer = arbiter_client.ShardTimer(lease)
        self._obeyed: arbiter_client.Directive | None = None
        self._span = (0, 0)

    def serve(self, source: Link, sink: Link, stop: Stop) -> None:
        """Works until the stream ends or somebody asks to stop.

        Raises:
            LeaseLost: The arbiter took the lease.
            OSError: A neighbour has gone.
        """
        while not stop.asked:
            self._lease.check()
            self._obey()
            if not source.poll(_LOOK_UP_S):
                self._timer.tell()
                continue
            item = source.recv()
            sink.send(item if item is None else self._forward(item))
            if item is None:
                return

    def _forward(self, item: plumbing.Work) -> plumbing.Work:
        number, activations = item
        begin, end = self._span
        with self._timer:
            result = layers.forward(activations, begin, end, times=self._times)
        return number, result

    def _obey(self) -> None:
        directive = self._lease.directive
        if directive is self._obeyed:
            return
        self._obeyed = directive
        shard = directive.shard
        if shard is not None and (shard.layer_begin, shard.layer_end) != self._span:
            self._timer.restart()
            self._span = (shard.layer_begin, shard.layer_end)
            for layer in range(*self._span):
                layers.weights(layer)
            self._journal.say("layers", begin=shard.layer_begin, end=shard.layer_end, plan=shard.plan_id)
        self._lease.applied(directive)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the worker; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m examples.pipeline.stage", description=__doc__.split("\n\n")[0])
    parser.add_argument("--address", help="where the arbiter listens")
    parser.add_argument("--name", required=True, help="name of the shard")
    parser.add_argument("--position", type=int, required=True, help="place in the pipeline, from 0")
    parser.add_argument("--layers", type=int, required=True, help="layers it begins with")
    parser.add_argument("--listen", type=Path, required=True, help="socket on which work comes in")
    parser.add_argument("--forward", type=Path, required=True, help="socket on which it goes on")
    parser.add_argument("--twice", action="store_true", help="compute everything twice: half as fast")
    parser.add_argument("--memory", type=options.size, default=64 << 20, help="what it leases (default: 64MiB)")
    chosen = parser.parse_args(arguments)
    stop = Stop()
    stop.install()
    return _run(chosen, Journal(sys.stdout, chosen.name), stop)


def _run(chosen: argparse.Namespace, journal: Journal, stop: Stop) -> int:
    shard = arbiter_service_pb2.Shard(group=GROUP, name=chosen.name, position=chosen.position, layers=chosen.layers)
    try:
        with (
            connection.Listener(str(chosen.listen), "AF_UNIX") as listener,
            arbiter_client.connect_blocking(chosen.address) as client,
            client.lease(chosen.name, memory=chosen.memory, workload_type="llm", ttl=_TTL_S, shard=shard) as lease,
        ):
            journal.say("leased", lease_id=lease.lease_id)
            with stop.interrupting() as interruptible:
                sink = plumbing.connect(chosen.forward)
                source = listener.accept()
                interruptible.close()
            with source, sink:
                Stage(lease, 2 if chosen.twice else 1, journal).serve(source, sink, stop)
    except StopAsked:
        journal.say("stopped", detail="before work came")
    except arbiter_client.LeaseLost as error:
        journal.say("lease_lost", detail=error.message)
        return worker_loop.EXIT_LEASE_LOST
    except (arbiter_client.ArbiterClientError, ValueError, OSError, EOFError) as error:
        journal.say("failed", detail=f"{type(error).__name__}: {error}")
        return worker_loop.EXIT_FAILED
    return worker_loop.EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
