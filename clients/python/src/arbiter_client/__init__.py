"""Lease memory from an Arbiter Sidecar, and be told how large to be.

    async with arbiter_client.connect() as client:
        async with client.lease("llm-server", memory="2GiB", workload_type="llm") as lease:
            async for directive in lease.directives():
                resize(directive.quality, directive.memory_limit_bytes)
                lease.applied(directive)

``connect_blocking`` is the same without asyncio. Nothing is configured by importing this package, and nothing is logged
but warnings under ``arbiter_client``.
"""

from __future__ import annotations

from arbiter_client.aio import Client, KvReservation, KvReservationRequest, Lease, LeaseRequest, connect
from arbiter_client.amounts import parse_bytes
from arbiter_client.balance import Balance
from arbiter_client.blocking import (
    BlockingClient,
    BlockingKvReservation,
    BlockingKvReservationRequest,
    BlockingLease,
    BlockingLeaseRequest,
    Events,
    connect_blocking,
)
from arbiter_client.connection import HeartbeatMode
from arbiter_client.directive import Directive, DirectiveReason, Reclaim, ReclaimLevel, ShardAssignment
from arbiter_client.errors import ArbiterClientError, ArbiterUnreachable, LeaseLost
from arbiter_client.kv import KvBudget
from arbiter_client.kv_layout import KV_BITS, KvLayout
from arbiter_client.kv_requests import KvRequest, RequestState
from arbiter_client.ladder import QUALITY_LEVELS, Ladder, NoRungFits, Rung, fragments_for_quality
from arbiter_client.lease import HeldLease
from arbiter_client.preemption import DeviceNeed, Donation, Need, Preemption, RejectedDonor
from arbiter_client.shard_timer import ShardTimer
from arbiter_client.terms import Terms

__version__ = "0.1.0"

__all__ = [
    "KV_BITS",
    "QUALITY_LEVELS",
    "ArbiterClientError",
    "ArbiterUnreachable",
    "Balance",
    "BlockingClient",
    "BlockingKvReservation",
    "BlockingKvReservationRequest",
    "BlockingLease",
    "BlockingLeaseRequest",
    "Client",
    "DeviceNeed",
    "Directive",
    "DirectiveReason",
    "Donation",
    "Events",
    "HeartbeatMode",
    "HeldLease",
    "KvBudget",
    "KvLayout",
    "KvRequest",
    "KvReservation",
    "KvReservationRequest",
    "Ladder",
    "Lease",
    "LeaseLost",
    "LeaseRequest",
    "Need",
    "NoRungFits",
    "Preemption",
    "Reclaim",
    "ReclaimLevel",
    "RejectedDonor",
    "RequestState",
    "Rung",
    "ShardAssignment",
    "ShardTimer",
    "Terms",
    "__version__",
    "connect",
    "connect_blocking",
    "fragments_for_quality",
    "parse_bytes",
]
