"""An engine: reads requests from its standard input, runs as many as its token budget allows, a word of each a step.

    python -m examples.two_engines.engine --name NAME --address ADDRESS --weight N --priority P --pool-tokens N

One JSON object a line comes in: `{"prompt": "...", "tokens": 32, "priority": "low"}` is a request, `{"hang_up": true}`
takes back those that still wait, `{"preempt": 1024}` asks the arbiter for tokens of the less important. One a line goes
out about everything it does.
Exit code 0 when its input ends or it is asked to stop, 1 on failure, 3 when the lease is lost.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import arbiter_client
from examples import memory, options, worker_loop
from examples.journal import Journal
from examples.stop import Stop

if TYPE_CHECKING:
    from examples.two_engines.decoder import Conversation, Decoder

#: A step takes at least so long, so that two engines and their neighbours fit on two cores. On a card of its own a step
#: takes about as long for many conversations as for one; here this makes it so.
STEP_S = 0.05
_ROUND_EVERY_S = 0.1
_MARGIN_BYTES = 48 << 20


@dataclass(slots=True, eq=False)
class Job:
    """One request.

    Attributes:
        prompt: What to continue.
        tokens: Words to add.
        request: Its tokens in the engine's books.
        conversation: What runs; `None` while it waits.
    """

    prompt: str
    tokens: int
    request: arbiter_client.KvRequest
    conversation: Conversation | None = None


class Engine:
    """The scheduler: what fits the budget runs, the rest waits, what does not fit any more goes.

    Args:
        decoder: The model.
        lease: The lease, which is a KV engine's.
        journal: Is told everything.
    """

    def __init__(self, decoder: Decoder, lease: arbiter_client.BlockingLease, journal: Journal) -> None:
        self._decoder = decoder
        self._lease = lease
        self._journal = journal
        self._budget = arbiter_client.KvBudget(lease)
        self._waiting: deque[Job] = deque()
        self._running: list[Job] = []
        self._applied: arbiter_client.Directive | None = None
        self._answered_order = ""
        self._made = 0
        self._told_at = 0.0

    def take(self, prompt: str, tokens: int, priority: str) -> None:
        """A request has come."""
        needed = self._decoder.count(prompt) + tokens
        self._waiting.append(Job(prompt, tokens, self._budget.queue(needed, priority=priority)))

    def hang_up(self) -> None:
        """Nobody waits any more; what runs goes on."""
        self._journal.say("hung_up", requests=len(self._waiting))
        while self._waiting:
            self._waiting.popleft().request.finish()

    def turn(self) -> None:
        """One step: obey, admit, add a word to each conversation, say how things are.

        Raises:
            LeaseLost: The lease is over.
        """
        self._lease.check()
        self._obey()
        self._admit()
        self._decoder.step([job.conversation for job in self._running if job.conversation is not None])
        self._made += len(self._running)
        for job in [job for job in self._running if _complete(job)]:
            self._finish(job)
        self._budget.tell()
        self._confirm()
        self._say()

    def _obey(self) -> None:
        """Beyond the budget conversations may end by themselves; once tokens are ordered back, the youngest go."""
        order = self._lease.directive.reclaim
        if order is None:
            return
        if order.reclaim_id != self._answered_order:
            self._answered_order = order.reclaim_id
            self._lease.acknowledge(order)
        dropped = 0
        while self._budget.over() and self._running:
            job = self._running.pop()
            if job.conversation is not None:
                self._decoder.end(job.conversation)
                job.conversation = None
            job.request.requeue()
            self._waiting.appendleft(job)
            dropped += 1
        if dropped:
            self._journal.say("dropped", conversations=dropped, ordered_tokens=order.kv_tokens)

    def _admit(self) -> None:
        while self._waiting and self._waiting[0].request.try_admit():
            job = self._waiting.popleft()
            job.conversation = self._decoder.begin(job.prompt)
            self._running.append(job)

    def _finish(self, job: Job) -> None:
        assert job.conversation is not None
        answer = self._decoder.end(job.conversation)
        self._running.remove(job)
        job.request.finish()
        self._journal.say("answer", tokens=job.tokens, text=answer)

    def _confirm(self) -> None:
        directive = self._lease.directive
        if directive is not self._applied and self._budget.over() == 0:
            self._applied = directive
            self._lease.applied(directive, used_memory_bytes=memory.proportional_bytes())

    def _say(self) -> None:
        now = time.monotonic()
        if now - self._told_at < _ROUND_EVERY_S:
            return
        self._told_at = now
        self._journal.say(
            "round",
            at=now,
            limit=self._budget.limit,
            resident=self._decoder.resident_tokens,
            running=len(self._running),
            waiting=len(self._waiting),
            made=self._made,
        )


def _complete(job: Job) -> bool:
    return job.conversation is not None and len(job.conversation.answer) >= job.tokens


class Orders:
    """What comes on standard input, read by a thread of its own."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.ended = False
        threading.Thread(target=self._read, name="orders", daemon=True).start()

    def _read(self) -> None:
        for line in sys.stdin:
            self._lines.put(line)
        self.ended = True

    def carry_out(self, engine: Engine, lease: arbiter_client.BlockingLease, journal: Journal) -> None:
        """Hands everything that has come to the engine."""
        while not self._lines.empty():
            match json.loads(self._lines.get()):
                case {"prompt": str(prompt), "tokens": int(tokens), "priority": str(priority)}:
                    engine.take(prompt, tokens, priority)
                case {"hang_up": True}:
                    engine.hang_up()
                case {"preempt": int(tokens)}:
                    threading.Thread(target=_preempt, args=(lease, tokens, journal), daemon=True).start()
                case order:
                    journal.say("failed", detail=f"cannot do {order}")


def _preempt(lease: arbiter_client.BlockingLease, tokens: int, journal: Journal) -> None:
    """Asks for tokens; on a thread of its own, because the answer takes its time and the engine goes on."""
    try:
        taken = lease.preempt(kv_tokens=tokens)
    except arbiter_client.ArbiterClientError as error:
        journal.say("preempted", confirmed=0, detail=error.message)
    else:
        journal.say("preempted", confirmed=taken.confirmed_tokens, detail="")


def _serve(chosen: argparse.Namespace, journal: Journal, stop: Stop) -> None:
    # Imported late: numpy reads how many threads it may use when it is imported.
    options.one_thread_for_algebra()
    from examples.two_engines.decoder import BLOCK_TOKENS, Decoder

    decoder = Decoder(chosen.pool_tokens, chosen.seed)
    share = arbiter_client.KvLayout(layers=1, kv_heads=1, head_size=256, dtype="fp32", block_tokens=BLOCK_TOKENS).share(
        weight=chosen.weight
    )
    with (
        arbiter_client.connect_blocking(chosen.address) as client,
        client.lease(
            chosen.name,
            memory=memory.resident_bytes() + _MARGIN_BYTES,
            min_quality=1.0,
            workload_type="llm",
            priority=chosen.priority,
            pids=[os.getpid()],
            kv=share,
        ) as lease,
    ):
        journal.say("leased", lease_id=lease.lease_id, pool_tokens=chosen.pool_tokens)
        orders, engine = Orders(), Engine(decoder, lease, journal)
        while not (stop.asked or orders.ended):
            until = time.monotonic() + STEP_S
            orders.carry_out(engine, lease, journal)
            engine.turn()
            time.sleep(max(0.0, until - time.monotonic()))


def main(arguments: Sequence[str] | None = None) -> int:
    """Serves until the input ends; returns the exit code."""
    memory.use_one_arena()
    parser = argparse.ArgumentParser(prog="python -m examples.two_engines.engine", description=__doc__.split("\n\n")[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--address", help="where the arbiter listens: unix:/path, /path or host:port")
    parser.add_argument("--weight", type=int, default=1, help="share of the device's KV tokens (default: 1)")
    parser.add_argument("--priority", default="normal")
    parser.add_argument("--pool-tokens", type=int, default=4096, help="KV tokens that there is memory for")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    journal, stop = Journal(sys.stdout, chosen.name), Stop()
    stop.install()
    try:
        _serve(chosen, journal, stop)
    except arbiter_client.LeaseLost as error:
        journal.say("lease_lost", detail=error.message)
        return worker_loop.EXIT_LEASE_LOST
    except (arbiter_client.ArbiterClientError, ValueError, RuntimeError) as error:
        journal.say("failed", detail=f"{type(error).__name__}: {error}")
        return worker_loop.EXIT_FAILED
    return worker_loop.EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
