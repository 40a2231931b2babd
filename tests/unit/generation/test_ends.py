"""Where answers end, and that a student which cannot end as its teacher does is found before the first step."""

import base64
import json
import re

import gguf
import pytest
from tiny_tokenizer import TEMPLATE, write_tokenizer
from tokenizers import Tokenizer

from distill_tune.data import hf_tokenizer
from distill_tune.errors import UserError
from distill_tune.generation.ends import ends_of, require_same_ends

TURN_END, TEXT_END = 1, 284  # <|im_end|>, <|endoftext|>


def folder_with(folder, eos, template=None, generation=None, config=None):
    """As the folders of Qwen2.5: Base has <|endoftext|> as its eos, Instruct <|im_end|>."""
    folder.mkdir()
    write_tokenizer(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos}
    names |= {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    for name, stops in (("generation_config.json", generation), ("config.json", config)):
        if stops is not None:
            (folder / name).write_text(json.dumps({"eos_token_id": stops}))
    return folder


@pytest.fixture
def base(tmp_path):
    return folder_with(tmp_path / "base", "<|endoftext|>", generation=TEXT_END, config=TEXT_END)


@pytest.fixture
def instruct(tmp_path):
    generation = [TURN_END, TEXT_END]
    return folder_with(tmp_path / "instruct", "<|im_end|>", TEMPLATE, generation=generation, config=TURN_END)


def check(student, teacher, tokenizer=None):
    require_same_ends(hf_tokenizer(str(tokenizer or student)), student, [teacher])


def test_ends_are_those_of_template_tokenizer_and_configs(tmp_path, base):
    assert Tokenizer.from_file(str(base / "tokenizer.json")).token_to_id("<|endoftext|>") == TEXT_END
    assert ends_of(hf_tokenizer(str(base)), base) == {TEXT_END}
    chat = folder_with(tmp_path / "chat", "<|endoftext|>", TEMPLATE, generation=[7, TEXT_END], config=8)
    assert ends_of(hf_tokenizer(str(chat)), chat) == {TURN_END, TEXT_END, 7, 8}
    assert ends_of(hf_tokenizer(str(chat)), chat, vocab_size=284) == {TURN_END, 7, 8}
    assert ends_of(None, chat) == {TEXT_END, 7, 8}


def test_torchtunes_tokenizers_name_all_their_ends(tmp_path):
    from torchtune.models.llama3 import llama3_tokenizer

    ranks = "\n".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256))
    (tmp_path / "tokenizer.model").write_text(f"{ranks}\n")
    tokenizer = llama3_tokenizer(str(tmp_path / "tokenizer.model"))
    assert ends_of(tokenizer, tmp_path) == {tokenizer.eos_id, tokenizer.eot_id, tokenizer.eom_id}


def test_a_base_student_that_would_learn_its_instruct_teachers_end_is_an_error_that_names_both(base, instruct):
    with pytest.raises(UserError) as error:
        check(base, instruct)
    assert str(error.value) == (
        f"teacher_model ends answers with <|im_end|> (1) and <|endoftext|> (284) (answers written with {instruct}: 1; "
        f"eos of {instruct}: 1; {instruct}/generation_config.json: 1, 284; {instruct}/config.json: 1), the student "
        f"with <|endoftext|> (284) (answers written with {base}: 284; eos of {base}: 284; "
        f"{base}/generation_config.json: 284; {base}/config.json: 284): "
        f"the student would learn an end that does not end its answers, which would all "
        f"be cut by max_new_tokens; set tokenizer.path={instruct} with its chat template, or add <|im_end|> (1) to "
        f"eos_token_id in {base}/generation_config.json"
    )


def test_each_way_out_is_one(base, instruct, capsys):
    check(base, instruct, tokenizer=instruct)
    require_same_ends(hf_tokenizer(str(base)), base, [instruct], more=[TURN_END])
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": [TEXT_END, TURN_END]}))
    check(base, instruct)
    assert capsys.readouterr().out == ""


def test_an_end_beside_the_templates_that_a_teacher_alone_knows_is_a_line(tmp_path, instruct, capsys):
    student = folder_with(tmp_path / "student", "<|im_end|>", TEMPLATE, generation=TURN_END)
    check(student, instruct)
    line = capsys.readouterr().out
    told = f": should answers grow long, add <|endoftext|> (284) to eos_token_id in {student}/generation_config.json\n"
    assert line.startswith("teacher_model ends answers with <|im_end|> (1) and <|endoftext|> (284)")
    assert line.endswith(told)
    assert line.count("\n") == 1


def test_a_student_that_knows_more_ends_than_its_teacher_is_nothing_to_tell(tmp_path, instruct, capsys):
    teacher = folder_with(tmp_path / "teacher", "<|im_end|>", TEMPLATE)
    check(instruct, teacher)
    check(instruct, instruct)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(("end", "agrees"), [(TEXT_END, True), (TURN_END, False)])
def test_a_teacher_in_a_gguf_file_is_asked_for_its_ends_too(tmp_path, base, end, agrees):
    teacher = tmp_path / "teacher.gguf"
    writer = gguf.GGUFWriter(teacher, "llama")
    writer.add_eos_token_id(end)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    if agrees:
        check(base, teacher)
        return
    told = f"teacher_model ends answers with 1 ({teacher}: 1)"
    with pytest.raises(UserError, match=re.escape(told)):
        check(base, teacher)


def test_a_teacher_of_whom_no_end_is_known_is_no_fault(tmp_path, base):
    (tmp_path / "teacher").mkdir()
    check(base, tmp_path / "teacher")
