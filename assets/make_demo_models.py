"""Make the demo's models: a SentencePiece tokenizer, a teacher worth learning from, a briefly trained base student.

    python assets/make_demo_models.py --corpus FOLDER        (what `make demo-models` runs)

Both are trained from scratch on the docstrings of the training side of the split (distill_tune.data.docstring_rows),
on the answers only, and written as bf16 safetensors in Hugging Face layout to distill_tune/_demo_models. FOLDER holds
the packages of assets/corpus.txt, read beside the standard library and the installed packages. Same seed, same
packages, same machine: same weights.
"""

import argparse
import dataclasses
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import sentencepiece
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data import docstring_rows
from distill_tune.models.output_head import take_output_head

from torchtune.data import Message
from torchtune.models.convert_weights import tune_to_hf
from torchtune.models.llama2 import llama2_tokenizer
from torchtune.models.llama3_2 import llama3_2
from torchtune.modules import TransformerDecoder

VOCAB_SIZE = 4096
MAX_SEQ_LEN = 256
BATCH_ROWS = 64
SEED = 0


@dataclasses.dataclass(frozen=True)
class Model:
    name: str
    num_layers: int
    embed_dim: int
    intermediate_dim: int
    steps: int
    learning_rate: float
    cooldown: float  # share of the steps over which the learning rate falls to 0
    num_heads: int = 4
    num_kv_heads: int = 2

    def build(self) -> TransformerDecoder:
        shape = {key: value for key, value in vars(self).items() if key not in _TRAINING}
        return llama3_2(vocab_size=VOCAB_SIZE, max_seq_len=MAX_SEQ_LEN, **shape)


_TRAINING = ("name", "steps", "learning_rate", "cooldown")

TEACHER = Model(
    "teacher", num_layers=6, embed_dim=256, intermediate_dim=768, steps=2600, learning_rate=2e-3, cooldown=0.8
)
# Stopped in the middle of its training, at full learning rate: a student that has much to learn.
STUDENT = Model(
    "student", num_layers=2, embed_dim=128, intermediate_dim=384, steps=600, learning_rate=2e-3, cooldown=0.0
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, action="append", default=[], help="a folder of more Python packages")
    parser.add_argument("--output", type=Path, default=Path("distill_tune/_demo_models"))
    parser.add_argument("--teacher-steps", type=int, default=TEACHER.steps)
    parser.add_argument("--student-steps", type=int, default=STUDENT.steps)
    parser.add_argument("--only", choices=["teacher", "student"], help="keep the tokenizer and the other model")
    arguments = parser.parse_args()

    rows = docstring_rows.collect(held_out=False, folders=arguments.corpus)
    held_out = docstring_rows.collect(1000, held_out=True)
    print(f"{len(rows)} training rows, {len(held_out)} held-out rows", flush=True)

    tokenizer_path = arguments.output / "teacher" / "tokenizer.model"
    if arguments.only is None:
        train_tokenizer(rows, tokenizer_path)
    tokenizer = llama2_tokenizer(str(tokenizer_path))
    train_data = [tokenise(tokenizer, row) for row in rows]
    held_out_data = [tokenise(tokenizer, row) for row in held_out]
    print(f"{sum(sum(mask) for _, mask in train_data)} training tokens in answers", flush=True)

    for spec, steps in ((TEACHER, arguments.teacher_steps), (STUDENT, arguments.student_steps)):
        if arguments.only in (None, spec.name):
            spec = dataclasses.replace(spec, steps=steps)
            model = train(spec, train_data, held_out_data)
            folder = arguments.output / spec.name
            export(model, spec, folder, tokenizer_path)
            model.to(torch.bfloat16).float()  # the perplexity of what was written
            print(f"{spec.name}: held-out perplexity {perplexity(model, held_out_data):.2f}, in {folder}", flush=True)


def train_tokenizer(rows: list[dict[str, str]], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(docstring_rows.texts(rows)),
        model_prefix=str(path.with_suffix("")),
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        user_defined_symbols=["[INST]", "[/INST]"],
        minloglevel=2,
        num_threads=1,
    )
    path.with_suffix(".vocab").unlink()


def tokenise(tokenizer, row: dict[str, str]) -> tuple[list[int], list[bool]]:
    """(tokens, whether each belongs to the answer), cut at MAX_SEQ_LEN."""
    messages = [Message("user", row["instruction"], masked=True), Message("assistant", row["output"])]
    tokens, mask = tokenizer.tokenize_messages(messages)
    return tokens[:MAX_SEQ_LEN], [not masked for masked in mask[:MAX_SEQ_LEN]]


def train(spec: Model, train_data: list, held_out_data: list) -> TransformerDecoder:
    torch.manual_seed(SEED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = spec.build().to(device)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            std = 0.02 if "tok_embeddings" in name else parameter.shape[1] ** -0.5
            if name.endswith(("output_proj.weight", "w2.weight")):
                std /= math.sqrt(2 * spec.num_layers)
            torch.nn.init.normal_(parameter, std=std)
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "tok_embeddings" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "tok_embeddings" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=spec.learning_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=spec.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    started, total = time.perf_counter(), 0.0
    for step, rows in zip(range(spec.steps), batches(train_data), strict=False):
        warmup = (step + 1) / 100
        cooldown = (spec.steps - step) / (spec.cooldown * spec.steps) if spec.cooldown else 1.0
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = spec.learning_rate * min(1.0, warmup, cooldown)
        with torch.autocast(device, torch.bfloat16):
            loss, count = answer_loss(model, rows)
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        total += loss.item() / count
        if (step + 1) % 100 == 0:
            seconds = time.perf_counter() - started
            print(f"{spec.name} step {step + 1}: loss {total / 100:.3f}, {seconds:.0f} s", flush=True)
            total = 0.0
        if (step + 1) % 1000 == 0:
            print(
                f"{spec.name} step {step + 1}: held-out perplexity {perplexity(model, held_out_data):.2f}", flush=True
            )
    return model.cpu().float()


def batches(data: list) -> Iterator[list]:
    """Batches of rows of similar length, for ever; a new order each epoch."""
    generator = random.Random(SEED)
    while True:
        order = generator.sample(range(len(data)), len(data))
        windows = [order[start : start + 20 * BATCH_ROWS] for start in range(0, len(order), 20 * BATCH_ROWS)]
        for window in windows:
            window.sort(key=lambda row: len(data[row][0]))
            chunks = [window[start : start + BATCH_ROWS] for start in range(0, len(window), BATCH_ROWS)]
            generator.shuffle(chunks)
            yield from ([data[row] for row in chunk] for chunk in chunks)


def answer_loss(model: TransformerDecoder, rows: list) -> tuple[torch.Tensor, int]:
    """(summed cross-entropy, number of tokens) over the answers."""
    device = model.tok_embeddings.weight.device
    length = max(len(tokens) for tokens, _ in rows)
    tokens = torch.tensor([tokens + [0] * (length - len(tokens)) for tokens, _ in rows], device=device)
    answer = torch.tensor([mask + [False] * (length - len(mask)) for _, mask in rows], device=device)
    head = take_output_head(model)
    targets = answer[:, 1:]
    logits = head.project(model(tokens[:, :-1])[targets])  # [b, s, d] -> [n, d] -> [n, v]
    return F.cross_entropy(logits.float(), tokens[:, 1:][targets], reduction="sum"), int(targets.sum())


@torch.no_grad()
def perplexity(model: TransformerDecoder, data: list) -> float:
    sums = [answer_loss(model, data[start : start + BATCH_ROWS]) for start in range(0, len(data), BATCH_ROWS)]
    return math.exp(sum(loss.item() for loss, _ in sums) / sum(count for _, count in sums))


def export(model: TransformerDecoder, spec: Model, folder: Path, tokenizer_path: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    weights = tune_to_hf(model.state_dict(), spec.num_heads, spec.num_kv_heads, spec.embed_dim)
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": spec.embed_dim,
        "intermediate_size": spec.intermediate_dim,
        "num_hidden_layers": spec.num_layers,
        "num_attention_heads": spec.num_heads,
        "num_key_value_heads": spec.num_kv_heads,
        "head_dim": spec.embed_dim // spec.num_heads,
        "max_position_embeddings": 131072,  # as Llama 3.2, whose rotary scaling it has
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "dtype": "bfloat16",
    }
    tokenizer_config = {
        "tokenizer_class": "LlamaTokenizer",
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<unk>",
        "legacy": False,
        # Spaces as torchtune's Llama2Tokenizer leaves them between the parts of a prompt.
        "chat_template": "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %} [INST] "
        "{{ message.content }}  [/INST] {% else %}{{ message.content }}{{ eos_token }}{% endif %}{% endfor %}",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    if folder != tokenizer_path.parent:
        (folder / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())


if __name__ == "__main__":
    main()
