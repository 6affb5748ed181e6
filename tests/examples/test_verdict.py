"""Every way in which the demonstration can fail is found, and a good run is let pass."""

from __future__ import annotations

import dataclasses

import pytest

from examples.first_light import phases, verdict
from examples.first_light.report import report
from examples.first_light.table import compact, table
from examples.first_light.timeline import IMAGE, LLM, MIB, Observation, Timeline, Worker, slack_bytes

BUDGET = 800 * MIB
LLM_FULL = Worker(alive=True, quality=1.0, obeyed_quality=1.0, own_bytes=520 * MIB, full_bytes=550 * MIB, rung="large")
LLM_SMALL = dataclasses.replace(LLM_FULL, quality=0.8, obeyed_quality=0.8, own_bytes=400 * MIB, rung="medium")
IMAGE_FULL = Worker(
    alive=True, quality=1.0, obeyed_quality=1.0, own_bytes=400 * MIB, full_bytes=420 * MIB, rung="large"
)
IMAGE_SMALL = dataclasses.replace(IMAGE_FULL, quality=0.6, obeyed_quality=0.6, own_bytes=200 * MIB, rung="small")
GONE = Worker()
#: What each worker is at the end of each phase of a good run.
GOOD = {
    phases.ALONE: (LLM_FULL, GONE),
    phases.TOGETHER: (LLM_SMALL, IMAGE_SMALL),
    phases.KILLED: (LLM_FULL, GONE),
    phases.AGAIN: (LLM_SMALL, IMAGE_SMALL),
    phases.PARTED: (GONE, IMAGE_FULL),
}


def run(**changes: tuple[Worker, Worker]) -> Timeline:
    """A good run, except for what the workers were in some phases."""
    timeline = Timeline(budget_bytes=BUDGET, peak_bytes=700 * MIB, samples=600, events={"quality_changed": 4})
    made = 0
    for at, (phase, workers) in enumerate((GOOD | changes).items()):
        timeline.completed.append(phase)
        for moment in (0.0, 0.5):
            made += 1
            llm, image = (dataclasses.replace(worker, made=made, made_at_rung=1) for worker in workers)
            timeline.observations.append(Observation(at=at + moment, phase=phase, workers={LLM: llm, IMAGE: image}))
    return timeline


def test_nothing_is_wrong_when_the_run_was_good() -> None:
    assert verdict.judge(run()) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({phases.TOGETHER: (LLM_FULL, IMAGE_SMALL)}, "llm-server was not told to shrink in phase together"),
        (
            {phases.TOGETHER: (dataclasses.replace(LLM_SMALL, own_bytes=515 * MIB), IMAGE_SMALL)},
            "llm-server did not really shrink in phase together: 5 MiB went",
        ),
        ({phases.KILLED: (LLM_SMALL, GONE)}, "llm-server did not grow back in phase killed: quality 0.80"),
        (
            {phases.KILLED: (dataclasses.replace(LLM_FULL, own_bytes=410 * MIB), GONE)},
            "llm-server did not really grow in phase killed: 10 MiB came",
        ),
        ({phases.AGAIN: (LLM_SMALL, IMAGE_FULL)}, "image-generator was not below full quality in phase again"),
        ({phases.AGAIN: (LLM_FULL, IMAGE_SMALL)}, "llm-server was not told to shrink in phase again"),
        ({phases.PARTED: (GONE, IMAGE_SMALL)}, "image-generator did not grow back in phase parted: quality 0.60"),
        ({phases.PARTED: (GONE, GONE)}, "image-generator did not grow back in phase parted: quality unknown"),
    ],
)
def test_failure_is_named_when_a_worker_did_not_move(changes: dict[str, tuple[Worker, Worker]], expected: str) -> None:
    assert any(expected in problem for problem in verdict.judge(run(**changes)))


def test_failure_is_named_when_the_budget_was_passed() -> None:
    timeline = run()
    timeline.peak_bytes = BUDGET + slack_bytes(BUDGET)
    assert verdict.judge(timeline) == []
    timeline.peak_bytes += 1
    assert any("budget was passed" in problem for problem in verdict.judge(timeline))


def test_slack_is_three_percent_when_that_is_more_than_32_mib() -> None:
    assert slack_bytes(100 * MIB) == 32 * MIB
    assert slack_bytes(10_000 * MIB) == 300 * MIB


def test_failure_is_named_when_nothing_was_measured() -> None:
    timeline = run()
    timeline.samples = 0
    assert verdict.judge(timeline) == ["the workers' memory was never measured"]


def test_failure_is_named_when_the_budget_is_too_large_to_show_anything() -> None:
    timeline = run()
    timeline.budget_bytes = 2000 * MIB
    assert any("nothing to arbitrate" in problem for problem in verdict.judge(timeline))


def test_failure_is_named_when_a_phase_was_not_reached() -> None:
    timeline = run()
    timeline.completed = timeline.completed[:2]
    timeline.troubles.append("phase killed did not reach its goal in 35 s")
    problems = verdict.judge(timeline)

    assert problems[0] == "phase killed did not reach its goal in 35 s"
    assert "not reached: killed, again, parted" in problems


def test_failure_is_named_when_a_worker_died() -> None:
    timeline = run()
    timeline.troubles.append("llm-server ended unexpectedly with exit code 3")
    assert verdict.judge(timeline) == ["llm-server ended unexpectedly with exit code 3"]


def test_failure_is_named_when_a_worker_made_nothing() -> None:
    timeline = run()
    timeline.observations = [
        dataclasses.replace(
            seen,
            workers={name: dataclasses.replace(worker, made=7) for name, worker in seen.workers.items()},
        )
        if seen.phase == phases.TOGETHER
        else seen
        for seen in timeline.observations
    ]
    assert verdict.judge(timeline) == [
        "llm-server made nothing in phase together",
        "image-generator made nothing in phase together",
    ]


def test_phases_are_reached_when_workers_have_settled() -> None:
    for phase, (llm, image) in zip(phases.SCRIPT, GOOD.values(), strict=True):
        settled = {LLM: dataclasses.replace(llm, made_at_rung=1), IMAGE: dataclasses.replace(image, made_at_rung=1)}
        assert phase.reached(Observation(at=0, phase=phase.name, workers=settled))
        assert not phase.reached(Observation(at=0, phase=phase.name, workers={LLM: llm, IMAGE: image}))
        assert not phase.reached(Observation(at=0, phase=phase.name))


def test_script_fits_into_two_minutes_when_phases_last_as_long_as_they_should() -> None:
    assert sum(phase.shown_s for phase in phases.SCRIPT) < phases.TOTAL_LIMIT_S / 2
    assert phases.TOTAL_LIMIT_S < 120


def test_report_tells_everything_when_the_run_was_good(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("run")
    text = report(run(), [], folder)

    for expected in ("0.80", "1.00", "970 MiB", "700 MiB", "32 MiB slack", "4 quality_changed", str(folder), "OK:"):
        assert expected in text


def test_report_lists_every_problem_when_the_run_failed(tmp_path_factory: pytest.TempPathFactory) -> None:
    text = report(Timeline(budget_bytes=BUDGET), ["one", "two"], tmp_path_factory.mktemp("run"))

    assert "FAILED\n  - one\n  - two" in text


def test_table_has_the_same_height_when_workers_come_and_go() -> None:
    heights = set()
    for seen in run().observations:
        lines = table(seen, budget_bytes=BUDGET, said={LLM: "obeyed 0.80"}, newest="lease granted")
        heights.add(len(lines))
        assert "\n" not in "".join(lines)
        assert "\n" not in compact(seen, budget_bytes=BUDGET)

    assert len(heights) == 1
