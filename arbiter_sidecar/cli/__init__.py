"""The command ``arbiter-sidecar``: serves, checks its configuration, and answers probes.

Exit codes: 0 done, 1 failure, 2 wrong usage or configuration, 75 another server has the socket or the state directory.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from arbiter_sidecar import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit code."""
    # The core of gRPC writes lines of its own to standard error, and decides about that when it is loaded.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    words = sys.argv[1:] if arguments is None else list(arguments)
    parsed = _parser(probes_only=words[:1] == ["health"]).parse_args(words)
    verb = parsed.verb
    # Each verb imports what it needs: a health probe runs every few seconds and must start fast.
    if verb == "health":
        from arbiter_sidecar.cli import probe

        # In a container one variable names the socket for the server and for its probes.
        return probe.run(parsed.address or os.environ.get("ARBITER_SOCKET", ""), parsed.service, parsed.timeout)
    from arbiter_sidecar.cli import settings

    try:
        loaded = settings.load(parsed, os.environ)
    except settings.ConfigError as error:
        for fault in error.faults:
            print(f"arbiter-sidecar: {fault}", file=sys.stderr)
        return 2
    if verb == "check-config":
        print(settings.as_json(loaded) if parsed.json else settings.as_table(loaded))
        return 0
    from arbiter_sidecar.cli import serve

    return serve.run(loaded.config)


def _parser(*, probes_only: bool) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="arbiter-sidecar", description="Lets several AI programs share one GPU machine."
    )
    parser.add_argument("--version", action="version", version=f"arbiter-sidecar {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    serve = verbs.add_parser("serve", help="serve until SIGTERM")
    check = verbs.add_parser("check-config", help="show every setting and where it comes from, or every fault")
    check.add_argument("--json", action="store_true", help="as JSON")
    if not probes_only:
        from arbiter_sidecar.cli import settings

        for verb in (serve, check):
            settings.add_flags(verb)
    health = verbs.add_parser("health", help="ask a running server how it is; for probes")
    health.add_argument("--address", default="", help="unix:/path, /path or host:port; also ARBITER_SOCKET")
    health.add_argument("--service", default="readiness", help="liveness, readiness or a service (default: readiness)")
    health.add_argument("--timeout", type=float, default=2.0, metavar="SECONDS", help="give up after (default: 2)")
    return parser
