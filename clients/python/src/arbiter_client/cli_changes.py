"""The commands of ``arbiter`` that change something: ``preempt`` and ``release``."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, TextIO

from arbiter_client import amounts, blocking, errors, kv_reservations, plain, preemption, tables

if TYPE_CHECKING:
    from arbiter_client import connection

#: Seconds for which giving a lease back is tried: the person waits for it, and an arbiter that lives answers at once.
RELEASE_PATIENCE_S = 2.0

#: From the least important to the most.
PRIORITIES = ("background", "low", "normal", "high", "critical")


def add_preempt(parser: argparse.ArgumentParser) -> None:
    """Describes ``arbiter preempt``."""
    who = parser.add_mutually_exclusive_group(required=True)
    who.add_argument("--device", metavar="ID", help="take memory of this device for nobody in particular")
    who.add_argument("--lease", metavar="ID", help="take it for this lease, which may then use it")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--memory", type=_size, metavar="SIZE", help="how much memory, such as 2GiB")
    what.add_argument("--kv-tokens", type=_tokens, metavar="N", help="how many KV tokens, for an engine's lease")
    parser.add_argument(
        "--priority", choices=PRIORITIES, help="with which it is asked; default: the lease's, or normal"
    )
    parser.add_argument("--partial", action="store_true", help="take less when there is not enough")
    parser.add_argument("--timeout", type=_span, metavar="T", help="seconds that those who give have; default: 2")
    parser.add_argument("--dry-run", action="store_true", help="only show who would give what")
    parser.add_argument("--yes", action="store_true", help="do not ask; nobody is asked without a terminal either")
    parser.add_argument("--json", action="store_true", help="JSON with stable keys; bytes are integers")
    parser.set_defaults(run=preempt)


def add_release(parser: argparse.ArgumentParser) -> None:
    """Describes ``arbiter release``."""
    parser.add_argument("lease_id", help="id of the lease")
    parser.add_argument("--fence", required=True, type=int, metavar="N", help="its fence, which its holder knows")
    parser.set_defaults(run=release)


def preempt(made: connection.Connection, options: argparse.Namespace, out: TextIO) -> None:
    """Shows who would give what, asks where somebody can answer, and takes it.

    Raises:
        ArbiterClientError: ``NoDonor`` and the like, or ``Cancelled`` when the person said no.
    """
    draft = _ask(made, options, dry_run=True)
    if options.dry_run:
        _write(out, _text(draft, options, out))
    elif not draft.donations:
        _pass_over(draft)
    if not draft.donations:
        wanted = tables.amount(options.memory or 0, options.kv_tokens or 0)
        raise errors.NoDonor(f"nobody can be made to give {wanted}")
    if options.dry_run:
        return
    if not options.yes and sys.stdin.isatty():
        _confirm(draft)
    try:
        taken = _ask(made, options, dry_run=False)
    except errors.NoDonor:
        _pass_over(draft)
        raise
    _write(out, _text(taken, options, out))


def release(made: connection.Connection, options: argparse.Namespace, out: TextIO) -> None:
    """Gives a lease back by its fence.

    Raises:
        ArbiterClientError: ``LeaseNotFound``, ``Fenced``, or nobody answers.
    """
    already = made.keeper.release(options.lease_id, options.fence, RELEASE_PATIENCE_S).result()
    _write(out, "it had ended before" if already else "released")


def _size(text: str) -> int:
    try:
        return amounts.parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _tokens(text: str) -> int:
    try:
        return kv_reservations.checked("tokens", int(text), least=1)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of tokens, 1 or more") from error


def _span(text: str) -> float:
    try:
        return amounts.parse_seconds(float(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from error


def _ask(made: connection.Connection, options: argparse.Namespace, *, dry_run: bool) -> preemption.Preemption:
    need = preemption.Need(
        memory=options.memory,
        kv_tokens=options.kv_tokens,
        priority=options.priority,
        allow_partial=options.partial,
        timeout=options.timeout,
        dry_run=dry_run,
    )
    request = preemption.message(need, lease_id=options.lease or "", device=options.device)
    return blocking.preempt(made.keeper, request)


def _confirm(draft: preemption.Preemption) -> None:
    """Lets the person decide; on standard error, where it disturbs no output that goes elsewhere."""
    _write(sys.stderr, tables.preemption(draft, colour=tables.in_colour(sys.stderr)))
    taken = tables.amount(draft.planned_bytes, draft.planned_tokens)
    print(f"take {taken}? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise errors.Cancelled("nothing was taken")


def _pass_over(draft: preemption.Preemption) -> None:
    """Says why those who were not asked were not; beside the error, since it belongs to it."""
    if draft.rejected:
        _write(sys.stderr, tables.rejected(draft.rejected, colour=tables.in_colour(sys.stderr)))


def _text(result: preemption.Preemption, options: argparse.Namespace, out: TextIO) -> str:
    if options.json:
        return plain.to_json(preemption.to_message(result))
    return tables.preemption(result, colour=tables.in_colour(out))


def _write(out: TextIO, text: str) -> None:
    print(text, file=out, flush=True)
