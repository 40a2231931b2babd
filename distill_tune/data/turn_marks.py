"""A character of its own at both ends of every text of a conversation, to see where a template puts it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distill_tune.data.conversation import Turn
from distill_tune.data.sources import RowError

_MARKS = re.compile("[\U00100000-\U0010fffd]")  # private use, plane 16
_THINK = re.compile(r"\s*<(/?)(think|thinking|reasoning)>\s*")
_OPENING, _CLOSING = re.compile(r"<[^<>/\s][^<>\s]*>\s*"), re.compile(r"\s*</[^<>\s]+>$")


class Mark(NamedTuple):
    """Whose end a character marks.

    Attributes:
        turn: its number; -1 for the tools.
        field: ``content``, ``reasoning`` in it, ``reasoning_content``, ``tool_calls`` or ``tools``.
    """

    turn: int
    field: str


class TurnMarks:
    """Puts a character of its own at both ends of each text of a conversation.

    Args:
        text: what is rendered, whose characters are not used.
        in_calls: also in the names and arguments of tools.
        inside_tags: behind a tag that a text begins with, and before one that it ends with; templates look at those.
    """

    def __init__(self, text: str, in_calls: bool, inside_tags: bool) -> None:
        taken = set(_MARKS.findall(text))
        self._free = (mark for mark in map(chr, range(0x100000, 0x10FFFE)) if mark not in taken)
        self._in_calls, self._inside_tags = in_calls, inside_tags
        self.set: dict[str, Mark] = {}
        self._of_answers: set[str] = set()

    def mark(self, turns: Sequence[Turn], tools: Any) -> tuple[list[Turn], Any]:
        marked = [self._turn(number, turn) for number, turn in enumerate(turns)]
        if tools and self._in_calls:
            tools = [self._tool(tool) for tool in tools]
        return marked, tools

    def without_marks(self, marked: str) -> str:
        return _MARKS.sub(lambda found: "" if found[0] in self.set else found[0], marked)

    def places(self, marked: str) -> list[tuple[int, Mark]]:
        """Where the marks of a rendered text stand once they are taken out of it.

        Raises:
            RowError: an answer is written twice.
        """
        own = [found for found in _MARKS.finditer(marked) if found[0] in self.set]
        places, seen = [], set()
        for number, found in enumerate(own):
            mark, again = self.set[found[0]], found[0] in seen
            seen.add(found[0])
            if again and mark.field in ("tool_calls", "tools"):
                continue  # a result names the function that was called
            if again and found[0] in self._of_answers:
                raise RowError(f"the chat template writes turn {mark.turn + 1} twice")
            places.append((found.start() - number, mark))
        return places

    def _turn(self, number: int, turn: Turn) -> Turn:
        marked = dict(turn)
        for field in ("reasoning_content", "content"):
            if isinstance(turn.get(field), str):
                marked[field] = self._text(Mark(number, field), turn[field], turn["role"] == "assistant")
        if turn.get("tool_calls") and self._in_calls:
            marked["tool_calls"] = [self._leaves(Mark(number, "tool_calls"), call) for call in turn["tool_calls"]]
        return marked

    def _tool(self, tool: Any) -> Any:
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            return tool
        return {**tool, "function": {**function, "name": self._text(Mark(-1, "tools"), function["name"], False)}}

    def _leaves(self, mark: Mark, call: Any) -> Any:
        """A call with marks at its name and the texts of its arguments; its kind and number are not looked at."""
        if not isinstance(call, Mapping):
            return call
        inner = call.get("function")
        if isinstance(inner, Mapping):
            return {**call, "function": self._leaves(mark, inner)}
        marked = {name: self._ends(mark, call[name]) for name in ("name", "arguments") if name in call}
        return {**call, **marked}

    def _ends(self, mark: Mark, value: Any) -> Any:
        if isinstance(value, str):
            return self._text(mark, value, False)
        if isinstance(value, Mapping):
            return {key: self._ends(mark, inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._ends(mark, inner) for inner in value]
        return value

    def _text(self, mark: Mark, text: str, may_think: bool) -> str:
        core = text.strip()
        if not core:
            return text
        start = text.index(core)
        stop = start + len(core)
        if self._inside_tags:
            if opening := _OPENING.match(text, start, stop):
                start = opening.end()
            if closing := _CLOSING.search(text[start:stop]):
                stop = start + closing.start()
        cuts = {start, max(start, stop)}
        if may_think:  # a template may keep what is thought, or leave it out
            cuts |= {
                place for tag in _THINK.finditer(text, start, stop) for place in tag.span() if start < place < stop
            }
        pieces, before = [], 0
        for cut in sorted(cuts):
            character = next(self._free)
            self.set[character] = mark if cut == stop or not may_think else self._of_part(mark, text, cut)
            if may_think:
                self._of_answers.add(character)
            pieces += [text[before:cut], character]
            before = cut
        return "".join([*pieces, text[before:]])

    @staticmethod
    def _of_part(mark: Mark, text: str, cut: int) -> Mark:
        """Before the last closing tag it is thinking."""
        closings = [tag.start() for tag in _THINK.finditer(text) if tag[1]]
        return mark._replace(field="reasoning") if closings and cut <= closings[-1] else mark
