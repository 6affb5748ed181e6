"""Which language model the demonstration uses, and when it must not quietly use the smaller one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from examples.engines import llama_binding


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The decision.

    Attributes:
        engine: "llama" or "tiny"; empty when the demonstration must not run.
        notice: What to say loudly; empty when all is as asked.
    """

    engine: str
    notice: str = ""


def missing_engine() -> str | None:
    """Why the full engine cannot be used here; None when it can."""
    try:
        llama_binding.weights_path()
        llama_binding.load_library()
    except llama_binding.EngineUnavailable as error:
        return str(error)
    return None


def choose(*, light: bool, in_ci: bool, missing: str | None) -> Choice:
    """The engine to use.

    Args:
        light: The small one was asked for.
        in_ci: Nobody reads notices here, so falling back counts as failure.
        missing: Why the full engine cannot be used; None when it can.
    """
    if light:
        return Choice(engine="tiny")
    if missing is None:
        return Choice(engine="llama")
    if in_ci:
        return Choice(engine="", notice=f"THE FULL ENGINE IS MISSING, and a fallback does not count in CI: {missing}")
    return Choice(engine="tiny", notice=f"THE FULL ENGINE IS MISSING, falling back to the small numpy model: {missing}")


def in_ci(environment: Mapping[str, str]) -> bool:
    """Whether this is a continuous integration run, by the usual variable."""
    return environment.get("CI", "").lower() in ("1", "true", "yes")
