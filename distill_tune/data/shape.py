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
    """

    lengths: tuple[int, ...]
    supervised: tuple[int, ...]
    teacher_lengths: tuple[int, ...] = ()
    teacher_ids: tuple[int, ...] = ()

    @property
    def num_supervised(self) -> int:
        return sum(self.supervised)

    @property
    def for_teacher(self) -> "Shape":
        """What the teacher reads."""
        lengths = self.teacher_lengths or self.lengths
        return dataclasses.replace(self, lengths=lengths, teacher_lengths=())

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

        return Shape(*(taken(getattr(self, field.name)) for field in dataclasses.fields(self)))
