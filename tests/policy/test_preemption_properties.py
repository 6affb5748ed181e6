"""What must hold of every plan, whoever the candidates are."""

from __future__ import annotations

import random
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from arbiter_sidecar.policy import preemption
from arbiter_sidecar.policy.preemption import Candidate, Requester, Rules
from arbiter_sidecar.types import LeaseId, Priority
from tests.thorough import examples

from . import preemption_oracle

NOW = 1000.0
SEEDS = st.integers(min_value=0, max_value=2**32)
MANY = examples(150)


def candidate(source: random.Random, name: int) -> Candidate:
    """Anybody; amounts are few and small, so that equals are common."""
    shrinkable = source.choice((0, 0, source.randint(1, 8), source.randint(1, 40)))
    return Candidate(
        lease_id=LeaseId(f"lease-{name}"),
        priority=source.choice(list(Priority)),
        running_priority=source.choice((None, None, *Priority)),
        granted_at=NOW - source.choice((0.5, 1.0, 5.0, 30.0, 60.0, 60.0, 90.0)),
        shrinkable=shrinkable,
        whole=source.choice((0, shrinkable + source.randint(0, 40))),
        preemptible=source.random() < 0.8,
        healthy=source.random() < 0.9,
        donated_at=tuple(NOW - source.choice((0.0, 9.0, 10.0, 11.0)) for _ in range(source.randint(0, 3))),
        spared_until=NOW + source.choice((-1.0, -1.0, 0.0, 1.0)),
        wake_cost_s=source.choice((0.0, 1.0)),
    )


@MANY
@given(SEEDS)
def test_plan_is_what_the_definition_says_when_anybody_asks(seed: int) -> None:
    source = random.Random(seed)
    candidates = [candidate(source, name) for name in range(source.randint(0, 8))]
    asking = source.choice(
        (None, *(Requester(priority=priority, lease_id=LeaseId("lease-0")) for priority in Priority))
    )
    rules = source.choice((preemption.LEASE_RULES, preemption.KV_RULES, Rules(gap=1), Rules(revoke=False)))
    able = sum(max(preemption_oracle.may_give(each, asking, NOW, rules)) for each in candidates)
    need = source.choice((0, source.randint(0, able + 10), able, able + 1, source.randint(0, able // 2 + 1)))
    partial = source.random() < 0.3
    plan = preemption.plan(candidates, need, requester=asking, now=NOW, rules=rules, allow_partial=partial)
    preemption_oracle.check(plan, candidates, asking, NOW, rules, allow_partial=partial)
    source.shuffle(candidates)
    again = preemption.plan(candidates, need, requester=asking, now=NOW, rules=rules, allow_partial=partial)
    assert (again.donations, again.reasons) == (plan.donations, plan.reasons)


@MANY
@given(SEEDS)
def test_no_byte_is_credited_twice_when_donors_give_what_they_like(seed: int) -> None:
    source = random.Random(seed)
    candidates = [candidate(source, name) for name in range(source.randint(1, 8))]
    asking = Requester(priority=Priority.CRITICAL)
    need = source.randint(1, 60)
    first = preemption.plan(candidates, need, requester=asking, now=NOW, allow_partial=True)
    confirmed = {each.lease_id: source.choice((0, each.amount, source.randint(0, 80))) for each in first.donations}
    settled = preemption.settle(first, confirmed)
    assert all(given <= confirmed[lease_id] for lease_id, given in settled.credited.items())
    assert sum(settled.credited.values()) + settled.shortfall == max(need, sum(settled.credited.values()))
    later = [
        replace(
            each,
            shrinkable=max(0, each.shrinkable - confirmed.get(each.lease_id, 0)),
            whole=max(0, each.whole - confirmed.get(each.lease_id, 0)),
        )
        for each in candidates
    ]
    second = preemption.replan(first, confirmed, later, requester=asking, now=NOW, allow_partial=True)
    assert second.need == settled.shortfall
    assert not settled.fell_short & {each.lease_id for each in second.donations}


@MANY
@given(SEEDS)
def test_a_donor_cannot_take_back_when_it_asks_in_its_turn(seed: int) -> None:
    source = random.Random(seed)
    rules = Rules(gap=source.randint(1, 2))
    donor, taker = (replace(candidate(source, name), running_priority=None) for name in range(2))
    for_taker = Requester(priority=taker.priority, lease_id=taker.lease_id)
    for_donor = Requester(priority=donor.priority, lease_id=donor.lease_id)
    if preemption.plan([donor], 1, requester=for_taker, now=NOW, rules=rules).donations:
        assert not preemption.plan([taker], 1, requester=for_donor, now=NOW + 3600.0, rules=rules).donations
