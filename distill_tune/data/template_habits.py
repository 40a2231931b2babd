"""What a chat template writes around an answer, found out from a few conversations that it is asked for."""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection, Sequence

from distill_tune.data.conversation import Turn
from distill_tune.data.sources import RowError

_PIECES = re.compile(r"<[^<>\s]{1,60}>|\[/?[A-Z_]+\]|.", re.DOTALL)
_OPENS_THINKING = re.compile(r"<(think|thinking|reasoning)>\s*$")

Render = Callable[[Sequence[Turn], bool], str]  # turns, add_generation_prompt


@dataclasses.dataclass(frozen=True)
class Habits:
    """
    Attributes:
        prompt: what follows the text of a question where an answer is asked for.
        generation_prompt: the part of it that asks for an answer; empty for templates that write nothing there.
        header: what of the generation prompt stands before every answer, a tag that opens thinking left out.
        end: what follows an answer that is not the last.
        last_end: what follows the last.
        next_turn: the token that a further question begins with; empty where that is none.
    """

    prompt: str
    generation_prompt: str
    header: str
    end: str
    last_end: str
    next_turn: str

    @classmethod
    def of(cls, render: Render, added_tokens: Collection[str]) -> "Habits":
        """
        Raises:
            RowError: the template refuses a plain conversation.
        """
        turns = probe("user", "assistant", "user", "assistant")
        prompt = after_last(render, turns[:1], True)
        end_of_question = common_start(prompt, after_last(render, turns[:1]))
        generation_prompt = prompt.removeprefix(end_of_question)
        # Before the last answer some templates write more than before others.
        written = [_before(render, turns[:count], answer) for count, answer in ((2, 1), (4, 1), (4, 3))]
        headers = [text[max(text.find(end_of_question), 0) + len(end_of_question) :] for text in written]
        header = _OPENS_THINKING.sub("", functools.reduce(common_start, headers, generation_prompt))
        last_end, following = after_last(render, turns[:2]), _before(render, turns[:3], 2)
        end = common_start(last_end, following)
        if generation_prompt:  # gpt-oss, say, ends the last answer with another token
            try:
                asked_again = after_last(render, turns[:2], True)
            except RowError:
                asked_again = ""
            asked_end = asked_again.removesuffix(generation_prompt)
            if asked_end != asked_again and following.startswith(asked_end.rstrip()):
                end = asked_end
        next_turn = pieces(following[len(end) :])[:1]
        is_token = next_turn and len(next_turn[0]) > 1 and next_turn[0] in added_tokens
        return cls(prompt, generation_prompt, header, end, last_end, next_turn[0] if is_token else "")


def probe(*roles: str) -> list[Turn]:
    """Turns whose texts cannot be confused."""
    texts = {"user": "How many are there?", "assistant": "There are three."}
    return [{"role": role, "content": f"{texts[role]} {number}{number}"} for number, role in enumerate(roles, 1)]


def after_last(render: Render, turns: Sequence[Turn], add_generation_prompt: bool = False) -> str:
    """What follows the text of the last turn."""
    return render(turns, add_generation_prompt).rpartition(turns[-1]["content"])[2]


def _before(render: Render, turns: Sequence[Turn], number: int) -> str:
    """What stands between the text of a turn and that of the one before."""
    before, after = (turn["content"] for turn in turns[number - 1 : number + 1])
    return render(turns, False).partition(before)[2].partition(after)[0]


def pieces(text: str) -> list[str]:
    """Tags and characters."""
    return _PIECES.findall(text)


def common_start(left: str, right: str) -> str:
    """What two texts begin with alike, tags whole or not at all."""
    common = []
    for mine, its in zip(pieces(left), pieces(right), strict=False):
        if mine != its:
            break
        common.append(mine)
    return "".join(common)
