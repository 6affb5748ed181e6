"""Labels: who may be named in them, how often, and what never stands there."""

from __future__ import annotations

import re

import pytest

from arbiter_sidecar.ledger.accounts import Account
from arbiter_sidecar.metrics.catalogue import CATALOGUE
from arbiter_sidecar.metrics.holders import MAX_HOLDERS, MAX_LABEL, OTHERS, Charges, HolderNames, harmless
from arbiter_sidecar.types import GIB
from tests.metrics.conftest import Serve
from tests.metrics.scraping import OPEN_METRICS, Scraped, get, numbers
from tests.rpc.served import Setting
from tests.runtime.driving import wish
from tests.runtime.fakes import FakeClock

HOSTILE = (
    'a"} 1\\n',
    "back\\slash\\",
    '"},arbiter_epoch{x="',
    "{}=,#",
    "# HELP arbiter_epoch",
    "%s {0} $(id) `id`",
    "Bär 图像 🦄",
    "x" * 128,
)


@pytest.mark.parametrize("accept", ["*/*", OPEN_METRICS])
async def test_names_arrive_whole_when_they_are_hostile(scraped: Scraped, accept: str) -> None:
    for name in HOSTILE:
        await scraped.lease(holder=name, namespace=name[:64], memory_bytes=GIB)
    found = await scraped.scrape(accept)
    shown = {dict(labels)["holder"]: dict(labels)["namespace"] for labels in found.all("arbiter_leases")}
    assert shown == {harmless(name): name[:64] for name in HOSTILE}
    assert found.all("arbiter_epoch").keys() == {()}
    assert max(len(name) for name in shown) == MAX_LABEL


async def test_names_break_nothing_when_they_come_past_the_checks(scraped: Scraped) -> None:
    names = ("a\nb 1", "\x1b[2J", "\N{RIGHT-TO-LEFT OVERRIDE}x", "\ud800", "\0")
    for name in names:
        await scraped.take(wish(0.1, holder=name))
    answer = await get(scraped.address)
    assert len(numbers(answer).all("arbiter_leases")) == len(names)
    assert not re.search(r"[^\n\x20-\x7e]", answer.body)


async def test_secrets_and_ids_stand_nowhere(serve: Serve) -> None:
    scraped = await serve(Setting(measured={"gpu0": 24 * GIB}, pids=(431999,)))
    named = {"holder": "worker", "request_id": "the-request", "labels": {"the-key": "the-value"}, "pids": [431999]}
    held = (await scraped.lease(**named, kv={"share_weight": 1})).lease
    for accept in ("*/*", OPEN_METRICS):
        text = (await get(scraped.address, accept=accept)).body
        assert 'holder="worker"' in text
        for secret in (held.lease_id, "the-request", "the-key", "the-value", "431999"):
            assert secret not in text
        assert not re.search(rf'"{held.handle}"|"{held.fence}"', text)


async def test_holders_are_counted_together_when_there_are_too_many(serve: Serve) -> None:
    clock = FakeClock()
    scraped = await serve(Setting(clock=clock))
    many = MAX_HOLDERS + 50
    for place in range(many):
        await scraped.take(wish(0.15, holder=f"worker-{place:03}", namespace=f"team-{place:03}"))
    clock.advance(1.0)
    found = await scraped.scrape()
    leases = found.all("arbiter_leases")
    assert len(leases) == MAX_HOLDERS + 1
    assert found.sum("arbiter_leases") == many
    assert found.sum("arbiter_leases", namespace="other", holder="other") == 50
    lost = found.all("arbiter_holder_quality_seconds_lost_total")
    assert len(lost) == MAX_HOLDERS + 1
    assert min(lost.values()) > 0.0
    # What is bounded by leases alone would grow with them: nothing else may.
    assert not [name for name, labels in found.samples if "worker-149" in dict(labels).values()]


def test_conventions_are_kept() -> None:
    names = [metric.name for metric in CATALOGUE]
    assert len(set(names)) == len(names)
    for metric in CATALOGUE:
        assert re.fullmatch(r"(arbiter|grpc_server)_[a-z]+(_[a-z]+)*", metric.name)
        assert (metric.kind == "counter") is metric.name.endswith("_total")
        assert not re.search(r"_(ms|milliseconds|mib|gib|kb|mb|percent|count|sum|bucket|created)(_|$)", metric.name)
        assert re.fullmatch(r"[A-Z1].*[^.]", metric.meaning), metric.name
        assert len(set(metric.labels)) == len(metric.labels)
        for label in metric.labels:
            assert re.fullmatch(r"[a-z]+(_[a-z]+)*", label)
            assert label not in {"le", "quantile", "job", "instance", "lease", "lease_id", "request_id", "pid"}


def test_name_is_kept_while_its_holder_lives_and_given_up_when_room_is_wanted() -> None:
    names = HolderNames(2)
    names.begin()
    assert names.living(("n", "a")) == ("n", "a")
    assert names.living(("n", "b")) == ("n", "b")
    names.begin()
    # Nobody wants room, so b keeps its name although it has gone.
    names.living(("n", "a"))
    names.begin()
    assert names.shown(("n", "b")) == ("n", "b")
    assert names.living(("n", "a")) == ("n", "a")
    assert names.living(("n", "c")) == OTHERS
    names.begin()
    assert names.living(("n", "c")) == ("n", "c")
    assert names.living(("n", "a")) == ("n", "a")
    assert names.shown(("n", "b")) == OTHERS
    assert ("n", "b") not in names
    assert OTHERS in names


def _account(holder: str, reclaims: int, ghost_byte_seconds: float = 0.0) -> Account:
    account = Account("n", holder)
    account.reclaims, account.ghost_byte_seconds = reclaims, ghost_byte_seconds
    return account


def test_counters_never_fall_when_accounts_are_forgotten() -> None:
    charges = Charges(HolderNames(1))
    first = charges.update([_account("a", 3, 1.5), _account("b", 5), _account("c", 7)])
    assert {shown: sums[0] for shown, sums in first.items()} == {("n", "a"): 3, OTHERS: 12}
    assert first["n", "a"][4] == 1.5
    # b is forgotten; c is forgotten and begins anew; a goes on.
    second = charges.update([_account("a", 4, 2.0), _account("c", 1)])
    assert {shown: sums[0] for shown, sums in second.items()} == {("n", "a"): 4, OTHERS: 13}
    third = charges.update([])
    assert {shown: sums[0] for shown, sums in third.items()} == {("n", "a"): 4, OTHERS: 13}


def test_counter_goes_with_the_name_it_is_shown_under() -> None:
    names = HolderNames(1)
    charges = Charges(names)
    names.begin()
    charges.update([_account("a", 3)])
    assert names.living(("n", "b")) == OTHERS
    names.begin()
    names.living(("n", "b"))
    totals = charges.update([_account("a", 4), _account("b", 2)])
    assert {shown: sums[0] for shown, sums in totals.items()} == {OTHERS: 1, ("n", "b"): 2}
