"""A student that a server answers for: what it has learned, sent there."""

import shutil
import uuid
from pathlib import Path

from torch import nn

from distill_tune.errors import UserError
from distill_tune.generation.server import ServerDecoder
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.training.adapters import export_adapter
from distill_tune.training.distributed import from_main_process, is_main_process, wait_for_all


class ServedAdapter:
    """Keeps what vLLM answers with the student's own, by its adapters: the base model lies there from the start.

    Args:
        decoder: whose server serves the base model that the student started from.
        checkpoint: of that.
        folder: for the adapters, of which the last one stays; the server sees it under the same path.
    """

    def __init__(self, decoder: ServerDecoder, checkpoint: Checkpoint, folder: Path) -> None:
        self._decoder, self._checkpoint, self._folder = decoder, checkpoint, folder
        self._last: str | None = None

    def send(self, student: nn.Module, step: int) -> None:
        """Have answers come of the student as it is now. Every rank calls it.

        Args:
            step: to be told.

        Raises:
            UserError: the student has no adapters that PEFT knows; the server does not take them.
        """
        # A server keeps what it has computed of prompts by an adapter's name: a run that goes on must not find its own.
        name = from_main_process(f"step-{step}-{uuid.uuid4().hex[:12]}")
        if not from_main_process(export_adapter(student, self._checkpoint, self._folder / name)):
            raise UserError(
                "generation by a server: its weights follow a student's LoRA adapters, and this student has none that "
                "PEFT could read; train one with LoRA, or leave the server out, and the student answers here"
            )
        refused = ""
        if is_main_process():
            try:
                self._decoder.load_adapter(name, self._folder / name)
                if self._last is not None:
                    self._decoder.unload_adapter(self._last)
                    shutil.rmtree(self._folder / self._last, ignore_errors=True)
            except UserError as error:
                refused = str(error)
        if refused := from_main_process(refused):
            raise UserError(refused)
        wait_for_all()
        self._decoder.use(name)
        self._last = name
