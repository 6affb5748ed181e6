from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator

import pytest

from arbiter_sidecar.adapters import processes
from arbiter_sidecar.types import Process
from tests.adapters.child import GUARD_S, Child


class Deaths:
    """Collects what a watch reports."""

    def __init__(self) -> None:
        self.seen: list[Process] = []
        self._arrived = asyncio.Event()

    def __call__(self, process: Process) -> None:
        self.seen.append(process)
        self._arrived.set()

    async def wait(self) -> None:
        async with asyncio.timeout(GUARD_S):
            await self._arrived.wait()


@pytest.fixture
async def deaths() -> Deaths:
    return Deaths()


@pytest.fixture
async def watch() -> AsyncIterator[processes.PidfdWatch]:
    made = processes.PidfdWatch(asyncio.get_running_loop())
    yield made
    made.close()


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**40])
async def test_identify_is_none_when_nobody_visible_has_the_id(watch: processes.PidfdWatch, pid: int) -> None:
    assert watch.identify(pid) is None


async def test_identify_is_none_when_the_process_is_a_zombie(watch: processes.PidfdWatch, child: Child) -> None:
    assert watch.identify(child.pid) == child.process
    child.kill(reap=False)
    assert watch.identify(child.pid) is None


async def test_death_is_reported_once_to_every_watcher(
    watch: processes.PidfdWatch, child: Child, deaths: Deaths
) -> None:
    second = Deaths()
    assert watch.watch(child.process, deaths)
    assert watch.watch(child.process, second)
    child.kill(reap=False)
    await deaths.wait()
    await second.wait()
    assert deaths.seen == second.seen == [child.process]
    assert not watch.watch(child.process, deaths)


async def test_watch_is_refused_when_the_process_is_gone(
    watch: processes.PidfdWatch, child: Child, deaths: Deaths
) -> None:
    child.kill()
    assert not watch.watch(child.process, deaths)


async def test_watch_is_refused_when_the_id_belongs_to_a_later_process(
    watch: processes.PidfdWatch, child: Child, deaths: Deaths
) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    assert not watch.watch(Process(child.pid, child.process.start_time - 1), deaths)
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_nothing_is_reported_when_the_watch_was_forgotten(
    watch: processes.PidfdWatch, child: Child, deaths: Deaths
) -> None:
    forgotten = Deaths()
    watch.watch(child.process, forgotten)
    watch.unwatch(child.process)
    watch.unwatch(child.process)
    with Child() as other:
        watch.watch(other.process, deaths)
        child.kill()
        other.kill()
        await deaths.wait()
    assert forgotten.seen == []


async def test_every_watcher_hears_of_a_death_when_one_of_them_fails(
    watch: processes.PidfdWatch, child: Child, deaths: Deaths
) -> None:
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context["exception"]))

    def fail(process: Process) -> None:
        raise ValueError(process.pid)

    watch.watch(child.process, fail)
    watch.watch(child.process, deaths)
    child.kill()
    await deaths.wait()
    assert [type(failure) for failure in failures] == [ValueError]


async def test_descriptors_are_given_back_when_closed(
    watch: processes.PidfdWatch, child: Child, deaths: Deaths
) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    watch.watch(child.process, deaths)
    assert len(os.listdir("/proc/self/fd")) == descriptors + 1
    watch.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors


@pytest.fixture
def no_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(os, "pidfd_open", refuse)
    monkeypatch.setattr(processes, "LOOK_INTERVAL_S", 0.01)


@pytest.mark.usefixtures("no_pidfd")
async def test_death_is_noticed_by_looking_when_the_kernel_gives_no_pidfd(
    watch: processes.PidfdWatch, child: Child, deaths: Deaths
) -> None:
    second = Deaths()
    with Child() as other:
        assert watch.watch(child.process, deaths)
        assert watch.watch(other.process, second)
        child.kill(reap=False)
        await deaths.wait()
        assert deaths.seen == [child.process]
        assert second.seen == []
        assert not watch.watch(child.process, deaths)
        other.kill()
        await second.wait()


@pytest.mark.usefixtures("no_pidfd")
async def test_watcher_may_forget_another_when_both_have_died(watch: processes.PidfdWatch, deaths: Deaths) -> None:
    heard: list[Process] = []

    def forget_the_other(processes_seen: Process) -> None:
        heard.append(processes_seen)
        for process in (one.process, other.process):
            watch.unwatch(process)
        deaths(processes_seen)

    with Child() as one, Child() as other:
        watch.watch(one.process, forget_the_other)
        watch.watch(other.process, forget_the_other)
        one.kill()
        other.kill()
        await deaths.wait()
    assert len(heard) == 1
