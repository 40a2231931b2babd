"""What a teacher says of rows, as records."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from distill_tune.cache.encoding import AnyEncoding, HiddenEncoding, encoding_of
from distill_tune.cache.recording import encoded
from distill_tune.data.batch import Row, joined
from distill_tune.serve.wire import OTHERS
from distill_tune.teachers.teacher import Teacher

SEED = "seed"  # beside the fields of an encoding


@dataclasses.dataclass(frozen=True)
class Scorer:
    """
    Attributes:
        teacher: with its weights, which gives hidden states and an output layer.
        vocab_size: of its logits.
        width: of its hidden states.
        device: on which it is.
        most_tokens: of a forward pass, but where a single row has more.
    """

    teacher: Teacher
    vocab_size: int
    width: int
    device: torch.device
    most_tokens: int

    def encoding(self, kind: str, settings: Mapping[str, Any]) -> AnyEncoding:
        """
        Raises:
            ValueError, TypeError: as :func:`~distill_tune.cache.encoding.encoding_of`.
        """
        own = {"vocab_size": self.vocab_size} | ({"width": self.width} if kind == HiddenEncoding.kind else {})
        return encoding_of(kind, own | {name: value for name, value in settings.items() if name not in (SEED, OTHERS)})

    def __call__(self, rows: Sequence[Row], encoding: AnyEncoding, seed: int = 0) -> list[bytes]:
        """Each row's record, of its ``likeliest`` tokens as well where it has such.

        Rows go together in their order, as many as have ``most_tokens`` tokens. Rows of another request are never among
        them: in floating point what a row gets depends a little on what it stands beside, and so the same request has
        the same answer, bit for bit, whenever and of whichever copy it is asked.

        Args:
            seed: of what is drawn, with what the row contains.
        """
        blobs = []
        with torch.accelerator.device_index(self.device.index):  # each thread has a device of its own
            for part in self._parts(rows):
                batch = joined(part)
                signal = self.teacher(batch.to(self.device))
                blobs += encoded(
                    encoding, signal, batch.digests, batch.num_supervised, seed, batch.likeliest, batch.learned
                )
        return blobs

    def _parts(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        part: list[Row] = []
        taken = 0
        for row in rows:
            if part and taken + len(row.tokens) > self.most_tokens:
                yield part
                part, taken = [], 0
            part.append(row)
            taken += len(row.tokens)
        yield part
