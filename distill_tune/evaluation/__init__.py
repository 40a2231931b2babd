"""How well a student follows its teacher, on rows that neither has seen."""

from distill_tune.evaluation.answers import answers
from distill_tune.evaluation.compare import Comparison, Entrant, compare, share_of_gap_closed
from distill_tune.evaluation.memory import PeakMemory
from distill_tune.evaluation.report import comparison_markdown, comparison_table, few_rows, gap_sentence, other_tokens

__all__ = [
    "Comparison",
    "Entrant",
    "PeakMemory",
    "answers",
    "compare",
    "comparison_markdown",
    "comparison_table",
    "few_rows",
    "gap_sentence",
    "other_tokens",
    "share_of_gap_closed",
]
