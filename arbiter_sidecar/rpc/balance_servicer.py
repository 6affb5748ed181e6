"""``BalanceService``: how the layers of split models are best divided, and moving them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from arbiter.v1 import balance_service_pb2 as pb
from arbiter_sidecar import errors
from arbiter_sidecar.ledger.shards import GroupKey, ShardGroup
from arbiter_sidecar.rpc import convert, handlers, shard_render
from arbiter_sidecar.rpc.outlet import Outlet
from arbiter_sidecar.rpc.status import Context
from arbiter_sidecar.runtime import Runtime

if TYPE_CHECKING:
    import grpc

#: Watchers of split models at once.
MAX_WATCHERS = 256


class BalanceServicer:
    """Speaks ``arbiter.v1.BalanceService``."""

    name = "arbiter.v1.BalanceService"

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._watchers = 0

    def handler(self) -> grpc.GenericRpcHandler:
        """Everything this service answers."""
        return handlers.service(
            self.name,
            {
                "EvaluateBalance": handlers.unary(pb.EvaluateBalanceRequest, self._evaluate),
                "ApplyAssignment": handlers.unary(pb.ApplyAssignmentRequest, self._apply),
                "WatchBalance": handlers.server_stream(pb.WatchBalanceRequest, self._watch),
            },
        )

    def close(self) -> None:
        """Ends the streams, politely."""
        self._runtime.shard_news.close()

    async def _evaluate(self, message: pb.EvaluateBalanceRequest, _: Context) -> pb.EvaluateBalanceResponse:
        found = self._runtime.evaluate_balance(*convert.split_model(message))
        objective = self._runtime.books.config.balance.objective
        return shard_render.evaluation(found, objective, self._runtime.clock.now())

    async def _apply(self, message: pb.ApplyAssignmentRequest, _: Context) -> pb.ApplyAssignmentResponse:
        group = self._runtime.assign(convert.assignment(message))
        return pb.ApplyAssignmentResponse(group=self._shown(group))

    def _shown(self, group: ShardGroup) -> pb.ShardGroup:
        return shard_render.group(group, self._runtime.books.config.balance.objective, self._runtime.clock.now())

    async def _watch(self, message: pb.WatchBalanceRequest, context: Context) -> None:
        namespace, name = convert.watched(message)
        if self._watchers >= MAX_WATCHERS:
            raise errors.QueueFull("too many watchers of split models")
        self._watchers += 1
        news = self._runtime.shard_news
        listener = news.listen()
        try:
            outlet = Outlet(context, lambda _: news.forget(listener))
            watched = Watched(self._runtime, namespace, name)
            while True:
                await listener.wait()
                listener.clear()
                changed, gone = watched.look()
                if changed or gone or watched.looks == 1:
                    response = pb.WatchBalanceResponse(groups=[self._shown(group) for group in changed], gone=gone)
                    await outlet.write(response.SerializeToString())
                if news.closed:
                    return
        finally:
            self._watchers -= 1
            news.forget(listener)


class Watched:
    """What one watcher was told last.

    Attributes:
        looks: How often it has looked.
    """

    def __init__(self, runtime: Runtime, namespace: str, name: str) -> None:
        self._runtime = runtime
        self._namespace = namespace
        self._name = name
        self._told: dict[GroupKey, tuple[ShardGroup, int]] = {}
        self.looks = 0

    def look(self) -> tuple[list[ShardGroup], list[pb.WatchBalanceResponse.Gone]]:
        """The models that have changed since the last look, and those that are gone."""
        self.looks += 1
        present = {
            key: group
            for key, group in self._runtime.books.shards.groups.items()
            if self._namespace in ("", key[0]) and self._name in ("", key[1])
        }
        gone = [
            pb.WatchBalanceResponse.Gone(namespace=key[0], group=key[1]) for key in self._told if key not in present
        ]
        changed = [group for key, group in present.items() if self._told.get(key) != (group, group.version)]
        self._told = {key: (group, group.version) for key, group in present.items()}
        return changed, gone
