"""A model of ours, as lm-eval asks it. Imports lm-eval."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy
import torch
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs

from distill_tune.data.shape import Shape
from distill_tune.errors import UserError
from distill_tune.evaluation.answering import answers
from distill_tune.evaluation.documents import Written
from distill_tune.evaluation.named_models import NamedModel
from distill_tune.evaluation.scoring import Reader, batches_of, score
from distill_tune.evaluation.task_chat import chat_template_of
from distill_tune.generation import Sampling
from distill_tune.teachers import Served
from distill_tune.training.distributed import num_ranks, on_all_ranks, rank

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")

_DEFAULT_TOKENS = 256  # lm-eval's own
_SAMPLING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class TaskModel(TemplateLM):
    """Scores and writes with the code that all of an evaluation is measured by, whatever kind the model is of.

    To lm-eval it is one process: each rank is given all requests, takes its share, and gets the others' answers.
    Where the model cannot read a context and what follows it, the context loses its beginning; whole texts are cut
    into windows. Both as lm-eval does it: the token that is predicted last is not read, so that a window has one token
    more than the model reads.
    """

    def __init__(self, model: NamedModel, reader: Reader, tokenizer: Any, device: torch.device) -> None:
        super().__init__()
        # A server is told which of the tokens that it reads are predicted.
        reads_last = any(isinstance(one, Served) for one, _ in reader.model.each(Shape((), ())))
        reader = reader._replace(reads_last=reads_last)
        stride = None if reader.window is None else reader.window - 1
        self._model, self._reader, self._device = model, reader._replace(stride=stride), device
        self.tokenizer = tokenizer

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What comes before a text that nothing else comes before: the token that begins texts, or the one that ends
        them."""
        begin = self.tokenizer.bos_id
        return self.eot_token_id if begin is None else begin

    @property
    def tokenizer_name(self) -> str:
        return self._model.label

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **settings: Any) -> list[int]:
        """Behind the token that begins texts, where the tokenizer writes it and a chat template has not done so."""
        begin: str | None = getattr(getattr(self.tokenizer, "transformers_tokenizer", None), "bos_token", None)
        has_one = begin is not None and string.startswith(begin)
        return self.tokenizer.encode(string, add_bos=add_special_tokens is not False and not has_one, add_eos=False)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        written = chat_template_of(self._model.label, self.tokenizer)
        return written(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **settings: Any
    ) -> list[tuple[float, bool]]:
        window = self._reader.window
        documents = [_written(_shortened(context, window, len(text)), text) for _, context, text in requests]
        return _shared(documents, self._scored)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, nats: all their tokens, and not one that begins every text."""
        texts = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        found = _shared([_written([self.prefix_token_id], text) for text in texts], self._scored)
        return [log_likelihood for log_likelihood, _ in found]

    def _scored(self, documents: Sequence[Written]) -> list[tuple[float, bool]]:
        found: list[tuple[float, bool]] = [(0.0, True)] * len(documents)
        asked = [number for number, document in enumerate(documents) if document.supervised.any()]
        for together in batches_of([documents[number] for number in asked]):
            batch = [asked[place] for place in together]
            scores = score(self._reader, [documents[number] for number in batch], self._device, supervised_alone=True)
            for number, of in zip(batch, scores, strict=True):
                found[number] = -float(of.nll[of.supervised].sum()), bool(of.correct.all())
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        return _shared([request.args for request in requests], self._written)

    def _written(self, requests: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
        found = [""] * len(requests)
        by_settings: dict[str, list[int]] = {}
        for number, (_, settings) in enumerate(requests):
            by_settings.setdefault(json.dumps(settings, sort_keys=True), []).append(number)
        for numbers in by_settings.values():
            sampling = _sampling(requests[numbers[0]][1])
            prompts = [self._prompt(requests[number][0], sampling.max_new_tokens) for number in numbers]
            texts = answers(self._model, self._reader.model, self.tokenizer, prompts, sampling)
            for number, text in zip(numbers, texts, strict=True):
                if text is None:
                    raise UserError(f"{self._model.label}: writes no answers, which a task asks for")
                found[number] = text.text
        return found

    def _prompt(self, text: str, max_new_tokens: int) -> list[int]:
        """A prompt that leaves room for an answer.

        Raises:
            UserError: no prompt would.
        """
        if self._reader.context is not None and max_new_tokens >= self._reader.context:
            raise UserError(
                f"{self._model.label}: reads {self._reader.context} tokens, and a task asks for {max_new_tokens}; set "
                "max_gen_toks in its generation_kwargs"
            )
        prompt = self.tok_encode(text) or [self.prefix_token_id]
        return _shortened(prompt, self._reader.context, max_new_tokens)


def _shortened(context: list[int], most: int | None, length: int) -> list[int]:
    """Without its beginning, where it has more than ``most`` tokens together with so many behind it."""
    return context if most is None else context[-max(1, most - length) :]


def _written(context: Sequence[int], text: Sequence[int]) -> Written:
    """A document whose text alone is supervised."""
    tokens = numpy.array([*context, *text], numpy.int64)
    supervised = numpy.arange(len(tokens)) >= max(1, len(context))
    return Written(tokens, supervised, supervised, 0, 0)


def _shared(asked: Sequence[Asked], answer: Callable[[Sequence[Asked]], Sequence[Answer]]) -> list[Answer]:
    """Answers to all that is asked, each rank's share found by itself."""
    shares = on_all_ranks(list(answer(asked[rank() :: num_ranks()])))
    return [shares[number % num_ranks()][number // num_ranks()] for number in range(len(asked))]


def _sampling(settings: dict[str, Any]) -> Sampling:
    """As a task's ``generation_kwargs`` have it; by default with the likeliest tokens."""
    wanted = normalize_gen_kwargs(settings, _DEFAULT_TOKENS)
    chosen = {name: wanted[name] for name in _SAMPLING if wanted.get(name) is not None}
    if not wanted.get("do_sample"):
        chosen = {"temperature": 0.0}
    return Sampling(wanted["max_gen_toks"], stop=[text for text in wanted["until"] if text], **chosen)
