"""A conversation as a chat template writes it, and which characters of that are whose.

Nothing is looked for by its text. A conversation is rendered twice: as it is, and with a character of its own, which no
template knows, at both ends of every text. Where the second without those characters is the first, they tell where each
text went, how often, and whether it was written at all. What the template writes around an answer is learned from four
conversations that it is asked for once.
"""

import bisect
import dataclasses
import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distill_tune.data import dates
from distill_tune.data.conversation import Conversation, Turn
from distill_tune.data.sources import RowError
from distill_tune.data.template_habits import Habits, after_last, common_start, pieces, probe
from distill_tune.data.turn_marks import Mark, TurnMarks
from distill_tune.errors import UserError

Span = tuple[int, int]

# Without a template: a new line after each question, the end-of-sequence token after each answer.
PLAIN = (
    "{{ bos_token }}{% for message in messages %}{{ message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
)


@dataclasses.dataclass(frozen=True)
class Written:
    """
    Attributes:
        text: the whole conversation.
        learned: the characters to be learned, ends of turns included.
        texts: the characters that are the texts of turns, and not the template's own.
        dropped: what the template leaves out, by name.
    """

    text: str
    learned: list[Span]
    texts: list[Span]
    dropped: tuple[str, ...] = ()


class ChatTemplate:
    """
    Args:
        tokenizer: of transformers; its ``chat_template`` is used.
        arguments: given to the template besides the conversation: ``enable_thinking`` and the like.
        name: for messages.
    """

    def __init__(self, tokenizer: Any, arguments: Mapping[str, Any], name: str) -> None:
        self._tokenizer, self._arguments, self._name = tokenizer, dict(arguments), name
        self._prompts: dict[str, str] = {}  # by the role of the turn before, where there is no generation prompt

    def render(self, turns: Sequence[Turn], tools: Any = None, add_generation_prompt: bool = False) -> str:
        """
        Raises:
            RowError: the template refuses it.
        """
        return self._rendered(turns, tools, add_generation_prompt)[0]

    def written(self, conversation: Conversation) -> Written:
        """
        Raises:
            RowError: the template refuses the conversation, leaves a learned turn out, or writes it so that its place
                cannot be told.
            UserError: the template cannot be used at all.
        """
        self.check()
        conversation, text, generated, marks, missing = self._first_that_is_written(conversation)
        dropped = _dropped(conversation, missing)
        texts = _texts(marks)
        if all(conversation.learned):
            return Written(*self._whole(conversation, marks, text), texts, dropped)
        if self._has_generation_marks:
            learned = self._by_its_own_marks(conversation, marks, generated)
        else:
            learned, text = self._by_habits(conversation, marks, text)
        return Written(text, sorted(learned), texts, dropped)

    def _whole(self, conversation: Conversation, marks: list[tuple[int, Mark]], text: str) -> tuple[str, list[Span]]:
        """The text with an end where the template leaves the last answer open, and the span of it all."""
        if not self._has_generation_marks and conversation.turns[-1]["role"] == "assistant":
            only_last = [False] * (len(conversation.turns) - 1) + [True]
            _, text = self._by_habits(conversation.with_turns(conversation.turns, only_last), marks, text)
        return text, [(0, len(text))]

    def check(self) -> None:
        """
        Raises:
            UserError: what of this template is an answer cannot be told.
        """
        if fault := self._fault:
            raise UserError(
                f"{self._name}: which tokens of a conversation are an answer cannot be told of its chat template: "
                f"{fault}; name another with tokenizer.chat_template=FILE.jinja, or mark the answers in it with "
                "{% generation %}"
            )

    @property
    def end(self) -> str | None:
        """The token that ends an answer, where the template writes one: where the model is to stop."""
        self.check()
        turns = probe("user", "assistant")
        after = after_last(self._plain, turns)
        if self._has_generation_marks:  # where they leave the end out, it is not learned
            written = self.written(Conversation(tuple(turns), (False, True)))
            learned = "".join(written.text[start:stop] for start, stop in written.learned)
            after = learned.rpartition(turns[-1]["content"])[2]
        if end := next(self._special_pieces(after), None):
            return end
        return None if after.strip() or self._has_generation_marks else self._end_of_open_answer

    @property
    def spelled_end(self) -> str | None:
        """What the template writes first behind an answer, in the form of a token, whether or not it is one."""
        after = after_last(self._plain, probe("user", "assistant"))
        first = next((piece for piece in pieces(after) if piece.strip()), "")
        return first if len(first) > 1 else None

    # ---- Rendering

    @functools.cached_property
    def _has_generation_marks(self) -> bool:
        return bool(re.search(r"\{%-?\s*generation\s*-?%\}", self._source(None)))

    def _source(self, tools: Any) -> str:
        return self._tokenizer.get_chat_template(None, tools) if self._tokenizer.chat_template else PLAIN

    @functools.cached_property
    def _takes_parts(self) -> bool:
        """Whether a content is a list of parts, as for models that also see, and not a text."""
        turns = probe("user", "assistant")
        faults = []
        for as_parts in (False, True):
            try:
                text, _ = self._rendered(turns, as_parts=as_parts)
            except RowError as error:
                faults.append(str(error))
                continue
            if all(turn["content"] in text for turn in turns):
                return as_parts
        raise RowError(faults[0] if len(faults) == 2 else "it does not write the text of a turn")

    def _first_that_is_written(
        self, conversation: Conversation
    ) -> tuple[Conversation, str, list[Span], list[tuple[int, Mark]], set[Mark]]:
        """The conversation, its calls in the form that the template writes, with its text and the places of its texts.

        Raises:
            RowError: the template writes it in none, or leaves calls that are learned out.
        """
        faults = []
        for form in _forms(conversation):
            try:
                text, generated = self._rendered(form.turns, form.tools)
                marks, missing = self._marks(form.turns, form.tools, text)
            except RowError as error:
                faults.append(error)
                continue
            lost = [mark.turn for mark in missing if mark.field == "tool_calls" and form.learned[mark.turn]]
            if not lost:
                return form, text, generated, marks, missing
            faults.append(RowError(f"the chat template does not write the tool calls of turn {min(lost) + 1}"))
        raise faults[0]

    def _rendered(
        self,
        turns: Sequence[Turn],
        tools: Any = None,
        add_generation_prompt: bool = False,
        as_parts: bool | None = None,
    ) -> tuple[str, list[Span]]:
        """The text, and what stands in the template's generation marks."""
        import jinja2
        from transformers.utils import chat_template_utils

        source = self._source(tools)
        if self._takes_parts if as_parts is None else as_parts:
            turns = [{**turn, "content": [{"type": "text", "text": turn.get("content") or ""}]} for turn in turns]
        try:
            # The day of the run, not of the moment: a run that goes on tomorrow reads the same rows.
            chat_template_utils._compile_jinja_template(source).globals["strftime_now"] = dates.strftime
            rendered: Any = chat_template_utils.render_jinja_template(
                [[{key: value for key, value in turn.items() if value is not None} for turn in turns]],
                tools=list(tools) if tools else None,
                chat_template=source,
                return_assistant_tokens_mask=self._has_generation_marks,
                add_generation_prompt=add_generation_prompt,
                **self._tokenizer.special_tokens_map | self._arguments,
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            raise RowError(f"the chat template refuses it: {error}") from error
        except RecursionError as error:
            raise RowError("the chat template refuses it: it is nested too deeply") from error
        (text,), spans = rendered
        return text, spans[0] if spans else []

    # ---- Where the texts went

    def _marks(
        self, turns: Sequence[Turn], tools: Any, text: str, add_generation_prompt: bool = False
    ) -> tuple[list[tuple[int, Mark]], set[Mark]]:
        """The places of all texts' ends in ``text``, in order, and which texts the template leaves out.

        Raises:
            RowError: the template writes another text where marks are.
        """
        for in_calls, inside_tags in ((True, False), (True, True), (False, False), (False, True)):
            marks = TurnMarks(text, in_calls, inside_tags)
            try:
                marked = self.render(*marks.mark(turns, tools), add_generation_prompt)
            except RowError:
                continue
            if marks.without_marks(marked) == text:
                places = marks.places(marked)
                return places, set(marks.set.values()) - {mark for _, mark in places}
        raise RowError(
            "the chat template writes other words by what its turns contain, so answers cannot be found in it"
        )

    # ---- What is learned

    def _by_its_own_marks(
        self, conversation: Conversation, marks: list[tuple[int, Mark]], generated: list[Span]
    ) -> list[Span]:
        """The template's marks around what an assistant writes, of the turns that are learned."""
        of_turns = [(place, mark.turn) for place, mark in marks if mark.turn >= 0]
        is_answer = [turn["role"] == "assistant" for turn in conversation.turns]
        learned = []
        for start, stop in generated:
            # The answer whose text it has or, where it has none, the turn before it: some mark the end by itself.
            at = first = bisect.bisect_left(of_turns, (start, -1))
            while at < len(of_turns) and of_turns[at][0] <= stop and not is_answer[of_turns[at][1]]:
                at += 1
            if at == len(of_turns) or of_turns[at][0] > stop:
                at = first - 1
            turn = of_turns[at][1] if at >= 0 else 0
            if not is_answer[turn] and is_answer[turn + 1 : turn + 2] == [True]:
                turn += 1  # an answer without text
            if conversation.learned[turn] and is_answer[turn]:
                learned.append((start, stop))
        # Turns of others that are learned, which the template does not mark, by their texts.
        texts: dict[int, list[int]] = {}
        for place, turn in of_turns:
            if conversation.learned[turn] and not is_answer[turn]:
                texts.setdefault(turn, []).append(place)
        learned += [(places[0], places[-1]) for places in texts.values()]
        written = {turn for _, turn in of_turns}
        for turn in _answers(conversation):
            if turn not in written and _has_text(conversation.turns[turn]):
                raise RowError(f"the chat template does not write turn {turn + 1}")
        return learned

    def _by_habits(
        self, conversation: Conversation, marks: list[tuple[int, Mark]], text: str
    ) -> tuple[list[Span], str]:
        """The learned spans, and the text, with an end where the template leaves the last answer open."""
        of_turns = [(place, mark.turn) for place, mark in marks if mark.turn >= 0]
        owned: dict[int, list[int]] = {}
        for index, (_, owner) in enumerate(of_turns):
            owned.setdefault(owner, []).append(index)
        learned = []
        for turn, is_learned in enumerate(conversation.learned):
            if not is_learned:
                continue
            own = owned.get(turn, [])
            if not own and _has_text(conversation.turns[turn]):
                raise RowError(f"the chat template does not write turn {turn + 1}")
            if own and own[-1] - own[0] != len(own) - 1:
                raise RowError(f"the chat template writes turn {turn + 1} in several places")
            if conversation.turns[turn]["role"] != "assistant":
                if own:
                    learned.append((of_turns[own[0]][0], of_turns[own[-1]][0]))
                continue
            left, first, last, right = self._bounds(turn, own, of_turns, len(text))
            start = self._start(conversation, turn, text, left, first)
            if last is None:
                last = start
            stop, added = self._stop(conversation, turn, text, last, right, is_empty=not own)
            if added:
                text, stop = text[:stop] + added, stop + len(added)
            learned.append((start, stop))
        return learned, text

    def _bounds(
        self, turn: int, own: list[int], of_turns: list[tuple[int, int]], length: int
    ) -> tuple[int, int, int | None, int]:
        """The last text before a turn, its own first and last place, and the first text after it."""
        if own:
            left = of_turns[own[0] - 1][0] if own[0] else 0
            right = of_turns[own[-1] + 1][0] if own[-1] + 1 < len(of_turns) else length
            return left, of_turns[own[0]][0], of_turns[own[-1]][0], right
        before = [place for place, owner in of_turns if owner == turn - 1]
        after = [place for place, owner in of_turns if owner == turn + 1]
        left, right = max(before, default=0), min(after, default=length)
        if any(left < place < right for place, _ in of_turns) or left > right:
            raise RowError(f"turn {turn + 1} is empty, and where the chat template writes it cannot be told")
        return left, right, None, right

    def _start(self, conversation: Conversation, turn: int, text: str, left: int, first: int) -> int:
        """Where the generation prompt before an answer ends."""
        habits, between = self._habits, text[left:first]
        at = between.rfind(habits.header) if habits.header else -1
        if at >= 0:
            return left + at + len(common_start(between[at:], habits.generation_prompt))
        prompt = self._prompt_after(conversation, turn)  # such as after the result of a tool
        at = between.find(prompt)
        if at < 0 or not (prompt or turn == 0):
            raise RowError(f"the chat template writes turn {turn + 1} without {habits.header or prompt!r} before it")
        return left + at + len(prompt)

    def _prompt_after(self, conversation: Conversation, turn: int) -> str:
        """What stands between the turn before and an answer, for templates without a generation prompt there."""
        if turn == 0:
            return ""
        role = conversation.turns[turn - 1]["role"]
        if role == "user":
            return self._habits.prompt
        if role not in self._prompts:
            self._prompts[role] = self._rest(conversation, turn - 1, add_generation_prompt=True)
        return self._prompts[role]

    def _rest(self, conversation: Conversation, turn: int, add_generation_prompt: bool = False) -> str:
        """What is written behind the last text of a turn, where it is the last."""
        turns, tools = conversation.turns[: turn + 1], conversation.tools
        text = self.render(turns, tools, add_generation_prompt)
        marks, _ = self._marks(turns, tools, text, add_generation_prompt)
        return text[max((place for place, mark in marks if mark.turn == turn), default=len(text)) :]

    def _stop(
        self, conversation: Conversation, turn: int, text: str, last: int, right: int, is_empty: bool
    ) -> tuple[int, str]:
        """Where the end of an answer ends, and what is to be added to the text for it."""
        is_last = turn == len(conversation.turns) - 1
        calls = bool(conversation.turns[turn].get("tool_calls"))
        end = self._habits.last_end if is_last else self._habits.end
        after = text[last:right]
        at = after.find(end) if end.strip() else -1
        if at >= 0:
            return last + at + len(end.rstrip()), ""
        if not calls and end.strip():
            raise RowError(f"the chat template writes {after[:40]!r} after turn {turn + 1}, not {end!r}")
        if is_empty and not is_last:
            at = after.find(self._habits.next_turn) if self._habits.next_turn else -1
            if at < 0:
                raise RowError(f"turn {turn + 1} is empty, and where the chat template ends it cannot be told")
            return last + at + len(self._habits.next_turn), ""
        # A call may end otherwise than an answer, and an answer with what the next turn begins with.
        rest = after if is_last else self._rest(conversation, turn) if calls else ""
        if not after.startswith(rest.rstrip()):
            raise RowError(f"the chat template writes turn {turn + 1} otherwise before other turns")
        stop = last + len(rest.rstrip())
        if end.strip():
            return stop, ""
        if is_last:
            return stop, self._end_of_open_answer
        following = next(iter(pieces(after[len(rest) :].lstrip())), "")
        if following in self._added_tokens and not self._habits.header.startswith(following):
            return text.index(following, stop) + len(following), ""
        return stop, ""

    @property
    def _end_of_open_answer(self) -> str:
        """What ends a last answer after which the template writes nothing: what the next question would begin with."""
        return self._habits.next_turn or self._tokenizer.eos_token or ""

    # ---- What it writes around an answer

    @functools.cached_property
    def _fault(self) -> str:
        """Why the template cannot be used; empty where it can."""
        try:
            if self._has_generation_marks:
                self.render(probe("user", "assistant"))
                return ""
            habits = self._habits
            if habits.generation_prompt and not habits.header:
                return f"it asks for an answer with {habits.generation_prompt!r}, and writes something else before one"
            asked = probe("user", "assistant", "user", "assistant")
            for turns in (asked[:2], asked):
                answers = [turn["role"] == "assistant" for turn in turns]
                conversation = Conversation(tuple(turns), tuple(answers))
                text = self.render(turns)
                marks, _ = self._marks(turns, None, text)
                spans, text = self._by_habits(conversation, marks, text)
                wanted = [turn["content"] for turn in turns if turn["role"] == "assistant"]
                found = [text[start:stop] for start, stop in spans]
                if len(found) != len(wanted) or any(w not in f for w, f in zip(wanted, found, strict=True)):
                    return "an answer is not where it was asked for"
        except RowError as error:
            return str(error)
        return ""

    @functools.cached_property
    def _habits(self) -> Habits:
        return Habits.of(self._plain, self._added_tokens)

    def _plain(self, turns: Sequence[Turn], add_generation_prompt: bool) -> str:
        return self.render(turns, None, add_generation_prompt)

    @functools.cached_property
    def _added_tokens(self) -> frozenset[str]:
        return frozenset(str(token) for token in self._tokenizer.added_tokens_decoder.values())

    def _special_pieces(self, text: str) -> Iterator[str]:
        return (piece for piece in pieces(text) if piece in self._added_tokens)


def _forms(conversation: Conversation) -> Iterator[Conversation]:
    """The arguments of calls as mappings, and as JSON text: some templates join it to theirs."""
    yield conversation
    if any(turn.get("tool_calls") for turn in conversation.turns):
        turns = [_with_arguments_as_text(turn) for turn in conversation.turns]
        yield conversation.with_turns(turns, conversation.learned)


def _with_arguments_as_text(turn: Turn) -> Turn:
    def of(call: Any) -> Any:
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), Mapping):
            return call
        return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}

    return {**turn, "tool_calls": [of(call) for call in turn["tool_calls"]]} if turn.get("tool_calls") else turn


def _answers(conversation: Conversation) -> list[int]:
    turns = zip(conversation.turns, conversation.learned, strict=True)
    return [number for number, (turn, is_learned) in enumerate(turns) if is_learned and turn["role"] == "assistant"]


def _has_text(turn: Turn) -> bool:
    return bool(
        (turn.get("content") or "").strip() or (turn.get("reasoning_content") or "").strip() or turn.get("tool_calls")
    )


def _texts(marks: list[tuple[int, Mark]]) -> list[Span]:
    """From the first to the last place of each turn's texts."""
    spans: dict[Mark, Span] = {}
    for place, mark in marks:
        start, stop = spans.get(mark, (place, place))
        spans[mark] = (min(start, place), max(stop, place))
    return sorted(spans.values())


def _dropped(conversation: Conversation, missing: set[Mark]) -> tuple[str, ...]:
    names = set()
    for turn, field in missing:
        if turn < 0:
            names.add("tools")
        elif conversation.turns[turn]["role"] != "assistant":
            names.add(f"{conversation.turns[turn]['role']} turn")
        elif conversation.learned[turn]:
            names.add("reasoning" if field == "reasoning_content" else field)
    return tuple(sorted(names))
