"""The small numpy language model as an engine runs it: many sequences a step, each with a KV cache in blocks.

A sequence keeps a key and a value for every word it has seen, and attends to them beside what the model learnt. Keys
live in a pool of blocks that is taken once; what is resident is counted there, in blocks, and not by anybody's books.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from examples.engines import tiny_lm
from examples.rungs import SizedRung

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

BLOCK_TOKENS = 16
#: Contexts of the text that the model remembers; few, so that a step takes milliseconds.
_CONTEXTS = 2048
#: Weight of a word that followed the same words earlier in the conversation, relative to one contexts learnt.
_OWN_WEIGHT = 2.0


@dataclass(slots=True, eq=False)
class Conversation:
    """A sequence that is being continued.

    Attributes:
        state: Summary of the words so far.
        blocks: Blocks of the pool that are its own.
        words: Words it has a key for.
        answer: Words that were added.
    """

    state: npt.NDArray[np.float32]
    blocks: list[int] = field(default_factory=list)
    words: int = 0
    answer: list[int] = field(default_factory=list)


class Decoder(tiny_lm.TinyLm):
    """Continues conversations, a word of each in every step.

    Args:
        pool_tokens: Size of the pool; it is taken at once, 2 KiB for each token.
        seed: For the choice of words.
    """

    __slots__ = ("_free", "_pool", "_pool_values")

    def __init__(self, pool_tokens: int, seed: int) -> None:
        super().__init__(seed)
        self.resize(SizedRung(name="fixed", memory_bytes=0, settings={"entries": _CONTEXTS}))
        blocks = pool_tokens // BLOCK_TOKENS
        self._pool = np.zeros((blocks, BLOCK_TOKENS, self._directions.shape[1]), dtype=np.float32)
        self._pool_values = np.zeros((blocks, BLOCK_TOKENS), dtype=np.int32)
        self._free = list(range(blocks))

    @property
    def resident_tokens(self) -> int:
        """Tokens of the blocks that are taken."""
        return (len(self._pool) - len(self._free)) * BLOCK_TOKENS

    def count(self, prompt: str) -> int:
        """Words of a prompt that the model knows."""
        return len(self._numbers(prompt))

    def begin(self, prompt: str) -> Conversation:
        """Reads a prompt into the cache.

        Raises:
            RuntimeError: The pool is empty.
        """
        conversation = Conversation(np.zeros(self._directions.shape[1], dtype=np.float32))
        for word in self._numbers(prompt):
            self._keep(conversation, word)
        return conversation

    def step(self, conversations: Sequence[Conversation]) -> None:
        """Adds one word to each.

        Raises:
            RuntimeError: The pool is empty.
        """
        if not conversations:
            return
        states = tiny_lm._unit(np.stack([each.state for each in conversations]))
        # All of them in one multiplication: reading what the model learnt costs the same for one as for many.
        learnt = self._votes(states @ self._keys.T)
        for row, conversation in enumerate(conversations):
            chances = np.bincount(self._values, weights=learnt[row], minlength=len(self._vocabulary))
            chances = chances / chances.sum() + self._own(conversation, states[row]) + self._frequencies * 0.05
            word = int(self._rng.choice(len(chances), p=chances / chances.sum()))
            self._keep(conversation, word)
            conversation.answer.append(word)

    def end(self, conversation: Conversation) -> str:
        """Gives its blocks back; returns what it has added."""
        self._free += conversation.blocks
        conversation.blocks = []
        return " ".join(self._vocabulary[word] for word in conversation.answer)

    def _own(self, conversation: Conversation, state: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """Votes of the conversation's own words: attention over its part of the cache."""
        keys = self._pool[conversation.blocks].reshape(-1, len(state))[: conversation.words]
        followed = self._pool_values[conversation.blocks].reshape(-1)[: conversation.words]
        weights = np.exp(tiny_lm._SHARPNESS * (keys @ state - 1.0)).astype(np.float64)
        votes = np.bincount(followed, weights=weights, minlength=len(self._vocabulary))
        return votes.astype(np.float64) * _OWN_WEIGHT

    @staticmethod
    def _votes(agreement: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        agreement -= agreement.max(axis=1, keepdims=True)
        agreement *= np.float32(tiny_lm._SHARPNESS)
        return np.exp(agreement, out=agreement)

    def _keep(self, conversation: Conversation, word: int) -> None:
        """Stores the key of the words so far with the word that follows them."""
        block, place = divmod(conversation.words, BLOCK_TOKENS)
        if block == len(conversation.blocks):
            if not self._free:
                raise RuntimeError("the KV pool is full; admit no more than the budget allows")
            conversation.blocks.append(self._free.pop())
        self._pool[conversation.blocks[block], place] = tiny_lm._unit(conversation.state)
        self._pool_values[conversation.blocks[block], place] = word
        conversation.words += 1
        conversation.state = conversation.state * np.float32(tiny_lm._DECAY) + self._directions[word]
