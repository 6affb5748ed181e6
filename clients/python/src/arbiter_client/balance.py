"""How the layers of split models are best divided, and moving them: for coordinators, scripts and people."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import grpc

from arbiter.v1 import balance_service_pb2, balance_service_pb2_grpc
from arbiter_client import connection, errors, grpc_transport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Answer = TypeVar("Answer")


class Balance:
    """The balance service over a blocking channel, such as ``client.channel``. Any number of threads may use it."""

    __slots__ = ("_address", "_stub")

    def __init__(self, channel: grpc.Channel, address: str = "") -> None:
        """Sends nothing yet.

        Args:
            channel: The channel.
            address: What errors call the arbiter.
        """
        self._stub = balance_service_pb2_grpc.BalanceServiceStub(channel)
        self._address = address

    def evaluate(
        self, group: str, *, namespace: str = "", layers: int = 0
    ) -> balance_service_pb2.EvaluateBalanceResponse:
        """Whether layers should move. With ``layers``: where so many should go at first.

        Raises:
            ArbiterClientError: ``ShardNotFound``, ``InvalidRequest``, or nobody answers.
        """
        asked = balance_service_pb2.EvaluateBalanceRequest(group=group, namespace=namespace, layers=layers)
        return self._checked(lambda: self._stub.EvaluateBalance(asked, timeout=connection.CALL_TIMEOUT_S))

    def apply(
        self,
        group: str,
        *,
        namespace: str = "",
        plan_id: str = "",
        assignment: Mapping[str, tuple[int, int]] | None = None,
    ) -> balance_service_pb2.ShardGroup:
        """Moves layers: as a suggestion says, or by hand. Safe to repeat with the same ``plan_id``.

        Args:
            group: The split model.
            namespace: Its namespace; empty: "default".
            plan_id: The suggestion that is followed; empty for an assignment by hand.
            assignment: First layer and one past the last by shard; absent: what the suggestion says.

        Raises:
            ArbiterClientError: ``ShardNotFound``, ``StalePlan``, ``InvalidAssignment``, or nobody answers.
        """
        asked = balance_service_pb2.ApplyAssignmentRequest(
            group=group,
            namespace=namespace,
            plan_id=plan_id,
            assignment=[
                balance_service_pb2.LayerAssignment(shard=shard, layer_begin=begin, layer_end=end)
                for shard, (begin, end) in (assignment or {}).items()
            ],
        )
        return self._checked(lambda: self._stub.ApplyAssignment(asked, timeout=connection.CALL_TIMEOUT_S)).group

    def watch(
        self, group: str = "", *, namespace: str = ""
    ) -> grpc_transport.GrpcStream[balance_service_pb2.WatchBalanceResponse]:
        """Split models as they change, all of them at once first; cancel the stream to stop."""
        asked = balance_service_pb2.WatchBalanceRequest(group=group, namespace=namespace)
        return grpc_transport.GrpcStream(self._stub.WatchBalance(asked), self._address)

    def _checked(self, call: Callable[[], Answer]) -> Answer:
        try:
            return call()
        except grpc.RpcError as failure:
            raise errors.from_rpc_error(failure, self._address) from failure
