"""Where the arbiter listens."""

from __future__ import annotations

import os

import pytest

from arbiter_client import address


@pytest.mark.parametrize(
    ("environ", "uid", "path"),
    [
        ({"XDG_RUNTIME_DIR": "/run/user/7"}, 7, "/run/user/7/arbiter/arbiter.sock"),
        ({"XDG_RUNTIME_DIR": "/run/user/0"}, 0, "/run/user/0/arbiter/arbiter.sock"),
        ({}, 0, "/run/arbiter/arbiter.sock"),
        ({"XDG_RUNTIME_DIR": ""}, 1000, "/tmp/arbiter-1000/arbiter.sock"),
    ],
)
def test_default_socket_is_the_same_for_server_and_clients(environ: dict[str, str], uid: int, path: str) -> None:
    assert address.default_socket(environ, uid) == path


def test_default_socket_asks_the_process_when_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/x")
    assert address.default_socket() == "/x/arbiter/arbiter.sock"


@pytest.mark.parametrize(
    ("given", "target"),
    [
        ("unix:/a/b", "unix:/a/b"),
        ("unix:///a/b", "unix:///a/b"),
        ("/a/b", "unix:/a/b"),
        ("./b", "unix:" + os.path.abspath("b")),
        ("localhost:50051", "localhost:50051"),
        ("[::1]:50051", "[::1]:50051"),
        ("dns:///arbiter:50051", "dns:///arbiter:50051"),
    ],
)
def test_target_understands_each_form(given: str, target: str) -> None:
    assert address.target(given, {}) == target


@pytest.mark.parametrize("given", ["arbiter", "host:", ":1", "host:0", "host:65536", "host:x"])
def test_target_refuses_what_is_no_address(given: str) -> None:
    with pytest.raises(ValueError, match="is not unix:/path, /path or host:port"):
        address.target(given, {})


def test_target_takes_the_argument_before_the_variable_before_the_default() -> None:
    environ = {"ARBITER_ADDRESS": "/variable", "XDG_RUNTIME_DIR": "/run"}
    assert address.target("/argument", environ) == "unix:/argument"
    assert address.target(None, environ) == "unix:/variable"
    assert address.target(None, {"XDG_RUNTIME_DIR": "/run"}) == "unix:/run/arbiter/arbiter.sock"
