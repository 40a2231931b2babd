import json
from pathlib import Path

import pytest
from tiny_tokenizer import TEMPLATE, write_tokenizer
from tokenizers import Tokenizer, models, processors

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.data import hf_tokenizer
from distill_tune.data.sources import RowError
from distill_tune.errors import UserError

from torchtune.data import Message


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


MESSAGES = [
    Message("user", "hello", masked=True),
    Message("assistant", "你好 there"),
    Message("user", "more", masked=True),
    Message("assistant", "no"),
]


def test_the_chat_template_decides_and_answers_with_their_end_are_learned(folder):
    tokenizer = hf_tokenizer(str(folder))
    tokens, mask = tokenizer.tokenize_messages(MESSAGES)
    assert tokenizer.decode([t for t, masked in zip(tokens, mask, strict=True) if not masked]) == "你好 thereno"
    assert [t for t, masked in zip(tokens, mask, strict=True) if not masked].count(tokenizer.eos_id) == 2
    asked = tokenizer.prompt([{"role": "user", "content": "hello"}])
    assert tokens[: len(asked)] == asked


def test_it_is_what_transformers_makes_of_the_folder(folder):
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), chat_template=TEMPLATE)
    turns = [{"role": message.role, "content": message.text_content} for message in MESSAGES]
    assert hf_tokenizer(str(folder)).tokenize_messages(MESSAGES)[0] == theirs.apply_chat_template(turns)["input_ids"]


def test_a_template_of_its_own_file_counts_and_a_refusal_is_told(folder):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    (folder / "chat_template.jinja").write_text(refusing + TEMPLATE)
    with pytest.raises(RowError, match="the chat template refuses it: no system turns"):
        hf_tokenizer(str(folder)).tokenize_messages([Message("system", "Be brief.", masked=True), *MESSAGES])


def test_without_a_template_turns_follow_each_other(folder):
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
    tokenizer = hf_tokenizer(str(folder / "tokenizer.json"))
    tokens, mask = tokenizer.tokenize_messages(MESSAGES[:2])
    assert tokenizer.decode(tokens) == "hello\n你好 there"
    assert mask[-1] is False


def test_broken_or_missing_files_are_named(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match="has no tokenizer"):
        hf_tokenizer(str(empty))
    (empty / "tokenizer_config.json").write_text((folder / "tokenizer_config.json").read_text())
    with pytest.raises(UserError, match="has no tokenizer"):  # of which transformers makes one without a vocabulary
        hf_tokenizer(str(empty))
    (empty / "tokenizer_config.json").unlink()
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        hf_tokenizer(str(folder))
    (empty / "tokenizer.json").write_text(Tokenizer(models.BPE()).to_str())
    with pytest.raises(UserError, match="no end-of-sequence token"):
        hf_tokenizer(str(empty))


def change(folder: Path, **settings: object) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def without_special_tokens(folder: Path) -> None:
    """As some exporters leave it: the tags stand in tokenizer_config.json alone."""
    file = json.loads((folder / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in file["added_tokens"]}
    file["added_tokens"] = []
    (folder / "tokenizer.json").write_text(json.dumps(file))
    change(folder, added_tokens_decoder={str(id_): {"content": text, "special": True} for text, id_ in ids.items()})


def with_a_post_processor(folder: Path) -> None:
    """Writes a begin of sequence itself, as Llama 3's does."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    id_ = tokenizer.token_to_id("<|im_start|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", pair="<|im_start|> $A $B", special_tokens=[("<|im_start|>", id_)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    change(folder, bos_token="<|im_start|>")


TAMPERED = {
    "as it is": lambda folder: None,
    "special tokens in tokenizer_config.json alone": without_special_tokens,
    "a post-processor": with_a_post_processor,
    "no bos token, an id in config.json": lambda folder: (
        change(folder, bos_token=None, chat_template="{{ bos_token }}" + TEMPLATE),
        (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "bos_token_id": 5})),
    ),
    "special_tokens_map.json": lambda folder: (folder / "special_tokens_map.json").write_text(
        json.dumps({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|tool|>"]})
    ),
    "added_tokens.json": lambda folder: (folder / "added_tokens.json").write_text(json.dumps({"<|new|>": 400})),
    "templates by name": lambda folder: change(
        folder,
        chat_template=[{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "tools" + TEMPLATE}],
    ),
    "a class that transformers fills": lambda folder: change(folder, tokenizer_class="Qwen2Tokenizer"),
}


@pytest.mark.parametrize("tampered", TAMPERED)
def test_the_ids_are_those_of_transformers(folder, tampered):
    from transformers import AutoTokenizer

    TAMPERED[tampered](folder)
    ours, theirs = hf_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    for text in ("hello there", " 你好 <|im_end|> <|new|><|tool|>", "a\n\nb  c", ""):
        assert ours.encode(text) == theirs(text)["input_ids"]
    turns = [{"role": message.role, "content": message.text_content} for message in MESSAGES]
    wanted = theirs.apply_chat_template(turns)["input_ids"]
    tokens, mask = ours.tokenize_messages(MESSAGES)
    assert tokens == wanted
    learned = [token for token, masked in zip(tokens, mask, strict=True) if not masked]
    assert ours.decode(learned, skip_special_tokens=False) == "你好 there<|im_end|>no<|im_end|>"
    assert ours.prompt(turns[:1]) == theirs.apply_chat_template(turns[:1], add_generation_prompt=True)["input_ids"]
    assert (ours.bos_id, ours.eos_id) == (theirs.bos_token_id, theirs.eos_token_id)


def test_a_template_is_named_by_its_file(folder, tmp_path_factory):
    file = tmp_path_factory.mktemp("template") / "mine.jinja"
    file.write_text(TEMPLATE.replace("assistant", "bot"))
    tokenizer = hf_tokenizer(str(folder), chat_template=str(file))
    asked = tokenizer.prompt([{"role": "user", "content": "hello"}])
    assert tokenizer.decode(asked, skip_special_tokens=False).endswith("<|im_start|>bot\n")
    with pytest.raises(UserError, match=r"tokenizer\.chat_template=.*nowhere\.jinja: cannot be read"):
        hf_tokenizer(str(folder), chat_template=str(file.parent / "nowhere.jinja"))


def test_arguments_that_the_template_is_given_anyway_are_refused(folder):
    with pytest.raises(
        UserError, match=r"tokenizer\.chat_template_kwargs\.messages: the template is given the row's own"
    ):
        hf_tokenizer(str(folder), chat_template_kwargs={"messages": []})


def test_white_space_is_learned_also_where_the_folder_trims_offsets(folder):
    messages = [Message("user", "hello", masked=True), Message("assistant", "def f(x):\n    return  x\n")]
    whole = hf_tokenizer(str(folder)).tokenize_messages(messages)
    content = json.loads((folder / "tokenizer.json").read_text())
    trimming = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    for post_processor in (trimming, {"type": "Sequence", "processors": [trimming]}):
        (folder / "tokenizer.json").write_text(json.dumps(content | {"post_processor": post_processor}))
        assert hf_tokenizer(str(folder)).tokenize_messages(messages) == whole
