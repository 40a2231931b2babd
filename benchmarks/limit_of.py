"""The bare matrix products of a training step, at the best chunk: ``limit_of.py FOLDER CASE``.

For each step of the prepared rows: every projection of the teacher and the student over the rows' tokens without
padding, the student's again for the gradient of its inputs, LoRA's small ones, attention's inside each row, and the
head's three over the supervised tokens. Nothing else: no norm, no softmax, no optimizer. Prints the seconds of each.
"""

import json
import sys
import time
from pathlib import Path

import torch
from cases import CASES, SCALING, WARM_UP
from head_of import Example, best_chunk, limit
from step_of import LORA


class Products:
    """Products of given sizes, with memory that is there already."""

    def __init__(self):
        self._made = {}

    def __call__(self, m, k, n, batch=1):
        key = (batch, m, k, n)
        if key not in self._made:
            sizes = [(batch, m, k), (batch, k, n), (batch, m, n)]
            self._made[key] = [torch.randn(size[1:] if batch == 1 else size) for size in sizes]
        left, right, out = self._made[key]
        (torch.mm if batch == 1 else torch.bmm)(left, right, out=out)


def layer(multiply, shape, lengths, trained):
    tokens, width, keys, inner, rank = sum(lengths), shape.width, shape.width // 2, shape.intermediate, LORA["rank"]
    attention = [(width, width), (width, keys), (width, keys), (width, width)]
    for d_in, d_out in [*attention, (width, inner), (width, inner), (inner, width)]:
        multiply(tokens, d_in, d_out)
        if trained:
            multiply(tokens, d_out, d_in)  # gradient of the input
            multiply(tokens, d_in, rank), multiply(tokens, rank, d_out)
            multiply(tokens, d_out, rank), multiply(d_out, tokens, rank)  # of B's input, of B
            multiply(tokens, rank, d_in), multiply(rank, tokens, d_in)  # of the input, of A
    for length in lengths:
        for _ in range(3 if trained else 1):
            multiply(length, 64, length, batch=shape.heads)
            multiply(length, length, 64, batch=shape.heads)


def main(folder, case):
    rows = json.loads((folder / "rows.json").read_text())
    seconds, multiply = [], Products()
    with torch.no_grad():
        for step in range(case.steps):
            batch = rows[step * case.batch_size : (step + 1) * case.batch_size]
            lengths = [len(row["tokens"]) for row in batch]
            supervised = sum(label != -100 for row in batch for label in row["labels"][1:])
            head = Example(supervised, case.vocab_size, case.student.width, case.teacher.width, "cpu")
            if step == 0:
                chunk = best_chunk(head, "cpu")
            head.chunk = min(chunk, supervised)
            for timed in (False, True):
                started = time.perf_counter()
                for _ in range(case.teacher.layers):
                    layer(multiply, case.teacher, lengths, trained=False)
                for _ in range(case.student.layers):
                    layer(multiply, case.student, lengths, trained=True)
                limit(head)
                if timed:
                    seconds.append(time.perf_counter() - started)
            multiply = Products()
    print(json.dumps({"seconds": seconds[WARM_UP:]}))


if __name__ == "__main__":
    folder, name = sys.argv[1:]
    main(Path(folder), (CASES | SCALING)[name])
