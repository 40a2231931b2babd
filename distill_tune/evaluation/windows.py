"""Documents of any length as the windows that a model reads: each token is predicted once."""

from typing import NamedTuple

from distill_tune.errors import UserError


class Window(NamedTuple):
    """
    Attributes:
        start, stop: of the document's tokens.
        first: the first of them that is predicted here, counted in the document; those before it are only read.
    """

    start: int
    stop: int
    first: int


def windows(length: int, context: int | None, stride: int | None = None) -> list[Window]:
    """One window where the document fits; else windows that move on by ``stride``, each as long as the model reads.

    Every token but the first is predicted in the first window that has it, so from at least ``context - stride`` tokens
    before it once there are so many.

    Args:
        length: tokens of the document.
        context: that the model reads at most; None for any number.
        stride: default half of ``context``.

    Raises:
        UserError: a stride that leaves tokens out.
    """
    if context is None or length <= context:
        return [Window(0, length, 1)]
    stride = require_stride(context, stride)
    found = [Window(0, context, 1)]
    while found[-1].stop < length:
        first = found[-1].stop
        stop = min(first + stride, length)
        found.append(Window(stop - context, stop, first))
    return found


def require_stride(context: int, stride: int | None) -> int:
    """
    Raises:
        UserError: it is not from 1 to less than ``context``: a token would be predicted from nothing.
    """
    stride = stride or context // 2
    if not 0 < stride < context:
        raise UserError(f"stride={stride}: must be from 1 to {context - 1}, since a model reads {context} tokens")
    return stride
