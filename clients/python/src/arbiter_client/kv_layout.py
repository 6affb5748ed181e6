"""What the KV cache of a model takes: bytes, tokens and blocks of it, one in terms of the other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction

from arbiter.v1 import arbiter_service_pb2
from arbiter_client import amounts

#: Tokens per block where nothing else is said; also what the arbiter takes for an engine that does not say.
BLOCK_TOKENS = 16
#: Wider values than this are a slip, such as bytes for bits times a thousand.
MAX_BITS = 64

#: Bits of one cached value, with the scales that are stored beside it, by the names that engines use. Those with an
#: underscore and a digit keep 32 values with one scale or two, so they are wider than their name says.
KV_BITS: Mapping[str, Fraction] = {
    "fp32": Fraction(32),
    "f32": Fraction(32),
    "float32": Fraction(32),
    "bf16": Fraction(16),
    "bfloat16": Fraction(16),
    "fp16": Fraction(16),
    "f16": Fraction(16),
    "float16": Fraction(16),
    "fp8": Fraction(8),
    "fp8_e4m3": Fraction(8),
    "fp8_e5m2": Fraction(8),
    "int8": Fraction(8),
    "int4": Fraction(4),
    "q8_0": Fraction(34 * 8, 32),
    "q5_1": Fraction(24 * 8, 32),
    "q5_0": Fraction(22 * 8, 32),
    "q4_1": Fraction(20 * 8, 32),
    "q4_0": Fraction(18 * 8, 32),
    "iq4_nl": Fraction(18 * 8, 32),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLayout:
    """The KV cache of a model as one device holds it. Exact, in whole numbers.

    What is needed is rounded up to whole blocks, what there is is rounded down, so a layout never promises more than
    fits: ``bytes_for(tokens) <= size`` holds exactly when ``tokens <= tokens_in(size)`` does.

    Give ``kv_heads`` and ``head_size`` for attention that caches keys and values, or ``latent_size`` for attention that
    caches one latent vector for both. Every layer counts as if it kept every token, which is more than is used by
    layers with a sliding window; leave out layers that cache nothing.

    Attributes:
        layers: Layers with a KV cache on this device, at least 1; with pipeline parallelism those of its stage.
        kv_heads: Key and value heads of a layer in the whole model, at least 1; fewer than the query heads when these
            share them.
        head_size: Values in one head, at least 1.
        latent_size: Values that a layer keeps for a token instead of heads, its positional part included, at least 1.
        dtype: A name in ``KV_BITS``, or the bits of one value, above 0 and at most 64, such as 8.5 or a ``Fraction``;
            where keys and values differ, their mean.
        block_tokens: Tokens that the engine allocates at a time, at least 1.
        tensor_parallel: Devices over which each layer's heads are divided, at least 1; beyond the number of heads each
            device keeps one whole head. A latent vector is not divided.

    Raises:
        ValueError: A value out of its range, both or neither of heads and latent, heads that do not divide evenly, or a
            block beyond 2^63-1 bytes.
    """

    layers: int
    kv_heads: int | None = None
    head_size: int | None = None
    latent_size: int | None = None
    dtype: str | float | Fraction = "bf16"
    block_tokens: int = BLOCK_TOKENS
    tensor_parallel: int = 1
    #: Bytes of one token, and of one block, each rounded up to a whole byte.
    bytes_per_token: int = field(init=False, repr=False, compare=False)
    block_bytes: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("layers", "block_tokens", "tensor_parallel"):
            _positive(name, getattr(self, name))
        bits = self.layers * self._values() * _bits(self.dtype)
        object.__setattr__(self, "bytes_per_token", math.ceil(bits / 8))
        object.__setattr__(self, "block_bytes", math.ceil(bits * self.block_tokens / 8))
        if self.block_bytes > amounts.MAX_BYTES:
            raise ValueError(f"a block of {self.block_bytes} bytes is beyond 2^63-1; check the sizes of the layout")

    def _values(self) -> int:
        """Values that one layer keeps for one token on this device."""
        if self.latent_size is not None:
            if self.kv_heads is not None or self.head_size is not None:
                raise ValueError("a latent cache has no heads: give latent_size, or kv_heads and head_size")
            return _positive("latent_size", self.latent_size)
        if self.kv_heads is None or self.head_size is None:
            raise ValueError("give kv_heads and head_size, or latent_size for a model that caches one latent vector")
        heads, devices = _positive("kv_heads", self.kv_heads), self.tensor_parallel
        if heads % devices and devices % heads:
            raise ValueError(
                f"kv_heads {heads} cannot be divided over tensor_parallel {devices}: one must divide the other"
            )
        return 2 * max(1, heads // devices) * _positive("head_size", self.head_size)

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold ``tokens`` of one sequence; rounded up.

        Raises:
            ValueError: Negative tokens, or beyond 2^63-1.
        """
        return -(-_amount("tokens", tokens) // self.block_tokens)

    def blocks_within(self, tokens: int) -> int:
        """Whole blocks that a budget of ``tokens`` allows; rounded down.

        Raises:
            ValueError: Negative tokens, or beyond 2^63-1.
        """
        return _amount("tokens", tokens) // self.block_tokens

    def tokens_of_blocks(self, blocks: int) -> int:
        """Tokens that ``blocks`` hold when they are full; exact.

        Raises:
            ValueError: Negative blocks, or tokens beyond 2^63-1.
        """
        return _amount("tokens", _amount("blocks", blocks) * self.block_tokens)

    def bytes_for(self, tokens: int) -> int:
        """Bytes of the blocks that hold ``tokens`` of one sequence; rounded up.

        Raises:
            ValueError: Negative tokens, or bytes beyond 2^63-1.
        """
        return _amount("bytes", self.blocks_for(tokens) * self.block_bytes)

    def blocks_in(self, size: int | str) -> int:
        """Whole blocks that fit into ``size`` bytes, or a text such as ``"4GiB"``; rounded down.

        Raises:
            ValueError: Not an amount of memory, negative, or beyond 2^63-1.
        """
        return amounts.parse_bytes(size) // self.block_bytes

    def tokens_in(self, size: int | str) -> int:
        """Tokens of the whole blocks that fit into ``size`` bytes, or a text such as ``"4GiB"``; rounded down.

        Raises:
            ValueError: Not an amount of memory, negative, or beyond 2^63-1 bytes or tokens.
        """
        return self.tokens_of_blocks(self.blocks_in(size))

    def share(
        self, *, weight: int = 1, min_tokens: int = 0, max_tokens: int | None = None
    ) -> arbiter_service_pb2.KvShare:
        """The ``kv`` that ``client.lease`` takes for an engine with these blocks.

        Args:
            weight: Its part relative to other engines', 1 to 1 000 000.
            min_tokens: Tokens it keeps even when others want more.
            max_tokens: Tokens it can never exceed; absent: no limit of its own.

        Raises:
            ValueError: Negative tokens, a least above the most, or a weight or a block beyond what a request can say.
        """
        if not 1 <= weight <= 1_000_000:
            raise ValueError(f"weight {weight} is not between 1 and 1000000")
        if self.block_tokens >= 2**31:
            raise ValueError(f"block_tokens {self.block_tokens} is more than a request can say; at most 2^31-1")
        if max_tokens is not None and _amount("min_tokens", min_tokens) > _amount("max_tokens", max_tokens):
            raise ValueError(f"min_tokens {min_tokens} is above max_tokens {max_tokens}")
        return arbiter_service_pb2.KvShare(
            share_weight=weight,
            min_tokens=_amount("min_tokens", min_tokens),
            max_tokens=max_tokens,
            block_tokens=self.block_tokens,
        )


def _bits(dtype: str | float | Fraction) -> Fraction:
    """Bits of one value."""
    if isinstance(dtype, str):
        if dtype not in KV_BITS:
            raise ValueError(
                f"dtype {dtype!r} is not known; give the bits of one value, or one of {', '.join(KV_BITS)}"
            )
        return KV_BITS[dtype]
    if not (math.isfinite(dtype) and 0 < dtype <= MAX_BITS):
        raise ValueError(f"dtype {dtype} is not a number of bits; above 0 and at most {MAX_BITS}, such as 16 or 4.5")
    return Fraction(dtype)


def _positive(name: str, value: int) -> int:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} {value!r} is not a whole number of at least 1")
    return value


def _amount(name: str, value: int) -> int:
    if value < 0:
        raise ValueError(f"{name} {value} is negative; give 0 or more")
    if value > amounts.MAX_BYTES:
        raise ValueError(f"{name} {value} is beyond 2^63-1; ask for less, or check the sizes of the layout")
    return value
