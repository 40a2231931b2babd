"""How well models do on documents that none of them was trained on, and how near a student is to its teacher."""

from distill_tune.evaluation.answering import Answered
from distill_tune.evaluation.documents import Document, Documents, Reading, Written, read_documents
from distill_tune.evaluation.finish import finish, so_far
from distill_tune.evaluation.measuring import Timed, answered, measure, measured, reached_in, scored_batches
from distill_tune.evaluation.memory import PeakMemory
from distill_tune.evaluation.named_models import (
    NamedModel,
    labels_of,
    open_named,
    open_teacher,
    require_model,
)
from distill_tune.evaluation.preparation import (
    Prepared,
    evaluation_folder,
    open_models,
    prepare,
    prepare_evaluation,
    sampling_of,
)
from distill_tune.evaluation.results import Measured, columns_of, results, samples, write_results
from distill_tune.evaluation.scoring import PerToken, Reader, ToTeacher, read_together, score
from distill_tune.evaluation.tables import results_markdown, results_text
from distill_tune.evaluation.tasks import Reached, Tasks, open_tasks, tasks_of
from distill_tune.evaluation.windows import Window, windows

__all__ = [
    "Answered",
    "Document",
    "Documents",
    "Measured",
    "NamedModel",
    "PeakMemory",
    "PerToken",
    "Prepared",
    "Reached",
    "Reader",
    "Reading",
    "Tasks",
    "Timed",
    "ToTeacher",
    "Window",
    "Written",
    "answered",
    "columns_of",
    "evaluation_folder",
    "finish",
    "labels_of",
    "measure",
    "measured",
    "open_models",
    "open_named",
    "open_tasks",
    "open_teacher",
    "prepare",
    "prepare_evaluation",
    "reached_in",
    "read_documents",
    "read_together",
    "require_model",
    "results",
    "results_markdown",
    "results_text",
    "samples",
    "sampling_of",
    "score",
    "scored_batches",
    "so_far",
    "tasks_of",
    "windows",
    "write_results",
]
