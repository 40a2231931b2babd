"""What teacher and student read before the answer, where that is not the same."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from distill_tune.data.conversation import Conversation, Turn
from distill_tune.data.sources import RowError

_COLUMN = re.compile(r"\{(\w+)\}")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """Written around each user turn of a row.

    Attributes:
        template: with ``{input}`` for the user turn, and the row's other columns by their names.
        system: before the whole conversation; a row's own system turn follows it.
        key: which names the template, for messages alone.
    """

    template: str | None = None
    system: str | None = None
    key: str = dataclasses.field(default="prompt_template", compare=False)

    @property
    def is_plain(self) -> bool:
        return self.template is None and self.system is None

    def applied(self, conversation: Conversation, row: Mapping[str, Any]) -> Conversation:
        """
        Raises:
            RowError: the template names a column that the row has not.
        """
        turns = [self._applied(turn, row) if turn["role"] == "user" else turn for turn in conversation.turns]
        learned = conversation.learned
        if self.system is None:
            return conversation.with_turns(turns, learned)
        if turns[0]["role"] == "system":
            own = turns.pop(0)
            return conversation.with_turns([{**own, "content": f"{self.system}\n\n{own['content']}"}, *turns], learned)
        return conversation.with_turns([{"role": "system", "content": self.system}, *turns], [False, *learned])

    def _applied(self, turn: Turn, row: Mapping[str, Any]) -> Turn:
        if self.template is None:
            return turn

        def filled(match: re.Match[str]) -> str:
            name = match[1]
            if name == "input":
                return turn["content"]
            if not isinstance(row.get(name), str | int | float):
                raise RowError(f"{self.key}: {{{name}}}: the row has no such text; it has {', '.join(map(str, row))}")
            return str(row[name])

        return {**turn, "content": _COLUMN.sub(filled, self.template)}


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the rows are read: the keys of a config that change what teacher and student see of them.

    Attributes:
        student_prompt_template, teacher_prompt_template: see :class:`Prompt`.
        teacher_system_prompt: a system turn for the teacher alone.
        teacher_max_seq_len: where what the teacher reads is cut; default where the student's is.
        teacher_names: by which a row's column ``teacher_id`` chooses; empty without such a choice.
        augmented: prompts will be changed, so which tokens are the turns' own text must be known.
        prompts_alone: rows without an answer are kept, which end where it would begin; of datasets of ours with turns.
        shares_tokenizer: whether a teacher reads the tokens of the rows; others have tokenizers of their own.
    """

    student_prompt_template: str | None = None
    teacher_prompt_template: str | None = None
    teacher_system_prompt: str | None = None
    teacher_max_seq_len: int | None = None
    teacher_names: tuple[str, ...] = ()
    augmented: bool = False
    prompts_alone: bool = False
    shares_tokenizer: bool = True

    @property
    def with_answers(self) -> "Reading":
        """The same, of rows that have to have one, as for validation."""
        return dataclasses.replace(self, prompts_alone=False)

    @property
    def student(self) -> Prompt:
        return Prompt(self.student_prompt_template, None, "student_prompt_template")

    @property
    def teacher(self) -> Prompt:
        return Prompt(self.teacher_prompt_template, self.teacher_system_prompt, "teacher_prompt_template")

    @property
    def columns(self) -> frozenset[str]:
        """The columns of a row that are read here, besides what the dataset reads."""
        templates = (self.student_prompt_template, self.teacher_prompt_template)
        named = {name for template in templates for name in _COLUMN.findall(template or "")}
        return frozenset((named - {"input"}) | ({"teacher_id"} if self.teacher_names else set()))

    @property
    def differs(self) -> bool:
        """Whether teachers with the rows' tokenizer read something else than the student."""
        is_plain = self.student.is_plain and self.teacher.is_plain and self.teacher_max_seq_len is None
        return self.shares_tokenizer and not is_plain


PLAIN_READING = Reading()
