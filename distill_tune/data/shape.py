"""What of some rows memory and work depend on."""

import dataclasses
from collections.abc import Iterable


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of a micro-batch, or a whole step.

    Attributes:
        lengths: tokens of each row.
        supervised: of them, those that are learned.
        teacher_lengths: tokens of each row as the teacher reads it; empty where it reads the same.
        teacher_ids: of each row, the number of the teacher that it follows; empty where all follow one.
        others: the same rows as teachers of other tokenizers read them, one for each tokenizer.
    """

    lengths: tuple[int, ...]
    supervised: tuple[int, ...]
    teacher_lengths: tuple[int, ...] = ()
    teacher_ids: tuple[int, ...] = ()
    others: "tuple[Shape, ...]" = ()

    @property
    def num_supervised(self) -> int:
        return sum(self.supervised)

    @property
    def for_teacher(self) -> "Shape":
        """What the teacher reads."""
        lengths = self.teacher_lengths or self.lengths
        return dataclasses.replace(self, lengths=lengths, teacher_lengths=())

    @property
    def num_teacher_tokens(self) -> int:
        """The most tokens that a teacher reads."""
        return max(sum(read.lengths) for read in (self.for_teacher, *self.others))

    @property
    def most_read(self) -> tuple[int, ...]:
        """The most tokens of each row that a teacher reads."""
        return longest_of_each([self.teacher_lengths, *(its.lengths for its in self.others)]) or self.lengths

    def read_by(self, number: int) -> "Shape":
        """What teachers of one of the other tokenizers read."""
        return self.others[number] if self.others else Shape((), ())

    def following(self, number: int) -> "Shape":
        """The rows of one of several teachers."""
        return self.of_rows([row for row, teacher in enumerate(self.teacher_ids) if teacher == number])

    def halves(self) -> "list[Shape]":
        """Two of as many rows, the first with the longest; a single row as it is."""
        longest_first = sorted(range(len(self.lengths)), key=lambda row: -self.lengths[row])
        return [self.of_rows(half) for half in (longest_first[::2], longest_first[1::2]) if half]

    def of_rows(self, rows: Iterable[int]) -> "Shape":
        """Some of its rows, by their numbers."""
        chosen = list(rows)

        def taken(values: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(values[row] for row in chosen) if values else ()

        return Shape(
            taken(self.lengths),
            taken(self.supervised),
            taken(self.teacher_lengths),
            taken(self.teacher_ids),
            tuple(read.of_rows(chosen) for read in self.others),
        )


def longest_of_each(read: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """Of each row the most tokens that one of its readers has; empty where none has any of its own.

    Args:
        read: of each reader, tokens of each row, or empty.
    """
    return tuple(map(max, zip(*filter(None, read), strict=True)))
