"""What is measured: sizes of models, rows and batches."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of a Llama-style model; heads of 64, half as many of keys, output layer not tied."""

    layers: int
    width: int

    @property
    def heads(self) -> int:
        return self.width // 64

    @property
    def intermediate(self) -> int:
        return self.width * 11 // 4


@dataclasses.dataclass(frozen=True)
class Case:
    """A training run of the whole recipe: LoRA of rank 8 on every projection, fp32, AdamW, kd_ratio 0.5.

    Attributes:
        rows: ``docstrings``, ``alpaca`` (the file given by --alpaca), or ``long`` (text of row_length tokens a row).
        steps: taken, of which the first WARM_UP are not counted.
        max_seq_len: where rows are cut, or the length of a long row.
    """

    name: str
    vocab_size: int = 128_256
    rows: str = "docstrings"
    batch_size: int = 4
    max_seq_len: int = 512
    ranks: int = 1
    steps: int = 10
    student: Shape = Shape(2, 256)
    teacher: Shape = Shape(4, 512)


WARM_UP = 2  # steps that are not counted

CASES = {
    case.name: case
    for case in (
        Case("tiny", vocab_size=4_096),
        Case("wide", steps=4),
        Case("alpaca", rows="alpaca", steps=4),
        Case("alpaca_tiny", vocab_size=4_096, rows="alpaca"),
        Case("long", vocab_size=32_000, rows="long", batch_size=1, max_seq_len=2_048),
    )
}
SCALING = {
    case.name: case
    for case in (
        *(Case(f"batch_{b}", vocab_size=32_000, batch_size=b) for b in (1, 4, 16)),
        *(Case(f"vocabulary_{v}", vocab_size=v) for v in (4_096, 32_000, 128_256)),
        *(Case(f"length_{s}", vocab_size=4_096, rows="long", batch_size=2, max_seq_len=s) for s in (256, 1_024)),
        *(Case(f"ranks_{n}", vocab_size=32_000, batch_size=8 // n, ranks=n) for n in (1, 2)),
    )
}
