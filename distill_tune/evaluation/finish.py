"""What is told while models are measured, and written when all are."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch

from distill_tune.alignment.token_bytes import token_bytes
from distill_tune.errors import UserError
from distill_tune.evaluation.preparation import Prepared
from distill_tune.evaluation.results import Measured, columns_of, results, samples, write_results
from distill_tune.evaluation.scoring import PerToken
from distill_tune.evaluation.tables import results_markdown, results_text
from distill_tune.training.metrics import peak_memory_bytes


def so_far(tokens: Mapping[int, PerToken], seconds: float, device: torch.device) -> dict[str, float]:
    """For a progress bar.

    Args:
        tokens: of the documents that are scored by now.
        seconds: since the first was begun.
    """
    nll = sum(float(of.nll[of.supervised].sum()) for of in tokens.values())
    supervised = sum(int(of.supervised.sum()) for of in tokens.values())
    return {
        "step": len(tokens),
        "perplexity": math.exp(min(nll / max(1, supervised), 700)),
        "tokens_per_second": sum(len(of.nll) for of in tokens.values()) / seconds,
        "peak_memory_bytes": peak_memory_bytes(device),
    }


def finish(folder: Path, prepared: Prepared, found: Mapping[str, Measured], shown: int = 0) -> str:
    """Write results.json, samples.jsonl and table.md; the tables as the terminal has room for them, and where all is.

    Args:
        shown: of the first so many documents each supervised token is written down.

    Raises:
        UserError: the folder cannot be written.
    """
    documents = prepared.documents
    columns = {label: columns_of(measured, documents) for label, measured in found.items()}
    made = results(documents, found, prepared.teacher, prepared.base, columns)
    lines = samples(documents, found, columns, token_texts=_token_texts(prepared, shown))
    try:
        write_results(folder, made, lines, results_markdown(made))
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}") from error
    return results_text(made) + "\n".join(
        [
            f"  {folder / 'table.md'}  these tables, with their intervals",
            f"  {folder / 'results.json'}  all figures",
            f"  {folder / 'samples.jsonl'}  a line a document",
        ]
    )


def _token_texts(prepared: Prepared, shown: int) -> list[list[str]]:
    """Of the first documents, each supervised token as what it writes, in the tokens of the rows."""
    known = token_bytes(prepared.readings[0].tokenizer) if shown else None

    def text(token: int) -> str:
        assert known is not None
        return known.control_texts.get(token) or (known.of[token] or b"").decode(errors="replace")

    return [
        [text(token) for token in written.tokens[1:][written.supervised[1:]].tolist()]
        for written in prepared.documents.written[0][:shown]
    ]
