"""Turns of a row: in whichever of the field's spellings they are, as chat templates read them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from distill_tune.data.conversation import Conversation, Turn
from distill_tune.data.sources import RowError

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
    "tool_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
    "developer": "system",  # OpenAI's newer name for it; few templates know it
}
_CALLS = ("function_call", "tool_call")  # roles whose content is a call
_REASONING = ("reasoning_content", "reasoning", "thinking")
_MARKS = ("weight", "train", "training", "loss", "loss_mask")
_PART_MARKS = ("train_detail", "training_detail", "loss_scale", "loss_weight")  # learn a part, or by a fraction
_OTHER_SPELLINGS = ("from", "value", "function_call", *_REASONING, *_MARKS, *_PART_MARKS)
# What is read here or by templates in general; what else a turn has goes to the template as well.
KNOWN_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id", *_OTHER_SPELLINGS})


class MarkedTurn(NamedTuple):
    """A turn, and what the row says of it: whether it is to be learned; None where it says nothing."""

    turn: Turn
    mark: bool | None


def turns_of(found: Any, column: str) -> list[MarkedTurn]:
    """
    Args:
        found: a list of turns, or JSON text of one.
        column: that it is from.

    Raises:
        RowError: one that cannot be used, or that says of itself what cannot be heeded.
    """
    found = parsed(found)
    if not isinstance(found, list) or not found:
        raise RowError(f"{column} must be a list of turns, found {kind(found)}")
    turns: list[MarkedTurn] = []
    roles = [turn.get("role", turn.get("from")) if isinstance(turn, Mapping) else None for turn in found]
    for number, (turn, role) in enumerate(zip(found, roles, strict=True), 1):
        marked = _turn(turn, f"turn {number}")
        at_once = number > 1 and role in _CALLS and roles[number - 2] in _CALLS and marked.mark == turns[-1].mark
        if at_once:  # calls that wait for no result are made together
            before = turns.pop().turn
            marked = MarkedTurn({**before, "tool_calls": before["tool_calls"] + marked.turn["tool_calls"]}, marked.mark)
        turns.append(marked)
    return turns


def tools_of(found: Any, column: str) -> tuple[Mapping[str, Any], ...] | None:
    """
    Args:
        found: a list of functions as JSON schemas, or JSON text of one; each may be JSON text, too.

    Raises:
        RowError: something else.
    """
    found = parsed(found)
    if found in (None, "", []):
        return None
    tools = [parsed(tool) for tool in found] if isinstance(found, list) else []
    if not tools or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError(f"{column} must be a list of functions as JSON schemas, found {kind(found)}")
    if column == "functions":  # how OpenAI's rows had them before there were other tools
        return tuple({"type": "function", "function": tool} for tool in tools)
    return tuple(tools)


def mark_of(found: Mapping[str, Any], what: str) -> bool | None:
    """Whether a turn says of itself that it is to be learned; None where it says nothing.

    Raises:
        RowError: it asks for what cannot be done, or contradicts itself.
    """
    if part := next((name for name in _PART_MARKS if found.get(name) not in (None, [], {})), None):
        raise RowError(f"{what} has {part}: a turn is learned whole or not at all; mark it with train: true or false")
    marks = {name: found[name] for name in _MARKS if found.get(name) is not None}
    for name, value in marks.items():
        if value not in (0, 1):
            raise RowError(f"{what} has {name}={value!r}: only 0 and 1, false and true, can be heeded")
    if len({bool(value) for value in marks.values()}) > 1:
        raise RowError(f"{what} contradicts itself: {', '.join(f'{name}={value!r}' for name, value in marks.items())}")
    return next(map(bool, marks.values()), None)


def is_turns(value: Any) -> bool:
    """Whether a column holds turns, and not a text that merely looks like JSON."""
    found = parsed(value)
    return (
        isinstance(found, list)
        and bool(found)
        and all(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in found)
    )


def is_empty(turn: Turn) -> bool:
    """Whether nothing is said in a turn."""
    return not (turn["content"].strip() or turn.get("tool_calls") or (turn.get("reasoning_content") or "").strip())


def learning_answers(
    turns: Sequence[MarkedTurn],
    train_on: str = "all",
    train_on_input: bool = False,
    num_given: int = 0,
    tools: tuple[Mapping[str, Any], ...] | None = None,
    num_empty: int = 0,
) -> Conversation:
    """
    Args:
        num_given: turns at the beginning that are prompt, answers among them included.
        num_empty: answers that were left out since they are empty; those among ``turns`` are counted here.

    Raises:
        RowError: no turn is learned, one that is no answer is marked to be, or nothing is asked.
    """
    if any(turn["role"] == "user" and is_empty(turn) for turn, _ in turns):
        raise RowError("a question is empty")
    is_answer = [turn["role"] == "assistant" and at >= num_given for at, (turn, _) in enumerate(turns)]
    last = max((at for at, answers in enumerate(is_answer) if answers), default=None)
    learned = []
    for at, (turn, mark) in enumerate(turns):
        if train_on == "marked":
            learned.append(bool(mark))
        elif not is_answer[at]:
            if mark and turn["role"] != "assistant" and not train_on_input:
                raise RowError(
                    f"a {turn['role']} turn is marked as one to be learned; train_on: marked learns what is marked, "
                    "train_on_input: true all prompts"
                )
            learned.append(train_on_input and mark is not False)
        else:
            chosen = (train_on == "all" or at == last) and mark is not False
            learned.append(chosen and (bool(mark) or not is_empty(turn)))
            num_empty += chosen and not learned[-1]
    if not any(learned):
        raise RowError("no answer: all turns are empty, or are marked as not to be learned")
    return Conversation(tuple(turn for turn, _ in turns), tuple(learned), tools, num_empty)


def parsed(value: Any) -> Any:
    """A list in a CSV cell is JSON text."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):  # of a number with thousands of digits, too
            return value
    return value


def kind(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def _turn(found: Any, what: str) -> MarkedTurn:
    if not isinstance(found, Mapping):
        raise RowError(f"{what} must have a role and a content, found {kind(found)}")
    role = found.get("role", found.get("from"))
    if not isinstance(role, str) or role not in ROLES:
        raise RowError(f"{what} has the role {role!r}; known are {', '.join(ROLES)}")
    mark = mark_of(found, what)
    content = found.get("content", found.get("value"))
    calls = found.get("tool_calls")
    if role in _CALLS:
        content, calls = "", _parsed_calls(content, what)
    elif calls is None and found.get("function_call") is not None:
        calls = _parsed_calls(found["function_call"], what)
    reasoning = next((found[name] for name in _REASONING if found.get(name) is not None), None)
    if content is None and (calls or reasoning):
        content = ""
    turn: dict[str, Any] = {"role": ROLES[role], "content": _text(content, what)}
    if reasoning is not None:
        if not isinstance(reasoning, str):
            raise RowError(f"{what} has reasoning that is no text: {kind(reasoning)}")
        turn["reasoning_content"] = reasoning
    if calls := parsed(calls):
        turn["tool_calls"] = _tool_calls(calls, what)
    kept = {key: value for key, value in found.items() if key not in _OTHER_SPELLINGS and value is not None}
    return MarkedTurn({**{key: value for key, value in kept.items() if key != "tool_calls"}, **turn}, mark)


def _text(content: Any, what: str) -> str:
    """A content, which may be a list of parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowError(f"{what} has no text, found {kind(content)}")
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else part
        if not isinstance(text, str):
            name = part.get("type") if isinstance(part, Mapping) else None
            raise RowError(f"{what} has a part that is no text: {name or kind(part)}")
        texts.append(text)
    return "".join(texts)


def _parsed_calls(value: Any, what: str) -> Sequence[Any]:
    """What a turn of ShareGPT's function_call holds: one call, or a list of some."""
    found = parsed(value)
    if isinstance(found, Mapping):
        return [found]
    if not isinstance(found, list) or not found:
        raise RowError(f"{what} must be a call, {{name, arguments}} in JSON, found {kind(value)}")
    return found


def _tool_calls(calls: Any, what: str) -> list[dict[str, Any]]:
    """Calls in OpenAI's form, with arguments as a mapping, as templates want them."""
    if not isinstance(calls, list):
        raise RowError(f"{what}: tool_calls must be a list, found {kind(calls)}")
    found = []
    for number, call in enumerate(map(parsed, calls), 1):
        function = parsed(call.get("function", call)) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise RowError(f"{what}: tool call {number} has no function with a name, found {kind(call)}")
        arguments = parsed(function.get("arguments") or {})
        if not isinstance(arguments, Mapping):
            arguments = function["arguments"]  # what is no mapping is the template's to judge
        outside = {key: value for key, value in call.items() if key not in ("function", "name", "arguments")}
        call_itself = {"name": function["name"], "arguments": arguments}
        found.append({"type": "function", **outside, "function": call_itself})
    return found
