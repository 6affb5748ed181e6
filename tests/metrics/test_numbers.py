"""The numbers are those of the books: what ``GetState`` shows, and what happened."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

import arbiter_sidecar
from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import lease_pb2
from arbiter_sidecar.metrics import reading
from arbiter_sidecar.types import GIB, PressureLevel
from tests.metrics.conftest import Serve
from tests.metrics.scraping import Numbers, Scraped
from tests.rpc.served import IMAGE, Setting, refusal, report, wish
from tests.runtime.driving import CORE, EPOCH
from tests.runtime.driving import wish as plain_wish
from tests.runtime.fakes import GUARD_S, FakeClock, until

#: Fields of a device that are served under their own name.
_BYTES = (
    "total_bytes",
    "capacity_bytes",
    "granted_bytes",
    "measured_bytes",
    "foreign_bytes",
    "draining_bytes",
    "ghost_bytes",
    "zombie_bytes",
    "overrun_bytes",
    "unused_bytes",
    "earmarked_bytes",
    "available_bytes",
    "peak_bytes",
    "target_bytes",
    "soft_deficit_bytes",
)
#: The same of an engine.
_TOKENS = (
    "share_weight",
    "demand_tokens",
    "resident_tokens",
    "reserved_tokens",
    "budget_tokens",
    "charged_tokens",
    "donated_tokens",
    "borrowed_tokens",
)


async def _measured(serve: Serve) -> Scraped:
    """A measured card and a shelf that nobody measures; three leases of two holders, one of them too large by far."""
    scraped = await serve(Setting(measured={"gpu0": 24 * GIB}, devices={"shelf": 8 * GIB}, pids=(1, 2)))
    await scraped.lease(holder="writer", device_id="gpu0", pids=[1], priority=lease_pb2.PRIORITY_HIGH)
    await scraped.lease(holder="painter", workload_type=IMAGE, device_id="gpu0", pids=[2], namespace="art")
    await scraped.lease(holder="painter", workload_type=IMAGE, device_id="shelf", namespace="art")
    return scraped


async def test_devices_are_as_the_state_shows_them(serve: Serve) -> None:
    scraped = await _measured(serve)
    probe, (one, two) = scraped.probes["gpu0"], scraped.watch.living.values()
    probe.held, probe.foreign_bytes = {one: 5 * GIB, two: GIB}, 2 * GIB
    book = scraped.arbiter.books.devices[probe.facts.device_id]
    await until(lambda: (book.used_bytes, book.accounted_bytes) == (8 * GIB, 9 * GIB))
    # The smoothed ceiling has to have come to rest, or the two pictures would differ by a sample.
    await until(lambda: book.ceiling_bytes == 22 * GIB)
    state, numbers = await scraped.state(), await scraped.scrape()
    assert [device.device_id for device in state.devices] == ["gpu0", "shelf"]
    for device in state.devices:
        for name in _BYTES:
            known = name != "measured_bytes" or device.HasField("measured_bytes")
            expected = getattr(device, name) if known else None
            assert numbers.get(f"arbiter_device_{name}", device=device.device_id) == expected, name
        assert numbers.get("arbiter_device_pressure_ratio", device=device.device_id) == pytest.approx(device.pressure)
        assert numbers.get("arbiter_device_kv_tokens", device=device.device_id) == device.kv_total_tokens
        flags = numbers.all("arbiter_device_pressure_level", device=device.device_id)
        assert list(flags.values()) == [level.value == int(device.level) for level in PressureLevel]
    assert numbers.get("arbiter_device_overrun_bytes", device="gpu0") == GIB
    assert numbers.get("arbiter_device_unused_bytes", device="gpu0") == 3 * GIB
    age = numbers.get("arbiter_device_sample_age_seconds", device="gpu0")
    assert age is not None
    assert 0.0 <= age < GUARD_S
    assert numbers.get("arbiter_device_health", device="gpu0", health="ok") == 1
    described = numbers.all("arbiter_device_info", device="shelf", kind="static", attribution="self_reported")
    assert list(described.values()) == [1]


async def test_bytes_that_stay_are_ghost_and_then_zombie_bytes(serve: Serve) -> None:
    clock = FakeClock()
    scraped = await serve(Setting(clock=clock, measured={"gpu0": 24 * GIB}, pids=(1,)))
    probe, process = scraped.probes["gpu0"], scraped.watch.living[1]
    probe.held = {process: 3 * GIB}
    held = (await scraped.lease(pids=[1])).lease
    book = scraped.arbiter.books.devices[probe.facts.device_id]
    await until(lambda: book.used_bytes == 3 * GIB)
    await scraped.release(held)
    await until(lambda: book.residue_bytes == 3 * GIB)
    numbers = await scraped.scrape()
    assert numbers.get("arbiter_device_draining_bytes", device="gpu0") == 3 * GIB
    assert numbers.get("arbiter_device_ghost_bytes", device="gpu0") == 0
    assert numbers.get("arbiter_device_leases", device="gpu0", state="ended") == 1
    assert not numbers.all("arbiter_leases")
    clock.advance(book.rules.drain_grace_s)
    await until(lambda: any(lease.residue_alarmed for lease in book.ended.values()))
    numbers = await scraped.scrape()
    assert numbers.get("arbiter_device_ghost_bytes", device="gpu0") == 3 * GIB
    assert numbers.get("arbiter_device_zombie_bytes", device="gpu0") == 0
    clock.advance(2.0)
    numbers = await scraped.scrape()
    kept = numbers.get("arbiter_holder_ghost_byte_seconds_total", namespace="default", holder="worker")
    assert kept == 2.0 * 3 * GIB
    scraped.watch.kill(1)
    numbers = await scraped.scrape()
    assert numbers.get("arbiter_device_ghost_bytes", device="gpu0") == 0
    assert numbers.get("arbiter_device_zombie_bytes", device="gpu0") == 3 * GIB


async def test_unknown_is_absent_and_not_zero(serve: Serve) -> None:
    scraped = await _measured(serve)
    numbers = await scraped.scrape()
    shelf = {"device": "shelf", "namespace": "art", "holder": "painter"}
    assert numbers.sum("arbiter_lease_granted_bytes", **shelf) > 0
    for name in ("arbiter_lease_measured_bytes", "arbiter_lease_reported_bytes"):
        assert not numbers.all(name, **shelf)
    assert not numbers.all("arbiter_device_measured_bytes", device="shelf")
    assert not numbers.all("arbiter_device_sample_age_seconds", device="shelf")


async def test_leases_are_summed_by_their_labels(scraped: Scraped) -> None:
    first, second = (await scraped.lease()).lease, (await scraped.lease(memory_bytes=GIB)).lease
    await scraped.lease(workload_type=IMAGE, memory_bytes=2 * GIB)
    await scraped.beat(reports=[report(first, used_memory_bytes=3 * GIB), report(second, used_memory_bytes=5)])
    numbers = await scraped.scrape()
    labels = {"device": "gpu0", "namespace": "default", "holder": "worker", "priority": "normal"}
    llm = {**labels, "workload_type": "llm_inference"}
    assert numbers.get("arbiter_leases", **llm) == 2
    assert numbers.get("arbiter_lease_quality_ratio", **llm) == 1.0
    assert numbers.get("arbiter_lease_granted_bytes", **llm) == 5 * GIB
    assert numbers.get("arbiter_lease_reported_bytes", **llm) == 3 * GIB + 5
    assert numbers.get("arbiter_leases", **labels, workload_type="image_generation") == 1
    assert numbers.get("arbiter_device_leases", device="gpu0", state="active") == 2
    assert numbers.get("arbiter_device_leases", device="gpu0", state="granted") == 1


async def test_quality_is_the_mean_when_it_was_lowered(scraped: Scraped) -> None:
    for _ in range(3):
        await scraped.lease(memory_bytes=8 * GIB)
    state, numbers = await scraped.state(), await scraped.scrape()
    qualities = [lease.directive.quality for lease in state.leases]
    assert min(qualities) < 1.0
    [quality] = numbers.all("arbiter_lease_quality_ratio").values()
    assert quality == pytest.approx(sum(qualities) / 3)
    assert numbers.get("arbiter_quality_reductions_total") == state.stats.quality_reductions > 0


async def test_requests_count_while_they_wait_and_when_they_end(serve: Serve) -> None:
    clock = FakeClock()
    scraped = await serve(Setting(clock=clock))
    held = (await scraped.lease(memory_bytes=24 * GIB, min_quality=1.0)).lease
    patient = wish(priority=lease_pb2.PRIORITY_HIGH, min_quality=1.0)
    patient.wait_timeout.FromSeconds(300)
    waiting = scraped.calls.Allocate(patient, timeout=300)
    asked = asyncio.ensure_future(waiting)
    await until(lambda: len(scraped.arbiter.books.queue) == 1)
    clock.advance(7.0)
    numbers = await scraped.scrape()
    assert numbers.get("arbiter_waiting_requests", priority="high") == 1
    assert numbers.get("arbiter_waiting_oldest_seconds", priority="high") == 7.0
    assert numbers.get("arbiter_waiting_requests", priority="normal") == 0
    assert numbers.get("arbiter_waiting_oldest_seconds", priority="normal") == 0
    waiting.cancel()
    await asyncio.wait([asked])
    await until(lambda: not len(scraped.arbiter.books.queue))
    impatient = wish(min_quality=1.0)
    impatient.wait_timeout.FromSeconds(0)
    await refusal(scraped.calls.Allocate(impatient))
    await scraped.release(held)
    numbers = await scraped.scrape()
    outcomes = {"granted": 1, "refused": 1, "timed_out": 0, "cancelled": 1}
    for outcome, count in outcomes.items():
        assert numbers.get("arbiter_allocation_outcomes_total", outcome=outcome) == count
    assert numbers.get("arbiter_allocation_requests_total") == sum(outcomes.values())
    assert numbers.get("arbiter_lease_ends_total", reason="released") == 1
    assert numbers.get("arbiter_lease_ends_total", reason="expired") == 0
    assert numbers.sum("arbiter_waiting_requests") == 0


async def test_heartbeats_and_events_count(scraped: Scraped) -> None:
    held = (await scraped.lease()).lease
    before = await scraped.scrape()
    for _ in range(5):
        await scraped.beat(handles=[held.handle])
    after = await scraped.scrape()
    assert after.sum("arbiter_heartbeats_total") - before.sum("arbiter_heartbeats_total") == 5
    assert after.get("arbiter_events_total") == (await scraped.state()).stats.events > 0


async def test_accounts_are_as_the_state_shows_them(serve: Serve) -> None:
    clock = FakeClock()
    scraped = await serve(Setting(clock=clock))
    for holder in ("one", "two", "three"):
        await scraped.lease(holder=holder, memory_bytes=8 * GIB)
    clock.advance(2.0)
    accounts, numbers = (await scraped.state()).accounts, await scraped.scrape()
    assert len(accounts) == 3
    for account in accounts:
        named = {"namespace": "default", "holder": account.holder}
        lost = numbers.get("arbiter_holder_quality_seconds_lost_total", **named)
        assert lost == pytest.approx(account.quality_seconds_lost)
        assert account.quality_seconds_lost > 0.0
        assert numbers.get("arbiter_holder_reclaims_total", **named) == account.reclaims
        assert numbers.get("arbiter_holder_floor_breaches_total", **named) == 0
        assert numbers.get("arbiter_holder_overuses_total", **named) == 0


async def test_engines_are_as_the_state_shows_them(serve: Serve) -> None:
    scraped = await serve(Setting(core=replace(CORE, kv=replace(CORE.kv, tokens=16_000))))
    busy = (await scraped.lease(holder="busy", kv={"share_weight": 2, "min_tokens": 160, "max_tokens": 8000})).lease
    await scraped.lease(holder="busy", kv={"share_weight": 1, "min_tokens": 320, "max_tokens": 1600})
    await scraped.lease(holder="free", kv={"share_weight": 1})
    await scraped.lease(holder="free", kv={"share_weight": 1, "max_tokens": 1600})
    usage = {"active": True, "resident_tokens": 800, "demand_tokens": 4000}
    await scraped.beat(reports=[report(busy, kv=usage)])
    state, numbers = await scraped.state(), await scraped.scrape()
    assert len(state.kv_engines) == 4
    for holder in ("busy", "free"):
        named = {"device": "gpu0", "namespace": "default", "holder": holder}
        engines = [engine for engine in state.kv_engines if engine.holder == holder]
        assert numbers.get("arbiter_kv_engines", **named) == len(engines)
        assert numbers.get("arbiter_kv_active_engines", **named) == sum(engine.active for engine in engines)
        assert numbers.get("arbiter_kv_floor_tokens", **named) == sum(engine.min_tokens for engine in engines)
        for name in _TOKENS:
            silent = name == "demand_tokens"
            known = [getattr(each, name) for each in engines if not silent or each.HasField("demand_tokens")]
            assert numbers.get(f"arbiter_kv_{name}", **named) == (sum(known) if known else None), name
    assert numbers.get("arbiter_kv_cap_tokens", device="gpu0", namespace="default", holder="busy") == 9600
    assert not numbers.all("arbiter_kv_cap_tokens", holder="free")
    assert numbers.get("arbiter_device_kv_charged_tokens", device="gpu0") == state.devices[0].kv_charged_tokens > 0


async def test_server_says_what_it_is_and_that_it_goes(scraped: Scraped) -> None:
    numbers = await scraped.scrape()
    assert list(numbers.all("arbiter_build_info", version=arbiter_sidecar.__version__).values()) == [1]
    assert numbers.get("arbiter_epoch") == EPOCH
    assert numbers.get("arbiter_draining") == 0
    assert numbers.get("arbiter_observe_only") == 0
    assert numbers.sum("process_resident_memory_bytes") > 1 << 20
    await scraped.server.drain()
    assert (await scraped.scrape()).get("arbiter_draining") == 1


async def test_streams_are_counted_while_they_are_open(scraped: Scraped) -> None:
    held = (await scraped.lease()).lease
    stream = scraped.calls.StreamQuality(pb.StreamQualityRequest(lease_ids=[held.lease_id]))
    await stream.read()
    assert (await scraped.scrape()).get("arbiter_stream_subscribers") == 1
    stream.cancel()
    await until(lambda: scraped.server.subscribers == 0)
    assert (await scraped.scrape()).get("arbiter_stream_subscribers") == 0


async def test_others_have_their_turn_when_there_are_many_leases(
    scraped: Scraped, monkeypatch: pytest.MonkeyPatch
) -> None:
    leases = [await scraped.take(plain_wish(0.01)) for _ in range(40)]
    whole = await scraped.scrape()
    monkeypatch.setattr(reading, "SLICE", 10)
    turns = 0
    gone: list[bool] = []

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            if turns == 3:
                # One that has been read and one that has not; both are gone before the picture is complete.
                for lease in (leases[0], leases[-1]):
                    scraped.runtime.release(lease.lease_id, lease.fence)
                scraped.arbiter.advance(scraped.runtime.clock.now(), len(leases))
                gone.append(not scraped.arbiter.books.devices[leases[0].device_id].ended)
            await asyncio.sleep(0)

    task = asyncio.create_task(turn())
    picture = await scraped.reader.read()
    task.cancel()
    assert turns >= 4
    assert gone == [True]
    found = Numbers(picture.collect())
    assert found.sum("arbiter_leases") == 39
    assert found.get("arbiter_device_leases", device="gpu0", state="ended") == 0
    assert whole.sum("arbiter_leases") == 40
    assert (await scraped.scrape()).sum("arbiter_leases") == 38


async def test_ten_thousand_leases_are_read_to_the_last(serve: Serve) -> None:
    scraped = await serve(Setting(devices={"gpu0": 64 * GIB}))
    count = 10 * reading.SLICE
    for place in range(count):
        await scraped.take(plain_wish(0.001, holder=f"worker-{place % 7}"))
    numbers = await scraped.scrape()
    assert numbers.sum("arbiter_leases") == count
    assert len(numbers.all("arbiter_leases")) == 7
    assert numbers.sum("arbiter_lease_granted_bytes") == numbers.get("arbiter_device_granted_bytes", device="gpu0")
