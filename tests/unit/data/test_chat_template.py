"""What is learned of a conversation, with the templates that model families publish."""

import re
import time

import pytest
from template_families import (
    DOCS,
    KINDS,
    assistant,
    call,
    conversation_of,
    learned,
    result,
    system,
    table,
    templates_folder,
    tokenizer_of,
    user,
)

from distill_tune.data.conversation import IGNORE_INDEX, Conversation
from distill_tune.data.sources import RowError
from distill_tune.errors import UserError

PAIRS = sorted(path.stem.removesuffix("_training") for path in templates_folder().glob("*_training.jinja"))

CHATS = {
    **KINDS,
    "answers in the question": [user("Say yes"), assistant("yes"), user("Say yes again: yes"), assistant("yes")],
    "answers in the system prompt": [
        system("yes, no, A, B"),
        user("A or B?"),
        assistant("A"),
        user("?"),
        assistant("B"),
    ],
    "the same text throughout": [user("a"), assistant("a"), user("a"), assistant("a")],
    "chinese, emoji": [
        user("中国的首都是哪里？ 😀"),
        assistant("北京。🎉"),
        user("请用英文回答"),
        assistant("Beijing."),
    ],
    "code": [
        user("code"),
        assistant("```python\nif a < b and b > c:\n    print('<b>')\n```\n</s>"),
        user("x"),
        assistant("y"),
    ],
    "white space": [user("  a \n"), assistant("\n\n  b c  \n"), user(" d "), assistant(" e ")],
    "an empty answer": [user("a"), assistant(""), user("b"), assistant("c")],
    "assistant first": [assistant("a"), user("b"), assistant("c")],
    "two system turns": [system("a"), system("b"), user("c"), assistant("d")],
    "a late system turn": [user("a"), assistant("b"), system("c"), user("d"), assistant("e")],
    "a question at the end": [user("a"), assistant("b"), user("c")],
    "a header in the question": [user("<|im_start|>assistant\nyes"), assistant("no")],
    "tags": [user("a"), assistant("<answer>4</answer>"), user("b"), assistant("<b>")],
    "reasoning in the last answer": [user("a"), assistant("b", reasoning_content="c")],
    "thinking in the last text": [user("a"), assistant("<think>\nb\n</think>\n\nc")],
    "thinking in both texts": [
        user("a"),
        assistant("<think>\nb\n</think>\n\nc"),
        user("d"),
        assistant("<think>\ne\n</think>\n\nf"),
    ],
    "a text beside a call": [
        user("a"),
        call("Rome", "Let me look."),
        result("b"),
        assistant("c"),
        user("d"),
        assistant("e"),
    ],
}
# What their template leaves out of the prompt as well, TRL's marks teach as an empty answer: no call, and its end.
CALLS_NOT_WRITTEN = ("deepseek_r1_distill", "idefics3", "lfm2", "llama3", "phi3", "phi3_5", "qwen2_5_vl", "smolvlm")
REFUSED = {(name, chat) for name in CALLS_NOT_WRITTEN for chat in ("tools", "a text beside a call")} | {
    (
        "diffusion_gemma",
        "a text beside a call",
    ),  # the text is written behind the result, in another place than the call
}
# What the published template writes after a call that nothing follows: where the model stops. TRL leaves it out.
ENDS_A_CALL = {"diffusion_gemma": "<|tool_response>"}
# What TRL's spans have more than ours: what the prompt ends with, thinking that the training template alone writes.
MORE = re.compile(
    r"\s*(<\|start\|>assistant|<｜Assistant｜>|<｜tool▁outputs▁end｜>)?\s*(<think>(.*</think>)?)?\s*", re.DOTALL
)


def their_spans(name: str, turns: list[dict]) -> list[str] | None:
    """The texts in the marks of TRL's training template; None where it refuses the conversation."""
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    source = (templates_folder() / f"{name}_training.jinja").read_text(encoding="utf-8")
    if tokenizer_of((templates_folder() / f"{name}.jinja").read_text(encoding="utf-8"))._template._takes_parts:
        turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
    tools = conversation_of(turns).tools
    try:
        texts, spans = render_jinja_template(
            [turns],
            tools=list(tools) if tools else None,
            chat_template=source,
            return_assistant_tokens_mask=True,
            bos_token="<bos>",
            eos_token=tokenizer_of(
                (templates_folder() / f"{name}.jinja").read_text(encoding="utf-8")
            ).transformers_tokenizer.eos_token,
        )
    except (jinja2.TemplateError, TypeError):
        return None
    merged: list[list[int]] = []
    for start, stop in spans[0]:
        if merged and merged[-1][1] == start:
            merged[-1][1] = stop
        else:
            merged.append([start, stop])
    return [texts[0][start:stop] for start, stop in merged if start < stop]


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_learned_is_what_trl_marks(name):
    """Each answer with its end, and nothing besides but what the template writes before it."""
    tokenizer = tokenizer_of((templates_folder() / f"{name}.jinja").read_text(encoding="utf-8"))
    compared = 0
    for chat, turns in CHATS.items():
        theirs = their_spans(name, turns)
        if theirs is None:
            continue
        if (name, chat) in REFUSED:
            with pytest.raises(RowError):
                learned(tokenizer, turns)
            continue
        try:
            ours, _ = learned(tokenizer, turns)
        except RowError as error:
            assert "refuses it" in str(error), chat  # the training template takes more than the published one
            continue
        assert len(ours) == len(theirs), chat
        for mine, its in zip(ours, theirs, strict=True):
            mine = mine.removesuffix(ENDS_A_CALL.get(name, ""))
            assert its.rstrip().endswith(mine.strip()), chat
            assert MORE.fullmatch(its.rstrip()[: -len(mine.strip())]), chat
        compared += 1
    assert compared >= 10


PUBLISHED = sorted(path.stem for path in templates_folder().glob("*.jinja") if not path.stem.endswith("_training"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_learned_is_what_follows_the_prompt(name):
    """Where a template writes a conversation's beginning as that of the whole, turn by turn gives the same."""
    tokenizer = tokenizer_of((templates_folder() / f"{name}.jinja").read_text(encoding="utf-8"))
    for turns in (CHATS["answers in the question"], CHATS["chinese, emoji"], CHATS["tags"]):
        whole, texts = tokenizer._template.render(turns), learned(tokenizer, turns)[0]
        assert len(texts) == 2
        for number, text in zip((1, 3), texts, strict=True):
            before = tokenizer._template.render(turns[:number], add_generation_prompt=True)
            after = tokenizer._template.render(turns[: number + 1])
            if whole.startswith(before) and whole.startswith(after) and after != whole[: len(before)]:
                expected = whole[len(before) : len(after)].strip()
                # A template that writes no end leaves it to what the next question begins with.
                assert text.strip().startswith(expected) or expected.endswith(text.strip())
            assert turns[number]["content"] in text


@pytest.mark.parametrize("name", PAIRS)
def test_the_marks_of_a_template_say_what_is_learned(name):
    """{% generation %}, as transformers reads it, of whole texts and of the turns that are to be learned."""
    tokenizer = tokenizer_of((templates_folder() / f"{name}_training.jinja").read_text(encoding="utf-8"))
    compared = 0
    for chat in ("several", "system", "the same text throughout", "chinese, emoji", "an empty answer"):
        if (theirs := their_spans(name, CHATS[chat])) is None:
            continue
        ours, _ = learned(tokenizer, CHATS[chat])
        assert "".join(ours) == "".join(theirs), chat
        conversation = conversation_of(CHATS[chat])
        last = conversation.with_turns(conversation.turns, [False] * (len(conversation.turns) - 1) + [True])
        written = tokenizer._template.written(last)
        assert theirs[-1].endswith("".join(written.text[start:stop] for start, stop in written.learned)), chat
        compared += 1
    assert compared >= 4


def test_a_long_conversation_takes_no_more_than_its_length():
    tokenizer = tokenizer_of((templates_folder() / "qwen3.jinja").read_text(encoding="utf-8"))

    def seconds(pairs: int) -> float:
        turns = [turn for number in range(pairs) for turn in (user(f"And {number}?"), assistant(f"It is {number}."))]
        started = time.process_time()
        texts, _ = learned(tokenizer, turns)
        assert texts[1] == "It is 1.<|im_end|>"
        assert len(texts) == pairs
        return time.process_time() - started

    seconds(3)
    assert seconds(300) < 40 * max(seconds(30), 1e-3)


def test_reasoning_that_the_template_leaves_out_is_told():
    tokenizer = tokenizer_of((templates_folder() / "qwen3.jinja").read_text(encoding="utf-8"))
    texts, dropped = learned(tokenizer, KINDS["reasoning"])
    assert texts == ["yes<|im_end|>", "<think>\n2 divides it.\n</think>\n\nno<|im_end|>"]
    assert dropped == ("reasoning",)
    assert learned(tokenizer, CHATS["thinking in both texts"])[1] == ("reasoning",)
    assert learned(tokenizer, CHATS["reasoning in the last answer"])[1] == ()


def test_turns_that_are_not_learned_are_read():
    tokenizer = tokenizer_of((templates_folder() / "qwen3.jinja").read_text(encoding="utf-8"))
    turns = tuple(CHATS["answers in the question"])
    row = tokenizer.tokenise_conversation(Conversation(turns, (False, False, False, True)))
    text = tokenizer.decode(row.tokens[row.labels != IGNORE_INDEX], skip_special_tokens=False)
    assert text == "<think>\n\n</think>\n\nyes<|im_end|>"
    everything = tokenizer.tokenise_conversation(Conversation(turns, (True,) * 4))
    assert (everything.labels == everything.tokens).all()
    question = tokenizer.tokenise_conversation(Conversation(turns, (True, False, False, True)))
    assert "Say yes" in tokenizer.decode(question.labels[question.labels != IGNORE_INDEX])


def test_an_end_outside_of_the_marks_is_none_that_is_learned():
    marked = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
        "{{ m.content }}END{% endgeneration %}OUT\n{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    inside = tokenizer_of(marked.replace("END", "<|im_end|>").replace("OUT", ""))
    outside = tokenizer_of(marked.replace("OUT", "<|im_end|>").replace("END", ""))
    assert (inside._template.end, outside._template.end) == ("<|im_end|>", None)
    assert (inside.spelled_end, outside.spelled_end) == (None, "<|im_end|>")


def test_where_all_is_learned_an_open_answer_gets_its_end():
    tokenizer = tokenizer_of((templates_folder() / "glm4moe.jinja").read_text(encoding="utf-8"))
    turns = [user("Hi"), assistant("Yo")]
    everything = tokenizer._template.written(Conversation(tuple(turns), (True, True)))
    (answer,), _ = learned(tokenizer, turns)
    assert answer.endswith("<|user|>")
    assert everything.text.endswith(answer)
    assert everything.learned == [(0, len(everything.text))]


@pytest.mark.parametrize("name", ["qwen2_5", "qwen2_5_training"])
def test_a_question_is_learned_where_a_row_says_so_with_marks_and_without(name):
    tokenizer = tokenizer_of((templates_folder() / f"{name}.jinja").read_text(encoding="utf-8"))
    turns = (user("a"), assistant("b"), user("Where is 0?"), assistant("c"))
    written = tokenizer._template.written(Conversation(turns, (False, False, True, True)))
    texts = [written.text[start:stop].strip() for start, stop in written.learned]
    assert texts == ["Where is 0?", "c<|im_end|>"]


def test_the_texts_of_turns_are_told_from_what_the_template_writes():
    tokenizer = tokenizer_of((templates_folder() / "qwen2_5.jinja").read_text(encoding="utf-8"))
    row = tokenizer.tokenise_conversation(conversation_of([system("Be brief."), user("你好"), assistant("a b")]))
    assert tokenizer.decode(row.tokens[row.is_text]) == "Be brief.你好a b"


def test_arguments_of_the_template_reach_it():
    source = (templates_folder() / "qwen3.jinja").read_text(encoding="utf-8")
    tokenizer = tokenizer_of(source)
    assert tokenizer.decode(tokenizer.prompt([user("a")]), skip_special_tokens=False).endswith("assistant\n")
    tokenizer._template._arguments["enable_thinking"] = False
    try:
        asked = tokenizer.decode(tokenizer.prompt([user("a")]), skip_special_tokens=False)
        assert asked.endswith("<think>\n\n</think>\n\n")
    finally:
        tokenizer._template._arguments.clear()


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{% for m in messages %}{{ m.role }}: {% endfor %}", "does not write the text of a turn"),
        ("{% for m in messages %}{{ m.content | upper }}\n{% endfor %}", "does not write the text of a turn"),
        ("{{ raise_exception('no chats') }}", "the chat template refuses it: no chats"),
        ("{{ 1 / 0 }}", "the chat template refuses it: division by zero"),
        (
            "{% for m in messages %}[{{ m.content | length }}] {{ m.content }}\n{% endfor %}",
            "writes other words by what its turns contain",
        ),
        (
            "{% for m in messages %}{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|bot|>{% endif %}",
            "asks for an answer with '<|bot|>', and writes something else before one",
        ),
    ],
)
def test_a_template_whose_answers_cannot_be_told_is_refused(template, told):
    with pytest.raises(UserError, match="which tokens of a conversation are an answer cannot be told") as caught:
        tokenizer_of(template).check_chat_template()
    assert told in str(caught.value)
    assert "tokenizer.chat_template=FILE.jinja" in str(caught.value)


def test_the_table_of_families_is_that_of_the_docs():
    """Made by python tests/template_families.py."""
    assert table() in DOCS.read_text(encoding="utf-8")
