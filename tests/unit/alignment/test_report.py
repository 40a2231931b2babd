"""What is told of two tokenizers: each figure by hand."""

import numpy
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from distill_tune.alignment.report import picture, report
from distill_tune.alignment.rows import align
from distill_tune.alignment.token_bytes import token_bytes
from distill_tune.data.conversation import IGNORE_INDEX, Tokens

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level(*merges: str, without: str = "") -> Tokenizer:
    """Bytes, and what pairs of them are merged to."""
    alphabet = [char for char in BYTES if char not in without]
    pairs = [tuple(merge.split("+")) for merge in merges]
    vocabulary = {token: number for number, token in enumerate([*alphabet, *("".join(pair) for pair in pairs)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    return tokenizer


def of_answers(student: Tokenizer, teacher: Tokenizer, *answers: tuple[str, str]) -> list[str]:
    rows = [
        [
            Tokens(numpy.array(tokens, numpy.int32), numpy.array([IGNORE_INDEX, *tokens[1:]], numpy.int32))
            for tokens in ([0, *side.encode(text).ids] for side, text in zip((student, teacher), texts, strict=True))
        ]
        for texts in answers
    ]
    both = token_bytes(student), token_bytes(teacher)
    positions = numpy.concatenate([align(*row, *both).positions for row in rows])
    return report(
        student,
        teacher,
        positions,
        *(numpy.concatenate([row.tokens[1:] for row in side]) for side in zip(*rows, strict=True)),
    )


def test_a_teacher_with_longer_tokens():
    lines = of_answers(byte_level(), byte_level("2+0", "20+2", "Ã+©"), ("2024 é", "2024 é"))
    assert lines[:6] == [
        "tokenizers        student                             teacher",
        "ordinary tokens   256                                 259",
        "the same bytes    256 (100%)                          256 (99%)",
        "common boundaries 57.1% of the answers' tokens        100.0%",
        "1,000 characters  1167 tokens                         667 tokens",
        "2024              2|0|2|4                             202|4",
    ]
    assert lines[7].split() == ["a\\n····b", *2 * ["a|\\n|·|·|·|·|b"]]
    assert lines[8] == "你好世界          12 tokens                           12 tokens"
    assert lines[10:] == ["method to take: byte-prefix mass, by which kd_loss measures unless it names another method"]


def test_what_has_no_counterpart():
    teacher = byte_level("x+y")
    teacher.normalizer = normalizers.NFC()
    lines = of_answers(byte_level(without="x"), teacher, ("abcd!", "abcd!"))
    assert "the teacher's tokenizer changes texts: NFC" in lines
    assert "2 of the teacher's tokens begin as none of the student's: their probability goes to the rest" in lines


def test_a_student_that_begins_with_a_space():
    lines = of_answers(byte_level("Ġ+a"), byte_level(), (" abcde", "abcde"))
    assert lines[3] == "common boundaries 80.0% of the answers' tokens        80.0%"
    told = "20.0% of the tokens begin with a space before the teacher's text: byte-prefix mass alone learns them"
    assert told in lines


def test_which_method_they_speak_for():
    merges = ("a+b", "ab+c", "abc+d", "abcd+e", "abcde+f", "abcdef+g", "abcdefg+h")
    assert "common boundaries are rare" in of_answers(byte_level(), byte_level(*merges), ("abcdefgh", "abcdefgh"))[-1]


def test_a_picture_of_a_row():
    text = "The ½ 你好!"
    made = [byte_level("T+h", "Th+e", "Ġ+Â", "ĠÂ+½"), byte_level("Ġ+Â", "ĠÂ+½", "T+h", "ä+½", "ä½+ł")]
    rows = [
        Tokens(numpy.array([0, *tokens]), numpy.array([IGNORE_INDEX, *tokens]))
        for tokens in ([*side.encode(text).ids, side.token_to_id("<end>")] for side in made)
    ]
    both = [token_bytes(side) for side in made]
    of = [[side.of[token] for token in row.tokens[1:]] for side, row in zip(both, rows, strict=True)]
    assert picture(*of, align(*rows, *both).positions) == [
        "student |The |·½|·|<E4>¦<BD>¦<A0>|<E5>|<A5>|<BD>|!|(end)",
        "teacher |Th¦e|·½|·|你            |<E5>|<A5>|<BD>|!|(end)",
    ]
