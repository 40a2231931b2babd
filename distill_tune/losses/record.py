"""What all records of a teacher's distribution have in common: n rows, which are cut, moved and put together."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import torch

from distill_tune.to_device import to_device


class Record:
    """A dataclass of tensors of n rows. It has no logits, and its parts are small beside any.

    Attributes:
        kind: its name in a config.
        fill: what stands for a token, beside its id, where a row has fewer than k.
    """

    kind: ClassVar[str]
    fill: ClassVar[float]
    logits_per_row: ClassVar[int] = 0
    softcap: ClassVar[None] = None

    ids: torch.Tensor
    temperature: float
    vocab_size: int

    def memory(self, rows: int, slot: int = 1) -> None:
        return None

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, rows: slice) -> Self:
        return self._with_each(lambda tensor: tensor[rows])

    def to(self, device: torch.device) -> Self:
        return self._with_each(lambda tensor: to_device(tensor, device))

    def within(self, vocab_size: int) -> Self:
        """The record, of which only the first so many tokens are compared.

        Raises:
            ValueError: it has another one. Where vocabularies differ by padding alone, no such token is ever likely.
        """
        if self.vocab_size > vocab_size and self.ids.numel() and (largest := int(self.ids.max())) >= vocab_size:
            raise ValueError(
                f"common_vocab_size: the first {vocab_size} tokens are to be compared, the {self.kind} record has "
                f"token {largest}: make it from so many of the teacher's logits"
            )
        return self

    @classmethod
    def of_each_row(cls, records: Sequence[Self], owned: Sequence[torch.Tensor]) -> Self:
        """One record of the rows of several, padded to the largest k.

        Args:
            owned: of each, which rows are its own, int64, on the CPU.

        Raises:
            ValueError: of more than one temperature, or a token that not all vocabularies have.
        """
        temperatures, vocab_size = {r.temperature for r in records}, min(r.vocab_size for r in records)
        if len(temperatures) > 1:
            raise ValueError(f"records of several temperatures, {sorted(temperatures)}, cannot follow one another")
        n = sum(len(rows) for rows in owned)
        of_all = [record.within(vocab_size)._tensors() for record in records]
        joined: dict[str, Any] = {"vocab_size": vocab_size}
        for name, like in of_all[0].items():
            width = [max(tensors[name].shape[1] for tensors in of_all)] if like.ndim == 2 else []
            joined[name] = like.new_full([n, *width], 0 if name == "ids" else cls.fill)
            for tensors, rows in zip(of_all, owned, strict=True):
                of_row = tensors[name]
                here = to_device(rows, like.device)
                joined[name][(here, slice(of_row.shape[1])) if width else here] = of_row
        return dataclasses.replace(records[0], **joined)  # type: ignore[type-var]

    def _with_each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        changed = {name: change(tensor) for name, tensor in self._tensors().items()}
        return dataclasses.replace(self, **changed)  # type: ignore[type-var]

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
