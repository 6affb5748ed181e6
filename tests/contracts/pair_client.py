"""One worker's life over a session: lease, directive, acknowledgement, release. Run as a program, under any runtime.

    python -m tests.contracts.pair_client unix:/path/to/arbiter.sock

Prints the releases of grpcio and protobuf that it ran with.
"""

from __future__ import annotations

import sys
import time

import google.protobuf
import grpc

import arbiter_client

#: Far beyond what an answer takes; a guard, not a promise.
_GUARD_S = 60.0


def _refusal(client: arbiter_client.BlockingClient) -> arbiter_client.ArbiterClientError:
    """The error that asking for more than there is ends in."""
    try:
        client.lease("pair", memory="64GiB", min_memory="32GiB", workload_type="other").acquire()
    except arbiter_client.errors.ExceedsCapacity as error:
        return error
    raise AssertionError("more than there is was granted")


def main() -> None:
    """Lives once; raises where something is not as it should be."""
    with arbiter_client.connect_blocking(sys.argv[1]) as client:
        with client.lease("pair", memory="64MiB", min_memory="32MiB", workload_type="other") as lease:
            directive = next(iter(lease.directives(timeout=_GUARD_S)))
            assert directive.quality == 1.0
            assert directive.memory_limit_bytes == 64 * 1024 * 1024
            lease.applied(directive, used_memory_bytes=1)
            deadline = time.monotonic() + _GUARD_S
            while (seen := client.state().leases[0]).applied_revision != directive.revision:
                assert time.monotonic() < deadline, "the acknowledgement does not arrive"
                time.sleep(0.01)
            assert (seen.holder, seen.reported_memory_bytes) == ("pair", 1)
        assert not client.state().leases
        assert _refusal(client).metadata["requested_bytes"] == str(32 * 1024**3)
    print(grpc.__version__, google.protobuf.__version__)


if __name__ == "__main__":
    main()
