"""Rows by each pair of real tokenizers and templates: no byte is lost, and where both begin a token is printed (-s)."""

from pathlib import Path

import numpy
import pytest
from real.folders import PARTS, PUBLISHED, write_tokenizer

from distill_tune.alignment.columns import AT, INTO, LAST, OFFSET
from distill_tune.alignment.report import report
from distill_tune.alignment.rows import align
from distill_tune.alignment.token_bytes import split, token_bytes
from distill_tune.config.files import demo_model_folder
from distill_tune.data import hf_tokenizer
from distill_tune.data.conversation import IGNORE_INDEX, Conversation, Tokens, tokenise

ENGLISH = (
    ("Name a river of France.", "The Loire is the longest: it's 1,006 km long, and flows into the Atlantic."),
    ("Why is the sky blue?", "Air scatters blue light more than red.\n\nThat is called Rayleigh scattering."),
    ("Give three tips for staying healthy.", "1. Eat well.\n2. Sleep enough.\n3. Exercise, e.g. walk a mile a day!"),
    ("Write a haiku.", "Old pond --\na frog leaps in:\n    water's sound"),
    ("Translate 'naïve café' into German.", "„Naives Café“; it doesn't change much… 😀👍🏽"),
    ("How do I greet?", "Hello! How are you?   I'm fine,\tthanks."),
    ("Which letters are rare?", "In English: Z, Q, X and J; ﬁ is a ligature, and ½ a fraction."),
    ("Say it in Arabic and Hindi.", "مرحبا بالعالم / नमस्ते दुनिया / สวัสดี"),
    ("Answer in one word.", "Photosynthesis"),
    ("An address?", "Write to someone@example.org, or see https://example.org/a_b?c=%20d#e."),
)
CHINESE = (
    ("给三个保持健康的建议。", "1. 均衡饮食。\n2. 每天锻炼三十分钟。\n3. 保证充足的睡眠，不要熬夜。"),
    ("解释什么是机器学习。", "机器学习是人工智能的一个分支，它让计算机从数据中“学习”，而不必逐条编写规则。"),
    ("写一句诗。", "床前明月光，疑是地上霜。\n举头望明月，低头思故乡。"),
    ("把“你好世界”翻译成英语。", "Hello, world!（你好，世界！）"),
    ("北京有多少人口？", "截至2023年，北京市常住人口约为2185.8万人。"),
    ("生僻字？", "龘、靐、齉，以及 𠮷 和 𨭎。"),
    ("日本語で答えて。", "はい、カタカナとひらがな、漢字があります。"),
    ("한국어로 대답해.", "안녕하세요, 만나서 반갑습니다."),
    ("列出标点。", "，。！？；：“”‘’（）《》……——"),
    ("用一个词回答。", "当然"),
)
CODE = (
    ("Sum a list in Python.", "def total(values):\n    return sum(values)\n\n\nprint(total([1, 2, 3]))"),
    ("A loop in C?", 'for (int i = 0; i < 10; i++) {\n\tprintf("%d\\n", i);\n}'),
    ("A class?", "class Point:\n    def __init__(self, x: float, y: float) -> None:\n        self.x, self.y = x, y"),
    ("JSON, please.", '{"name": "a", "list": [1, 2.5, null, true], "nested": {"": "\\u00e9"}}'),
    ("A shell line?", "find . -name '*.py' -print0 | xargs -0 grep -n \"TODO\" > out.txt 2>&1"),
    ("SQL?", "SELECT name, COUNT(*) FROM users\r\nWHERE age >= 18\r\nGROUP BY name;"),
    ("HTML?", '<p class="a">x &amp; y<br/></p>\n<!-- <b>not the end</b> -->'),
    ("LaTeX?", "\\frac{1}{2} \\sum_{i=1}^{n} x_i^2 \\leq \\alpha"),
    ("A table?", "| a | b |\n|---|---|\n| 1 | 2 |"),
    ("Regex?", "^\\s*[A-Za-z_]\\w*(?:\\.\\w+)*\\s*=\\s*.+$"),
)
NUMERALS = (
    ("How much is 2 + 2?", "4"),
    ("Pi?", "3.14159265358979"),
    ("The year?", "2024"),
    ("7 * 13?", "7 * 13 = 91, so the answer is 91."),
    ("Count.", "1 2 3 4 5 6 7 8 9 10 11 12 100 1000 10000 1000000"),
    ("A price?", "$1,234.56, or €1.234,56, or ￥８８８"),
    ("A date?", "2024-02-29T12:34:56+01:00"),
    ("Hex?", "0xDEADBEEF = 3735928559"),
    ("Exponent?", "6.022e23 and 1.6e-19, x² + y³"),
    ("A phone number?", "+49 30 901820, ext. 007"),
)
NAMES = {
    "llama 2": "Llama-2",
    "llama 3": "Llama-3.2",
    "qwen 3": "Qwen3",
    "gemma 2": "gemma-2",
    "gemma 3": "gemma-3",
    "smollm2": "SmolLM2",
}
EVERY = (*NAMES, "deepseek", "demo")
BEFORE = {"qwen 3": b"<think>\n\n</think>"}  # an answer's text


PAIRS = (("llama 3", "gemma 3"), ("gemma 2", "gemma 3"), ("qwen 3", "smollm2"), ("smollm2", "demo"))


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    def opened(name: str):
        if name in NAMES:
            folder = Path(tmp_path_factory.mktemp("tokenizers")) / "model"
            folder.mkdir()
            (folder / "config.json").write_text("{}")
            write_tokenizer(folder, next(model for model in PUBLISHED if model.startswith(NAMES[name])))
            return hf_tokenizer(str(folder))
        return hf_tokenizer(str(demo_model_folder("student") if name == "demo" else PARTS / "tokenizers" / name))

    return {name: opened(name) for name in EVERY}


def rows_of(tokenizer) -> list[Tokens]:
    rows = []
    for question, answer in (*ENGLISH, *CHINESE, *CODE, *NUMERALS):
        turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
        rows.append(tokenise(tokenizer, Conversation(turns, (False, True))))
    return rows


def learned(row: Tokens, of) -> list[bytes | None]:
    return [of[token] for token in row.labels[1:].tolist() if token != IGNORE_INDEX]


def masked_of(student: list[bytes | None], teacher: list[bytes | None], positions: numpy.ndarray) -> list[bytes | None]:
    """What is not aligned; the rest must be what the teacher's tokens spell."""
    masked = []
    for token, position in zip(student, positions, strict=True):
        at, offset, last, into = (int(position[column]) for column in (AT, OFFSET, LAST, INTO))
        if at < 0:
            masked.append(token)
        elif token is None:
            assert (teacher[at], offset, into) == (None, 0, 0)
        else:
            spelled = b"".join(teacher[at : last + 1])
            before = b" " if offset == -1 else b""
            assert before + spelled[max(0, offset) : len(spelled) - len(teacher[last]) + into] == token
    return masked


def check(student: str, masked: list[bytes | None]) -> None:
    """That nothing is masked but what the student's template puts around an answer."""
    assert b"".join(masked).strip() in (b"", BEFORE.get(student))


def test_no_byte_is_lost_between_any_two(tokenizers):
    rows = {name: rows_of(tokenizer) for name, tokenizer in tokenizers.items()}
    of = {name: token_bytes(tokenizer) for name, tokenizer in tokenizers.items()}
    print("\nof the tokens of the student's answers (left), how many begin where the teacher's (above) do")
    print(" " * 9 + "".join(f"{name:>10}" for name in tokenizers))
    for student in tokenizers:
        shares = {}
        for teacher in tokenizers:
            common = num_tokens = 0
            for mine, its in zip(rows[student], rows[teacher], strict=True):
                found = align(mine, its, of[student], of[teacher])
                texts = learned(mine, of[student].of)
                masked = masked_of(texts, learned(its, of[teacher].of), found.positions)
                check(student, masked)
                # Llama 2's and the demo's begin with a space that most teachers' do not have.
                assert found.positions[0, AT] >= 0 or student in BEFORE
                assert (found.num_bytes, found.num_masked_bytes) == tuple(
                    sum(len(text) for text in some if text) for some in (texts, masked)
                )
                aligned = found.positions[found.positions[:, AT] >= 0]
                assert (numpy.diff(aligned[:, [AT, LAST]], axis=0) >= 0).all()
                common += int((aligned[:, OFFSET] == 0).sum())
                num_tokens += len(texts)
            shares[teacher] = common / num_tokens
        print(f"{student:9}" + "".join(f"{share:10.1%}" for share in shares.values()))
        assert shares[student] == 1.0


def test_tokens_spell_the_text(tokenizers):
    for name, tokenizer in tokenizers.items():
        before = " " if "begins a text with a space" in token_bytes(tokenizer).notes else ""
        for _, text in (*ENGLISH, *CHINESE, *CODE, *NUMERALS):
            assert b"".join(split(tokenizer, text)) == (before + text).encode(), name


def test_what_their_normalisers_change(tokenizers):
    notes = {name: token_bytes(tokenizer).notes for name, tokenizer in tokenizers.items()}
    assert {name for name in notes if "NFC" in notes[name]} == {"qwen 3"}
    assert {name for name in notes if "begins a text with a space" in notes[name]} == {"llama 2", "demo"}
    assert not any(set(told) - {"NFC", "begins a text with a space"} for told in notes.values())


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_what_is_told_of_a_pair(tokenizers, teacher, student):
    sides = tokenizers[student], tokenizers[teacher]
    mine, its = map(rows_of, sides)
    of = [token_bytes(side) for side in sides]
    positions = numpy.concatenate([align(*rows, *of).positions for rows in zip(mine, its, strict=True)])
    tokens = [
        numpy.concatenate([row.labels[1:][row.labels[1:] != IGNORE_INDEX] for row in rows]) for rows in (mine, its)
    ]
    lines = report(*sides, positions, *tokens)
    print(f"\n{teacher} -> {student}", *lines, sep="\n")
    assert len(lines) <= 14
    assert max(map(len, lines)) <= 100
    assert lines[-1] == "method to take: byte-prefix mass, by which kd_loss measures unless it names another method"
