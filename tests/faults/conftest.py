"""A real server to break things around, workers that do as they are told, and a driver that fails on demand."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import pytest

from arbiter.v1 import arbiter_service_pb2 as pb
from arbiter.v1 import arbiter_service_pb2_grpc, lease_pb2, state_service_pb2, state_service_pb2_grpc
from tests import fake_nvml
from tests.e2e.watching import Events, events_of
from tests.running import Running, running_server

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

MIB = 1 << 20
#: A guard against hanging, never a promise: everything waited for here takes at most a tenth of it.
GUARD_S = 30.0
#: Between two looks at something that is waited for.
LOOK_S = 0.05


class Worker:
    """A process of ``tests.faults.worker``: takes a line of words, answers with one."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self._children: list[int] = []

    def tell(self, *words: object) -> None:
        """Gives it something to do; it need not be able to hear it now."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()

    def hear(self) -> list[str]:
        """Waits for its next line; the words of it."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()

    def ask(self, *words: object) -> list[str]:
        """Gives it something to do and waits until it is done."""
        self.tell(*words)
        return self.hear()

    def fork(self, memory_mib: int) -> int:
        """Has it fork a child that holds memory of its own; the child's process id."""
        _, pid = self.ask("fork", memory_mib)
        self._children.append(os.pidfd_open(int(pid)))
        return int(pid)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal, such as ``SIGSTOP``."""
        os.kill(self.pid, number)

    def end(self) -> None:
        """Kills it and its children where they have not ended yet."""
        for child in self._children:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(child, signal.SIGKILL)
            os.close(child)
        self._children.clear()
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


StartWorker = Callable[..., Worker]


@pytest.fixture
def start() -> Iterator[StartWorker]:
    """Starts ``python -m tests.faults.worker [ADDRESS] [thread|process]``, or another ``module`` that is told and
    answers in the same way; it is ended after the test.
    """
    started: list[Worker] = []

    def run(
        *arguments: str, module: str = "tests.faults.worker", environment: Mapping[str, str] | None = None
    ) -> Worker:
        command = [sys.executable, "-m", module, *arguments]
        surroundings = {**os.environ, **(environment or {})}
        worker = Worker(
            subprocess.Popen(
                command, env=surroundings, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
            )
        )
        started.append(worker)
        return worker

    yield run
    for worker in started:
        worker.end()


@dataclass(frozen=True, slots=True, kw_only=True)
class Talk:
    """A connection to a server.

    Attributes:
        channel: The connection.
        arbiter: The service for workers.
        states: The service for people.
        events: What has happened since it was made.
    """

    channel: grpc.Channel
    arbiter: arbiter_service_pb2_grpc.ArbiterServiceStub
    states: state_service_pb2_grpc.StateServiceStub
    events: Events

    def picture(self) -> state_service_pb2.GetStateResponse:
        """Everything, leases that still drain included."""
        return self.states.GetState(state_service_pb2.GetStateRequest(include_ended=True), timeout=GUARD_S)

    def device(self, place: int = 0) -> state_service_pb2.Device:
        """One device as it is shown now."""
        return self.picture().devices[place]

    def lease(self, lease_id: str) -> lease_pb2.Lease:
        """One lease as it is shown now. Raises StopIteration where it is not."""
        return next(lease for lease in self.picture().leases if lease.lease_id == lease_id)

    def until(self, true: Callable[[state_service_pb2.GetStateResponse], bool]) -> state_service_pb2.GetStateResponse:
        """The first picture of which this is true.

        Raises:
            AssertionError: There is none; the message is the last picture.
        """
        deadline = time.monotonic() + GUARD_S
        while not true(picture := self.picture()):
            assert time.monotonic() < deadline, picture
            time.sleep(LOOK_S)
        return picture

    def refusal(self, asked: pb.AllocateRequest) -> grpc.StatusCode:
        """With what a request is refused; it must be."""
        with pytest.raises(grpc.RpcError) as caught:
            self.arbiter.Allocate(asked, timeout=GUARD_S)
        assert isinstance(caught.value, grpc.Call)
        return caught.value.code()

    def refuses(self, memory_mib: int) -> bool:
        """Whether somebody who will not wait is told that so much is not free; anything but that fails the test."""
        return self.refusal(request("impatient", memory_mib, wait_s=0)) is grpc.StatusCode.RESOURCE_EXHAUSTED

    def measured(self, lease_id: str, memory_mib: int) -> None:
        """Waits until at least so much was measured for a lease."""
        self.until(
            lambda picture: any(
                lease.lease_id == lease_id and lease.measured_memory_bytes >= memory_mib * MIB
                for lease in picture.leases
            )
        )

    def beat(self, *leases: lease_pb2.Lease) -> pb.HeartbeatResponse:
        """One heartbeat for these leases, as a worker would send it."""
        request = pb.HeartbeatRequest(handles=[lease.handle for lease in leases])
        return self.arbiter.Heartbeat(request, timeout=GUARD_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage(Talk):
    """A real server with a connection to it.

    Attributes:
        server: The process and its address.
    """

    server: Running


def in_line(stage: Talk, threads: Executor, asked: pb.AllocateRequest) -> Future[pb.AllocateResponse]:
    """A call for a lease that waits in the line, or has its answer already."""
    waiting: Future[pb.AllocateResponse] = threads.submit(stage.arbiter.Allocate, asked, timeout=2 * GUARD_S)
    stage.until(lambda picture: waiting.done() or any(each.holder == asked.holder for each in picture.waiting))
    return waiting


def request(holder: str, memory_mib: int, *pids: int, ttl_s: int = 0, wait_s: int | None = None) -> pb.AllocateRequest:
    """A request of one size for these processes; the server's own time to live and waiting time where none is given."""
    asked = pb.AllocateRequest(
        holder=holder,
        pids=pids,
        workload_type=lease_pb2.WORKLOAD_TYPE_OTHER,
        memory_bytes=memory_mib * MIB,
        min_memory_bytes=memory_mib * MIB,
    )
    if ttl_s:
        asked.ttl.FromSeconds(ttl_s)
    if wait_s is not None:
        asked.wait_timeout.FromSeconds(wait_s)
    return asked


@contextlib.contextmanager
def talking_to(address: str) -> Iterator[Talk]:
    """A connection to a server that serves or soon will, until the block ends."""
    with grpc.insecure_channel(address) as channel:
        grpc.channel_ready_future(channel).result(GUARD_S)
        with events_of(channel) as events:
            yield Talk(
                channel=channel,
                arbiter=arbiter_service_pb2_grpc.ArbiterServiceStub(channel),
                states=state_service_pb2_grpc.StateServiceStub(channel),
                events=events,
            )


@contextlib.contextmanager
def staged(folder: Path, *flags: str, environment: dict[str, str] | None = None) -> Iterator[Stage]:
    """A server with these flags and a connection to it until the block ends; 1 GiB of host memory without flags."""
    with (
        running_server(folder, *flags, environment=environment) as server,
        talking_to(server.address) as talk,
    ):
        yield Stage(channel=talk.channel, arbiter=talk.arbiter, states=talk.states, events=talk.events, server=server)


@dataclass(frozen=True, slots=True)
class Cards:
    """The cards of a fake driver that a server can be started with.

    Attributes:
        driver: Moves the cards: change one, then write.
        environment: What a process needs to find the driver.
    """

    driver: fake_nvml.FakeDriver
    environment: dict[str, str]

    @property
    def card(self) -> fake_nvml.FakeCard:
        """The first card, of 10000 MiB, of which 9000 may be leased."""
        return self.driver.cards[0]

    def hold(self, pid: int, memory_mib: int) -> None:
        """From now on the driver lists this process with so much memory; 0: not at all."""
        if memory_mib:
            self.card.compute[pid] = memory_mib * MIB
        else:
            self.card.compute.pop(pid, None)
        self.driver.write()


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled library of the fake driver."""
    return fake_nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def cards(tmp_path: Path, nvml_library: Path) -> Cards:
    """A driver with one card and nothing on it."""
    card = fake_nvml.FakeCard(uuid="GPU-1", total_bytes=10_000 * MIB)
    driver = fake_nvml.FakeDriver(tmp_path / "nvml", card)
    return Cards(driver, {"LD_LIBRARY_PATH": str(nvml_library.parent), fake_nvml.STATE_VARIABLE: str(driver.path)})


@contextlib.contextmanager
def staged_cards(folder: Path, cards: Cards, *flags: str) -> Iterator[Stage]:
    """A server that leases the memory of these cards and measures it ten times a second."""
    chosen = ("--devices", "nvidia", "--devices-sample-interval", "100ms", *flags)
    with staged(folder, *chosen, environment=cards.environment) as stage:
        yield stage
