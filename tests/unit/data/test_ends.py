"""Which tokens end an answer: of template, tokenizer, student and teacher; what is told, and where the export stops."""

import json

import gguf
import numpy
import pytest
from tiny_tokenizer import TEMPLATE, write_tokenizer

from distill_tune import data
from distill_tune.data.ends import answer_end, describe_ends, exported_stops, stops_of
from distill_tune.errors import UserError
from distill_tune.models.published import published_folder

START, END = 0, 1  # <|im_start|>, <|im_end|>
USED = numpy.array([START, END, 50, 51])
SIZE = 500


def folder_with(folder, eos="<|im_end|>", template=TEMPLATE, generation=None, config=None):
    folder.mkdir()
    write_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": eos, "chat_template": template})
    )
    for name, stops in (("generation_config.json", generation), ("config.json", config)):
        if stops is not None:
            (folder / name).write_text(json.dumps({"eos_token_id": stops, "model_type": "qwen2"}))
    return folder


def told(student, *teachers, tokenizer=None, used=USED):
    return describe_ends(data.hf_tokenizer(str(tokenizer or student)), student, teachers, used, SIZE)


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (TEMPLATE, END),
        (TEMPLATE.replace("<|im_end|>\n", "<|im_start|>\n"), START),
        (TEMPLATE.replace("<|im_end|>\n", "\n\n").replace("<|im_start|>", "by "), END),  # eos
        (
            "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}{% generation %}"
            "{{ m['content'] }}<|im_end|>\n{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>\n{% endif %}"
            "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
            END,
        ),
        (
            "{% for m in messages %}{{ m['role'] }}: {% if m['role'] == 'assistant' %}{% generation %}"
            "{{ m['content'] }}{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}\n"
            "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
            None,
        ),
    ],
)
def test_the_template_says_what_ends_an_answer(tmp_path, template, end):
    assert answer_end(data.hf_tokenizer(str(folder_with(tmp_path / "s", template=template)))) == end


def test_an_end_that_is_no_token_is_told_where_rows_have_it(tmp_path):
    student = folder_with(tmp_path / "s", template=TEMPLATE.replace("<|im_end|>", "<|done|>"))
    tokenizer = data.hf_tokenizer(str(student))
    pieces = tokenizer.transformers_tokenizer.encode("<|done|>", add_special_tokens=False)
    line = told(student, used=numpy.unique(pieces))
    assert f"ends answers in <|done|>, which is no token of this tokenizer but {len(pieces)}" in line
    assert told(student, used=numpy.array([50, 51])) is None


def test_torchtunes_tokenizers_end_answers_as_they_write_them(student_folder, tmp_path):
    import base64

    from torchtune.models.llama2 import llama2_tokenizer
    from torchtune.models.llama3 import llama3_tokenizer

    ranks = "\n".join(f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256))
    (tmp_path / "tokenizer.model").write_text(f"{ranks}\n")
    llama3 = llama3_tokenizer(str(tmp_path / "tokenizer.model"))
    assert answer_end(llama3) == llama3.eot_id != llama3.eos_id
    assert answer_end(llama2_tokenizer(str(student_folder / "tokenizer.model"))) == 2


def test_where_all_agree_nothing_is_told(tmp_path):
    student = folder_with(tmp_path / "s", generation=[END, START], config=END)
    assert told(student) is None
    assert told(student, folder_with(tmp_path / "t", config=END)) is None
    assert told(folder_with(tmp_path / "u", eos="<|im_start|>", generation=START), used=numpy.array([50])) is None


def test_a_base_whose_template_ends_in_another_token_than_it_stops_at_is_told_with_the_key(tmp_path):
    student = folder_with(tmp_path / "s", eos="<|im_start|>", generation=START, config=START)
    assert told(student) == (
        f"tokenizer.path={student}: answers end in <|im_end|> (1); the tokenizer's eos is <|im_start|> (0); "
        f"eos_token_id of {student / 'generation_config.json'} is <|im_start|> (0); "
        "model/ will stop at <|im_end|> (1) and <|im_start|> (0)"
    )


def test_a_teacher_whose_template_ends_in_another_token_is_told_with_the_key_that_would_end_rows_so(tmp_path):
    student = folder_with(tmp_path / "s", generation=END)
    other = TEMPLATE.replace("<|im_end|>", "<|im_start|>")
    teacher = folder_with(tmp_path / "t", eos="<|im_start|>", generation=[START], template=other)
    line = told(student, teacher)
    assert f"eos_token_id of {teacher / 'generation_config.json'} is <|im_start|> (0)" in line
    assert f"ends them in <|im_start|> (0), as rows would with tokenizer.path={teacher}" in line
    assert f"as rows would with tokenizer.path={student}" not in told(teacher, student, tokenizer=student)


def test_a_model_that_is_not_here_is_named_as_in_the_config(tmp_path):
    student = folder_with(tmp_path / "s", generation=END)
    line = told(student, published_folder("models/Qwen3-0.6B"))
    assert "; eos_token_id of models/Qwen3-0.6B/config.json is 151645; " in line


def test_transformers_takes_the_ends_of_generation_config_before_those_of_config(tmp_path):
    folder = folder_with(tmp_path / "s", generation=END, config=START)
    assert list(stops_of(folder).values()) == [(END,), (START,)]
    assert "stop" not in (told(folder) or "")
    (folder / "generation_config.json").write_text('{"temperature": 0.6}')
    assert stops_of(folder) == {"config.json": (START,)}
    (folder / "config.json").write_text(json.dumps({"text_config": {"eos_token_id": [1, 106]}, "model_type": "gemma3"}))
    assert stops_of(folder) == {"config.json": (1, 106)}


def test_a_gguf_file_that_names_no_end_is_not_told_as_one_that_ends_otherwise(tmp_path):
    teacher = tmp_path / "teacher.gguf"
    writer = gguf.GGUFWriter(teacher, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert told(folder_with(tmp_path / "s", generation=END), teacher) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"eos_token_id": "</s>"}'])
def test_a_broken_generation_config_is_found_before_training(tmp_path, text):
    folder = folder_with(tmp_path / "s", config=END)
    (folder / "generation_config.json").write_text(text)
    with pytest.raises(UserError, match=r"generation_config\.json"):
        told(folder)


def test_the_export_stops_at_the_templates_end_first_then_at_all_others(tmp_path):
    student = folder_with(tmp_path / "s", eos="<|im_start|>", generation=[50, START], config=60)
    tokenizer = data.hf_tokenizer(str(student))
    assert exported_stops(tokenizer, student, SIZE) == [END, START, 50, 60]
    assert exported_stops(tokenizer, student, 55) == [END, START, 50]  # of which the model has a row
    assert exported_stops(None, student, SIZE) == [50, START, 60]
    teacher = folder_with(tmp_path / "t", generation=70)
    assert exported_stops(data.hf_tokenizer(str(teacher)), student, SIZE) == [END, 50, START, 60, 70]


def test_an_end_of_the_base_that_is_another_token_in_the_rows_does_not_cut_answers(tmp_path):
    student = folder_with(tmp_path / "s", eos="<|im_start|>", generation=START)
    teacher = folder_with(tmp_path / "t")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (teacher / name).read_text()
        (teacher / name).write_text(text.replace("<|im_start|>", "<think>"))
    assert exported_stops(data.hf_tokenizer(str(teacher)), student, SIZE) == [END]
