"""The command ``arbiter``: looking at the arbiter from a worker's environment, and taking and giving back.

Exit codes: 0 done, 1 failed with the reason on standard error, 2 used wrongly.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import TYPE_CHECKING, TextIO, TypeVar

from google.protobuf.message import Message

import arbiter_client
from arbiter.v1 import arbiter_service_pb2, state_service_pb2
from arbiter_client import address, cli_balance, cli_changes, connection, errors, plain, tables

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from arbiter_client import transport

Shown = TypeVar("Shown", bound=Message)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    options = _parser().parse_args(arguments)
    if options.command == "version":
        print(arbiter_client.__version__)
        return 0
    try:
        return _run(options, sys.stdout)
    except KeyboardInterrupt:
        # The person asked for it; a shell that looks sees the usual code.
        return 130
    except BrokenPipeError:
        # The reader has seen enough. Python would complain once more when it flushes on exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(options: argparse.Namespace, out: TextIO) -> int:
    try:
        # A person notices at once that nobody answers, and tries again when that makes sense.
        made = connection.make(options.address, "thread", connection.MAX_SILENCE_S, connect_timeout=0.0)
    except ValueError as error:
        print(f"arbiter: {error}", file=sys.stderr)
        return 2
    target = made.transport.address
    try:
        command: Callable[[connection.Connection, argparse.Namespace, TextIO], None] = options.run
        command(made, options, out)
    except errors.ArbiterClientError as error:
        name = f" [{error.reason}]" if error.reason else ""
        asked = "" if target in error.message else f" (asked {target})"
        print(f"arbiter: {error.message}{name}{asked}", file=sys.stderr)
        return 1
    finally:
        made.close()
    return 0


def _state(made: connection.Connection, options: argparse.Namespace, out: TextIO) -> None:
    response = _ask_state(made, options)
    _write(
        out,
        plain.to_json(response) if options.json else tables.state(response, time.time(), colour=tables.in_colour(out)),
    )


def _leases(made: connection.Connection, options: argparse.Namespace, out: TextIO) -> None:
    response = _ask_state(made, options)
    if options.json:
        picture = state_service_pb2.GetStateResponse(leases=response.leases)
        _write(out, plain.dump(plain.to_plain(picture)["leases"]))
    else:
        _write(out, tables.leases(response.leases, time.time(), colour=tables.in_colour(out)))


def _engines(made: connection.Connection, options: argparse.Namespace, out: TextIO) -> None:
    response = _ask_state(made, options)
    if options.json:
        picture = state_service_pb2.GetStateResponse(kv_engines=response.kv_engines)
        _write(out, plain.dump(plain.to_plain(picture)["kv_engines"]))
    else:
        _write(out, tables.engines(response, colour=tables.in_colour(out)))


def _explain(made: connection.Connection, options: argparse.Namespace, out: TextIO) -> None:
    response = _find_explanation(made, options)
    _write(out, plain.to_json(response) if options.json else tables.explanation(response))


def _watch(made: connection.Connection, options: argparse.Namespace, out: TextIO) -> None:
    calls = made.transport.calls
    if options.quality:
        request = arbiter_service_pb2.StreamQualityRequest(lease_ids=options.quality)
        _follow(calls.stream_quality(request), tables.quality, options, out)
        return
    events = calls.watch_events(
        state_service_pb2.WatchEventsRequest(after_sequence=options.after, namespace=options.namespace)
    )
    _follow(events, lambda message: "\n".join(map(tables.event, message.events)), options, out)


def _follow(
    stream: transport.Stream[Shown], text: Callable[[Shown], str], options: argparse.Namespace, out: TextIO
) -> None:
    try:
        while (message := stream.next()) is not None:
            if line := plain.to_json(message, indent=None) if options.json else text(message):
                _write(out, line)
            if options.once:
                return
    finally:
        stream.cancel()


def _ask_state(made: connection.Connection, options: argparse.Namespace) -> state_service_pb2.GetStateResponse:
    request = state_service_pb2.GetStateRequest(namespace=options.namespace, include_ended=options.all)
    return made.transport.calls.get_state(request, connection.CALL_TIMEOUT_S)


def _find_explanation(made: connection.Connection, options: argparse.Namespace) -> state_service_pb2.ExplainResponse:
    """Asks about the id as what it was said to be, or as a lease, a request and a device in turn."""
    requests = {
        "lease": connection.explain_request(options.id, None, None),
        "request": connection.explain_request(None, options.id, None),
        "device": connection.explain_request(None, None, options.id),
    }
    calls = made.transport.calls
    kinds = [options.kind] if options.kind else list(requests)
    for kind in kinds[:-1]:
        try:
            return calls.explain(requests[kind], connection.CALL_TIMEOUT_S)
        except (errors.LeaseNotFound, errors.DeviceNotFound):
            continue
    return calls.explain(requests[kinds[-1]], connection.CALL_TIMEOUT_S)


def _write(out: TextIO, text: str) -> None:
    # Flushed line by line, so that a pipe sees events as they happen and a closed one is noticed here.
    print(text, file=out, flush=True)


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    # SUPPRESS: an option that is absent after the command must not undo the one that was given before it.
    shared.add_argument("--address", default=argparse.SUPPRESS, help="unix:/path, /path or host:port")
    shown = argparse.ArgumentParser(add_help=False, parents=[shared])
    shown.add_argument("--json", action="store_true", help="JSON with stable keys; bytes are integers")
    shown.add_argument("--namespace", default="", help="only this namespace")

    parser = argparse.ArgumentParser(
        prog="arbiter",
        description="Look at the arbiter that shares this machine's GPU memory between programs, and take from it.",
        epilog=f"Without --address, {address.VARIABLE} is used, then the default socket.",
    )
    parser.add_argument("--address", default=None, help="unix:/path, /path or host:port")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    state = commands.add_parser("state", parents=[shown], help="devices, leases and waiting requests")
    state.add_argument("--all", action="store_true", help="also leases that have ended but still drain")
    state.set_defaults(run=_state)
    leases = commands.add_parser("leases", parents=[shown], help="the leases")
    leases.add_argument("--all", action="store_true", help="also leases that have ended but still drain")
    leases.set_defaults(run=_leases)
    engines = commands.add_parser("engines", parents=[shown], help="the KV engines and their token budgets")
    engines.set_defaults(run=_engines, all=False)
    explain = commands.add_parser("explain", parents=[shown], help="why a lease, a request or a device is as it is")
    explain.add_argument("id", help="id of a lease, a request or a device")
    kinds = explain.add_mutually_exclusive_group()
    for kind in ("lease", "request", "device"):
        kinds.add_argument(f"--{kind}", dest="kind", action="store_const", const=kind, help=f"the id names a {kind}")
    explain.set_defaults(run=_explain)
    _add_watch(commands.add_parser("watch", parents=[shown], help="events or directives as they happen"))
    cli_balance.add_balance(
        commands.add_parser("balance", parents=[shown], help="how the layers of a split model should be divided")
    )
    cli_changes.add_preempt(
        commands.add_parser("preempt", parents=[shared], help="take memory or KV tokens from the less important")
    )
    cli_changes.add_release(commands.add_parser("release", parents=[shared], help="give a lease of your own back"))
    commands.add_parser("version", parents=[shared], help="print the version of this client")
    return parser


def _add_watch(watch: argparse.ArgumentParser) -> None:
    watch.add_argument("what", nargs="?", choices=["events"], default="events", help="audit events (the default)")
    watch.add_argument("--quality", nargs="+", metavar="LEASE_ID", help="the directives of these leases instead")
    watch.add_argument("--after", type=int, default=0, metavar="N", help="begin after event N; 0: only new ones")
    watch.add_argument("--once", action="store_true", help="stop after the first message")
    watch.set_defaults(run=_watch)


if __name__ == "__main__":
    sys.exit(main())
