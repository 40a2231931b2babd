"""llama.cpp's names of the ways in which byte-level tokenizers cut a text into words, by their own definition."""

from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Regex, pre_tokenizers

from distill_tune.errors import UserError

_WORDS = "ByteLevel"  # GPT-2's, which the ByteLevel step does itself
_DIGITS = "Digits one by one"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_CASED = (f"{_BEFORE}{_UPPER}*{_LOWER}+", f"{_BEFORE}{_UPPER}+{_LOWER}*")
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_ENDINGS}|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = rf"{_ENDINGS}|{_BEFORE}\p{{L}}+|\p{{N}}|{_REST}"
_QWEN35 = (
    rf"{_ENDINGS}|{_BEFORE}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}|{_CASED_REST}"
_GPT4O = rf"{_CASED[0]}{_ENDINGS}?|{_CASED[1]}{_ENDINGS}?|\p{{N}}{{1,3}}|{_CASED_REST}"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
_DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-\ud7ff]+", _DIGITS)

# The steps before the byte alphabet, and whether a word that is a token is taken before any merge.
_NAMES: dict[tuple[tuple[str, ...], bool], str] = {
    ((_WORDS,), False): "gpt-2",
    ((_DIGITS, _WORDS), False): "smollm",
    ((_LLAMA3,), True): "llama-bpe",
    ((_LLAMA3,), False): "dbrx",
    ((_QWEN2,), False): "qwen2",
    ((_QWEN35,), False): "qwen35",
    ((_TEKKEN,), True): "tekken",
    ((_GPT4O,), False): "gpt-4o",
    (_DEEPSEEK3, False): "deepseek-v3",
    (_DEEPSEEK_CODER, False): "deepseek-coder",
}
_NORMALISERS = ("NFC",)  # llama.cpp has none: what a text has in another form is other tokens there


def pretokenizer_name(state: Mapping[str, Any]) -> str:
    """tokenizer.ggml.pre.

    Args:
        state: a tokenizer.json.

    Raises:
        UserError: llama.cpp has no name for it.
    """
    normalisers = [step["type"] for step in parts(state.get("normalizer"), "normalizers")]
    if others := [kind for kind in normalisers if kind not in _NORMALISERS]:
        raise _unknown(f"it changes texts first ({others[0]})")
    try:
        steps = tuple(_steps(state.get("pre_tokenizer")))
    except LookupError as error:
        raise _unknown(str(error.args[0])) from error
    whole_words = bool(state["model"].get("ignore_merges"))
    if (name := _NAMES.get((steps, whole_words))) is None:
        raise _unknown(f"{' then '.join(steps)}{', a word that is a token before any merge' if whole_words else ''}")
    return name


def pretokenizer(name: str) -> tuple[Any, bool]:
    """How a byte-level tokenizer of this name cuts a text, bytes included, and whether a word that is a token is taken
    before any merge.

    Raises:
        UserError: no such name is known.
    """
    if (found := next((of for of in _NAMES if _NAMES[of] == name), None)) is None:
        raise UserError(
            f"its tokenizer cuts texts into words as what llama.cpp calls {name}, of which none but "
            f"{', '.join(_NAMES.values())} are read"
        )
    steps, whole_words = found
    cuts: list[Any] = [
        pre_tokenizers.Digits(individual_digits=True)
        if step == _DIGITS
        else pre_tokenizers.Split(Regex(step), "isolated")
        for step in steps
        if step != _WORDS
    ]
    of_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=_WORDS in steps)
    return pre_tokenizers.Sequence([*cuts, of_bytes]), whole_words


def _steps(pre_tokenizer: Any) -> Iterator[str]:
    for step in parts(pre_tokenizer, "pretokenizers"):
        match step:
            case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": words}:
                if words:
                    yield _WORDS
            case {"type": "Digits", "individual_digits": True}:
                yield _DIGITS
            case {"type": "Split", "behavior": "Isolated", "invert": False, "pattern": {"Regex": regex}}:
                yield regex.replace("\r", r"\r").replace("\n", r"\n")
            case _:
                raise LookupError(str(step)[:200])


def parts(component: Any, name: str) -> list[dict[str, Any]]:
    """The steps of a component of tokenizer.json, which may be a sequence.

    Args:
        name: under which a sequence has them.
    """
    if component is None:
        return []
    return component[name] if component["type"] == "Sequence" else [component]


def _unknown(what: str) -> UserError:
    return UserError(
        f"tokenizer.json: how it cuts texts into words has no name in llama.cpp that we know: {what}; llama.cpp's own "
        "converter may know one: --llama-cpp DIR"
    )
