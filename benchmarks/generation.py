"""Answers of our decoder beside transformers' own generation: the same weights, prompts and sampling, in turn.

    python benchmarks/generation.py                                (the demo's student: 64 rows, up to 128 new tokens)
    python benchmarks/generation.py --model SMOLLM2 --case ragged  (16 rows of 8 to 256 new tokens)
    python benchmarks/generation.py --model SMOLLM2 --case bare    (decoding beside its bare products)

transformers runs all rows in one batch, prompts padded on the left, its cache on. Tokens that count are those of
answers up to their ends. Figures are medians over the rounds; a round beside which others took more than a twentieth of
the machine's CPU time is repeated.
"""

import argparse
import dataclasses
import functools
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import torch
from idle import run_alone
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM

from distill_tune import data, models
from distill_tune.config.components import build
from distill_tune.config.files import demo_model_folder
from distill_tune.data.datasets import IGNORE_INDEX
from distill_tune.generation import Decoder, Request, Sampling, stream_of
from distill_tune.generation.prepacked import prepacked
from distill_tune.generation.ready import ready_to_generate
from distill_tune.models.cached_rows import GrownRows, KeyValueCache

from torchtune.modules import TransformerDecoder

CPU = torch.device("cpu")
_REPEATS = 10


@dataclasses.dataclass(frozen=True)
class Workload:
    """
    Attributes:
        prompts: token ids of each row.
        limits: new tokens of each row at most.
        ends: tokens that end an answer.
    """

    prompts: list[list[int]]
    limits: list[int]
    ends: list[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=demo_model_folder("student"), help="a Hugging Face folder")
    parser.add_argument("--case", default="answers", choices=["answers", "ragged", "bare"])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(os.cpu_count() or 1)
    dtype = getattr(torch, options.dtype)
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(options.model)})
    model = models.load_model(component, models.open_checkpoint("model", component, None), dtype, CPU)
    if options.case == "bare":
        beside_bare_products(model, options.rounds)
        return
    load = answers() if options.case == "answers" else ragged(model.tok_embeddings.num_embeddings)
    theirs = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval()
    beside_transformers(model, theirs, load, options.rounds)


def answers(rows: int = 64, limit: int = 128) -> Workload:
    """Questions of the demo's data, for the demo's student; an answer ends where it ends it."""
    cfg = OmegaConf.load(Path(__file__).parent.parent / "configs" / "tiny" / "tiny.yaml")
    tokenizer = build("tokenizer", cfg.tokenizer)
    (tokenised,), _ = data.prepare_rows(cfg.dataset, tokenizer, cfg.tokenizer)
    prompts = []
    for row in (tokenised[number] for number in range(rows)):
        first = int((row.labels != IGNORE_INDEX).nonzero()[0])
        prompts.append(row.tokens[:first].tolist())
    return Workload(prompts, [limit] * rows, [tokenizer.eos_id])


def ragged(vocab_size: int, rows: int = 16, most: int = 256) -> Workload:
    """Random prompts and lengths; no answer ends by itself."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(8, 128, (rows,), generator=generator).tolist()
    prompts = [torch.randint(3, vocab_size, (length,), generator=generator).tolist() for length in lengths]
    limits = torch.linspace(8, most, rows).round().int()[torch.randperm(rows, generator=generator)].tolist()
    return Workload(prompts, limits, [])


def beside_transformers(model: TransformerDecoder, theirs: torch.nn.Module, load: Workload, rounds: int) -> None:
    requests = [
        Request(prompt, stream_of(0, row), limit)
        for row, (prompt, limit) in enumerate(zip(load.prompts, load.limits, strict=True))
    ]
    decoder = Decoder(model, load.ends, Sampling(max(load.limits)))
    longest = max(map(len, load.prompts))
    tokens, mask = (torch.zeros(len(requests), longest, dtype=torch.int64) for _ in range(2))
    for row, prompt in enumerate(load.prompts):
        tokens[row, longest - len(prompt) :], mask[row, longest - len(prompt) :] = torch.tensor(prompt), 1

    def of_ours() -> int:
        return sum(len(completion.tokens) for completion in decoder.generate(requests))

    def of_theirs() -> int:
        found = theirs.generate(
            tokens,
            attention_mask=mask,
            max_new_tokens=max(load.limits),
            do_sample=True,
            top_k=0,
            pad_token_id=0,
            eos_token_id=load.ends or None,
        )
        ended = torch.isin(found[:, longest:], torch.tensor(load.ends)).long()
        up_to_end = (ended.cumsum(-1) - ended == 0).sum(-1)
        return int(torch.minimum(up_to_end, torch.tensor(load.limits)).sum())

    of_ours(), of_theirs()
    decoder.spent = type(decoder.spent)()
    speeds: list[tuple[float, float]] = []
    for number in range(rounds):
        pair = [
            run_alone(name, functools.partial(speed, run)) for name, run in (("ours", of_ours), ("theirs", of_theirs))
        ]
        speeds.append((pair[0], pair[1]))
        print(f"round {number + 1}: {pair[0]:,.0f} and {pair[1]:,.0f} tokens a second", flush=True)
    ours, others = (statistics.median(part) for part in zip(*speeds, strict=True))
    ratio = statistics.median(mine / other for mine, other in speeds)
    spent = decoder.spent
    print(f"answers, tokens a second: {ours:,.0f}, transformers {others:,.0f}; {ratio:.2f} times")
    print(
        f"by phase: prompts {spent.prompt_tokens / spent.prompt_seconds:,.0f}, "
        f"answers {spent.answer_tokens / spent.answer_seconds:,.0f} tokens a second"
    )


def speed(run: Callable[[], int]) -> float:
    """Tokens a second."""
    started = time.perf_counter()
    return run() / (time.perf_counter() - started)


@torch.no_grad()
def beside_bare_products(model: TransformerDecoder, rounds: int, rows: int = 16, length: int = 128) -> None:
    """A decoding step of ``rows`` rows at position ``length`` beside the products of its linear layers alone."""
    layers = [module for module in model.layers.modules() if isinstance(module, torch.nn.Linear)]
    weights = [*(layer.weight for layer in layers), models.output_head(model).weight]
    inputs = {weight.shape[1]: torch.randn(rows, weight.shape[1], dtype=weight.dtype) for weight in weights}
    own = [functools.partial(torch.nn.functional.linear, weight=weight) for weight in weights]
    as_decoder_has_them = [prepacked(weight) or product for weight, product in zip(weights, own, strict=True)]

    def multiply(products: list[Callable[[torch.Tensor], torch.Tensor]]) -> int:
        for weight, product in list(zip(weights, products, strict=True)) * _REPEATS:
            product(inputs[weight.shape[1]])
        return rows * _REPEATS

    with ready_to_generate(model, rows) as ready:
        cache = KeyValueCache(model, rows, length + 1, CPU, ready.dtype)
        tokens = torch.zeros(rows, 1, dtype=torch.int64)
        positions = torch.full((rows,), length)

        def step() -> int:
            for _ in range(_REPEATS):
                grown = GrownRows(positions, length + 1, cache)
                ready.logits(ready.hidden_states(tokens, positions[:, None], grown)[:, 0])
            return rows * _REPEATS

        runs = {
            "products": functools.partial(multiply, as_decoder_has_them),
            "PyTorch's own": functools.partial(multiply, own),
            "step": step,
        }
        for run in runs.values():
            speed(run)
        speeds = [[run_alone(name, functools.partial(speed, run)) for name, run in runs.items()] for _ in range(rounds)]
    shares = (statistics.median(of_step / other[at] for *other, of_step in speeds) for at in range(2))
    print(
        "a step of {} rows runs at {:.0%} of the speed of its products, {:.0%} of PyTorch's own".format(rows, *shares)
    )


if __name__ == "__main__":
    main()
