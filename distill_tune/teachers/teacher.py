"""What the recipes ask of a teacher."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy
import torch

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data.batch import Batch
from distill_tune.data.other_tokenizer import OtherTokenizer
from distill_tune.data.shape import Shape
from distill_tune.data.tokenised_rows import TokenisedRows
from distill_tune.losses import Divergence, TokenWeight
from distill_tune.models.checkpoint import Checkpoint
from distill_tune.models.vocabulary import Vocabulary

from torchtune.modules import TransformerDecoder

# Shards a model in place while it has no weights, and says where its parts are to lie.
Shard = Callable[[TransformerDecoder], torch.device]


class Teacher:
    """Gives a signal for each batch. The recipes call, in this order:

    1. :meth:`require_loss` and :meth:`check`, before anything is loaded: whether it can teach this student so.
    2. :meth:`load`: its weights.
    3. :meth:`expect`: which batches will come. Before a step's first, of a teacher that ``may_be_lost``, :meth:`lost`.
       For each batch, the teacher itself: the signal for the supervised positions. :meth:`release` after a step's last.
    4. :meth:`after_step`, once the student's weights have changed.

    A kind of teacher that is named as ``teacher_model`` in a config is a subclass; what does nothing here, few need.

    Attributes:
        models: that run forward for each batch, for counting their work; known after :meth:`check`.
        num_layers, width: of its hidden states; 0 where it gives none but the last.
        names: of several teachers, by which rows choose theirs.
        files: of its own weights, known after :meth:`check`: a run goes on with the teacher that it had.
        folders: of other models than the student's whose tokens are those of the rows, known after :meth:`check`; a
            GGUF file in place of a folder.
        content: tells apart teachers that have no ``files`` here, known after :meth:`check` and
            :meth:`require_signals`; empty where there is none.
        other_tokens: ids that are other tokens to it than in the rows, with what each is; known after :meth:`check`.
        record_kind: of the records that it gives, ``sampled``, ``top_k`` or ``likelihood``; empty where it gives whole
            distributions.
        may_be_lost: while a run goes on, by no fault of its own.
        tokens_of_student: so many of the student's likeliest of each position it is to tell of as well, of rows that
            are written while the student trains: ``likeliest`` of a batch.
        answers_new_rows: whether it has a word on any row, also one that is written while the student trains.
        shares_tokenizer: whether it, or one of several, reads the tokens of the rows.
        other_tokenizers: those of its, or of several, that are not that of the rows, each once.
    """

    models: Sequence[TransformerDecoder] = ()
    num_layers = 0
    width = 0
    names: tuple[str, ...] = ()
    files: Sequence[Path] = ()
    folders: Sequence[Path] = ()
    content: str = ""
    other_tokens: Mapping[int, str] = MappingProxyType({})
    record_kind: str = ""
    may_be_lost = False
    tokens_of_student = 0
    answers_new_rows = True
    shares_tokenizer = True
    other_tokenizers: Sequence[OtherTokenizer] = ()

    @property
    def num_parameters(self) -> int:
        """Of its own weights, of which one that is stored or served has none."""
        return sum(parameter.numel() for model in self.models for parameter in model.parameters())

    @property
    def itself(self) -> "Teacher":
        """The one that is asked about its own rows, where those of the student are aligned with them."""
        return self

    def vocabulary(self) -> Vocabulary | None:
        """Of its tokenizer, as far as its files tell; None where they do not, or it is the student's by nature."""
        return Vocabulary.of(self.folders[0]) if self.folders else None

    def check(self, student: TransformerDecoder, checkpoint: Checkpoint, tokenizer: Any) -> int | None:
        """
        Args:
            student: on the meta device, as it was built.
            checkpoint: the student's.

        Returns:
            Of how many tokens, from the first on, it knows how likely they are; None without a teacher, or where they
            are not the student's.

        Raises:
            UserError: it cannot teach this student.
        """
        return None

    def require_rows(self, longest: int, used_tokens: numpy.ndarray) -> None:
        """
        Args:
            longest: tokens of a row.
            used_tokens: the ids that occur, sorted.

        Raises:
            UserError: it cannot read so many tokens, or not one of these, or it reads one as another token.
        """

    def require_loss(
        self,
        divergence: Divergence,
        token_weight: TokenWeight | None,
        temperature: float | None,
        combination: str | None = None,
    ) -> None:
        """
        Args:
            temperature: of the whole run; None where it changes.
            combination: of several teachers, of which this is one.

        Raises:
            UserError: its signal cannot serve this loss.
        """

    def require_signals(self, datasets: Sequence[TokenisedRows], augmented: bool, number: int | None = None) -> None:
        """
        Args:
            datasets: all rows that it will be asked about.
            augmented: their prompts change each time.
            number: its own among several teachers that rows choose from: about others' rows it is not asked.

        Raises:
            UserError: it has no signal for some of them.
        """

    def each(self, shape: Shape) -> "list[tuple[Teacher, Shape]]":
        """Every single teacher with what it reads of some rows."""
        return [(self, shape.for_teacher)]

    def own_bytes(self, is_sharded: bool) -> float | None:
        """Of its weights on the device; None where they are those of ``models`` as they are.

        Args:
            is_sharded: whether FSDP has the weights.
        """
        return None

    def keep_hidden_states(self, layers: Sequence[int]) -> None:
        """Have the signal carry those of ``layers``; see :func:`distill_tune.models.keep_hidden_states`."""

    def load(
        self, student: TransformerDecoder, device: torch.device, *, shard: Shard | None = None, compile: bool = False
    ) -> None:
        """
        Args:
            student: with its weights.
            shard: of several processes; a teacher may also lie whole on each.
            compile: its layers with torch.compile.

        Raises:
            UserError: its checkpoint cannot be read.
        """

    def expect(self, batches: Iterator[Batch]) -> None:
        """The batches that will come, before those that were expected already; it may take some of them ahead."""

    def lost(self, batches: Sequence[Batch]) -> str | None:
        """Wait until it can give its signal for these; why it never will, where it will not."""
        return None

    def __call__(self, batch: Batch) -> Any:
        """The signal for the batch's supervised positions, for :func:`distill_tune.losses.distillation_loss`."""
        return None

    def release(self) -> None:
        """Give back what a sharded teacher has gathered for a step."""

    def after_step(self) -> None:
        """The student has changed."""

    def state(self) -> dict[str, torch.Tensor]:
        """The tensors, sharded or whole, that a resumed run needs: copied into its checkpoints, filled in place."""
        return {}

    def restored(self) -> None:
        """The tensors of :meth:`state` have been filled."""
