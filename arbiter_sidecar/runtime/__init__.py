"""Drives the core: owns the loop's timer, the waiting callers, the probes and the process watch."""

from arbiter_sidecar.runtime.driver import Feed, Grant, Preempted, Runtime
from arbiter_sidecar.runtime.enforcer import Enforcer, EnforcerTimes
from arbiter_sidecar.runtime.events import AuditEvent, EventLog, Watcher
from arbiter_sidecar.runtime.sampling import Sampler, SamplingRates

__all__ = [
    "AuditEvent",
    "Enforcer",
    "EnforcerTimes",
    "EventLog",
    "Feed",
    "Grant",
    "Preempted",
    "Runtime",
    "Sampler",
    "SamplingRates",
    "Watcher",
]
