"""The small model has learnt its text, and answers in its words."""

from __future__ import annotations

import math

import pytest

from examples.engines.tiny_lm import TinyLm


@pytest.fixture(scope="module")
def model() -> TinyLm:
    model = TinyLm(seed=3)
    model.resize(model.rungs[-1])
    return model


def test_surprise_is_far_below_guessing_when_the_sentence_was_read(model: TinyLm) -> None:
    # One word in four would already be a surprise of ln 4.
    assert model.surprise(
        "The arbiter measures what each worker holds and compares it with what the worker says."
    ) < math.log(4)


def test_surprise_is_below_guessing_when_the_sentence_is_new(model: TinyLm) -> None:
    guessing = math.log(model.vocabulary_size)

    assert model.surprise("A smaller worker gives the memory back and the others grow again.") < guessing


def test_surprise_is_greater_when_the_words_are_out_of_order(model: TinyLm) -> None:
    ordered = "The fires are free again, and the soup becomes rich and the cake becomes tall."
    shuffled = "Cake the rich again free and are, becomes soup tall the and becomes fires the."

    assert model.surprise(ordered) + 1 < model.surprise(shuffled)


def test_answer_goes_on_in_the_words_of_the_text_when_prompted(model: TinyLm) -> None:
    for prompt in model.prompts:
        (answer,) = model.answer([prompt])
        assert answer
        assert model.surprise(f"{prompt} {answer}") < math.log(model.vocabulary_size)


def test_answer_is_repeatable_when_the_seed_is_the_same() -> None:
    answers = []
    for _ in range(2):
        model = TinyLm(seed=5)
        model.resize(model.rungs[-1])
        answers.append(model.answer(["Sometimes a worker"]))

    assert answers[0] == answers[1]


def test_engine_refuses_when_never_resized() -> None:
    model = TinyLm()
    with pytest.raises(RuntimeError, match="resize"):
        model.answer(["A worker"])
    with pytest.raises(RuntimeError, match="resize"):
        model.surprise("A worker is a program")


def test_surprise_refuses_when_no_word_is_known(model: TinyLm) -> None:
    with pytest.raises(ValueError, match="two known words"):
        model.surprise("Xyzzy plugh")
