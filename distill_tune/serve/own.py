"""Asks `distill-tune serve`."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from safetensors import SafetensorError

from distill_tune.cache.encoding import AnyEncoding, HiddenEncoding, LikelihoodEncoding, TopEncoding
from distill_tune.cache.output_layer import output_layer_of_bytes
from distill_tune.data.batch import Batch
from distill_tune.losses import LinearProjection
from distill_tune.models.vocabulary import Vocabulary
from distill_tune.serve.connection import NoAnswer, Server
from distill_tune.serve.engine import About, asked_for_json, read_from
from distill_tune.serve.wire import OTHERS, WireError, records_of, rows_as_bytes

NAME = "distill-tune"


class DistillTune:
    """
    Raises:
        NoAnswer, Refused: it is not there, or another kind of server.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        found = asked_for_json(server, "/about")
        with read_from("/about"):
            if found["engine"] != NAME:
                raise NoAnswer(f"/about: is {found['engine']}")
            self.about = About(
                NAME,
                str(found["model"]),
                tuple(found["kinds"]),
                int(found["vocab_size"]),
                int(found["width"]),
                int(found["most_tokens_of_row"]),
                int(found["most_log_probs"]),
                str(found["content"]),
            )
            self.tokenizer = found["tokenizer"]
            self._most_tokens = int(found["most_tokens_of_request"])
            self._most_bytes = int(found["most_bytes_of_answer"])

    def records(self, batch: Batch, encoding: AnyEncoding, seed: int) -> list[bytes]:
        settings: dict[str, Any] = {} if isinstance(encoding, HiddenEncoding) else dataclasses.asdict(encoding)
        if isinstance(encoding, LikelihoodEncoding):
            del settings["vocab_size"]  # a row's own token may be any of the teacher's
        query = {name: value for name, value in settings.items() if value is not None}
        query |= {"kind": encoding.kind, "content": self.about.content}  # one with another teacher refuses
        if encoding.kind == "sampled":
            query["seed"] = seed
        if batch.likeliest is not None:
            assert isinstance(encoding, TopEncoding)
            query[OTHERS] = batch.likeliest.shape[1]
            encoding = encoding.beside(batch.likeliest)
        found: list[bytes] = []
        for part in self._parts(batch, encoding):
            body = self.server.ask("/score", rows_as_bytes(part), query, "application/octet-stream")
            try:
                found += [bytes(row) for row in records_of(body, len(part.lengths))]
            except WireError as error:
                raise NoAnswer(str(error)) from error
        return found

    def _parts(self, batch: Batch, encoding: AnyEncoding) -> Iterator[Batch]:
        """Rows that follow one another, as many as the server takes in a request; a single one as it is."""
        of_position = encoding.bytes_of_position()[1]
        start, tokens, size = 0, 0, 0.0
        for row, (length, positions) in enumerate(zip(batch.lengths, batch.num_supervised, strict=True)):
            tokens, size = tokens + length, size + positions * of_position
            if row > start and (tokens > self._most_tokens or size > self._most_bytes):
                yield batch.of_rows(range(start, row))
                start, tokens, size = row, length, positions * of_position
        yield batch.of_rows(range(start, len(batch.lengths))) if start else batch

    def names_of(self, ids: Sequence[int]) -> None:
        return None

    def vocabulary(self) -> Vocabulary | None:
        """All its tokens; None where its teacher's folder has none that can be read."""
        if self.tokenizer is None:
            return None
        found = asked_for_json(self.server, "/vocabulary")
        with read_from("/vocabulary"):
            return Vocabulary(
                {int(index): token for index, token in found["tokens"].items()}, frozenset(found["added"])
            )

    def output_layer(self, device: torch.device) -> LinearProjection:
        try:
            return output_layer_of_bytes(self.server.ask("/output_layer"), device)
        except (KeyError, SafetensorError) as error:
            raise NoAnswer("/output_layer: an answer of another form") from error
