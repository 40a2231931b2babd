"""`distill-tune data`: rows as student and teacher read them, with what is learned marked."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from distill_tune.cli.validate import read_arguments, require_training
from distill_tune.config.check import checked_config
from distill_tune.config.values import needs_teacher
from distill_tune.counts import counted
from distill_tune.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from distill_tune.data import TokenisedRows
    from distill_tune.data.other_tokenizer import OtherTokenizer

_DESCRIPTION = """Show rows as student and teacher read them, what is learned in colour, and what of all rows is not.

  distill-tune data [RECIPE] --config CONFIG [overrides]
  distill-tune data --config CONFIG --row 3      row 3 of the file, whole
  distill-tune data --config CONFIG --rows 10    the first ten (default: 3)

Only the tokenizer's files and the rows are needed, no model. Where there is no colour, what is learned stands in [[ ]].
The exit status is 1 where a run would end at bad rows.
"""
_ROWS = 3
_MOST, _HEAD, _TAIL = 700, 400, 200  # characters of a text that is shown in part
_LEARNED = "black on bright_green"
_MOST_ENDS = 3


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "data",
        help="show what of the rows is learned",
        description=_DESCRIPTION,
        usage="distill-tune data [RECIPE] --config CONFIG [key=value ...] [--row N] [--rows N]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=_data)


def _data(options: argparse.Namespace) -> None:
    arguments, row = _take_number(list(options.arguments), "--row")
    arguments, first = _take_number(arguments, "--rows")
    recipe, name, overrides, _ = read_arguments(arguments)
    require_training("data", recipe)
    cfg = checked_config(recipe, name, overrides, "all", needs_weights=False)

    from rich.console import Console

    from distill_tune import config, data
    from distill_tune.training.preparation import reading_of
    from distill_tune.training.tokenizer_check import describe_others

    tokenizer = config.build("tokenizer", cfg.tokenizer)
    others, shares_tokenizer = _others(cfg, tokenizer)
    reading = reading_of(cfg, _teacher_names(cfg), shares_tokenizer)
    datasets, _ = data.prepare_rows(
        cfg.dataset, tokenizer, cfg.tokenizer, on_bad_row="skip", reading=reading, others=others
    )
    shown = [_numbers(rows, row, first) for rows in datasets]
    if row is not None and not any(shown):
        raise UserError(_missing(row, datasets))
    console = Console(highlight=False, soft_wrap=True)
    if row is None:
        for rows in datasets:
            _print_summary(console, rows, tokenizer, cfg.get("on_bad_row", "stop"), reading.prompts_alone)
        for line in describe_others(tokenizer, others, datasets):
            console.print(line, markup=False)
    _print_legend(console)
    for rows, numbers in zip(datasets, shown, strict=True):
        for number in numbers:
            _print_row(console, rows, number, tokenizer, others, whole=row is not None)
    if cfg.get("on_bad_row", "stop") == "stop":
        faults = list[str]()
        if (validation := cfg.get("dataset_val")) is not None:  # a run ends at its bad rows, too
            of_validation, _ = data.prepare_rows(
                validation, tokenizer, cfg.tokenizer, key="dataset_val", on_bad_row="skip", reading=reading.with_answers
            )
            faults = [fault for rows in of_validation for fault in rows.faults]
        if faults:
            console.print("dataset_val: a run ends at its bad rows", *faults, sep="\n  ", markup=False)
        if faults or any(rows.num_bad for rows in datasets):
            sys.exit(1)


def _others(cfg: DictConfig, tokenizer: Any) -> tuple[Sequence["OtherTokenizer"], bool]:
    """Tokenizers of teachers that are not that of the rows, as far as the teachers are here; whether one has that."""
    from distill_tune import teachers

    if cfg.get("teacher_model") is None or not needs_teacher(cfg):
        return (), True
    try:
        teacher = teachers.with_own_tokenizers(
            teachers.build_teacher(
                cfg.teacher_model,
                cfg.get("teacher_checkpointer"),
                combination=cfg.get("teacher_combination", "mixture"),
                needs_weights=False,
            ),
            cfg.get("teacher_tokenizer"),
            tokenizer,
            cfg.tokenizer,
            getattr(tokenizer, "vocab_size", 0),
            None,
        )
    except UserError as error:
        print(f"the rows are shown as the student reads them; of the teacher: {error}")
        return (), True
    return teacher.other_tokenizers, teacher.shares_tokenizer


def _teacher_names(cfg: DictConfig) -> tuple[str, ...]:
    """By which rows choose their teacher; no teacher is built."""
    from distill_tune.teachers.build import entries_of

    if cfg.get("teacher_combination") != "by_row" or not needs_teacher(cfg):
        return ()
    return tuple(entry.name for _, entry, _ in entries_of(cfg.teacher_model, cfg.get("teacher_checkpointer")))


def _take_number(arguments: list[str], option: str) -> tuple[list[str], int | None]:
    """The arguments without ``option N``, and the number."""
    rest, found = [], None
    following = iter(arguments)
    for argument in following:
        name, equals, value = argument.partition("=")
        if name != option:
            rest.append(argument)
            continue
        found = value if equals else next(following, "")
    if found is not None and not (found.isdecimal() and int(found) > 0):
        raise UserError(f"{option} {found}: must be a whole number of at least 1")
    return rest, None if found is None else int(found)


def _numbers(rows: "TokenisedRows", row: int | None, first: int | None) -> list[int]:
    """Which rows are shown: those with this number in their file, or the first ones."""
    if row is None:
        return list(range(min(len(rows), first or _ROWS)))
    if rows.origins is None:
        return [row - 1] if row <= len(rows) else []
    return (rows.origins[:, 1] == row).nonzero()[:, 0].tolist()[: first or None]


def _missing(row: int, datasets: Sequence["TokenisedRows"]) -> str:
    faults = [fault for rows in datasets for fault in rows.faults if f", row {row}: " in fault]
    if faults:
        return "\n  ".join([f"--row {row}: is bad, so it is not learned", *faults])
    left_out = sum(rows.num_bad + rows.num_cut for rows in datasets)
    why = f", or it is one of the {left_out:,} that are left out" if left_out else ""
    return f"--row {row}: there is no such row{why}; {sum(map(len, datasets)):,} are learned"


def _print_summary(
    console: "Console", rows: "TokenisedRows", tokenizer: Any, on_bad_row: str, are_prompts: bool = False
) -> None:
    import numpy

    from distill_tune.data import describe_rows

    files = ", ".join(map(str, rows.files[:3])) + (f" and {len(rows.files) - 3} more" if len(rows.files) > 3 else "")
    console.print(f"{files}: {describe_rows([rows], are_prompts)}", markup=False)
    if rows.num_bad and on_bad_row == "stop":
        console.print("on_bad_row=stop: a run ends at the bad rows")
    for fault in rows.faults:
        console.print(f"  {fault}", markup=False)
    read = [("tokens a row", rows.lengths), ("of them learned", rows.supervised)]
    if rows.teacher is not None:
        read.insert(1, ("teacher's tokens", rows.teacher.lengths))
    console.print(f"{'':<16}{'least':>9}{'median':>9}{'most':>9}")
    for what, counts in read:
        least, median, most = counts.min(), int(numpy.median(counts)), counts.max()
        console.print(f"{what:<16}{least:>9,}{median:>9,}{most:>9,}")
    console.print(f"the last token learned: {', '.join(_ends(rows, tokenizer))}", markup=False)
    console.print()


def _ends(rows: "TokenisedRows", tokenizer: Any) -> Iterator[str]:
    from distill_tune.data.readable import name_of, visible

    ends = Counter(rows.last_learned.tolist()).most_common()
    for token, count in ends[:_MOST_ENDS]:
        yield f'"{visible(name_of(tokenizer, token)).strip()}" (id {token}) in {counted(count, "row")}'
    if others := sum(count for _, count in ends[_MOST_ENDS:]):
        yield f"others in {others:,}"


def _print_legend(console: "Console") -> None:
    from rich.text import Text

    if _has_colour(console):
        console.print(Text("learned: ").append("in this colour", _LEARNED), end="\n\n")
    else:
        console.print("learned: [[in such marks]]", markup=False, end="\n\n")


def _has_colour(console: "Console") -> bool:
    return console.color_system is not None and not console.no_color


def _print_row(
    console: "Console",
    rows: "TokenisedRows",
    number: int,
    tokenizer: Any,
    others: Sequence["OtherTokenizer"],
    whole: bool,
) -> None:
    row = rows[number]
    if console.is_terminal:
        console.rule(characters="-", style="dim")
    console.print(
        f"{rows.origin(number)}: {counted(len(row.tokens), 'token')}, {rows.supervised[number]:,} learned", markup=False
    )
    _print_tokens(console, tokenizer, row.tokens, row.labels, whole)
    if row.teacher_tokens is not None:
        console.print(f"\nthe teacher reads {counted(len(row.teacher_tokens), 'token')}:")
        _print_tokens(console, tokenizer, row.teacher_tokens, row.teacher_labels, whole)
    for its, other in zip(row.others, others, strict=True):
        console.print(f"\nthe teacher's tokenizer writes {counted(len(its.tokens), 'token')}; {_met(its.alignment)}:")
        _print_tokens(console, other.tokenizer, its.tokens, its.labels, whole)
    console.print()


def _met(positions: Any) -> str:
    """Which of the student's tokens that are learned have a counterpart in the teacher's row.

    Args:
        positions: a row's alignment, ``[n, 6]``.
    """
    from distill_tune.alignment.columns import AT, OFFSET

    is_found = positions[:, AT] >= 0
    common = int((is_found & (positions[:, OFFSET] <= 0)).sum())
    told = f"of the {counted(len(positions), 'token')} learned {common:,} begin where one of its tokens does"
    within = int(is_found.sum()) - common
    missing = len(positions) - within - common
    told += f", {within:,} within one" if within else ""
    return told + (f", {missing:,} are not found there: no divergence" if missing else "")


def _print_tokens(console: "Console", tokenizer: Any, tokens: Any, labels: Any, whole: bool) -> None:
    from rich.text import Text

    from distill_tune.data.conversation import IGNORE_INDEX
    from distill_tune.data.readable import pieces, visible

    text, colour = Text(), _has_colour(console)
    # Nothing stands before the first token from which it could be predicted.
    for piece in pieces(tokenizer, tokens.tolist(), [IGNORE_INDEX, *labels[1:].tolist()]):
        shown = visible(piece.text if whole else _in_part(piece.text))
        if not piece.learned:
            text.append(shown)
        elif colour:
            text.append(shown, _LEARNED)
        else:
            text.append(f"[[{shown}]]")
    console.print(text, end="" if text.plain.endswith("\n") else "\n")


def _in_part(text: str) -> str:
    if len(text) <= _MOST:
        return text
    return f"{text[:_HEAD]} ... {len(text) - _HEAD - _TAIL:,} characters ... {text[-_TAIL:]}"
