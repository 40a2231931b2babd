"""Whether teacher and student speak of the same tokens."""

import json
from pathlib import Path
from typing import Any

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.errors import UserError
from distill_tune.models.output_head import output_head

from torchtune.modules import TransformerDecoder

_SHOWN = 3


def common_vocabulary(student: TransformerDecoder, teacher_size: int, tokenizer: Any) -> int:
    """How many tokens both models know, where their vocabularies differ by padding rows at the end.

    Says so in one line where they do.

    Args:
        student: meta tensors serve.
        teacher_size: the teacher's vocabulary.
        tokenizer: its ``vocab_size``, where it has one, says how many tokens exist.

    Raises:
        UserError: a model has fewer rows than the tokenizer has tokens.
    """
    student_size = output_head(student).vocab_size
    tokenizer_size = getattr(tokenizer, "vocab_size", 0)
    for key, size in (("model", student_size), ("teacher_model", teacher_size)):
        if size < tokenizer_size:
            raise UserError(
                f"{key}: its vocabulary has {size} tokens, the tokenizer {tokenizer_size}; teacher and student must "
                "share the tokenizer that the config names"
            )
    common = min(student_size, teacher_size)
    if student_size != teacher_size:
        print(
            f"vocabularies differ by padding rows (student {student_size}, teacher {teacher_size}): "
            f"distributions are compared on the common {common} tokens, renormalised"
        )
    return common


def check_tokenizers(student_folder: Path, teacher_folder: Path) -> None:
    """Compare the token ids of two model folders, as far as both have tokenizer files of one kind.

    Special tokens that were added later may differ in name; the ordinary vocabulary may not.

    Raises:
        UserError: an id means another token in each.
    """
    for read in (_hf_tokens, _sentencepiece_tokens, _tiktoken_tokens):
        student = read(student_folder)
        teacher = read(teacher_folder) if teacher_folder.suffix != ".gguf" else _gguf_tokens(teacher_folder)
        if student is None or teacher is None:
            continue
        differ = [token for token, index in student.items() if teacher.get(token, index) != index]
        lost = [token for token in student if token not in teacher]
        if differ or len(lost) > 0.01 * len(student):
            shown = ", ".join(repr(token) for token in (differ or lost)[:_SHOWN])
            raise UserError(
                f"teacher_checkpointer.checkpoint_dir={teacher_folder}: its tokenizer is not the student's "
                f"({student_folder}): {len(differ)} tokens have other ids, {len(lost)} are missing ({shown}); "
                "distillation by logits needs one tokenizer"
            )
        return


def _gguf_tokens(file: Path) -> dict[str, int] | None:
    from distill_tune.models.gguf import GGUFCheckpoint

    return GGUFCheckpoint.open("teacher_model", file).tokens() or None


def _hf_tokens(folder: Path) -> dict[str, int] | None:
    path = folder / "tokenizer.json"
    if not path.is_file():
        return None
    vocabulary = json.loads(path.read_text(encoding="utf-8"))["model"].get("vocab")
    if isinstance(vocabulary, list):  # unigram: a list of (piece, score)
        return {piece: index for index, (piece, _) in enumerate(vocabulary)}
    return vocabulary


def _sentencepiece_tokens(folder: Path) -> dict[str, int] | None:
    path = folder / "tokenizer.model"
    if not path.is_file():
        return None
    from sentencepiece import SentencePieceProcessor

    try:
        processor = SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError):  # tiktoken's ranks have the same file name
        return None
    return {processor.id_to_piece(index): index for index in range(processor.get_piece_size())}


def _tiktoken_tokens(folder: Path) -> dict[str, int] | None:
    for path in (folder / "original" / "tokenizer.model", folder / "tokenizer.model"):
        if path.is_file():
            lines = path.read_bytes().splitlines()
            if lines and all(len(line.split()) == 2 for line in lines[:10]):
                return {token.decode(): int(rank) for token, rank in (line.split() for line in lines)}
    return None
