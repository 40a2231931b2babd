"""A record beside the student's logits: their divergence, and a gradient of as many numbers as the record has."""

from typing import NamedTuple

import torch

from distill_tune.losses.divergences import Distribution, Divergence
from distill_tune.losses.sparse import SparseSignal
from distill_tune.losses.top_k import log_of_rest


class Against(NamedTuple):
    """A record and the student: the divergence ``[b]``, its gradient for the logits of the record's tokens ``[b, k]``,
    and what the exponential of any other logit is to be multiplied by to be its own ``[b, 1]``.

    ``tokens`` are the tokens' exponentials ``[b, k]``, ``total`` the sum of all ``[b, 1]``.
    """

    values: torch.Tensor
    of_tokens: torch.Tensor
    of_rest: torch.Tensor
    tokens: torch.Tensor
    total: torch.Tensor


def set_apart(record: SparseSignal, exponentials: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The exponentials of the record's tokens ``[b, k]``, and the sum of all others ``[b, 1]``.

    Args:
        exponentials: of all tokens, ``[b, v]``; those of the record's become 0.
    """
    ids = record.ids.long()
    tokens = exponentials.gather(1, ids).mul_(record.is_token)
    # A difference from the total would have no digits where the student is sure.
    return tokens, exponentials.scatter_add_(1, ids, -tokens).sum(-1, keepdim=True)


def against(
    record: SparseSignal, divergence: Divergence, logits: torch.Tensor, tokens: torch.Tensor, rest: torch.Tensor
) -> Against:
    """
    Args:
        logits: of the record's tokens ``[b, k]``, less a number of each row.
        tokens: their exponentials ``[b, k]``, 0 for what only fills a row.
        rest: the sum of the exponentials of all other tokens' logits less that number, ``[b, 1]``.
    """
    total = rest + tokens.sum(-1, keepdim=True)
    student = Distribution(
        torch.cat([logits, log_of_rest(rest)], 1).sub_(total.log()), torch.cat([tokens, rest], 1).div_(total)
    )
    values, gradient = record.compared(student, divergence)
    # Logits of the rest share its gradient by their probability within it.
    of_rest = gradient[:, -1:] / rest.clamp(min=torch.finfo(torch.float32).tiny)
    return Against(values, gradient[:, :-1], of_rest, tokens, total)
