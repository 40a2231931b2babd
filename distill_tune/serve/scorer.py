"""What a teacher says of rows, as records."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from distill_tune.cache.encoding import HiddenEncoding, SampledEncoding, TopEncoding, encoding_of
from distill_tune.data.batch import Batch, Row, joined
from distill_tune.losses import HiddenStates, SampledTokens, TopTokens
from distill_tune.losses.signals import capped
from distill_tune.teachers.teacher import Teacher

_LOGIT_BYTES = 256 * 2**20  # so much of a row's logits is there at a time
SEED = "seed"  # beside the fields of an encoding

Encoding = SampledEncoding | TopEncoding | HiddenEncoding


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

    def encoding(self, kind: str, settings: Mapping[str, Any]) -> Encoding:
        """
        Raises:
            ValueError, TypeError: as :func:`~distill_tune.cache.encoding.encoding_of`.
        """
        own = {"vocab_size": self.vocab_size} | ({"width": self.width} if kind == HiddenEncoding.kind else {})
        return encoding_of(kind, own | {name: value for name, value in settings.items() if name != SEED})

    def __call__(self, rows: Sequence[Row], encoding: Encoding, seed: int = 0) -> list[bytes]:
        """Each row's record.

        Rows go together in their order, as many as have ``most_tokens`` tokens. Rows of another request are never among
        them: in floating point what a row gets depends a little on what it stands beside, and so the same request has
        the same answer, bit for bit, whenever and of whichever copy it is asked.

        Args:
            seed: of what is drawn, with what the row contains.
        """
        return [blob for part in self._parts(rows) for blob in self._scored(joined(part), encoding, seed)]

    def _parts(self, rows: Sequence[Row]) -> Iterator[list[Row]]:
        part: list[Row] = []
        for row in rows:
            if part and sum(len(other.tokens) for other in part) + len(row.tokens) > self.most_tokens:
                yield part
                part = []
            part.append(row)
        yield part

    @torch.no_grad()
    def _scored(self, batch: Batch, encoding: Encoding, seed: int) -> list[bytes]:
        signal: HiddenStates = self.teacher(batch.to(self.device))
        if isinstance(encoding, HiddenEncoding):
            return encoding.encode(signal.hidden, batch.num_supervised)
        blobs, start = [], 0
        for digest, count in zip(batch.digests, batch.num_supervised, strict=True):
            record = _record(signal, start, start + count, encoding, _generator(self.device, seed, digest))
            blobs += encoding.encode(record, [count])
            start += count
        return blobs


def _record(
    signal: HiddenStates, start: int, stop: int, encoding: SampledEncoding | TopEncoding, generator: torch.Generator
) -> Any:
    """Of a row's positions ``start`` to ``stop``."""
    parts = []
    rows = max(1, _LOGIT_BYTES // (4 * signal.vocab_size))
    for first in range(start, max(stop, start + 1), rows):
        last = min(first + rows, stop)
        logits = capped(signal.logits(first, last, signal.memory(last - first)), signal.softcap)
        if isinstance(encoding, TopEncoding):
            parts.append(TopTokens.of(logits, encoding.k, encoding.temperature))
        else:
            temperatures = encoding.temperature, generator, encoding.proposal_temperature
            parts.append(SampledTokens.drawn(logits, encoding.draws, *temperatures))
    if len(parts) == 1:
        return parts[0]
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + len(part))
    return type(parts[0]).of_each_row(parts, [torch.arange(*ends[n : n + 2]) for n in range(len(parts))])


def _generator(device: torch.device, seed: int, digest: bytes) -> torch.Generator:
    """Of a row: the same wherever it stands, whoever asks."""
    mixed = hashlib.blake2b(digest, digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(mixed, "little") >> 1)
