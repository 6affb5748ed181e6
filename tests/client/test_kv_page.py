"""The programs on the page about KV budgets run as printed, and its table is what the code computes."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
import types
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import arbiter_client
from arbiter_client import KvBudget, KvLayout, KvRequest
from arbiter_client.testing import InMemoryArbiter
from tests.client.scripted_server import GUARD_S
from tests.contracts import checkout

if TYPE_CHECKING:
    import pytest

_PAGE = (checkout.ROOT / "docs/kv.md").read_text(encoding="utf-8")
_ROW = re.compile(r"^\| [^|]+ \| (\d+ × [^|]+) \| (\w+) \| ([\d ]+) \| ([\d ]+) \|$", re.MULTILINE)


def program(with_text: str) -> str:
    blocks: list[str] = re.findall(r"```python\n(.*?)```", _PAGE, re.DOTALL)
    (found,) = [block for block in blocks if with_text in block]
    return found


def defined(with_text: str) -> types.ModuleType:
    """What the program defines."""
    module = types.ModuleType("page")
    exec(compile(program(with_text), "docs/kv.md", "exec"), module.__dict__)
    return module


def test_layouts_of_the_page_print_what_it_says() -> None:
    (printed,) = re.findall(r"```text\n(131072\n.*?)```", _PAGE, re.DOTALL)
    result = subprocess.run(
        [sys.executable, "-c", program("deepseek_v3")], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout == printed


def test_models_of_the_page_take_what_it_says() -> None:
    rows = _ROW.findall(_PAGE)
    assert len(rows) == 8
    for shape, dtype, per_token, in_ten_gib in rows:
        layers, *rest = (int(number) for number in re.findall(r"\d+", shape))
        if "latent" in shape:
            layout = KvLayout(layers=layers, latent_size=rest[0], dtype=dtype)
        else:
            layout = KvLayout(layers=layers, kv_heads=rest[0], head_size=rest[1], dtype=dtype)
        assert layout.bytes_per_token == int(per_token.replace(" ", ""))
        assert layout.tokens_in("10GiB") == int(in_ten_gib.replace(" ", ""))


def test_test_of_the_page_passes() -> None:
    defined("def test_engine").test_engine_admits_nothing_beyond_its_budget()


@dataclass(eq=False)
class Prompt:
    """One prompt of the engine below."""

    tokens: int = 100
    max_answer_tokens: int = 100
    answered: int = 0
    request: KvRequest | None = None


@dataclass
class Engine:
    """Answers prompts by a token in each step; its budget shrinks in the middle, and it ends when all is done."""

    arbiter: InMemoryArbiter
    prompts: list[Prompt]
    queued: list[Prompt] = field(default_factory=list)
    active: list[Prompt] = field(default_factory=list)
    complete: list[Prompt] = field(default_factory=list)
    dropped: list[Prompt] = field(default_factory=list)
    steps: int = 0
    shrunk: int = 0

    @property
    def lease_id(self) -> str:
        (lease,) = self.arbiter.state().leases
        return lease.lease_id

    def arrived(self) -> list[Prompt]:
        new, self.prompts = self.prompts, []
        self.queued += new
        return new

    def waiting(self) -> list[Prompt]:
        return list(self.queued)

    def start(self, prompt: Prompt) -> None:
        self.queued.remove(prompt)
        self.active.append(prompt)

    def drop_youngest(self) -> Prompt:
        prompt = self.active.pop()
        self.queued.append(prompt)
        self.dropped.append(prompt)
        return prompt

    def step(self) -> list[Prompt]:
        self.steps += 1
        if self.steps == 10:
            self.shrunk = self.arbiter.push(self.lease_id, kv_token_budget=500)
        if not self.dropped:
            time.sleep(0.001)
            return []
        assert sum(prompt.tokens + prompt.max_answer_tokens for prompt in self.active) <= 500
        for prompt in self.active:
            prompt.answered += 1
        ended = [prompt for prompt in self.active if prompt.answered >= prompt.max_answer_tokens]
        self.active = [prompt for prompt in self.active if prompt not in ended]
        self.complete += ended
        if not self.active and not self.queued and not ended:
            self.arbiter.applied(self.lease_id, revision=self.shrunk, timeout=GUARD_S)
            self.arbiter.end(self.lease_id)
            self.dropped.clear()
        return ended


def test_engine_of_the_page_serves_everything_when_its_budget_shrinks(monkeypatch: pytest.MonkeyPatch) -> None:
    page = defined("def serve")
    prompts = [Prompt() for _ in range(5)]
    with InMemoryArbiter("64GiB") as arbiter:
        monkeypatch.setattr(arbiter_client, "connect_blocking", arbiter.blocking_client)
        engine = Engine(arbiter, list(prompts))
        page.serve(engine)
    assert sorted(map(id, engine.complete)) == sorted(map(id, prompts))
    assert all(prompt.request is not None and prompt.request.tokens == 0 for prompt in prompts)


async def test_follower_of_the_page_confirms_when_nothing_is_over() -> None:
    page = defined("async def follow")
    share = KvLayout(layers=1, latent_size=1).share(max_tokens=1600)
    with InMemoryArbiter() as arbiter:
        async with arbiter.client() as client, client.lease("e", memory=1, workload_type="llm", kv=share) as lease:
            budget = KvBudget(lease)
            woken: list[bool] = []
            engine = types.SimpleNamespace(wake_scheduler=lambda: woken.append(True))
            following = asyncio.create_task(page.follow(lease, budget, engine))
            revision = arbiter.push(lease.lease_id, kv_token_budget=800)
            said = await asyncio.to_thread(arbiter.applied, lease.lease_id, revision=revision, timeout=GUARD_S)
            assert said.outcome == "APPLIED"
            assert woken
        await following
