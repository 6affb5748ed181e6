"""``arbiter-sidecar serve``: puts the parts together, serves, and goes away in good order."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import signal
import sys
from collections.abc import Sequence
from typing import cast

import structlog

from arbiter_sidecar import __version__
from arbiter_sidecar.adapters import clock, detect, instance, probing, processes
from arbiter_sidecar.arbiter import (
    Arbiter,
    ArbiterConfig,
    KvConfig,
    Names,
    OveruseConfig,
    PreemptionConfig,
    QueueConfig,
)
from arbiter_sidecar.cli import logs
from arbiter_sidecar.config import Config
from arbiter_sidecar.ledger.devices import DeviceRules
from arbiter_sidecar.metrics import Endpoint, Reader
from arbiter_sidecar.policy import balance, preemption
from arbiter_sidecar.ports import DeviceProbe
from arbiter_sidecar.rpc.convert import LeaseTimes
from arbiter_sidecar.rpc.server import Limits, ListenError, Server
from arbiter_sidecar.runtime import Enforcer, EnforcerTimes, Runtime, SamplingRates

#: Exit code for "somebody else does this already": try again later (sysexits EX_TEMPFAIL).
EXIT_TAKEN = 75
#: Exit code for a failure, at the start or later.
EXIT_FAILED = 1
#: Full collections with many streams take long pauses: collect young objects, leave the old alone.
GC_THRESHOLDS = (50_000, 50, 100)
#: Nobody guesses so many, and two thousand ids still fit into one request.
LEASE_ID_BYTES = 12
#: How long streams have to end by themselves once everything is said.
STOP_GRACE_S = 1.0
#: Time between samples while bytes are expected to come free, in seconds: quick enough to feel immediate.
EAGER_SAMPLE_S = 0.1

_log = structlog.get_logger("arbiter")


def run(config: Config) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code."""
    logs.set_up(config.log_level)
    locks = instance.InstanceLocks()
    try:
        _prepare(config, locks)
        epoch = instance.next_epoch(config.state_dir)
        return asyncio.run(_serve(config, epoch))
    except instance.InstanceTakenError as error:
        print(f"arbiter-sidecar: another server is running: {error}", file=sys.stderr)
        return EXIT_TAKEN
    except (detect.DetectionError, ListenError, OSError, ValueError) as error:
        print(f"arbiter-sidecar: {error}", file=sys.stderr)
        return EXIT_FAILED
    finally:
        locks.release()


def _prepare(config: Config, locks: instance.InstanceLocks) -> None:
    """Makes the directories and takes the locks, before anything else is touched."""
    config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    config.socket.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    locks.take(config.state_dir / instance.LOCK_NAME)
    locks.take(config.socket.with_name(config.socket.name + ".lock"))


def _core(config: Config, epoch: int, now: float) -> Arbiter:
    core = ArbiterConfig(
        policy=config.policy,
        soft_target=config.soft_target,
        elasticity=config.elasticity,
        min_quality=config.min_quality,
        rules=DeviceRules(drain_grace_s=config.drain_grace_s, lock_delay_s=config.lock_delay_s),
        queue=QueueConfig(aging_s=config.queue_aging_s, backfill=config.queue_backfill),
        preemption=PreemptionConfig(
            rules=preemption.Rules(
                gap=config.preemption_gap,
                shrink_hold_s=config.preemption_shrink_hold_s,
                revoke_hold_s=config.preemption_revoke_hold_s,
            ),
            grace_s=config.preemption_grace_s,
            settle_s=config.drain_grace_s,
            cooldown_s=config.preemption_cooldown_s,
        ),
        kv=KvConfig(
            tokens=config.kv_tokens,
            engine_cap_permille=round(config.kv_engine_cap * 1000),
            drain_s=config.kv_drain_s,
            reservation_s=config.kv_reservation_s,
        ),
        balance=balance.Settings(
            objective=config.balance_objective,
            imbalance_threshold=config.balance_threshold,
            min_speedup=config.balance_min_speedup,
            min_samples=config.balance_min_samples,
            interval_s=config.balance_interval_s,
        ),
        overuse=OveruseConfig(
            slack_bytes=config.overuse_slack_bytes,
            patience_s=config.overuse_patience_s,
            revoke=config.overuse_revoke,
        ),
        max_leases=config.max_leases,
        max_waiting=config.max_waiting,
        observe_only=config.observe_only,
    )
    names = Names(lease_id=lambda: secrets.token_hex(LEASE_ID_BYTES), handle=lambda: secrets.randbits(64) or 1)
    return Arbiter(core, epoch=epoch, names=names, now=now)


def _detection(config: Config) -> detect.Detection:
    return detect.detect(
        detect.DetectConfig(
            mode=cast("detect.Mode", config.devices),
            cap_bytes=config.device_cap_bytes,
            host_budget_bytes=config.host_budget_bytes,
            host_foreign=config.host_foreign,
            static_devices=config.static_devices,
            host_proc=config.host_proc,
        )
    )


async def _serve(config: Config, epoch: int) -> int:
    loop = asyncio.get_running_loop()
    stopping, hurrying = asyncio.Event(), asyncio.Event()

    def signalled() -> None:
        (hurrying if stopping.is_set() else stopping).set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled)
    # A driver may take half a minute to answer; a signal must not have to wait for it.
    found = await asyncio.to_thread(_detection, config)
    for note in found.notes:
        _log.info("device_detection", note=note)
    thread = probing.ProbeThread(timeout_s=config.probe_timeout_s)
    time = clock.chosen()
    runtime = Runtime(
        _core(config, epoch, time.now()),
        clock=time,
        watch=processes.PidfdWatch(loop),
        probes=found.probes,
        measure=thread.sample,
        rates=SamplingRates(idle_s=config.sample_interval_s, eager_s=min(EAGER_SAMPLE_S, config.sample_interval_s)),
    )
    times = LeaseTimes(ttl_default_s=config.ttl_default_s, ttl_min_s=config.ttl_min_s, ttl_max_s=config.ttl_max_s)
    limits = Limits(sessions=config.max_sessions, streams=config.max_streams)
    server = Server(runtime, times=times, limits=limits, notes=found.notes)
    metrics = Endpoint(Reader(runtime, server))
    enforcer = Enforcer(
        runtime, EnforcerTimes(patience_s=config.enforcer_patience_s, kill_grace_s=config.enforcer_kill_grace_s)
    )
    if config.observe_only:
        _log.warning("observe_only", note="everything is decided and shown, nothing is done to anybody")
    if config.enforcer:
        runtime.feed(enforcer)
    await runtime.start()
    try:
        await server.listen_unix(config.socket)
        port = await server.listen_tcp(config.listen) if config.listen else 0
        scraped = await metrics.listen(config.metrics_listen) if config.metrics_listen else ""
        await server.ready()
        gc.collect()
        gc.freeze()
        gc.set_threshold(*GC_THRESHOLDS)
        _log.info(
            "serving",
            version=__version__,
            pid=os.getpid(),
            epoch=epoch,
            socket=str(config.socket),
            listen=f"{config.listen.rpartition(':')[0]}:{port}" if port else "",
            metrics=scraped,
            devices=[probe.facts.device_id for probe in found.probes],
        )
        await _first(stopping, runtime.failed)
        if not runtime.failed.is_set():
            await _drain(server, runtime, hurrying, config)
    finally:
        enforcer.close()
        await metrics.close()
        await server.stop(STOP_GRACE_S if not hurrying.is_set() else 0.0)
        await runtime.stop()
        await _close(thread, found.probes)
    _log.info("stopped", epoch=epoch)
    return EXIT_FAILED if runtime.failed.is_set() else 0


async def _drain(server: Server, runtime: Runtime, hurrying: asyncio.Event, config: Config) -> None:
    """Waits for the leases to end, for the time to be up, or for a second signal."""
    await server.drain()
    _log.info("draining", leases=len(runtime.books.leases), timeout_s=config.drain_timeout_s)
    await _first(runtime.settled, hurrying, runtime.failed, timeout_s=config.drain_timeout_s)


async def _first(*events: asyncio.Event, timeout_s: float | None = None) -> None:
    """Returns when one of the events is set, or the time is up."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def _close(thread: probing.ProbeThread, probes: Sequence[DeviceProbe]) -> None:
    for probe in probes:
        try:
            await thread.close(probe)
        except OSError as error:
            # A driver that hangs is left to the end of the process; there is nothing more to lose.
            _log.warning("probe_not_closed", device_id=probe.facts.device_id, error=str(error))
