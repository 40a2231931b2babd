"""Which conversations can be learned with which family's chat template: the table of docs/data.md.

    python tests/template_families.py      writes the table anew

The templates are those that the trl package carries, as published by their families.
"""

import functools
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from distill_tune.data.conversation import Conversation
from distill_tune.data.sources import RowError
from distill_tune.data.tokenizer import HFTokenizer, hf_tokenizer
from distill_tune.errors import UserError

DOCS = Path(__file__).parents[1] / "docs" / "data.md"
_ENDS = re.compile(
    r"<\|im_end\|>|<end_of_turn>|<turn\|>|<\|eot_id\|>|<\|END_OF_TURN_TOKEN\|>|<\|return\|>|<｜end▁of▁sentence｜>|<\|end\|>"
    r"|<\|eot\|>|<end_of_utterance>|<\|endoftext\|>"
)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def system(text: str) -> dict[str, Any]:
    return {"role": "system", "content": text}


def call(city: str, text: str = "") -> dict[str, Any]:
    function = {"name": "get_weather", "arguments": {"city": city, "days": 2}}
    return assistant(text, tool_calls=[{"type": "function", "id": "call00001", "function": function}])


def result(text: str) -> dict[str, Any]:
    return {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": text}


TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    },
)

KINDS = {
    "one turn": [user("Is 7 a prime? yes or no"), assistant("yes")],
    "several": [user("Is 7 a prime? yes or no"), assistant("yes"), user("And 8? yes or no"), assistant("no")],
    "system": [system("Say yes or no."), user("Is 7 a prime?"), assistant("yes"), user("And 8?"), assistant("no")],
    "reasoning": [
        user("Is 7 a prime?"),
        assistant("yes", reasoning_content="It has two divisors."),
        user("And 8?"),
        assistant("no", reasoning_content="2 divides it."),
    ],
    "tools": [user("Is it warm in Paris?"), call("Paris"), result("30 degrees"), assistant("yes")],
}


def templates_folder() -> Path:
    import trl

    return Path(trl.__file__).parent / "chat_templates"


@functools.cache
def tokenizer_of(template: str) -> HFTokenizer:
    """Of bytes, and of the template's own tags."""
    tags = sorted(set(re.findall(r"<\|?[A-Za-z_/|｜▁\-0-9]{1,40}\|?>|\[/?[A-Z_]{3,30}\]", template)))
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate(["<bos>", "<eos>", *tags, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>", *tags])
    end = next((tag for tag in tags if _ENDS.fullmatch(tag)), "<eos>")
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token=end)
    theirs.chat_template = template
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return hf_tokenizer(folder)


def conversation_of(turns: list[dict[str, Any]]) -> Conversation:
    tools = TOOLS if any("tool_calls" in turn for turn in turns) else None
    return Conversation(tuple(turns), tuple(turn["role"] == "assistant" for turn in turns), tools)


def learned(tokenizer: HFTokenizer, turns: list[dict[str, Any]]) -> tuple[list[str], tuple[str, ...]]:
    """The texts that are learned of a conversation, and what the template leaves out.

    Raises:
        RowError: the conversation is refused.
        UserError: the template is.
    """
    written = tokenizer._template.written(conversation_of(turns))
    return [written.text[start:stop] for start, stop in written.learned], written.dropped


def verdict(template: str, turns: list[dict[str, Any]]) -> str:
    """``right``, what of it is learned, or ``refused``."""
    tokenizer = tokenizer_of(template)
    answers = [turn for turn in turns if turn["role"] == "assistant"]
    try:
        texts, dropped = learned(tokenizer, turns)
    except (RowError, UserError):
        return "refused"
    assert len(texts) == len(answers)
    for text, turn in zip(texts, answers, strict=True):
        assert turn["content"] in text
        assert text.count(turn["content"] or "Paris") == 1
        assert "prime" not in text and "Say" not in text
        assert ("Paris" in text) == ("tool_calls" in turn)
    if "reasoning" in dropped:
        return "the last answer's alone" if answers[-1]["reasoning_content"] in texts[-1] else "answers without it"
    return f"without {', '.join(dropped)}" if dropped else "right"


def table() -> str:
    """A line for each template."""
    lines = [f"| template | {' | '.join(KINDS)} |", f"| --- |{' --- |' * len(KINDS)}"]
    for path in sorted(templates_folder().glob("*.jinja")):
        if not path.stem.endswith("_training"):
            verdicts = [verdict(path.read_text(encoding="utf-8"), turns) for turns in KINDS.values()]
            lines.append(f"| {path.stem} | {' | '.join(verdicts)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    begin, end = "<!-- templates -->\n", "<!-- /templates -->"
    text = DOCS.read_text(encoding="utf-8")
    before, after = text[: text.index(begin) + len(begin)], text[text.index(end) :]
    DOCS.write_text(before + table() + after, encoding="utf-8")
    sys.stdout.write(table())
