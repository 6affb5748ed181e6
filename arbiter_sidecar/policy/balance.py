"""How the layers of a model that is split over several workers are best divided, and whether moving them pays.

A pipeline is as fast as its slowest stage, so for throughput the longest stage is made as short as possible; for
latency, where one token passes all stages in turn, their sum. Both are solved exactly, and among the best answers one
with the fewest moved layers is taken. Costs are microseconds per layer.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from itertools import accumulate
from statistics import median

#: Samples of a shard that are kept, the newest: enough for a steady mean, few enough to follow a change in a minute.
WINDOW = 256
#: Seconds after which a sample no longer counts as fresh.
FRESH_S = 300.0
#: Fresh samples that a shard needs before its cost is believed.
MIN_SAMPLES = 100
#: Share of the samples that is dropped at each end before the mean: a stall or a cache hit is not the cost of a layer.
TRIM = 0.05
#: Seconds between two evaluations.
INTERVAL_S = 60.0
#: How much longer the longest stage may be than in an ideal division before moving is considered.
IMBALANCE_THRESHOLD = 1.25
#: The threshold of the load balancer this one learnt from, which compared the costs of single layers instead.
SOURCE_IMBALANCE_THRESHOLD = 2.0
#: How much the objective must gain; less does not pay for loading weights elsewhere.
MIN_SPEEDUP = 1.10
#: Consecutive misses after which a shard has failed.
FAILED_AFTER = 3
#: Consecutive answers after which a failed shard lives again: one alone may be the last of a dying worker.
LIVE_AFTER = 2


class ShardState(IntEnum):
    """Whether a shard can be relied on."""

    LIVE = 1
    #: It missed a probe or two: it keeps the layers it has and gets no others.
    DEGRADED = 2
    #: Its layers must move.
    FAILED = 3


class Objective(StrEnum):
    """What is to be made small."""

    #: The longest stage, for pipelines that work on several requests at once.
    THROUGHPUT = "throughput"
    #: The sum of all stages, for pipelines that work on one.
    LATENCY = "latency"


class Cause(StrEnum):
    """Why layers are to move."""

    IMBALANCE = "imbalance"
    #: A failed shard holds layers.
    FAILURE = "failure"


class Shortage(StrEnum):
    """Why there is no valid assignment."""

    #: The shards that may take layers cannot hold all of them.
    ROOM = "room"
    #: There are fewer layers than shards that need one.
    LAYERS = "layers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One shard of a model.

    Attributes:
        name: Its name, unique in its group.
        position: Its place in the pipeline; equal ones are ordered by name.
        layers: How many layers it holds.
        cost_us: Microseconds per layer, above 0: measured, or the last known; ``None``: never measured.
        max_layers: How many it can hold; ``None``: unknown, so all of them.
        fresh_samples: How many samples of the cost are fresh.
        state: Whether it can be relied on.
    """

    name: str
    position: int
    layers: int
    cost_us: float | None
    max_layers: int | None = None
    fresh_samples: int = WINDOW
    state: ShardState = ShardState.LIVE


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the evaluation respects; the constants of this module say why.

    Attributes:
        objective: What is to be made small.
        imbalance_threshold: Longest stage over the ideal that is tolerated, at least 1.
        min_speedup: Gain of the objective below which nothing moves, at least 1.
        min_samples: Fresh samples that a shard with layers needs.
        interval_s: Seconds between two evaluations.
    """

    objective: Objective = Objective.THROUGHPUT
    imbalance_threshold: float = IMBALANCE_THRESHOLD
    min_speedup: float = MIN_SPEEDUP
    min_samples: int = MIN_SAMPLES
    interval_s: float = INTERVAL_S


DEFAULTS = Settings()


@dataclass(frozen=True, slots=True)
class Span:
    """The layers of one shard: from ``begin`` up to, not including, ``end``; empty when they are equal."""

    name: str
    begin: int
    end: int

    @property
    def layers(self) -> int:
        """How many they are."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class TooSoon:
    """The last evaluation was a moment ago; ask again after ``retry_after_s`` seconds."""

    retry_after_s: float


@dataclass(frozen=True, slots=True)
class TooFewSamples:
    """These shards, by name in pipeline order, have too few fresh samples; none at all when there is no shard."""

    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Balanced:
    """Moving layers would not pay; ``imbalance`` is the longest stage over the ideal one."""

    imbalance: float


@dataclass(frozen=True, slots=True)
class Infeasible:
    """No assignment is valid.

    Attributes:
        needed: Layers that need a shard, or with LAYERS the shards that need a layer.
        capacity: Layers that can be held, or with LAYERS the layers that there are.
        shortage: What is missing.
    """

    needed: int
    capacity: int
    shortage: Shortage = Shortage.ROOM


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebalance:
    """Layers are to move. Gains and the imbalance are ``None`` after a failure: the pipeline stands still.

    Attributes:
        cause: Why.
        assignment: The layers of every shard, in pipeline order and covering all layers; a failed one has none.
        moved: How many layers change their shard, counted by how many more each shard holds.
        bottleneck_us: Longest stage afterwards.
        latency_us: Sum of all stages afterwards.
        imbalance: Longest stage over the ideal one, now.
        throughput_gain: Longest stage now over that afterwards.
        latency_gain: Sum of the stages now over that afterwards.
        estimated: Shards whose cost was not measured lately, by name in pipeline order.
    """

    cause: Cause
    assignment: tuple[Span, ...]
    moved: int
    bottleneck_us: float
    latency_us: float
    imbalance: float | None
    throughput_gain: float | None
    latency_gain: float | None
    estimated: tuple[str, ...]


Decision = TooSoon | TooFewSamples | Balanced | Rebalance | Infeasible


@dataclass(frozen=True, slots=True)
class Health:
    """What probes say of one shard: its state, and how many misses or answers in a row count towards the next."""

    state: ShardState = ShardState.LIVE
    misses: int = 0
    answers: int = 0


@dataclass(frozen=True, slots=True)
class _Stage:
    """One shard for the solver: its limits, and its cost in whole units common to all, so that nothing is rounded."""

    name: str
    cost: int
    least: int
    most: int


def observe(health: Health, answered: bool) -> Health:
    """The health after one more probe; a heartbeat counts as an answer."""
    if not answered:
        misses = min(FAILED_AFTER, health.misses + 1)
        failed = misses >= FAILED_AFTER or health.state is ShardState.FAILED
        return Health(ShardState.FAILED if failed else ShardState.DEGRADED, misses)
    if health.state is ShardState.FAILED and health.answers + 1 < LIVE_AFTER:
        return Health(ShardState.FAILED, 0, health.answers + 1)
    return Health()


def wants_evaluation(before: Health, after: Health) -> bool:
    """Whether a probe changed who may hold layers: a shard failed, or lives again. Missing one probe moves nothing."""
    return (before.state is ShardState.FAILED) is not (after.state is ShardState.FAILED)


def sample_cost(latency_us: float, layers: int) -> float:
    """Microseconds per layer of one forward pass over ``layers`` layers, at least 1.

    Raises:
        ValueError: The latency is not a finite number above 0.
    """
    if not (math.isfinite(latency_us) and latency_us > 0):
        raise ValueError(f"{latency_us} is not a latency: send microseconds above 0")
    return latency_us / layers


def trimmed_mean(samples: Sequence[float], trim: float = TRIM) -> float | None:
    """The mean without the share ``trim``, in [0,0.5), at each end, rounded down to whole samples; ``None`` of none."""
    if not samples:
        return None
    dropped = math.floor(len(samples) * trim)
    kept = sorted(samples)[dropped : len(samples) - dropped]
    return math.fsum(kept) / len(kept)


def layer_room(free_bytes: int, bytes_per_layer: int) -> int | None:
    """How many layers fit in the memory that is there for them; ``None``, unknown, where a layer's size is 0."""
    return max(0, free_bytes) // bytes_per_layer if bytes_per_layer > 0 else None


def evaluate(
    shards: Sequence[Shard],
    *,
    now: float,
    evaluated_at: float | None = None,
    state_changed: bool = False,
    settings: Settings = DEFAULTS,
) -> Decision:
    """Whether and how to move layers. Deterministic, independent of the order of ``shards``.

    Applying the suggestion and asking again with the same costs gives Balanced. When a failed shard holds layers, they
    move whatever it costs and however few samples there are: no new ones come while the pipeline stands still.

    Args:
        shards: The shards of one model.
        now: Monotonic seconds.
        evaluated_at: When it was evaluated or applied last; ``None``: never.
        state_changed: A shard has failed or lives again since, so that the interval does not count.
        settings: What to respect.
    """
    if evaluated_at is not None and not state_changed and now < evaluated_at + settings.interval_s:
        return TooSoon(evaluated_at + settings.interval_s - now)
    shards = _in_order(shards)
    if not shards:
        return TooFewSamples(())
    total = sum(shard.layers for shard in shards)
    failure = any(shard.state is ShardState.FAILED and shard.layers for shard in shards)
    costs = _costs(shards)
    stages = _stages(shards, costs, total)
    obstacle = _obstacle(stages, total)
    if obstacle is not None:
        return obstacle
    unsure = [shard for shard in shards if shard.cost_us is None or shard.fresh_samples < settings.min_samples]
    missing = tuple(shard.name for shard in unsure if shard.layers)
    if missing and not failure:
        return TooFewSamples(missing)
    current = [shard.layers for shard in shards]
    best = _assign(stages, current, total, settings.objective)
    moved = sum(max(0, after - before) for before, after in zip(current, best, strict=True))
    if failure:
        return _suggestion(Cause.FAILURE, shards, costs, best, moved, None, unsure)
    imbalance = _imbalance(shards, costs, total)
    gains = _gains(stages, current, best)
    gain = gains[0] if settings.objective is Objective.THROUGHPUT else gains[1]
    if imbalance <= settings.imbalance_threshold or gain < settings.min_speedup or not moved:
        return Balanced(imbalance)
    return _suggestion(Cause.IMBALANCE, shards, costs, best, moved, (imbalance, *gains), unsure)


def place(
    shards: Sequence[Shard], layers: int, *, objective: Objective = Objective.THROUGHPUT
) -> tuple[Span, ...] | Infeasible:
    """Where the layers of a model go at first: the same optimum, from memory and, where known, costs.

    Shards without a cost are taken to be like the middle of the others, or all alike when none is known. What they hold
    now does not count.
    """
    shards = _in_order(shards)
    stages = _stages(shards, _costs(shards), layers, held=False)
    obstacle = _obstacle(stages, layers)
    if obstacle is not None:
        return obstacle
    return _spans(shards, _assign(stages, [0] * len(shards), layers, objective))


def _in_order(shards: Sequence[Shard]) -> list[Shard]:
    return sorted(shards, key=lambda shard: (shard.position, shard.name))


def _costs(shards: Sequence[Shard]) -> list[float]:
    """Everybody's cost; where none is known the median of the others, and 1 when nobody's is."""
    known = [shard.cost_us for shard in shards if shard.cost_us is not None]
    otherwise = float(median(known)) if known else 1.0
    return [otherwise if shard.cost_us is None else shard.cost_us for shard in shards]


def _stages(shards: Sequence[Shard], costs: Sequence[float], total: int, *, held: bool = True) -> list[_Stage]:
    # Every float is a whole number over a power of two, so with the largest of those in common all are whole.
    exact = [cost.as_integer_ratio() for cost in costs]
    common = max((denominator for _, denominator in exact), default=1)
    stages = []
    for shard, (numerator, denominator) in zip(shards, exact, strict=True):
        most = total if shard.max_layers is None else min(total, shard.max_layers)
        least = min(1, most)
        if shard.state is ShardState.FAILED:
            least = most = 0
        elif shard.state is ShardState.DEGRADED:
            least = most = shard.layers if held else 0
        stages.append(_Stage(shard.name, numerator * (common // denominator), least, most))
    return stages


def _obstacle(stages: Sequence[_Stage], total: int) -> Infeasible | None:
    """Why no assignment is valid, if so."""
    needing, room = sum(stage.least for stage in stages), sum(stage.most for stage in stages)
    if room < total:
        return Infeasible(total, room)
    # A model has a layer at least, whoever is to hold it.
    return Infeasible(max(1, needing), total, Shortage.LAYERS) if needing > total or total <= 0 else None


def _assign(stages: Sequence[_Stage], current: Sequence[int], total: int, objective: Objective) -> list[int]:
    """The best assignment with the fewest moves.

    First the limits within which every assignment of all layers is one of the best; then, from what each shard holds,
    as little as leads there.
    """
    limits = _evenest(stages, total) if objective is Objective.THROUGHPUT else _cheapest(stages, total)
    start = [min(stage.most, max(stage.least, held)) for stage, held in zip(limits, current, strict=True)]
    short = sum(start) < total
    # Layers that are missing are added where they make the shortest stage. If there are too many, they are taken where
    # the stage is longest, which leaves those that filling up from the least would have added first.
    return _fill(
        [
            _Stage(stage.name, stage.cost, held if short else stage.least, stage.most if short else held)
            for stage, held in zip(limits, start, strict=True)
        ],
        total,
    )


def _evenest(stages: Sequence[_Stage], total: int) -> list[_Stage]:
    """Limits of every assignment whose longest stage is as short as can be."""
    pairs = zip(stages, _fill(stages, total), strict=True)
    longest = max(stage.cost * layers for stage, layers in pairs)
    return [_Stage(stage.name, stage.cost, stage.least, min(stage.most, longest // stage.cost)) for stage in stages]


def _fill(stages: Sequence[_Stage], total: int) -> list[int]:
    """Gives everybody the least, then layer by layer to the stage that is shortest with it; ties: lower cost, name.

    Most of it at once: a level below which all layers fit is found by halving, and only the last ones go one by one.
    """
    low, high = 0, max(stage.cost * stage.most for stage in stages)
    layers = [stage.least for stage in stages]
    while total - sum(layers) > len(stages) and high - low > 1:
        middle = (low + high) // 2
        trial = [min(stage.most, max(stage.least, middle // stage.cost)) for stage in stages]
        if sum(trial) > total:
            high = middle
        else:
            low, layers = middle, trial
    heap = [
        ((layers[index] + 1) * stage.cost, stage.cost, stage.name, index)
        for index, stage in enumerate(stages)
        if layers[index] < stage.most
    ]
    heapq.heapify(heap)
    for _ in range(total - sum(layers)):
        length, cost, name, index = heap[0]
        layers[index] += 1
        if layers[index] < stages[index].most:
            heapq.heapreplace(heap, (length + cost, cost, name, index))
        else:
            heapq.heappop(heap)
    return layers


def _cheapest(stages: Sequence[_Stage], total: int) -> list[_Stage]:
    """Limits of every assignment with the least sum: cheap stages full, dear ones at the least, one cost between."""
    room: dict[int, int] = {}
    for stage in stages:
        room[stage.cost] = room.get(stage.cost, 0) + stage.most - stage.least
    costs = sorted(room)
    filled = list(accumulate(room[cost] for cost in costs))
    margin = costs[bisect_left(filled, total - sum(stage.least for stage in stages))]
    return [
        _Stage(
            stage.name,
            stage.cost,
            stage.most if stage.cost < margin else stage.least,
            stage.least if stage.cost > margin else stage.most,
        )
        for stage in stages
    ]


def _imbalance(shards: Sequence[Shard], costs: Sequence[float], total: int) -> float:
    """The longest stage over what it would be if layers could be divided at will."""
    serving = [pair for pair in zip(shards, costs, strict=True) if pair[0].state is not ShardState.FAILED]
    longest = max(shard.layers * cost for shard, cost in serving)
    return longest * math.fsum(1.0 / cost for _, cost in serving) / total


def _gains(stages: Sequence[_Stage], current: Sequence[int], best: Sequence[int]) -> tuple[float, float]:
    """How much shorter the longest stage and the sum of all become; exact quotients of whole numbers."""
    before = [stage.cost * layers for stage, layers in zip(stages, current, strict=True)]
    after = [stage.cost * layers for stage, layers in zip(stages, best, strict=True)]
    return max(before) / max(after), sum(before) / sum(after)


def _suggestion(
    cause: Cause,
    shards: Sequence[Shard],
    costs: Sequence[float],
    best: Sequence[int],
    moved: int,
    numbers: tuple[float, float, float] | None,
    unsure: Sequence[Shard],
) -> Rebalance:
    lengths = [cost * layers for cost, layers in zip(costs, best, strict=True)]
    imbalance, throughput_gain, latency_gain = numbers or (None, None, None)
    used = {shard.name for shard, layers in zip(shards, best, strict=True) if layers}
    return Rebalance(
        cause=cause,
        assignment=_spans(shards, best),
        moved=moved,
        bottleneck_us=max(lengths),
        latency_us=math.fsum(lengths),
        imbalance=imbalance,
        throughput_gain=throughput_gain,
        latency_gain=latency_gain,
        estimated=tuple(shard.name for shard in unsure if shard.name in used),
    )


def _spans(shards: Sequence[Shard], layers: Sequence[int]) -> tuple[Span, ...]:
    """Consecutive spans in pipeline order."""
    spans, begin = [], 0
    for shard, count in zip(shards, layers, strict=True):
        spans.append(Span(shard.name, begin, begin + count))
        begin += count
    return tuple(spans)
