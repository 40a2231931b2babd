"""Two tokenizers of a few letters: a text as both write it, and byte-prefix mass as it is defined, on dictionaries.

Nothing here is the library's but the form of an alignment: texts are byte strings, classes are byte strings, and sums
are over all tokens there are.
"""

import dataclasses

import numpy
import torch

from distill_tune.alignment.token_bytes import TokenBytes
from distill_tune.alignment.vocabulary_map import VocabularyMap
from distill_tune.losses import Aligned, DenseLogits

REST = "the rest"


@dataclasses.dataclass
class Toy:
    """Texts of both sides' tokens, None for an end; rows of ids that spell the same bytes.

    With ``space_before`` the student's row spells a space before them.
    """

    student: list[bytes | None]
    teacher: list[bytes | None]
    student_row: list[int]
    teacher_row: list[int]
    masked: tuple[int, ...] = ()
    space_before: bool = False

    def map(self, padding: int = 0) -> VocabularyMap:
        """With so many more logits than tokens on either side."""
        ends = [{i for i, text in enumerate(texts) if text is None} for texts in (self.student, self.teacher)]
        of = [
            TokenBytes(tuple(texts), {f"<{side}{i}>": i for i in end})
            for side, texts, end in zip("st", (self.student, self.teacher), ends, strict=True)
        ]
        return VocabularyMap(*of, len(self.student) + padding, len(self.teacher) + padding, *ends)

    def alignment(self) -> numpy.ndarray:
        """Byte by byte; an end is one byte here."""
        holds = [
            (number, offset, token)
            for number, token in enumerate(self.teacher_row)
            for offset in range(len(self.teacher[token] or b"$"))
        ]
        rows, begin = [], -1 if self.space_before else 0
        for number, token in enumerate(self.student_row):
            end = begin + len(self.student[token] or b"$")
            (at, offset, token_at), (last, before_end, token_last) = holds[max(0, begin)], holds[max(0, end - 1)]
            offset, into = min(begin, offset), 0 if end == 0 or self.student[token] is None else before_end + 1
            rows.append([-1 if number in self.masked else at, offset, last, into, token_at, token_last])
            begin = end
        return numpy.array(rows, numpy.int32)

    def signal(self, teacher_logits: torch.Tensor, softcap: float | None = None) -> Aligned:
        vocabulary = self.map(padding=teacher_logits.shape[1] - len(self.teacher))
        positions = vocabulary.positions(self.alignment(), numpy.array(self.student_row))
        classes = vocabulary.token_classes(torch.device("cpu"))
        return Aligned(DenseLogits(teacher_logits, softcap), torch.tensor(self.teacher_row), positions, classes)


def longest(text: bytes, tokens) -> bytes | None:
    return max((token for token in tokens if text.startswith(token)), key=len, default=None)


def masses(toy: Toy, log_q: torch.Tensor, log_p: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor] | None]:
    """Of each row the log-masses of teacher and student over the same events; None where it is masked.

    Args:
        log_q, log_p: the student's and the teacher's log-probabilities, ``[n, v_s]`` and ``[n_t, v_t]``, float64.
    """
    return [
        None if aligned[0] < 0 else Row(toy, number, *aligned).masses(log_q[number], log_p.exp())
        for number, aligned in enumerate(toy.alignment().tolist())
    ]


class Row:
    """One of the student's tokens, y, and T, the teacher's that holds its first byte."""

    def __init__(self, toy, number, at, offset, last, into, token_at, token_last):
        self.toy, self.at, self.last, self.into, self.token_at = toy, at, last, into, token_at
        self.y, self.inside = toy.student_row[number], offset > 0
        self.text = toy.student[self.y]
        self.read, self.before = (toy.teacher[token_at] or b"")[: max(0, offset)], b" " if offset < 0 else b""
        self.student_texts = {text for text in toy.student if text is not None}
        begun = [text for text in toy.teacher if text is not None and text.startswith(self.read)]
        names = {longest(self.before + text[len(self.read) :], self.student_texts) for text in begun}
        self.columns = names - {None}

    def name_of_teacher(self, token):
        if token >= len(self.toy.teacher):
            return REST
        text = self.toy.teacher[token]
        if text is None:
            return "the end"
        return longest(self.before + text[len(self.read) :], self.student_texts) or REST

    def name_of_student(self, token):
        text = (self.toy.student + [b"\0padding"] * (token + 1))[token]
        if text is None:
            return REST if self.inside else "the end"
        return longest(text, self.columns) or REST

    def masses(self, log_q, probs):
        p = dict.fromkeys([*self.columns, REST, *([] if self.inside else ["the end"])], 0.0)
        possible = [
            token
            for token in range(probs.shape[1])
            if not self.inside or (self.text_of_teacher(token) or b"\0").startswith(self.read)
        ]
        total = probs[self.at, possible].sum() if self.inside else 1.0
        moves = self.text is not None and (self.at < self.last or self.name_of_teacher(self.token_at) != self.text)
        share = self.share(probs) if moves else 0.0
        for token in possible:
            kept = 1 - share if token == self.token_at else 1.0
            p[self.name_of_teacher(token)] += probs[self.at, token] / total * kept
        q = {name: [] for name in p}
        if moves:
            own = self.text if self.text in self.columns else "y"
            p[own] = p.get(own, 0.0) + probs[self.at, self.token_at] / total * share
        for token in range(len(log_q)):
            name = "y" if "y" in p and token == self.y else self.name_of_student(token)
            q.setdefault(name, []).append(log_q[token])
        of_teacher = torch.stack([torch.as_tensor(p[name], dtype=log_q.dtype) for name in q])
        nothing = log_q.new_tensor(-torch.inf)
        of_student = torch.stack([torch.stack(of).logsumexp(0) if of else nothing for of in q.values()])
        return of_teacher.log(), of_student

    def share(self, probs):
        """Of T's probability, what is y's."""
        if self.at == self.last:
            return 1.0
        share = 1.0
        for row in range(self.at + 1, self.last):
            share = share * probs[row, self.toy.teacher_row[row]]
        begin, columns = self.text[: len(self.text) - self.into], self.columns
        longer = columns if self.text in columns else self.student_texts
        ends = [
            token
            for token, text in enumerate(self.toy.teacher)
            if text is not None
            and (begin + text).startswith(self.text)
            # Not with the bytes of a longer column.
            and not any(
                len(one) > len(self.text) and one.startswith(self.text) and (begin + text).startswith(one)
                for one in longer
            )
        ]
        return share * probs[self.last, ends].sum()

    def text_of_teacher(self, token):
        return self.toy.teacher[token] if token < len(self.toy.teacher) else None


def written(
    seed: int,
    letters: bytes = b"abc",
    length: int = 14,
    most: tuple[int, int] = (3, 3),
    extra: int = 4,
    space_before: bool = False,
) -> Toy:
    """Two vocabularies of random tokens, a random text that each cuts as it likes, and an end.

    Where the student has a space before it, it has tokens that begin so.
    """
    generator = numpy.random.default_rng(seed)
    text = bytes(generator.choice(list(letters), length).tolist())
    sides = []
    for side, longest_token in enumerate(most):
        pieces, begin = [], 0
        while begin < length:
            pieces.append(text[begin : begin + int(generator.integers(1, longest_token + 1))])
            begin += len(pieces[-1])
        more = [
            bytes(generator.choice(list(letters), generator.integers(1, longest_token + 1)).tolist())
            for _ in range(extra)
        ]
        if space_before and side == 0:
            more += [b" " + piece[: int(generator.integers(3))] for piece in (*pieces, *more)]
            pieces[:1] = [b" ", *pieces[:1]] if generator.random() < 0.3 else [b" " + b"".join(pieces[:1])]
        vocabulary = [None, *sorted({*pieces, *more})]
        vocabulary = [vocabulary[i] for i in generator.permutation(len(vocabulary))]
        sides.append((vocabulary, [vocabulary.index(piece) for piece in [*pieces, None]]))
    (student, student_row), (teacher, teacher_row) = sides
    return Toy(student, teacher, student_row, teacher_row, space_before=space_before)
