"""What holds of every advice that the core gives, whoever reports what and in whichever order workers came."""

from __future__ import annotations

import random
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from arbiter_sidecar.policy import balance
from arbiter_sidecar.policy.balance import Balanced, Rebalance, ShardState
from tests.arbiter.desk import LINEAR, Desk
from tests.arbiter.split import Pipeline, Stage
from tests.policy import balance_oracle
from tests.thorough import examples

COSTS = st.sampled_from([0.5, 1.0, 1.25, 2.0, 3.0, 5.0, 8.0, 40.0])
STAGES = st.lists(st.tuples(st.integers(1, 4), COSTS, st.none() | st.integers(4, 12)), min_size=2, max_size=4).map(
    lambda found: [Stage(f"s{place}", layers, cost, most) for place, (layers, cost, most) in enumerate(found)]
)


def built(stages: list[Stage], order: list[int]) -> Pipeline:
    """The model, its workers having come in this order."""
    desk = Desk(LINEAR)
    desk.box(100.0)
    model = Pipeline(desk, (), measured=False)
    for place in order:
        model.join(stages[place], place)
    model.measure()
    return model


@examples(150)
@given(stages=STAGES, seed=st.integers(min_value=0, max_value=2**32), failed=st.booleans())
def test_advice_keeps_its_laws(stages: list[Stage], seed: int, failed: bool) -> None:
    order = list(range(len(stages)))
    model = built(stages, order)
    random.Random(seed).shuffle(order)
    other = built(stages, order)
    for each in (model, other):
        if failed:
            each.desk.release(each.leases["s0"])
            each.gather()
        else:
            each.evaluate()
    assert model.division == other.division
    found, again = model.group.decision, other.group.decision
    assert found == again, "it does not matter who came first"
    if not isinstance(found, Rebalance):
        return
    total = sum(stage.layers for stage in stages)
    spans = found.assignment
    assert [span.begin for span in spans] == [0, *(span.end for span in spans[:-1])]
    assert spans[-1].end == total
    for span, stage in zip(spans, stages, strict=True):
        gone = failed and stage.name == "s0"
        assert span.layers == 0 if gone else 1 <= span.layers <= (stage.most or total)
    picture = model.group.picture(model.desk.now)
    costs = [Fraction(stage.cost) for stage in stages]
    best = balance_oracle.best(picture, costs, total, balance.Objective.THROUGHPUT)
    layers = tuple(span.layers for span in spans)
    assert best is not None
    assert balance_oracle.objective_of(layers, costs, balance.Objective.THROUGHPUT) == best[0]
    assert found.moved == balance_oracle.moved([stage.layers for stage in stages], layers) == best[1]
    if not failed:
        assert found.throughput_gain is not None
        assert found.throughput_gain >= balance.MIN_SPEEDUP
    model.follow()
    model.group.evaluated_at = None
    assert isinstance(model.evaluate().decision, Balanced)
    assert model.record("s0").health.state is (ShardState.FAILED if failed else ShardState.LIVE)
