"""Make the demo's models: a teacher worth learning from, a briefly trained base student, a teacher of other tokens.

    python assets/make_demo_models.py --corpus FOLDER        (what `make demo-models` runs)

All are trained on the docstrings of the training side of the split (distill_tune.data.docstring_rows), on the answers
only, and written as bf16 safetensors in Hugging Face layout to distill_tune/_demo_models. Teacher and student are
trained from scratch and share a SentencePiece tokenizer; the third, bpe_teacher, has a byte-level BPE tokenizer and a
chat template of its own, begins with some layers of the teacher and the means of its embeddings, and trains on. FOLDER
holds the packages of assets/corpus.txt, read beside the standard library and the installed packages. Same seed, same
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
import tokenizers
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data import docstring_rows, hf_tokenizer
from distill_tune.models.output_head import take_output_head

from torchtune.data import Message
from torchtune.models.convert_weights import hf_to_tune, tune_to_hf
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
    layers_of_teacher: tuple[int, ...] = ()

    def build(self) -> TransformerDecoder:
        shape = {key: value for key, value in vars(self).items() if key not in _TRAINING}
        return llama3_2(vocab_size=VOCAB_SIZE, max_seq_len=MAX_SEQ_LEN, **shape)


_TRAINING = ("name", "steps", "learning_rate", "cooldown", "layers_of_teacher")

TEACHER = Model(
    "teacher", num_layers=6, embed_dim=256, intermediate_dim=768, steps=2600, learning_rate=2e-3, cooldown=0.8
)
# Stopped in the middle of its training, at full learning rate: a student that has much to learn.
STUDENT = Model(
    "student", num_layers=2, embed_dim=128, intermediate_dim=384, steps=600, learning_rate=2e-3, cooldown=0.0
)
BPE_TEACHER = Model(
    "bpe_teacher",
    num_layers=3,
    embed_dim=256,
    intermediate_dim=768,
    steps=300,
    learning_rate=1e-3,
    cooldown=0.8,
    layers_of_teacher=(0, 2, 5),
)
# GPT-4's way to cut a text, as Llama 3 has it: numerals in groups of three digits.
BPE_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
BPE_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BPE_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, action="append", default=[], help="a folder of more Python packages")
    parser.add_argument("--output", type=Path, default=Path("distill_tune/_demo_models"))
    parser.add_argument("--teacher-steps", type=int, default=TEACHER.steps)
    parser.add_argument("--student-steps", type=int, default=STUDENT.steps)
    parser.add_argument("--bpe-teacher-steps", type=int, default=BPE_TEACHER.steps)
    parser.add_argument("--only", choices=["teacher", "student", "bpe_teacher"], help="keep all but this model")
    parser.add_argument(
        "--same-tokens", action="store_true", help="bpe_teacher with the others' tokenizer, for comparisons"
    )
    arguments = parser.parse_args()

    rows = docstring_rows.collect(held_out=False, folders=arguments.corpus)
    held_out = docstring_rows.collect(1000, held_out=True)
    print(f"{len(rows)} training rows, {len(held_out)} held-out rows", flush=True)

    of_teacher = arguments.output / "teacher"
    tokenizer_path = of_teacher / "tokenizer.model"
    if arguments.only is None:
        train_tokenizer(rows, tokenizer_path)
    tokenizer = llama2_tokenizer(str(tokenizer_path))
    train_data = [tokenise(tokenizer, row) for row in rows]
    held_out_data = [tokenise(tokenizer, row) for row in held_out]
    print(f"{sum(sum(mask) for _, mask in train_data)} training tokens in answers", flush=True)

    for spec, steps in ((TEACHER, arguments.teacher_steps), (STUDENT, arguments.student_steps)):
        if arguments.only in (None, spec.name):
            spec = dataclasses.replace(spec, steps=steps)
            model = train(spec, spec.build(), train_data, held_out_data)
            folder = arguments.output / spec.name
            export(model, spec, folder)
            write_tokenizer(folder, tokenizer_path)
            report(spec, model, folder, held_out_data)

    if arguments.only in (None, "bpe_teacher"):
        spec = dataclasses.replace(BPE_TEACHER, steps=arguments.bpe_teacher_steps)
        folder = arguments.output / spec.name
        folder.mkdir(parents=True, exist_ok=True)
        pieces = [piece_bytes(tokenizer, number) for number in range(VOCAB_SIZE)]
        if arguments.same_tokens:
            write_tokenizer(folder, tokenizer_path)
            words = pieces
        else:
            words = train_bpe_tokenizer(rows, folder)
            tokenizer = hf_tokenizer(str(folder))
            train_data = [tokenise(tokenizer, row) for row in rows]
            held_out_data = [tokenise(tokenizer, row) for row in held_out]
        model = train(spec, begun_from(of_teacher, spec, pieces, words), train_data, held_out_data)
        export(model, spec, folder, **({} if arguments.same_tokens else {"bos_token_id": None, "eos_token_id": 2}))
        report(spec, model, folder, held_out_data)


def report(spec: Model, model: TransformerDecoder, folder: Path, held_out_data: list) -> None:
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


def train_bpe_tokenizer(rows: list[dict[str, str]], folder: Path) -> list[bytes]:
    """Write tokenizer.json, settings and chat template; the bytes of each token."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    split = tokenizers.pre_tokenizers.Split(tokenizers.Regex(BPE_WORDS), "isolated")
    of_bytes = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, of_bytes])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(BPE_SPECIAL),
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(docstring_rows.texts(rows), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": BPE_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    words = [tokenizer.id_to_token(number) for number in range(VOCAB_SIZE)]
    return [b"" if word in BPE_SPECIAL else bytes(map(byte_of, word)) for word in words]


def byte_of(character: str) -> int:
    """Of the byte that GPT-2's alphabet writes as this character."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    code = ord(character)
    return others[code - 256] if code >= 256 else code


def piece_bytes(tokenizer, number: int) -> bytes:
    """What a SentencePiece token writes; nothing for control tokens."""
    model = tokenizer._spm_model.spm_model
    piece = model.id_to_piece(number)
    if model.is_control(number) or model.is_unknown(number):
        return b""
    return bytes([int(piece[3:5], 16)]) if model.is_byte(number) else piece.replace("\u2581", " ").encode()


def begun_from(folder: Path, spec: Model, pieces: list[bytes], words: list[bytes]) -> TransformerDecoder:
    """Some layers of the teacher; of each token the mean embedding of the teacher's tokens that write it.

    Args:
        pieces, words: the bytes of each of the teacher's tokens, and of each of the model's own.
    """
    weights = load_file(folder / "model.safetensors")
    state = hf_to_tune({name: weight.float() for name, weight in weights.items()}, 4, 2, spec.embed_dim)
    number_of = {piece: number for number, piece in enumerate(pieces) if piece}
    longest = max(map(len, number_of))

    def embedding(word: bytes) -> torch.Tensor:
        found, at = [], 0
        while at < len(word):
            size = next(size for size in range(longest, 0, -1) if word[at : at + size] in number_of)
            found.append(number_of[word[at : at + size]])
            at += len(word[at : at + size])
        embeddings = state["tok_embeddings.weight"]
        return embeddings[found].mean(0) if found else embeddings.mean(0)

    model = spec.build()
    kept = {f"layers.{layer}.": f"layers.{number}." for number, layer in enumerate(spec.layers_of_teacher)}
    own = {new + name[len(old) :]: state[name] for old, new in kept.items() for name in state if name.startswith(old)}
    own |= {name: state[name] for name in state if not name.startswith("layers.")}
    own["tok_embeddings.weight"] = torch.stack([embedding(word) for word in words])
    model.load_state_dict(own, strict=False)
    return model


def tokenise(tokenizer, row: dict[str, str]) -> tuple[list[int], list[bool]]:
    """(tokens, whether each belongs to the answer), cut at MAX_SEQ_LEN."""
    messages = [Message("user", row["instruction"], masked=True), Message("assistant", row["output"])]
    tokens, mask = tokenizer.tokenize_messages(messages)
    return tokens[:MAX_SEQ_LEN], [not masked for masked in mask[:MAX_SEQ_LEN]]


def train(spec: Model, model: TransformerDecoder, train_data: list, held_out_data: list) -> TransformerDecoder:
    torch.manual_seed(SEED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(device)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and not spec.layers_of_teacher:
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


def export(model: TransformerDecoder, spec: Model, folder: Path, **settings: int | None) -> None:
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
    (folder / "config.json").write_text(json.dumps(config | settings, indent=2) + "\n")


def write_tokenizer(folder: Path, tokenizer_path: Path) -> None:
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
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=2) + "\n")
    if folder != tokenizer_path.parent:
        (folder / "tokenizer.model").write_bytes(tokenizer_path.read_bytes())


if __name__ == "__main__":
    main()
