"""The repository stands alone, looks as it is described and keeps its own rules."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib

import pytest

import arbiter_sidecar
from tests.contracts import checkout

_TOP = {
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Dockerfile",
    "LICENSE",
    "Makefile",
    "README.md",
    "arbiter_sidecar",
    "benchmarks",
    "clients",
    "deploy",
    "docker-compose.yml",
    "docs",
    "examples",
    "proto",
    "pyproject.toml",
    "tests",
}

# Written in halves, so that this file does not contain what it looks for.
_FOREIGN = re.compile(
    "|".join(
        (
            r"(?:^|[^A-Za-z0-9._-])/(?:work|farm)/[A-Za-z.]",
            "bash" + "_jobs",
            "files.python" + "hosted",
            r"pypi\.org/" + "simple",
            "registry.npm" + "js",
            r"deb\.deb" + "ian",
            r"\.\./sha" + "red",
            r"\bspec" + r"\.md",
            "\N{SECTION SIGN}",
            r"\bD-[A-D]\d",
            r"\b[Ii]ssue" + r"s? #?\d",
        )
    ),
    re.MULTILINE,
)
_SILENCED = re.compile(
    "|".join(("# no" + "qa", "# type: ig" + "nore", r"pytest\.sk" + r"ip\(", r"mark\.(sk" + "ip|xf" + "ail)"))
)
_BANNED = frozenset({"manager", "handler", "helper", "helpers", "utils", "common", "data", "info"})


def test_top_level_holds_nothing_else() -> None:
    names = {path.relative_to(checkout.ROOT).parts[0] for path in checkout.files()}
    assert {name for name in names if not name.startswith(".")} <= _TOP


def test_text_names_nothing_outside_the_repository() -> None:
    found = []
    for path in checkout.files():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(checkout.ROOT)}: {match.group().strip()}" for match in _FOREIGN.finditer(text)]
    assert not found


def test_nothing_is_silenced_in_python() -> None:
    found = []
    for path in checkout.written_python():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if _SILENCED.search(line):
                found.append(f"{path.relative_to(checkout.ROOT)}:{number}: {line.strip()}")
    assert not found


def test_modules_stay_readable() -> None:
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in checkout.written_python()}
    assert not {str(path.relative_to(checkout.ROOT)): size for path, size in sizes.items() if size > 600}


def test_names_say_what_a_thing_does() -> None:
    found = []
    for path in checkout.written_python():
        where = path.relative_to(checkout.ROOT)
        if _BANNED & set(path.stem.split("_")):
            found.append(str(where))
        tree = ast.parse(path.read_text(encoding="utf-8"))
        classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
        for found_class in classes:
            if {word.lower() for word in re.findall(r"[A-Z][a-z]*", found_class.name)} & _BANNED:
                found.append(f"{where}: class {found_class.name}")
        # A protocol restates the names of somebody else.
        theirs = {id(node) for each in classes if _is_protocol(each) for node in each.body}
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or id(node) in theirs:
                continue
            if re.match(r"_?(do|handle)_", node.name):
                found.append(f"{where}: {node.name}")
    assert not found


def _is_protocol(node: ast.ClassDef) -> bool:
    return any(isinstance(base, ast.Name) and base.id == "Protocol" for base in node.bases)


def test_no_exception_is_swallowed_unseen() -> None:
    found = []
    for path in checkout.written_python():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ExceptHandler) and _is_blanket(node) and _does_nothing(node):
                found.append(f"{path.relative_to(checkout.ROOT)}:{node.lineno}")
    assert not found


def _is_blanket(node: ast.ExceptHandler) -> bool:
    return node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"})


def _does_nothing(node: ast.ExceptHandler) -> bool:
    return all(isinstance(step, ast.Pass | ast.Continue | ast.Expr) for step in node.body) and not any(
        isinstance(inner, ast.Call) for step in node.body for inner in ast.walk(step)
    )


def test_every_folder_of_tests_is_a_package() -> None:
    folders = {path.parent for path in checkout.written_python() if path.is_relative_to(checkout.ROOT / "tests")}
    assert not [str(folder.relative_to(checkout.ROOT)) for folder in folders if not (folder / "__init__.py").exists()]


def _project(path: str) -> dict[str, str]:
    project: dict[str, str] = tomllib.loads((checkout.ROOT / path).read_text(encoding="utf-8"))["project"]
    return project


def test_versions_agree() -> None:
    server, client = _project("pyproject.toml"), _project("clients/python/pyproject.toml")
    assert server["version"] == client["version"] == arbiter_sidecar.__version__
    assert f"## [{server['version']}]" in (checkout.ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"arbiter-sidecar-client=={client['version']}" in server["dependencies"]


@pytest.mark.parametrize(
    ("project", "command"), [("pyproject.toml", "arbiter-sidecar"), ("clients/python/pyproject.toml", "arbiter")]
)
def test_command_exists(project: str, command: str) -> None:
    document = tomllib.loads((checkout.ROOT / project).read_text(encoding="utf-8"))
    module, _, function = document["project"]["scripts"][command].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def test_public_names_exist() -> None:
    for package in ("arbiter_sidecar", "arbiter_client"):
        module = importlib.import_module(package)
        names: list[str] = list(getattr(module, "__all__", []))
        assert len(set(names)) == len(names)
        assert all(hasattr(module, name) for name in names)
