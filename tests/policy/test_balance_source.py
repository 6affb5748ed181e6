"""What the load balancer this one replaces tested, and where this one differs on purpose.

Each of its seven tests is here by what it asked. It compared the costs of single layers in whole microseconds; here
stage times are compared with the ideal, as exact numbers. Its threshold of 2 is passed where its tests passed it.
"""

from __future__ import annotations

from arbiter_sidecar.policy import balance
from arbiter_sidecar.policy.balance import Balanced, Decision, Rebalance, Settings, Shard, TooFewSamples


def evaluate(min_samples: int, recorded: int, *facts: tuple[str, float]) -> Decision:
    """Shards of eight layers that recorded the same latency so many times."""
    group = []
    for place, (name, latency) in enumerate(facts):
        samples = [balance.sample_cost(latency, 8) for _ in range(recorded)]
        group.append(
            Shard(
                name=name,
                position=place,
                layers=8,
                cost_us=balance.trimmed_mean(samples),
                fresh_samples=len(samples),
            )
        )
    chosen = Settings(min_samples=min_samples, imbalance_threshold=balance.SOURCE_IMBALANCE_THRESHOLD, interval_s=0.0)
    return balance.evaluate(group, now=0.0, evaluated_at=0.0, settings=chosen)


def test_mean_is_that_of_the_samples_when_a_few_were_recorded() -> None:
    """Holds."""
    assert balance.trimmed_mean([100.0, 200.0, 150.0]) == 150.0


def test_cost_is_for_one_layer_when_a_shard_has_eight() -> None:
    """Holds."""
    assert balance.trimmed_mean([balance.sample_cost(800.0, 8), balance.sample_cost(800.0, 8)]) == 100.0


def test_defaults_are_the_source_s_when_they_mean_the_same() -> None:
    """The threshold is a deliberate difference: 1.25 of stage time over the ideal instead of 2 between layers."""
    assert (balance.MIN_SAMPLES, balance.INTERVAL_S) == (100, 60.0)
    assert (balance.SOURCE_IMBALANCE_THRESHOLD, balance.IMBALANCE_THRESHOLD) == (2.0, 1.25)


def test_balanced_is_answered_when_latencies_are_close() -> None:
    """Holds."""
    assert isinstance(evaluate(10, 20, ("a", 800.0), ("b", 900.0)), Balanced)


def test_rebalance_is_answered_when_one_is_a_hundred_times_slower() -> None:
    """Holds; but the source took every layer from the slow one."""
    decision = evaluate(10, 20, ("fast", 80.0), ("slow", 8000.0))
    assert isinstance(decision, Rebalance)
    assert [span.layers for span in decision.assignment] == [15, 1]


def test_insufficient_is_answered_when_samples_are_few() -> None:
    """Holds."""
    assert evaluate(100, 10, ("a", 800.0), ("b", 8000.0)) == TooFewSamples(("a", "b"))


def test_fast_shard_gets_more_when_one_is_ten_times_slower() -> None:
    """Holds."""
    decision = evaluate(50, 100, ("fast", 80.0), ("slow", 800.0))
    assert isinstance(decision, Rebalance)
    fast, slow = (span.layers for span in decision.assignment)
    assert fast > slow


def test_advice_is_not_repeated_when_it_was_followed() -> None:
    """A deliberate difference: the source advised the same for ever."""
    group = [
        Shard(name="fast", position=0, layers=15, cost_us=10.0),
        Shard(name="slow", position=1, layers=1, cost_us=100.0),
    ]
    assert isinstance(balance.evaluate(group, now=0.0), Balanced)


def test_equal_speeds_are_balanced_when_layers_are_uneven() -> None:
    """A deliberate difference: the source never noticed."""
    group = [Shard(name="a", position=0, layers=14, cost_us=10.0), Shard(name="b", position=1, layers=2, cost_us=10.0)]
    decision = balance.evaluate(group, now=0.0)
    assert isinstance(decision, Rebalance)
    assert [span.layers for span in decision.assignment] == [8, 8]


def test_fractions_of_a_microsecond_count_when_layers_are_quick() -> None:
    """A deliberate difference: the source divided in whole microseconds and gave 13 and 3."""
    group = [
        Shard(name="a", position=0, layers=8, cost_us=balance.sample_cost(15.0, 8)),
        Shard(name="b", position=1, layers=8, cost_us=balance.sample_cost(32.0, 8)),
    ]
    decision = balance.evaluate(group, now=0.0)
    assert isinstance(decision, Rebalance)
    assert [span.layers for span in decision.assignment] == [11, 5]
