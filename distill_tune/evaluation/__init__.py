"""How well models do on documents that none of them was trained on, and how near a student is to its teacher."""

from distill_tune.evaluation.answering import Answered
from distill_tune.evaluation.answers import answers
from distill_tune.evaluation.compare import Comparison, Entrant, compare, share_of_gap_closed
from distill_tune.evaluation.documents import Document, Documents, Reading, Written, read_documents
from distill_tune.evaluation.finish import finish, so_far
from distill_tune.evaluation.measuring import Timed, answered, measure, measured, scored_batches
from distill_tune.evaluation.memory import PeakMemory
from distill_tune.evaluation.named_models import NamedModel, open_named, open_teacher
from distill_tune.evaluation.preparation import (
    Prepared,
    evaluation_folder,
    prepare,
    prepare_evaluation,
    sampling_of,
)
from distill_tune.evaluation.report import comparison_markdown, comparison_table, few_rows, gap_sentence, other_tokens
from distill_tune.evaluation.results import Measured, columns_of, results, samples, write_results
from distill_tune.evaluation.scoring import PerToken, Reader, ToTeacher, score
from distill_tune.evaluation.windows import Window, windows

__all__ = [
    "Answered",
    "Comparison",
    "Document",
    "Documents",
    "Entrant",
    "Measured",
    "NamedModel",
    "PeakMemory",
    "PerToken",
    "Prepared",
    "Reader",
    "Reading",
    "Timed",
    "ToTeacher",
    "Window",
    "Written",
    "answered",
    "answers",
    "columns_of",
    "compare",
    "comparison_markdown",
    "comparison_table",
    "evaluation_folder",
    "few_rows",
    "finish",
    "gap_sentence",
    "measure",
    "measured",
    "open_named",
    "open_teacher",
    "other_tokens",
    "prepare",
    "prepare_evaluation",
    "read_documents",
    "results",
    "samples",
    "sampling_of",
    "score",
    "scored_batches",
    "share_of_gap_closed",
    "so_far",
    "windows",
    "write_results",
]
