"""The prompts of a config: read, checked and tokenised before any model loads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig, ListConfig, OmegaConf

from distill_tune.config.components import instantiate
from distill_tune.counts import counted
from distill_tune.data.asked import Asked, asked_in, asked_tokens
from distill_tune.data.conversation import without_bounds
from distill_tune.data.datasets import ANSWER
from distill_tune.data.prepare import source_of
from distill_tune.data.prompts import Prompt as Template
from distill_tune.data.row_fields import unread_in
from distill_tune.data.sources import Row, RowError, origin_of, require_unchanged, use_in_torchtune
from distill_tune.errors import UserError, one_line
from distill_tune.generation.answers import Prompt, Question, line_of
from distill_tune.generation.texts import text_of
from distill_tune.generation.thinking import BEGIN

_NOT_KEPT = {*ANSWER, "finish_reason"}  # of the row's own answer
_OPEN = 8  # tokens in which a thought is begun
_SHOWN_FAULTS = 5

Failed = dict[str, str]


class Reader(NamedTuple):
    """A model that is asked.

    Attributes:
        tokenizer: writes its prompts.
        longest: tokens that it reads, the answer included; None where it does not say.
    """

    tokenizer: Any
    longest: int | None = None


def read_questions(
    cfg: DictConfig,
    tokenizer: Any,
    template: Template,
    readers: Mapping[str, Reader],
    check: Callable[[Row], None] = lambda row: None,
    by_row: bool = False,
) -> tuple[list[Question], list[Failed]]:
    """What ``prompt`` or ``dataset`` asks, each prompt once, and the rows that cannot be asked.

    Args:
        tokenizer: that of the rows.
        template: that is written around each user turn, of whichever model answers.
        readers: by name.
        check: raises ValueError where answers to a row cannot be scored.
        by_row: a prompt for another ``teacher_id`` is another one.

    Raises:
        UserError: a dataset whose rows are not told apart into turns; no prompt; a bad row, unless ``on_bad_row=skip``.
    """
    questions: dict[tuple[str, tuple[Prompt, ...]], Question] = {}
    failed, num_again = list[Failed](), 0
    with without_bounds([tokenizer, *(reader.tokenizer for reader in readers.values())]):
        for origin, row, asked, kept in _asked(cfg, tokenizer):
            try:
                question = _question(len(questions), origin, row, asked, kept, template, readers)
                check(row)
            except (RowError, TypeError, ValueError, AttributeError, LookupError) as error:
                failed.append({"row": origin, "error": one_line(error).encode(errors="replace").decode()})
                continue
            key = (str(row.get("teacher_id")) if by_row else "", tuple(question.prompts.values()))
            num_again += key in questions
            questions.setdefault(key, question)
    _tell(cfg, questions.values(), failed, num_again)
    return list(questions.values()), failed


def _asked(cfg: DictConfig, tokenizer: Any) -> Iterator[tuple[str, Row, Any, tuple[str, ...]]]:
    """Where each row stands, the row, what it asks, and which of its columns answers keep; a RowError in place of what
    it asks where that cannot be told.
    """
    if (prompt := cfg.get("prompt")) is not None:
        if not prompt.strip():
            raise UserError("prompt: is empty; write what is asked, or leave it out to ask the dataset's prompts")
        yield "prompt", {}, asked_in({"prompt": prompt}, {}), ()
        return
    use_in_torchtune()
    for entry in cfg.dataset if isinstance(cfg.dataset, ListConfig) else [cfg.dataset]:
        arguments = OmegaConf.create({name: value for name, value in entry.items() if name not in ("weight", "packed")})
        dataset = instantiate(arguments, tokenizer)
        read = getattr(dataset, "asked", None)
        if read is None:
            raise UserError(
                f"dataset {entry['_component_']}: its rows are not told apart into turns; take distill_tune.data.chat, "
                "instruct or text, which read prompts with and without answers"
            )
        for number in range(len(dataset)):
            origin, row = "{}, row {}".format(*origin_of(dataset, number)), dict[str, Any]()
            try:
                row = dataset.rows[number]
                kept = tuple(name for name in unread_in(row, read) if name in row and name not in _NOT_KEPT)
                yield origin, row, read(row), kept
            except RowError as error:
                yield origin, row, error, ()
        require_unchanged(dataset)


def _question(
    number: int,
    origin: str,
    row: Row,
    asked: Asked | RowError,
    kept: tuple[str, ...],
    template: Template,
    readers: Mapping[str, Reader],
) -> Question:
    """
    Raises:
        RowError: nothing is asked, a column cannot be kept, template or tokenizer refuse it, or it is too long.
    """
    if isinstance(asked, RowError):
        raise asked
    for name in kept:
        try:
            line_of({name: row[name]})
        except (TypeError, ValueError) as error:
            told = f"{type(error).__name__}: {one_line(error)}".encode(errors="replace").decode()
            raise RowError(f"answers cannot keep its column {name}, which JSON does not know: {told}") from error
    written, prompts = dict[int, Prompt](), dict[str, Prompt]()
    for name, (tokenizer, longest) in readers.items():
        if id(tokenizer) not in written:
            tokens = tuple(asked_tokens(tokenizer, asked, template, row))
            written[id(tokenizer)] = Prompt(tokens, text_of(tokenizer, tokens[-_OPEN:]).rstrip().endswith(BEGIN))
        prompts[name] = prompt = written[id(tokenizer)]
        if longest and len(prompt.tokens) >= longest:
            raise RowError(f"the prompt has {len(prompt.tokens)} tokens; the model reads {longest}, an answer included")
    return Question(number, origin, row, asked.turns, asked.tools, kept, prompts)


def _tell(cfg: DictConfig, questions: Sequence[Question] | Any, failed: Sequence[Failed], num_again: int) -> None:
    """
    Raises:
        UserError: there is none, or a bad row, unless ``on_bad_row=skip``.
    """
    shown = [f"\n  {fault['row']}: {fault['error']}" for fault in failed[:_SHOWN_FAULTS]]
    more = f"\n  and {len(failed) - _SHOWN_FAULTS} more" if len(failed) > _SHOWN_FAULTS else ""
    if failed and cfg.get("on_bad_row", "stop") == "stop":
        raise UserError(
            f"dataset: {counted(len(failed), 'row')} cannot be asked; mend what is told, or leave such out with "
            f"on_bad_row=skip{''.join(shown)}{more}"
        )
    if not questions:
        entries = cfg.dataset if isinstance(cfg.dataset, ListConfig) else [cfg.dataset]
        named = ", ".join(map(source_of, entries))
        raise UserError(f"dataset: {named} has no prompt{''.join(shown)}{more}")
    tokens = sum(len(next(iter(question.prompts.values())).tokens) for question in questions)
    told = f"{counted(len(questions), 'prompt')}, {counted(tokens, 'token')}"
    told += f"; {counted(num_again, 'row')} left out that ask what another asks" if num_again else ""
    told += f"; {counted(len(failed), 'row')} left out that cannot be asked" if failed else ""
    print(told)
