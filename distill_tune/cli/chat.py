"""`distill-tune chat`: talk to a student, or to a student and its teacher side by side."""

import argparse
import contextlib
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distill_tune.config.files import is_model_folder, local_path, model_at, no_model_at
from distill_tune.errors import UserError

_DESCRIPTION = """Talk to a model, or to two side by side, each of which goes on from its own answers.

  distill-tune chat outputs/distilled/model
  distill-tune chat outputs/distilled/model --teacher models/Qwen3-8B
  echo "What does json.dumps do?" | distill-tune chat outputs/distilled/model

MODEL is a model's folder, an adapter's, a run's output_dir, a GGUF file, or demo:student, demo:teacher or
demo:bpe_teacher, which travel with the package. /reset begins a new conversation, /quit or Ctrl-D
ends, Ctrl-C stops an answer. Where the input is no terminal, each other line is a question; where the output is none,
it has the answers alone, an empty line between them, each of two below its name.
"""
_COMMANDS = "/reset begins a new conversation, /quit ends"
_LEAST_WIDTH = 60  # columns, for two answers beside each other


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "chat",
        help="talk to a student, or to student and teacher",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=local_path, metavar="MODEL")
    parser.add_argument("--teacher", type=local_path, metavar="MODEL", help="answers beside it")
    parser.add_argument("--tokenizer", type=local_path, help="a folder; default each model's own")
    parser.add_argument("--system", help="a system turn, before each conversation")
    parser.add_argument("--temperature", type=float, default=0.7, help="0 takes the likeliest token (default: 0.7)")
    parser.add_argument("--top-p", type=float, default=0.9, help="(default: 0.9)")
    parser.add_argument("--max-new-tokens", type=int, default=512, help="of an answer (default: 512)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:N, mps or auto (default: auto)")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), help="default: bf16 on GPUs that compute in it, else fp32")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the folder's own Python code")
    parser.set_defaults(function=_chat)


def _chat(options: argparse.Namespace) -> None:
    paths = {"student": options.model} | ({"teacher": options.teacher} if options.teacher else {})
    speakers = _opened(options, {name: model_at(path) for name, path in paths.items()})
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (with which input() edits a line)
    is_terminal, is_first = sys.stdin.isatty(), True
    if is_terminal:
        _tell(_COMMANDS)
    for turn in itertools.count():
        try:
            line = _line(is_terminal)
        except EOFError:
            _tell("\n" * is_terminal, end="")
            return
        except KeyboardInterrupt:  # perhaps meant for an answer that has just ended
            _tell(f"\n{_COMMANDS}")
            continue
        if line == "/quit":
            return
        if line == "/reset":
            for speaker in speakers:
                speaker.turns = speaker.turns[: options.system is not None]
        elif is_terminal and line.startswith("/"):
            _tell(f"{line}: no such command; {_COMMANDS}")
        elif line:
            _answer(speakers, line, turn, is_first)
            is_first = False


def _line(is_terminal: bool) -> str:
    """What is asked next.

    Raises:
        EOFError: there is no more.
    """
    if is_terminal and not sys.stdout.isatty():  # into which input() would write what it asks
        _tell("you> ", end="")
        return input().strip()
    return input("you> " if is_terminal else "").strip()


def _tell(text: str, end: str = "\n") -> None:
    """What is for the person who asks, and no part of an answer."""
    print(text, end=end, file=sys.stdout if sys.stdout.isatty() else sys.stderr, flush=True)


@dataclasses.dataclass
class _Speaker:
    """A model and its side of the conversation."""

    name: str
    decoder: Any
    tokenizer: Any
    ends: frozenset[int]
    seed: int
    turns: list[dict[str, str]]
    vocab_size: int

    def answer(self, question: str, turn: int) -> Iterator[str]:
        """The text so far, each time that there is more of it; what is heard of it goes into the conversation.

        Raises:
            UserError: the question is no text, or has tokens that the model lacks; the conversation is too long.
        """
        from distill_tune import generation
        from distill_tune.data.conversation import prompt_tokens
        from distill_tune.data.sources import RowError
        from distill_tune.generation.texts import text_of

        asked = [*self.turns, {"role": "user", "content": question}]
        try:
            question.encode()
            prompt = prompt_tokens(self.tokenizer, asked)
        except UnicodeEncodeError as error:
            raise UserError("the question is not UTF-8") from error
        except RowError as error:
            raise UserError(str(error)) from error
        if (token := max(prompt)) >= self.vocab_size:
            raise UserError(f"{self.name} has {self.vocab_size} tokens, the tokenizer writes {token}: take its own")
        request = generation.Request(prompt, generation.stream_of(self.seed, turn))
        tokens, text = list[int](), ""
        with contextlib.closing(self.decoder.stream(request)) as stream:
            try:
                for token in stream:
                    if token not in self.ends:
                        tokens.append(token)
                    text = text_of(self.tokenizer, tokens).rstrip("\ufffd")  # of a character that is not whole yet
                    yield text
            finally:
                if tokens:
                    self.turns = [*asked, {"role": "assistant", "content": text}]


def _answer(speakers: Sequence[_Speaker], question: str, turn: int, is_first: bool) -> None:
    """Ctrl-C ends an answer, and not the command.

    Args:
        is_first: nothing has been answered before.
    """
    from rich.console import Console

    console, is_terminal = Console(), sys.stdout.isatty()  # which FORCE_COLOR is no matter to
    if len(speakers) > 1 and is_terminal and console.width >= _LEAST_WIDTH:
        with _told():
            _side_by_side(console, speakers, question, turn)
        return
    for speaker in speakers:
        if not is_terminal and not is_first:
            print()
        is_first = False
        if len(speakers) > 1:
            print(f"{speaker.name}> " if is_terminal else f"{speaker.name}:\n", end="", flush=True)
        with _told():
            shown = ""
            try:
                for text in speaker.answer(question, turn):
                    print(text[len(shown) :], end="", flush=True)
                    shown = text
            finally:
                print(flush=True)


def _side_by_side(console: Any, speakers: Sequence[_Speaker], question: str, turn: int) -> None:
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    def table(texts: Sequence[str]) -> Table:
        columns = Table(expand=True, box=None, padding=(0, 1))
        for speaker in speakers:
            columns.add_column(speaker.name, ratio=1, overflow="fold")
        columns.add_row(*map(Text, texts))
        return columns

    shown = [""] * len(speakers)
    with Live(table(shown), console=console, vertical_overflow="visible") as live:
        answers = [speaker.answer(question, turn) for speaker in speakers]
        with contextlib.ExitStack() as stack:
            for answer in answers:
                stack.callback(answer.close)  # type: ignore[attr-defined]
            for texts in itertools.zip_longest(*answers):
                shown = [text if text is not None else before for text, before in zip(texts, shown, strict=True)]
                live.update(table(shown))


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        _tell("[stopped]")
    except UserError as error:
        _tell(f"[{error}; /reset begins a new conversation]")


def _opened(options: argparse.Namespace, paths: dict[str, Path]) -> list[_Speaker]:
    """
    Raises:
        UserError: a folder that is none, a model that cannot be loaded or whose logits are no numbers, a tokenizer that
            is not there.
    """
    keys = {"student": "MODEL", "teacher": "--teacher"}
    for name, path in paths.items():
        if path.suffix != ".gguf" and not is_model_folder(path):
            raise UserError(f"{keys[name]} {path}: {no_model_at(path)}")
    from distill_tune import data, generation, training
    from distill_tune.cli.compare import dtype_for
    from distill_tune.generation.requests import require_numbers
    from distill_tune.teachers.from_path import open_model

    sampling = generation.Sampling(options.max_new_tokens, options.temperature, top_p=options.top_p)
    device = training.find_device(options.device)
    dtype = training.find_dtype(options.dtype, device) if options.dtype else dtype_for(device)
    teachers, speakers = {}, []
    for name, path in paths.items():
        teacher: Any = open_model(keys[name], path, dtype, trust_remote_code=options.trust_remote_code)
        tokenizer = data.hf_tokenizer(str(options.tokenizer or teacher.folders[0]))
        teachers[name] = teacher, tokenizer, generation.ends_of(tokenizer, teacher.folders[0], teacher.vocab_size)
    before = [{"role": "system", "content": options.system}] if options.system is not None else []
    for name, (teacher, tokenizer, ends) in teachers.items():
        teacher.load(getattr(teacher, "model", None), device)
        decoder = generation.generator_of(teacher.model, ends, sampling, tokenizer=tokenizer)
        (first,) = decoder.generate([generation.Request([min(ends, default=0)], max_new_tokens=1)])
        require_numbers(first, str(paths[name]))
        speakers.append(
            _Speaker(name, decoder, tokenizer, frozenset(ends), options.seed, [*before], teacher.vocab_size)
        )
    return speakers
