"""Two engines that share KV tokens: the model, the judge, and a short run of everything against the real arbiter."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples import memory
from examples.two_engines import phases, verdict
from examples.two_engines.decoder import BLOCK_TOKENS, Decoder
from examples.two_engines.report import report, table
from examples.two_engines.timeline import BATCH, CHAT, Measured, Timeline, shares

#: A guard against hanging: the short form takes less than half a minute.
PATIENCE_S = 110.0


# The model.


def test_conversation_keeps_whole_blocks_and_gives_them_all_back() -> None:
    decoder = Decoder(256, seed=1)
    conversation = decoder.begin("when the card is full the arbiter")
    assert decoder.count("when the card is full the arbiter") == conversation.words == 7
    assert decoder.resident_tokens == BLOCK_TOKENS
    for _ in range(BLOCK_TOKENS - 7):
        decoder.step([conversation])
    assert decoder.resident_tokens == BLOCK_TOKENS
    decoder.step([conversation])
    assert decoder.resident_tokens == 2 * BLOCK_TOKENS
    assert len(decoder.end(conversation).split()) == BLOCK_TOKENS - 6
    assert decoder.resident_tokens == 0


def test_conversations_of_one_step_do_not_disturb_each_other() -> None:
    decoder = Decoder(256, seed=1)
    first, second = decoder.begin("the memory returns"), decoder.begin("a worker that wakes up")
    before = second.words
    decoder.step([first, second])
    assert (len(first.answer), len(second.answer), second.words) == (1, 1, before + 1)
    assert not set(first.blocks) & set(second.blocks)
    decoder.step([])
    decoder.end(first)
    decoder.step([second])
    assert second.words == before + 2


def test_model_says_that_its_pool_is_full_when_more_is_admitted_than_fits() -> None:
    decoder = Decoder(BLOCK_TOKENS, seed=1)
    decoder.begin("the memory returns")
    with pytest.raises(RuntimeError, match="KV pool is full"):
        decoder.begin("the memory returns")


# The judge.


def good() -> Timeline:
    """A run in which everything went as it must."""
    timeline = Timeline(
        total_tokens=phases.TOTAL_TOKENS,
        drain_s=5.0,
        over_s={CHAT: 1.0, BATCH: 0.0},
        confirmed_tokens=phases.LOAN_TOKENS,
    )
    for phase in phases.SCRIPT:
        budgets = {CHAT: phase.budgets[CHAT], BATCH: phase.budgets.get(BATCH, 0)}
        rates = {name: tokens * 0.45 for name, tokens in budgets.items()}
        timeline.measured.append(Measured(phase=phase.name, followed_s=1.0, budgets=budgets, rates=rates))
    return timeline


def changed(phase: str, **rates: float) -> Timeline:
    """A good run, but for the tokens a second of one phase."""
    timeline = good()
    timeline.measured = [
        dataclasses.replace(each, rates={**each.rates, **rates}) if each.phase == phase else each
        for each in timeline.measured
    ]
    return timeline


def test_nothing_is_wrong_when_the_run_was_good() -> None:
    assert verdict.judge(good()) == []


def test_failure_is_named_when_a_budget_did_not_follow() -> None:
    timeline = good()
    timeline.measured[1] = dataclasses.replace(timeline.measured[1], budgets={CHAT: 1024, BATCH: 0})
    assert verdict.judge(timeline)[0] == "chat had a budget of 1024 tokens in phase idle, not 4096"


def test_failure_is_named_when_tokens_did_not_follow_budgets() -> None:
    problems = verdict.judge(changed(phases.BOTH, chat=1000.0))
    assert problems[0] == "chat made 42% of all with 25% of the budget in phase both"
    assert any("batch made 58%" in problem for problem in problems)


def test_small_differences_are_let_pass_and_larger_ones_not() -> None:
    # 34.9 % and 35.1 % of the tokens with a quarter of the budget.
    rate = 0.45 * 3072
    assert not verdict.judge(changed(phases.WAKES, chat=rate * 0.349 / 0.651))
    assert verdict.judge(changed(phases.WAKES, chat=rate * 0.352 / 0.648))


def test_failure_is_named_when_an_engine_that_is_alone_made_no_more() -> None:
    assert verdict.judge(changed(phases.IDLE, chat=0.45 * 1024 * 1.9)) == [
        "chat made 876 tokens a second in phase idle, not 2 times the 461 of phase both"
    ]


def test_failure_is_named_when_nothing_was_made() -> None:
    assert "nothing was made in phase lent" in verdict.judge(changed(phases.LENT, chat=0.0, batch=0.0))


@pytest.mark.parametrize("confirmed", [None, 0, phases.LOAN_TOKENS - 16])
def test_failure_is_named_when_tokens_were_not_lent(confirmed: int | None) -> None:
    timeline = good()
    timeline.confirmed_tokens = confirmed
    assert verdict.judge(timeline) == [f"{confirmed} tokens were confirmed to be lent, not 1024"]


def test_failure_is_named_when_an_engine_stayed_over_its_budget() -> None:
    timeline = good()
    timeline.over_s[BATCH] = 6.5
    assert verdict.judge(timeline) == []
    timeline.over_s[BATCH] = 6.6
    assert verdict.judge(timeline) == ["batch kept more than its budget for 6.6 s; 6.5 s are allowed"]


def test_failure_is_named_when_an_engine_was_never_measured() -> None:
    timeline = good()
    del timeline.over_s[CHAT]
    assert verdict.judge(timeline) == ["chat was never measured"]


def test_failure_is_named_when_a_phase_was_not_reached() -> None:
    timeline = good()
    timeline.measured = timeline.measured[:2]
    timeline.troubles.append("batch ended with exit code 1")
    assert verdict.judge(timeline) == ["batch ended with exit code 1", "not reached: wakes, lent, killed"]


def test_report_tells_everything_when_the_run_was_good(tmp_path: Path) -> None:
    text = report(good(), [], tmp_path)
    for expected in ("both", "killed", "25%", "4096", "1024 tokens", "chat 1.0 s", str(tmp_path), "OK:"):
        assert expected in text
    assert len(set(map(len, table(good())))) == 1


def test_report_lists_every_problem_when_the_run_failed(tmp_path: Path) -> None:
    timeline = Timeline(total_tokens=1, drain_s=5.0)
    assert report(timeline, ["one", "two"], tmp_path).endswith("FAILED\n  - one\n  - two")


def test_shares_are_nothing_where_there_is_nothing() -> None:
    assert shares({CHAT: 0, BATCH: 0}) == {CHAT: 0.0, BATCH: 0.0}


def test_script_gives_out_what_there_is_and_no_more() -> None:
    for phase in phases.SCRIPT:
        assert sum(phase.budgets.values()) == phases.TOTAL_TOKENS


# The whole.


def start(repository: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(
        [sys.executable, "-m", "examples.two_engines", *arguments],
        cwd=repository,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_two_engines_share_by_weight_work_and_priority(repository: Path, tmp_path: Path) -> None:
    demonstration = start(repository, "--short", "--out", str(tmp_path))
    try:
        output, _ = demonstration.communicate(timeout=PATIENCE_S)
    except BaseException:
        demonstration.terminate()
        raise
    assert demonstration.returncode == 0, output
    assert "OK: budgets followed work" in output
    seen = [json.loads(line) for line in (tmp_path / "timeline.jsonl").read_text().splitlines()]
    for moment in seen:
        assert sum(engine["budget"] for engine in moment["engines"].values()) <= phases.TOTAL_TOKENS
    lent = [moment["engines"] for moment in seen if moment["phase"] == phases.LENT][-1]
    assert (lent[CHAT]["borrowed"], lent[BATCH]["donated"]) == (phases.LOAN_TOKENS, phases.LOAN_TOKENS)


@pytest.mark.slow
def test_nothing_of_two_engines_is_left_when_interrupted(repository: Path, tmp_path: Path) -> None:
    demonstration = start(repository, "--short", "--out", str(tmp_path))
    deadline = time.monotonic() + PATIENCE_S / 2
    # The demonstration itself, the arbiter and both engines.
    while len(family := memory.tree(demonstration.pid)) < 4:
        assert time.monotonic() < deadline, "not everything was started"
        time.sleep(0.05)
    demonstration.send_signal(signal.SIGINT)
    output, _ = demonstration.communicate(timeout=PATIENCE_S / 2)
    assert demonstration.returncode == 130, output
    assert "nothing is left running" in output
    assert [pid for pid in family if Path(f"/proc/{pid}").exists()] == []


def test_wrong_usage_of_two_engines_is_refused(repository: Path) -> None:
    demonstration = start(repository, "--fast")
    output, _ = demonstration.communicate(timeout=PATIENCE_S)
    assert demonstration.returncode == 2
    assert "usage: python -m examples.two_engines" in output
