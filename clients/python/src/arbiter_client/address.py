"""Where the arbiter listens, and how that is written."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

#: Environment variable that names the arbiter for every client on the machine.
VARIABLE = "ARBITER_ADDRESS"

#: Schemes that gRPC understands by itself; an address that begins with one is used as it is.
_SCHEMES = ("unix:", "unix-abstract:", "dns:", "ipv4:", "ipv6:", "vsock:")


def default_socket(environ: Mapping[str, str] | None = None, uid: int | None = None) -> str:
    """The path on which server and clients meet when nobody says anything else.

    Args:
        environ: Environment to read; that of the process when absent.
        uid: User id; that of the process when absent.

    Returns:
        ``$XDG_RUNTIME_DIR/arbiter/arbiter.sock`` where that variable is set, else ``/run/arbiter/arbiter.sock`` for
        root and ``/tmp/arbiter-<uid>/arbiter.sock`` for everybody else.
    """
    environ = os.environ if environ is None else environ
    uid = os.getuid() if uid is None else uid
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(runtime, "arbiter", "arbiter.sock")
    if uid == 0:
        return "/run/arbiter/arbiter.sock"
    # A directory of its own, so that its mode can keep other users out of a world-writable /tmp.
    return f"/tmp/arbiter-{uid}/arbiter.sock"


def target(address: str | None = None, environ: Mapping[str, str] | None = None) -> str:
    """The gRPC target of the arbiter: ``address``, else ``ARBITER_ADDRESS``, else the default socket.

    Args:
        address: ``unix:/path``, ``/path``, ``./path``, ``host:port`` or any other gRPC target; absent or empty: not
            said.
        environ: Environment to read; that of the process when absent.

    Raises:
        ValueError: The address is none of these.
    """
    environ = os.environ if environ is None else environ
    text = (address or environ.get(VARIABLE, "") or default_socket(environ)).strip()
    if text.startswith(_SCHEMES):
        return text
    if text.startswith(("/", "./", "../")):
        return "unix:" + os.path.abspath(text)
    host, colon, port = text.rpartition(":")
    if colon and host and port.isascii() and port.isdecimal() and 0 < int(port) < 65536:
        return text
    raise ValueError(f"address {text!r} is not unix:/path, /path or host:port")
