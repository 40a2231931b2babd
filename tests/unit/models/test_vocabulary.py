"""Teacher, student and rows speak of the same tokens, the added ones too."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy
import pytest
import torch
from tiny_tokenizer import write_tokenizer

from distill_tune import data, models
from distill_tune.errors import UserError
from distill_tune.models.vocabulary import Vocabulary


def model_with(vocab_size: int):
    return SimpleNamespace(output=torch.nn.Linear(4, vocab_size, bias=False, device="meta"))


def test_padding_rows_are_left_out_and_said(capsys):
    assert models.common_vocabulary(model_with(151_936), 152_064) == 151_936
    assert "student 151936, teacher 152064" in capsys.readouterr().out
    assert models.common_vocabulary(model_with(100), 100) == 100
    assert capsys.readouterr().out == ""


def folder_with(folder: Path, renamed: dict[str, str] | None = None, added: Sequence[str] = ()) -> Path:
    """A model folder's tokenizer, with tokens of other names and more of them."""
    folder.mkdir(exist_ok=True)
    write_tokenizer(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (folder / name).read_text()
        for old, new in (renamed or {}).items():
            text = text.replace(json.dumps(old)[1:-1], json.dumps(new)[1:-1])
        (folder / name).write_text(text)
    content = json.loads((folder / "tokenizer.json").read_text())
    kind = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    first = len(content["model"]["vocab"])
    content["added_tokens"] += [{"id": first + n, "content": token, **kind} for n, token in enumerate(added)]
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def used(*tokens: int) -> numpy.ndarray:
    return numpy.array(sorted(tokens))


def test_a_tokenizer_that_is_the_same_has_no_differing_tokens(tmp_path):
    assert models.check_tokenizers(folder_with(tmp_path / "s"), folder_with(tmp_path / "t")) == {}
    assert models.check_tokenizers(tmp_path / "s", tmp_path) == {}  # nothing to compare with


def test_another_tokenizer_altogether_is_refused_at_once(tmp_path):
    student, teacher = folder_with(tmp_path / "s"), folder_with(tmp_path / "t")
    content = json.loads((teacher / "tokenizer.json").read_text())
    last = len(content["model"]["vocab"]) - 1
    content["model"]["vocab"] = {
        token: index if index < 2 else last + 2 - index for token, index in content["model"]["vocab"].items()
    }
    (teacher / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"tokenizer of {teacher} is not that of {student}.* tokens have other ids"):
        models.check_tokenizers(student, teacher)


def test_a_control_token_that_is_another_to_the_teacher_is_refused_where_a_row_has_it(tmp_path):
    student = folder_with(tmp_path / "s")
    teacher = folder_with(tmp_path / "t", {"<|im_start|>": "<User>"}, added=["<image>"])
    differing = models.check_tokenizers(student, teacher, data.hf_tokenizer(str(student)))
    image = max(differing)
    models.require_same_tokens(differing, used(1, 5, 200), teacher)
    with pytest.raises(UserError, match=rf"0 \('<\|im_start\|>' is '<User>'\).*tokenizer.path={teacher}"):
        models.require_same_tokens(differing, used(0, 1, 5), teacher)
    with pytest.raises(UserError, match=rf"{image} \(no token is '<image>'\)"):
        models.require_same_tokens(differing, used(1, image), teacher)


def test_rows_that_are_written_with_the_teachers_tokenizer_are_the_teachers(tmp_path, capsys):
    student = folder_with(tmp_path / "s")
    teacher = folder_with(tmp_path / "t", {"<|im_start|>": "<User>"})
    tokenizer = data.hf_tokenizer(str(teacher))
    assert models.check_tokenizers(student, teacher, tokenizer) == {}
    models.check_own_tokens(student, tokenizer, used(0, 1, 5))
    assert "learns anew: 0 ('<User>' is '<|im_start|>')" in capsys.readouterr().out
    models.check_own_tokens(student, tokenizer, used(1, 5))
    models.check_own_tokens(student, data.hf_tokenizer(str(student)), used(0, 1))
    assert capsys.readouterr().out == ""


def test_rows_of_another_tokenizer_than_the_students_are_refused_without_a_teacher_too(tmp_path):
    student, other = folder_with(tmp_path / "s"), folder_with(tmp_path / "t")
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    turned = {token: index if index < 2 else len(vocabulary) + 1 - index for token, index in vocabulary.items()}
    (other / "tokenizer.json").write_text(json.dumps(content | {"model": content["model"] | {"vocab": turned}}))
    with pytest.raises(UserError, match=f"tokenizer.path={other}: is not the tokenizer of the student {student}"):
        models.check_own_tokens(student, data.hf_tokenizer(str(other)), used(0, 1))


def write_gguf(path: Path, tokens: dict[int, str], added: set[int]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in (("context_length", 64), ("embedding_length", 32), ("block_count", 1)):
        getattr(writer, f"add_{name}")(value)
    writer.add_head_count(4)
    writer.add_feed_forward_length(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_token_list([tokens[index] for index in range(len(tokens))])
    writer.add_token_types([3 if index in added else 1 for index in range(len(tokens))])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_files_tokens_are_compared_with_a_folders(tmp_path):
    student = folder_with(tmp_path / "s")
    mine = Vocabulary.of(student)
    assert models.check_tokenizers(student, write_gguf(tmp_path / "t.gguf", mine.tokens, mine.added)) == {}
    padded = dict(mine.tokens) | {len(mine.tokens) + n: f"[PAD{n}]" for n in range(8)}
    differing = models.check_tokenizers(student, write_gguf(tmp_path / "u.gguf", padded, mine.added))
    models.require_same_tokens(differing, used(*mine.tokens), tmp_path / "u.gguf")
    other = dict(mine.tokens) | {0: "<User>"}
    differing = models.check_tokenizers(student, write_gguf(tmp_path / "v.gguf", other, mine.added))
    assert differing == {0: "'<|im_start|>' is '<User>'"}


def test_tiktokens_file_is_compared_with_a_tokenizer_json_that_has_control_tokens_besides(tmp_path):
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    teacher = tmp_path / "t"
    folder_with(teacher)
    content = json.loads((teacher / "tokenizer.json").read_text())
    content["model"] |= {"vocab": {letters[byte]: byte for byte in range(256)}, "merges": []}
    content["added_tokens"] = [entry | {"id": entry["id"] + 256} for entry in content["added_tokens"]]
    (teacher / "tokenizer.json").write_text(json.dumps(content))
    for student in (tmp_path / "s", tmp_path / "l" / "original"):
        student.mkdir(parents=True)
        ranks = "\n".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256))
        (student / "tokenizer.model").write_text(f"{ranks}\n")
    assert models.check_tokenizers(tmp_path / "s", teacher) == {}
    assert models.check_tokenizers(tmp_path / "l", teacher) == {}
    turned = {letters[byte]: 255 - byte for byte in range(256)}
    (teacher / "tokenizer.json").write_text(json.dumps(content | {"model": content["model"] | {"vocab": turned}}))
    with pytest.raises(UserError, match="256 tokens have other ids"):
        models.check_tokenizers(tmp_path / "s", teacher)


def test_sentencepieces_file_is_compared_with_what_it_became_as_tokenizer_json(tmp_path, student_folder):
    teacher = tmp_path / "t"
    data.hf_tokenizer(str(student_folder)).transformers_tokenizer.save_pretrained(teacher)
    assert (teacher / "tokenizer.json").is_file() and not (teacher / "tokenizer.model").is_file()
    assert models.check_tokenizers(student_folder, teacher) == {}
    assert len(Vocabulary.of(teacher).tokens) == 320


def test_a_tokenizer_that_cannot_be_read_is_told_and_not_compared(tmp_path, capsys):
    student, teacher = folder_with(tmp_path / "s"), folder_with(tmp_path / "t")
    (teacher / "tokenizer.json").write_text("{}")
    assert models.check_tokenizers(student, teacher) == {}
    assert f"{teacher}: its tokenizer cannot be read" in capsys.readouterr().out
