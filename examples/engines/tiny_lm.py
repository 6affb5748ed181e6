"""A small language model in numpy: attention over stored contexts, trained on one page of text when it starts.

The model reads the text many times, each time with other words left out, and stores at every place a summary of the
words before it (the key) and the word that follows (the value). To continue a prompt it compares the summary of the
prompt with every key and lets the closest ones vote for the next word: one head of attention over a cache of keys and
values. The cache is the memory that can be given back; more of it means that more readings are remembered.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from examples import memory
from examples.rungs import MIB, SizedRung

_CORPUS = Path(__file__).parent.parent / "corpus.txt"
_WORD = re.compile(r"[a-z]+|[.,]")
#: Values of a key. Random directions in so many dimensions are nearly at right angles, so words do not blur.
_DIMENSIONS = 512
_KEY_BYTES = _DIMENSIONS * 4
#: Share of the older words that is kept with each new one; the last four words make up most of a summary.
_DECAY = 0.6
_LEFT_OUT = 0.15
#: Sharpness of the attention: a key that agrees to 0.9 has e^-4 of the weight of one that agrees fully.
_SHARPNESS = 40.0
#: Keeps a word that no stored context votes for possible.
_FREQUENCY_SHARE = 0.05
_ANSWER_WORDS = 24
_MIB_OF_KEYS = range(256, 31, -16)
#: Measured beside keys and process: at most 6 MiB of values, weights and what numpy's linear algebra sets up.
_OVERHEAD_BYTES = 12 * MIB
_MARGIN_BYTES = 16 * MIB
_SEED = 7
_PROMPTS = (
    "When the card is full the arbiter",
    "A good neighbour",
    "A worker that wakes up",
    "Sometimes a worker dies",
    "The keeper shows",
    "A directive says",
    "If every cook takes",
    "The memory returns",
)


class TinyLm:
    """The engine. See `Engine` for the methods."""

    __slots__ = (
        "_directions",
        "_frequencies",
        "_keys",
        "_rng",
        "_rungs",
        "_text",
        "_values",
        "_vocabulary",
        "conversations",
    )

    def __init__(self, seed: int = _SEED) -> None:
        words = _WORD.findall(_CORPUS.read_text(encoding="utf-8").lower())
        self._vocabulary = sorted(set(words))
        number = {word: index for index, word in enumerate(self._vocabulary)}
        self._text = np.array([number[word] for word in words], dtype=np.int32)
        self._frequencies = np.bincount(self._text, minlength=len(number)) / len(self._text)
        directions = np.random.default_rng(_SEED).standard_normal((len(number), _DIMENSIONS), dtype=np.float32)
        self._directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        self._rng = np.random.default_rng(seed)
        self._keys = np.empty((0, _DIMENSIONS), dtype=np.float32)
        self._values = np.empty(0, dtype=np.int32)
        self.conversations = 1
        fixed = memory.resident_bytes() + _OVERHEAD_BYTES + _MARGIN_BYTES
        self._rungs = tuple(_sized(fixed, mib * MIB // _KEY_BYTES) for mib in _MIB_OF_KEYS)

    @property
    def name(self) -> str:
        """Name for people."""
        return "a small numpy language model"

    @property
    def prompts(self) -> Sequence[str]:
        """Beginnings of sentences in the vocabulary of the text."""
        return _PROMPTS

    @property
    def rungs(self) -> Sequence[SizedRung]:
        """Sizes, measured at start: this process as it is, and the keys of each rung."""
        return self._rungs

    def resize(self, rung: SizedRung) -> None:
        """See `Engine.resize`. Reads the text again into a cache of the new size, about 0.3 s at the top."""
        self.close()
        entries = int(rung.settings["entries"])
        readings = -(-entries // (len(self._text) - 1))
        rng = np.random.default_rng(_SEED)
        keys = np.empty((entries, _DIMENSIONS), dtype=np.float32)
        values = np.empty(entries, dtype=np.int32)
        state = np.zeros((readings, _DIMENSIONS), dtype=np.float32)
        for place in range(len(self._text) - 1):
            word = self._directions[self._text[place]]
            state *= np.float32(_DECAY)
            rows = slice(min(entries, place * readings), min(entries, (place + 1) * readings))
            # The newest word is always seen; it is the older ones that a reading may have left out.
            keys[rows] = _unit(state + word)[: rows.stop - rows.start]
            values[rows] = self._text[place + 1]
            kept = rng.random((readings, 1), dtype=np.float32) >= _LEFT_OUT
            kept[0] = True
            state += kept * word
        self._keys, self._values = keys, values

    def answer(self, prompts: Sequence[str]) -> list[str]:
        """See `Engine.answer`. Words the model has never read are passed over."""
        if not len(self._keys):
            raise RuntimeError("resize the engine before asking it")
        return [self._continue(prompt) for prompt in prompts]

    def close(self) -> None:
        """See `Engine.close`."""
        self._keys = np.empty((0, _DIMENSIONS), dtype=np.float32)
        self._values = np.empty(0, dtype=np.int32)
        memory.return_freed_pages()

    @property
    def vocabulary_size(self) -> int:
        """How many different words the text has."""
        return len(self._vocabulary)

    def surprise(self, text: str) -> float:
        """Mean of -ln P(word | words before it) over `text`; ln(vocabulary) is what guessing would get.

        Raises:
            RuntimeError: `resize` has not been called.
            ValueError: The text has fewer than two words of the vocabulary.
        """
        if not len(self._keys):
            raise RuntimeError("resize the engine before asking it")
        words = self._numbers(text)
        if len(words) < 2:
            raise ValueError("need at least two known words")
        state = np.zeros(_DIMENSIONS, dtype=np.float32)
        total = 0.0
        for word, following in itertools.pairwise(words):
            state = state * np.float32(_DECAY) + self._directions[word]
            total -= float(np.log(self._distribution(state)[following]))
        return total / (len(words) - 1)

    def _numbers(self, text: str) -> list[int]:
        number = {word: index for index, word in enumerate(self._vocabulary)}
        return [number[word] for word in _WORD.findall(text.lower()) if word in number]

    def _distribution(self, state: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """P(next word): the votes of the keys, mixed with how frequent each word is in the text."""
        agreement = (self._keys @ _unit(state)).astype(np.float64)
        votes = np.exp(_SHARPNESS * (agreement - agreement.max()))
        chances = np.bincount(self._values, weights=votes, minlength=len(self._vocabulary))
        mixed: npt.NDArray[np.float64] = (1 - _FREQUENCY_SHARE) * chances / chances.sum()
        mixed += _FREQUENCY_SHARE * self._frequencies
        return mixed

    def _continue(self, prompt: str) -> str:
        state = np.zeros(_DIMENSIONS, dtype=np.float32)
        for word in self._numbers(prompt):
            state = state * np.float32(_DECAY) + self._directions[word]
        words: list[str] = []
        while len(words) < _ANSWER_WORDS and (not words or words[-1] != "."):
            chosen = int(self._rng.choice(len(self._vocabulary), p=self._distribution(state)))
            words.append(self._vocabulary[chosen])
            state = state * np.float32(_DECAY) + self._directions[chosen]
        return " ".join(words).replace(" ,", ",").replace(" .", ".")


def _sized(fixed: int, entries: int) -> SizedRung:
    return SizedRung(
        name=f"{entries // 1024}k contexts",
        memory_bytes=fixed + entries * _KEY_BYTES,
        settings={"entries": entries},
    )


def _unit(state: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    length = np.linalg.norm(state, axis=-1, keepdims=True)
    # A reading may begin with words left out: its summary is nothing, and stays nothing.
    scaled: npt.NDArray[np.float32] = state / np.maximum(length, np.float32(1e-6))
    return scaled
