"""``arbiter-sidecar health``: for probes of containers, which cannot dial a Unix socket themselves."""

from __future__ import annotations

import sys

import grpc
from grpc_health.v1 import health_pb2

from arbiter_client import address


def run(asked: str, service: str, timeout_s: float) -> int:
    """Prints the state of a service; 0 when it serves."""
    try:
        target = address.target(asked or None)
    except ValueError as error:
        print(f"arbiter-sidecar: {error}", file=sys.stderr)
        return 2
    with grpc.insecure_channel(target) as channel:
        try:
            check = channel.unary_unary(
                "/grpc.health.v1.Health/Check",
                request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
                response_deserializer=health_pb2.HealthCheckResponse.FromString,
            )
            answer = check(health_pb2.HealthCheckRequest(service=service), timeout=timeout_s)
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() is grpc.StatusCode.NOT_FOUND:
                print(f"arbiter-sidecar: {target} knows no service {service!r}", file=sys.stderr)
            else:
                print(f"arbiter-sidecar: no answer from {target}: {_told(error)}", file=sys.stderr)
            return 1
    state = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(state)
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


def _told(error: grpc.RpcError) -> str:
    return f"{error.code().name}: {error.details()}" if isinstance(error, grpc.Call) else str(error)
