"""Which turns of a conversation a model is given when not all of them fit."""

from collections.abc import Sequence
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from edge_client.engine.base import Message
from edge_client.engine.prompt import trimmed

Role = Literal["system", "user", "assistant", "tool"]


class Words:
    """A word is a token; what was asked last is kept."""

    def __init__(self) -> None:
        self.asked = 0
        self.given: list[Message] = []

    def __call__(self, messages: Sequence[Message]) -> list[int]:
        self.asked += 1
        self.given = list(messages)
        return [0] * sum(len(message.content.split()) for message in messages)


def talk(turns: int, words: int = 10) -> list[Message]:
    roles: tuple[Role, Role] = ("user", "assistant")
    return [Message(roles[at % 2], " ".join([f"m{at}"] * words)) for at in range(turns)]


def test_what_fits_is_left_alone() -> None:
    words = Words()
    assert trimmed(talk(5), words, 50) == ([0] * 50, 0) and words.asked == 1


def test_the_oldest_turns_go_and_the_system_stays() -> None:
    words, system = Words(), Message("system", "be kind")
    tokens, dropped = trimmed([system, *talk(5)], words, 40)
    assert (len(tokens), dropped) == (32, 2)
    assert words.given == [system, *talk(5)[2:]], "from a question on, never from an answer"


def test_the_last_question_stays_even_if_it_does_not_fit() -> None:
    words = Words()
    tokens, dropped = trimmed(talk(5), words, 3)
    assert (len(tokens), dropped) == (10, 4) and words.given == talk(5)[-1:]
    assert trimmed(talk(1), words, 3) == ([0] * 10, 0)


def test_a_long_history_is_not_counted_again_for_every_turn() -> None:
    words = Words()
    assert trimmed(talk(4001), words, 100)[1] == 3992
    assert words.asked < 16


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.integers(1, 30)), min_size=1),
       st.integers(1, 200))
def test_it_is_the_most_that_fits(spec: list[tuple[Role, int]], limit: int) -> None:
    messages = [Message(role, "w " * count) for role, count in spec]
    words = Words()
    tokens, dropped = trimmed(messages, words, limit)
    system = [m for m in messages if m.role == "system"]
    turns = [m for m in messages if m.role != "system"]
    fits = [at for at, m in enumerate(turns) if (at == 0 or m.role == "user")
            and len(words([*system, *turns[at:]])) <= limit]
    if fits:
        assert dropped == min(fits) and len(tokens) <= limit
    else:
        last = [at for at, m in enumerate(turns) if m.role == "user" and at]
        assert dropped == (last[-1] if last else 0)
