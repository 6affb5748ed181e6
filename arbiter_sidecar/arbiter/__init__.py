"""The combined decision core. Pure and synchronous; see ``core`` for its laws."""

from arbiter_sidecar.arbiter.admission import Dry
from arbiter_sidecar.arbiter.books import ArbiterConfig, KvConfig, Names, OveruseConfig, PreemptionConfig, QueueConfig
from arbiter_sidecar.arbiter.core import Arbiter
from arbiter_sidecar.arbiter.explain import Explanation
from arbiter_sidecar.arbiter.renewal import BeatOutcome, BeatResult

__all__ = [
    "Arbiter",
    "ArbiterConfig",
    "BeatOutcome",
    "BeatResult",
    "Dry",
    "Explanation",
    "KvConfig",
    "Names",
    "OveruseConfig",
    "PreemptionConfig",
    "QueueConfig",
]
