"""Bytes, tokens and blocks of a model's KV cache, by the numbers of real models."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from arbiter_client import KV_BITS, KvLayout
from tests.thorough import examples

LLAMA_3_8B = KvLayout(layers=32, kv_heads=8, head_size=128)
DEEPSEEK_V3 = KvLayout(layers=61, latent_size=512 + 64)
MOST = 2**63 - 1


@pytest.mark.parametrize(
    ("layout", "per_token"),
    [
        (LLAMA_3_8B, 131_072),
        (KvLayout(layers=80, kv_heads=8, head_size=128), 327_680),  # Llama 3 70B
        (KvLayout(layers=80, kv_heads=8, head_size=128, tensor_parallel=4), 81_920),
        (KvLayout(layers=80, kv_heads=8, head_size=128, tensor_parallel=8), 40_960),
        (KvLayout(layers=80, kv_heads=8, head_size=128, tensor_parallel=16), 40_960),
        (KvLayout(layers=40, kv_heads=8, head_size=128), 163_840),  # its first half in a pipeline of two
        (KvLayout(layers=32, kv_heads=32, head_size=128, dtype="fp16"), 524_288),  # Llama 2 7B
        (KvLayout(layers=28, kv_heads=4, head_size=128), 57_344),  # Qwen 2.5 7B
        (KvLayout(layers=24, kv_heads=2, head_size=64), 12_288),  # Qwen 2.5 0.5B
        (KvLayout(layers=12, kv_heads=12, head_size=64, dtype="fp32"), 73_728),  # GPT-2
        (DEEPSEEK_V3, 70_272),
        (KvLayout(layers=61, latent_size=576, tensor_parallel=8), 70_272),
    ],
)
def test_bytes_per_token_are_those_of_the_model(layout: KvLayout, per_token: int) -> None:
    assert layout.bytes_per_token == per_token
    assert layout.block_bytes == 16 * per_token


@pytest.mark.parametrize(
    ("dtype", "per_token"),
    [
        ("bf16", 131_072),
        ("fp8", 65_536),
        ("fp8_e4m3", 65_536),
        ("int4", 32_768),
        (4, 32_768),
        ("q8_0", 69_632),
        (8.5, 69_632),
        ("q4_0", 36_864),
        (Fraction(9, 2), 36_864),
        ((KV_BITS["q8_0"] + KV_BITS["q4_0"]) / 2, 53_248),
    ],
)
def test_bytes_per_token_follow_the_width_of_a_value(dtype: str | float | Fraction, per_token: int) -> None:
    assert KvLayout(layers=32, kv_heads=8, head_size=128, dtype=dtype).bytes_per_token == per_token


def test_what_is_needed_is_rounded_up_when_the_last_block_is_not_full() -> None:
    block = 16 * 131_072
    needs = [(tokens, LLAMA_3_8B.blocks_for(tokens), LLAMA_3_8B.bytes_for(tokens)) for tokens in (0, 1, 16, 17, 8192)]
    assert needs == [(0, 0, 0), (1, 1, block), (16, 1, block), (17, 2, 2 * block), (8192, 512, 1 << 30)]


def test_what_there_is_is_rounded_down_when_the_last_block_does_not_fit() -> None:
    block = 16 * 131_072
    sizes = (0, block - 1, block, 2 * block - 1, "1GiB", "10 GiB")
    assert [LLAMA_3_8B.tokens_in(size) for size in sizes] == [0, 0, 16, 16, 8192, 81_920]
    assert [LLAMA_3_8B.blocks_in(size) for size in sizes] == [0, 0, 1, 1, 512, 5120]
    assert [LLAMA_3_8B.blocks_within(tokens) for tokens in (0, 15, 16, 31, 100)] == [0, 0, 1, 1, 6]
    assert LLAMA_3_8B.tokens_of_blocks(6) == 96


def test_a_token_of_a_fraction_of_a_byte_is_rounded_up_once_per_block() -> None:
    layout = KvLayout(layers=1, latent_size=3, dtype="q4_0", block_tokens=16)
    assert (layout.bytes_per_token, layout.block_bytes) == (2, 27)
    assert (layout.bytes_for(16), layout.tokens_in(27), layout.tokens_in(26)) == (27, 16, 0)


_SIZES = st.integers(1, 200)
_LAYOUTS = st.one_of(
    st.builds(
        KvLayout,
        layers=_SIZES,
        kv_heads=_SIZES,
        head_size=_SIZES,
        dtype=st.sampled_from(sorted(KV_BITS)),
        block_tokens=_SIZES,
    ),
    st.builds(
        KvLayout,
        layers=_SIZES,
        latent_size=_SIZES,
        dtype=st.fractions(Fraction(1, 7), 64, max_denominator=64),
        block_tokens=_SIZES,
    ),
)


@examples(400)
@given(_LAYOUTS, st.integers(0, 10**7), st.integers(0, 10**12))
def test_tokens_fit_exactly_when_their_bytes_do(layout: KvLayout, tokens: int, size: int) -> None:
    assert (layout.bytes_for(tokens) <= size) == (tokens <= layout.tokens_in(size))
    held = layout.tokens_in(size)
    assert layout.bytes_for(held) <= size < layout.bytes_for(held + 1)
    assert held == layout.tokens_of_blocks(layout.blocks_in(size))
    assert layout.tokens_of_blocks(layout.blocks_within(tokens)) <= tokens
    assert tokens <= layout.tokens_of_blocks(layout.blocks_for(tokens)) < tokens + layout.block_tokens


@examples(200)
@given(st.integers(1, 128), st.sampled_from([16, 8, 4]), st.integers(1, 6), st.integers(1, 6))
def test_devices_together_hold_the_whole_cache(layers: int, bits: int, heads: int, devices: int) -> None:
    assume(heads % devices == 0 or devices % heads == 0)
    whole = KvLayout(layers=layers, kv_heads=heads, head_size=64, dtype=bits)
    part = KvLayout(layers=layers, kv_heads=heads, head_size=64, dtype=bits, tensor_parallel=devices)
    assert part.bytes_per_token * devices == whole.bytes_per_token * max(1, devices // heads)


@pytest.mark.parametrize(
    ("made", "complaint"),
    [
        (lambda: KvLayout(layers=0, kv_heads=8, head_size=128), "layers 0 is not a whole number of at least 1"),
        (lambda: KvLayout(layers=-3, kv_heads=8, head_size=128), "layers -3"),
        (lambda: KvLayout(layers=json.loads("32.0"), kv_heads=8, head_size=128), "layers 32.0 is not a whole number"),
        (lambda: KvLayout(layers=32, kv_heads=0, head_size=128), "kv_heads 0"),
        (lambda: KvLayout(layers=32, kv_heads=8, head_size=0), "head_size 0"),
        (lambda: KvLayout(layers=32, kv_heads=8, head_size=128, block_tokens=0), "block_tokens 0"),
        (lambda: KvLayout(layers=32, kv_heads=8, head_size=128, tensor_parallel=0), "tensor_parallel 0"),
        (lambda: KvLayout(layers=32, kv_heads=8, head_size=128, tensor_parallel=3), "one must divide the other"),
        (lambda: KvLayout(layers=32, head_size=128), "give kv_heads and head_size, or latent_size"),
        (lambda: KvLayout(layers=32, kv_heads=8), "give kv_heads and head_size, or latent_size"),
        (lambda: KvLayout(layers=32, kv_heads=8, latent_size=576), "has no heads"),
        (lambda: KvLayout(layers=32, latent_size=0), "latent_size 0"),
        (lambda: KvLayout(layers=32, latent_size=8, dtype="bf61"), "'bf61' is not known; give the bits of one value"),
        (lambda: KvLayout(layers=32, latent_size=8, dtype=0), "above 0 and at most 64"),
        (lambda: KvLayout(layers=32, latent_size=8, dtype=-8), "above 0 and at most 64"),
        (lambda: KvLayout(layers=32, latent_size=8, dtype=65), "above 0 and at most 64"),
        (lambda: KvLayout(layers=32, latent_size=8, dtype=math.inf), "above 0 and at most 64"),
        (lambda: KvLayout(layers=32, latent_size=8, dtype=math.nan), "above 0 and at most 64"),
        (lambda: KvLayout(layers=2**40, latent_size=2**20), r"is beyond 2\^63-1; check the sizes"),
    ],
)
def test_layout_is_refused_when_it_describes_no_cache(made: Callable[[], KvLayout], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        made()


def test_amounts_are_refused_when_negative_or_beyond_64_bits() -> None:
    for ask in (LLAMA_3_8B.blocks_for, LLAMA_3_8B.bytes_for, LLAMA_3_8B.blocks_within, LLAMA_3_8B.tokens_of_blocks):
        with pytest.raises(ValueError, match="-1 is negative; give 0 or more"):
            ask(-1)
        with pytest.raises(ValueError, match=r"is beyond 2\^63-1; ask for less"):
            ask(MOST + 1)
    for amount in (-1, MOST + 1, "much"):
        with pytest.raises(ValueError, match=r"memory|2\^63-1"):
            LLAMA_3_8B.tokens_in(amount)
    with pytest.raises(ValueError, match=r"bytes \d+ is beyond"):
        LLAMA_3_8B.bytes_for(MOST)
    with pytest.raises(ValueError, match=r"tokens \d+ is beyond"):
        LLAMA_3_8B.tokens_of_blocks(MOST)
    assert LLAMA_3_8B.tokens_in(MOST) * LLAMA_3_8B.bytes_per_token <= MOST
    with pytest.raises(ValueError, match=r"tokens \d+ is beyond"):
        KvLayout(layers=1, latent_size=1, dtype=Fraction(1, 7)).tokens_in(MOST)


def test_share_says_what_an_engine_with_these_blocks_asks_for() -> None:
    share = KvLayout(layers=1, latent_size=8, block_tokens=64).share(weight=3, min_tokens=64, max_tokens=6400)
    assert (share.share_weight, share.min_tokens, share.max_tokens, share.block_tokens) == (3, 64, 6400, 64)
    assert not LLAMA_3_8B.share().HasField("max_tokens")


@pytest.mark.parametrize(
    ("weight", "least", "most", "complaint"),
    [
        (0, 0, None, "weight 0 is not between"),
        (10**6 + 1, 0, None, "weight 1000001 is not between"),
        (1, -1, None, "min_tokens -1 is negative"),
        (1, -1, 5, "min_tokens -1 is negative"),
        (1, 0, -5, "max_tokens -5 is negative"),
        (1, 6, 5, "min_tokens 6 is above max_tokens 5"),
    ],
)
def test_share_is_refused_when_a_request_could_not_say_it(
    weight: int, least: int, most: int | None, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        LLAMA_3_8B.share(weight=weight, min_tokens=least, max_tokens=most)
    with pytest.raises(ValueError, match="more than a request can say"):
        KvLayout(layers=1, latent_size=1, block_tokens=2**31).share()
