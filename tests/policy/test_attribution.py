"""To which lease the memory of a shared process is put down."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from arbiter_sidecar.policy.attribution import Claim, attribute
from arbiter_sidecar.types import Process
from tests.thorough import examples

SETTINGS = examples(80)
A, B, C = (Process(pid=pid, start_time=100 + pid) for pid in (11, 12, 13))
PROCESSES = st.sampled_from((A, B, C))
CLAIMS = st.lists(
    st.builds(
        Claim,
        processes=st.lists(PROCESSES, min_size=1, max_size=3, unique=True).map(tuple),
        charged_bytes=st.integers(min_value=0, max_value=50),
    ),
    max_size=8,
)


@pytest.mark.parametrize(
    ("claims", "held", "expected"),
    [
        pytest.param([], {A: 5}, [], id="nobody"),
        pytest.param([Claim((A,), 10)], {A: 7}, [7], id="alone-below-what-is-expected"),
        pytest.param([Claim((A,), 10)], {A: 17}, [17], id="alone-above-what-is-expected"),
        pytest.param([Claim((A,), 10)], {A: 0}, [0], id="alone-holding-nothing"),
        pytest.param([Claim((A, B), 10)], {A: 4, B: 5}, [9], id="several-processes-of-one-add-up"),
        pytest.param([Claim((A,), 10), Claim((B,), 10)], {A: 4, B: 5}, [4, 5], id="separate-processes"),
        pytest.param([Claim((A,), 10), Claim((A,), 10)], {A: 20}, [10, 10], id="shared-and-just-enough"),
        pytest.param([Claim((A,), 10), Claim((A,), 10)], {A: 6}, [6, 0], id="shared-first-is-filled-first"),
        pytest.param([Claim((A,), 10), Claim((A,), 10)], {A: 13}, [10, 3], id="shared-second-gets-the-rest"),
        pytest.param([Claim((A,), 10), Claim((A,), 10)], {A: 25}, [10, 15], id="shared-last-gets-what-is-over"),
        pytest.param([Claim((A,), 10), Claim((A, B), 5)], {A: 12, B: 4}, [10, 6], id="partly-shared"),
        pytest.param([Claim((A,), 10)], {A: None}, [None], id="unreadable"),
        pytest.param([Claim((A,), 10)], {}, [None], id="not-measured"),
        pytest.param([Claim((), 10)], {A: 3}, [None], id="no-process-known-is-unknown-and-not-zero"),
        pytest.param([Claim((A, B), 10), Claim((A,), 5)], {A: 12, B: None}, [None, 2], id="one-of-two-unreadable"),
    ],
)
def test_bytes_are_put_down_in_order_when_processes_are_shared(
    claims: list[Claim], held: dict[Process, int | None], expected: list[int | None]
) -> None:
    assert attribute(claims, held) == expected


@SETTINGS
@given(CLAIMS, st.tuples(*[st.integers(min_value=0, max_value=100)] * 3))
def test_no_byte_is_lost_or_counted_twice_when_all_can_be_read(claims: list[Claim], sizes: tuple[int, ...]) -> None:
    held = dict(zip((A, B, C), sizes, strict=True))
    found = attribute(claims, held)
    named = {process for claim in claims for process in claim.processes}
    known = [part for part in found if part is not None]
    assert len(known) == len(claims)
    assert all(part >= 0 for part in known)
    assert sum(known) == sum(held[process] for process in named)


@SETTINGS
@given(CLAIMS, st.sets(PROCESSES))
def test_only_those_who_name_an_unreadable_process_are_unknown(claims: list[Claim], unreadable: set[Process]) -> None:
    held = {process: None if process in unreadable else 30 for process in (A, B, C)}
    found = attribute(claims, held)
    assert [part is None for part in found] == [bool(unreadable & set(claim.processes)) for claim in claims]
