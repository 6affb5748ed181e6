"""The tokens of an engine's requests: counted exactly, whatever happens to them and on which thread."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from arbiter.v1 import lease_pb2
from arbiter_client.kv_requests import KvBooks, KvRequest, RequestState
from tests.client.scripted_server import GUARD_S
from tests.thorough import examples

_PRIORITIES = ("background", "low", "normal", "high", "critical")
_NUMBERS = {name: number for number, name in enumerate(_PRIORITIES, 1)}


class Limit:
    """A budget that the test sets."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __call__(self) -> int:
        return self.tokens


def books(limit: int = 100, block_tokens: int = 1) -> KvBooks:
    return KvBooks(block_tokens, Limit(limit), lambda: None)


def admitted(kept: KvBooks, tokens: int, priority: str = "normal") -> KvRequest:
    request = kept.try_admit(tokens, priority)
    assert request is not None
    return request


def test_all_comes_back_when_less_was_used_than_asked_for() -> None:
    kept = books()
    request = admitted(kept, 100)
    request.record(60)
    assert (kept.resident, request.tokens) == (60, 60)
    request.finish()
    assert (kept.resident, kept.waiting, kept.unfinished, request.tokens) == (0, 0, 0, 0)
    assert kept.try_admit(100, None) is not None


def test_all_comes_back_when_more_was_used_than_asked_for() -> None:
    kept = books()
    request = admitted(kept, 100)
    request.record(160)
    assert kept.resident == 160
    assert kept.try_admit(1, None) is None
    request.finish()
    assert kept.resident == 0


def test_finish_counts_once_when_it_is_said_twice() -> None:
    kept = books()
    request, other = admitted(kept, 30), admitted(kept, 50)
    request.finish()
    request.finish()
    assert (kept.resident, kept.unfinished) == (50, 1)
    other.finish()
    assert kept.resident == 0


def test_nothing_has_effect_when_the_request_is_finished() -> None:
    kept = books()
    request = admitted(kept, 30)
    request.finish()
    assert not request.try_admit()
    assert not request.try_resize(5)
    request.record(5)
    request.requeue()
    assert (request.state, request.tokens) == (RequestState.FINISHED, 0)
    assert (kept.resident, kept.waiting, kept.unfinished) == (0, 0, 0)


@pytest.mark.parametrize("running", [True, False])
def test_all_comes_back_when_a_block_fails(running: bool) -> None:
    kept = books()

    def serve() -> None:
        with kept.queue(40, "low") as request:
            assert kept.waiting == 40
            if running:
                assert request.try_admit()
                assert (kept.waiting, kept.resident) == (0, 40)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        serve()
    assert (kept.resident, kept.waiting, kept.unfinished) == (0, 0, 0)


async def test_all_comes_back_when_a_task_is_cancelled() -> None:
    kept = books()
    begun = asyncio.Event()

    async def serve() -> None:
        with kept.queue(40, None) as request:
            assert request.try_admit()
            begun.set()
            await asyncio.Event().wait()

    serving = asyncio.create_task(serve())
    await begun.wait()
    assert kept.resident == 40
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert (kept.resident, kept.unfinished) == (0, 0)


def test_try_admit_counts_nothing_when_it_does_not_fit() -> None:
    kept = books(limit=100)
    first = admitted(kept, 60)
    assert kept.try_admit(41, None) is None
    assert (kept.resident, kept.waiting, kept.unfinished) == (60, 0, 1)
    assert admitted(kept, 40).state is RequestState.RUNNING
    first.finish()
    assert kept.resident == 40


def test_tokens_count_in_whole_blocks_when_the_engine_has_blocks() -> None:
    kept = books(limit=64, block_tokens=16)
    request = admitted(kept, 17)
    assert request.tokens == 32
    assert request.try_resize(32)
    assert kept.resident == 32
    assert kept.try_admit(33, None) is None
    assert admitted(kept, 32).tokens == 32
    assert not request.try_resize(33)
    assert request.tokens == 32


def test_growth_is_refused_when_the_budget_has_shrunk_and_shrinking_is_not() -> None:
    kept = books(limit=100)
    request = admitted(kept, 80)
    assert isinstance(kept._limit, Limit)
    kept._limit.tokens = 50
    assert not request.try_resize(81)
    assert request.try_resize(70)
    assert not request.try_resize(71)
    assert request.try_resize(40)
    assert request.try_resize(50)
    assert not request.try_resize(51)


def test_a_request_that_is_sent_back_waits_with_its_tokens() -> None:
    kept = books(limit=100)
    first, second = admitted(kept, 60, "low"), kept.queue(80, "high")
    assert not second.try_admit()
    first.requeue()
    assert (kept.resident, kept.waiting, first.state) == (0, 140, RequestState.WAITING)
    assert second.try_admit()
    assert second.try_admit()
    assert (kept.resident, kept.waiting) == (80, 60)
    assert not first.try_admit()
    assert first.try_resize(500)
    assert kept.waiting == 500
    assert "waiting 500 tokens" in repr(first)


def test_nothing_runs_when_the_budget_is_nothing() -> None:
    kept = books(limit=0)
    request = kept.queue(5, None)
    assert request.try_resize(0)
    assert not request.try_admit()
    assert kept.try_admit(1, None) is None


def test_requests_are_refused_when_they_say_nothing_sensible() -> None:
    kept = books(block_tokens=16)
    for tokens, complaint in ((0, "give at least 1"), (-5, "give at least 1"), (2**63 - 1, "beyond")):
        with pytest.raises(ValueError, match=complaint):
            kept.queue(tokens, None)
        with pytest.raises(ValueError, match=complaint):
            kept.try_admit(tokens, None)
    request = kept.queue(5, None)
    for tokens in (-1, 2**63 - 1):
        with pytest.raises(ValueError, match="tokens"):
            request.try_resize(tokens)
        with pytest.raises(ValueError, match="tokens"):
            request.record(tokens)
    for priority in ("urgent", 6, -1, ""):
        with pytest.raises(ValueError, match=r"PRIORITY|priority"):
            kept.queue(5, priority)
    assert (kept.resident, kept.waiting, kept.unfinished) == (0, 16, 1)
    assert kept.queue(1, lease_pb2.Priority.PRIORITY_UNSPECIFIED).priority == lease_pb2.Priority.PRIORITY_NORMAL


def test_turns_are_told_when_the_first_request_comes_and_when_the_last_one_ends() -> None:
    seen: list[int] = []
    kept = KvBooks(1, Limit(10), lambda: seen.append(kept.unfinished))
    first = kept.queue(5, None)
    second = admitted(kept, 5)
    first.finish()
    second.finish()
    second.finish()
    admitted(kept, 10).finish()
    assert seen == [1, 0, 1, 0]


class Engine(RuleBasedStateMachine):
    """Any order of everything that can happen, against sums over a plain list."""

    @initialize(block=st.sampled_from([1, 16, 7]), limit=st.integers(0, 300))
    def begin(self, block: int, limit: int) -> None:
        self.block = block
        self.limit = Limit(limit)
        self.turns = 0
        self.kept = KvBooks(block, self.limit, self.turn)
        self.requests: list[KvRequest] = []
        #: State, tokens and priority of each request, as they should be.
        self.model: list[tuple[str, int, int]] = []

    def turn(self) -> None:
        self.turns += 1

    def whole(self, tokens: int) -> int:
        return tokens if tokens % self.block == 0 else (tokens // self.block + 1) * self.block

    def total(self, state: str) -> int:
        return sum(tokens for is_in, tokens, _ in self.model if is_in == state)

    def has_room(self, growth: int) -> bool:
        return self.limit.tokens > 0 and self.total("running") + growth <= self.limit.tokens

    @rule(limit=st.integers(0, 300))
    def directive(self, limit: int) -> None:
        self.limit.tokens = limit

    @rule(tokens=st.integers(1, 120), priority=st.sampled_from(_PRIORITIES))
    def queue(self, tokens: int, priority: str) -> None:
        self.requests.append(self.kept.queue(tokens, priority))
        self.model.append(("waiting", self.whole(tokens), _NUMBERS[priority]))

    @rule(tokens=st.integers(1, 120), priority=st.sampled_from(_PRIORITIES))
    def try_admit(self, tokens: int, priority: str) -> None:
        fits = self.has_room(self.whole(tokens))
        request = self.kept.try_admit(tokens, priority)
        assert (request is not None) is fits
        if request is not None:
            self.requests.append(request)
            self.model.append(("running", self.whole(tokens), _NUMBERS[priority]))

    @rule(pick=st.integers(0, 10**6), tokens=st.integers(0, 120), what=st.sampled_from(["admit", "ask", "record"]))
    def move(self, pick: int, tokens: int, what: str) -> None:
        if not self.requests:
            return
        at = pick % len(self.requests)
        request, (state, before, priority) = self.requests[at], self.model[at]
        if what == "admit":
            if state == "waiting" and self.has_room(before):
                state = "running"
            assert request.try_admit() is (state == "running")
        elif what == "ask":
            growth = self.whole(tokens) - before
            done = state != "finished" and (state == "waiting" or growth <= 0 or self.has_room(growth))
            assert request.try_resize(tokens) is done
            before += growth if done else 0
        else:
            request.record(tokens)
            before = before if state == "finished" else self.whole(tokens)
        self.model[at] = (state, before, priority)

    @rule(pick=st.integers(0, 10**6), back=st.booleans())
    def leave(self, pick: int, back: bool) -> None:
        if not self.requests:
            return
        at = pick % len(self.requests)
        request, (state, tokens, priority) = self.requests[at], self.model[at]
        if back:
            request.requeue()
            self.model[at] = ("waiting" if state == "running" else state, tokens, priority)
        else:
            request.finish()
            self.model[at] = ("finished", 0, priority)

    @invariant()
    def totals_are_sums(self) -> None:
        running = [(priority, tokens) for state, tokens, priority in self.model if state == "running"]
        unfinished = sum(1 for state, _, _ in self.model if state != "finished")
        lowest = min((priority for priority, _ in running), default=0)
        assert (self.kept.resident, self.kept.waiting) == (self.total("running"), self.total("waiting"))
        assert self.kept.unfinished == unfinished
        assert self.kept.picture() == (
            unfinished > 0,
            self.total("running"),
            self.total("waiting"),
            lowest,
            sum(tokens for priority, tokens in running if priority == lowest),
        )
        assert [(request.state.value, request.tokens) for request in self.requests] == [
            (state, tokens) for state, tokens, _ in self.model
        ]
        assert self.turns % 2 == (unfinished > 0)

    def teardown(self) -> None:
        for request in self.requests:
            request.finish()
        assert (self.kept.resident, self.kept.waiting, self.kept.unfinished) == (0, 0, 0)


def test_totals_are_sums_when_anything_happens_in_any_order() -> None:
    run_state_machine_as_test(Engine, settings=examples(200))


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads take turns as often as they can, so that they meet in the middle of things."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@pytest.mark.usefixtures("hasty_threads")
def test_totals_are_exact_when_threads_race() -> None:
    limit = Limit(160)
    kept = KvBooks(16, limit, lambda: None)
    stop = threading.Event()

    def schedule(seed: int) -> int:
        choice, admissions = random.Random(seed), 0
        while not stop.is_set() or admissions < 300:
            with kept.queue(choice.randrange(1, 64), choice.choice(_PRIORITIES)) as request:
                if request.try_admit():
                    admissions += 1
                    request.try_resize(choice.randrange(0, 96))
                    assert kept.resident <= 160
                    if choice.random() < 0.2:
                        request.requeue()
        return admissions

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(schedule, seed) for seed in range(4)]
        for tokens in (32, 160, 0, 96) * 250:
            limit.tokens = tokens
            active, resident, waiting, _, freeable = kept.picture()
            assert active or not resident + waiting
            assert 0 <= freeable <= resident <= 160
        limit.tokens = 160
        stop.set()
        assert all(each.result(GUARD_S) >= 300 for each in running)
    assert kept.picture() == (False, 0, 0, 0, 0)
    assert kept.waiting == kept.resident == 0
