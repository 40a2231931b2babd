"""Talking to models: what they are asked, what is heard, and how a conversation goes on."""

import io

import gguf
import pytest

from distill_tune import data, generation
from distill_tune.cli import chat
from distill_tune.cli.main import main
from distill_tune.errors import UserError
from distill_tune.generation.decoder import Decoder

Speaker = chat._Speaker


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def talk(monkeypatch, capsys, student_folder):
    """What is printed, for a pipe and for whoever asks, and the prompts that the models were given, in their order."""
    asked = []

    def to(lines, *options, stream=Decoder.stream, source=io.StringIO):
        def heard(self, request):
            asked.append(list(request.prompt))
            return stream(self, request)

        asked.clear()
        monkeypatch.setattr(Decoder, "stream", heard)
        monkeypatch.setattr("sys.stdin", source(lines))
        main(["chat", *map(str, options or [student_folder]), "--temperature", "0", "--max-new-tokens", "6"])
        printed = capsys.readouterr()
        return printed.out, [*asked], printed.err

    return to


def prompt(folder, *texts):
    turns = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
    return data.hf_tokenizer(str(folder)).prompt(turns)


def test_a_conversation_goes_on_until_it_is_begun_anew(talk, student_folder):
    told, asked, aside = talk("What is 1 plus 2?\n\nAnd 3?\n/rset\n/reset\nAnd 4?\n/quit\nAnd 5?\n")
    first = told.split("\n")[0]
    from_pipe = asked.pop(2)  # where it is no command
    assert from_pipe[-5:] == prompt(student_folder, "/rset")[-5:] and not aside
    assert first and asked == [
        prompt(student_folder, "What is 1 plus 2?"),
        prompt(student_folder, "What is 1 plus 2?", first, "And 3?"),
        prompt(student_folder, "And 4?"),
    ]


def test_a_pipe_gets_the_answers_alone_with_an_empty_line_between(talk, student_folder, teacher_folder, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as where a service runs tests
    answer, _, aside = talk("One?\n")
    assert answer.strip() and answer.count("\n") == 1 and not aside
    assert talk("One?\n/reset\nOne?\n")[0] == f"{answer}\n{answer}"
    of_teacher, _, _ = talk("One?\n", teacher_folder)
    both, _, _ = talk("One?\n", student_folder, "--teacher", teacher_folder)
    assert both == f"student:\n{answer}\nteacher:\n{of_teacher}"


def test_what_a_terminal_shows_beside_answers_is_not_written_into_a_pipe(talk):
    answer, _, _ = talk("One?\n")
    told, _, aside = talk("/rset\nOne?\n", source=Terminal)
    assert told == answer
    assert aside == f"{chat._COMMANDS}\nyou> /rset: no such command; {chat._COMMANDS}\nyou> you> \n"


def test_student_and_teacher_each_go_on_from_their_own_answers(talk, student_folder, teacher_folder):
    told, asked, _ = talk("One?\nTwo?\n", student_folder, "--teacher", teacher_folder)
    lines = told.split("\n")
    assert lines[::3] == ["student:", "teacher:"] * 2
    student, teacher = lines[1:5:3]
    assert student != teacher
    assert asked[2:] == [
        prompt(student_folder, "One?", student, "Two?"),
        prompt(teacher_folder, "One?", teacher, "Two?"),
    ]


def test_what_is_heard_is_the_likeliest_answer_as_it_comes(talk, student_folder, monkeypatch):
    pieces = []
    monkeypatch.setattr(chat, "print", lambda *texts, **more: pieces.append("".join(texts)), raising=False)
    talk("What is 1 plus 2?\n")
    decoder, tokenizer, ends = opened(student_folder)
    (answer,) = decoder.generate(
        [generation.Request(tokenizer.prompt([{"role": "user", "content": "What is 1 plus 2?"}]))]
    )
    wanted = tokenizer.decode([token for token in answer.tokens if token not in ends]).rstrip("\ufffd")
    assert "".join(pieces) == wanted and len([piece for piece in pieces if piece]) > 1


def opened(folder):
    import torch
    from omegaconf import OmegaConf

    from distill_tune import models

    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(folder)})
    checkpoint = models.open_checkpoint("model", component, None)
    model = models.load_model(component, checkpoint, torch.float32, torch.device("cpu"))
    tokenizer = data.hf_tokenizer(str(folder))
    ends = generation.ends_of(tokenizer, folder)
    return Decoder(model, ends, generation.Sampling(6, 0.0)), tokenizer, ends


def test_an_answer_that_is_stopped_or_cannot_be_ends_no_conversation(talk, student_folder):
    def interrupted(self, request):
        yield 300
        raise KeyboardInterrupt

    def refused(self, request):
        raise UserError("prompt 1 has 9 tokens; the model reads 8 at most")
        yield

    heard = opened(student_folder)[1].decode([300])
    too_long = "[prompt 1 has 9 tokens; the model reads 8 at most; /reset begins a new conversation]"
    for stream, said, wanted, before in (
        (interrupted, heard, "[stopped]", ("One?", heard)),
        (refused, "", too_long, ()),
    ):
        told, asked, aside = talk("One?\nTwo?\n", stream=stream)
        assert told.split("\n") == [said, "", said, ""] and aside.splitlines() == [wanted, wanted]
        assert asked[1] == prompt(student_folder, *before, "Two?")


def test_what_cannot_be_asked_is_told_and_the_next_line_is(talk, student_folder, monkeypatch):
    _, asked, told = talk("hi \udcff\nOne?\n")
    assert told.startswith("[the question is not UTF-8; ") and asked == [prompt(student_folder, "One?")]
    monkeypatch.setattr(chat, "_Speaker", lambda *settings: Speaker(*settings[:-1], 5))
    _, asked, told = talk("One?\n")
    assert told.startswith("[student has 5 tokens, the tokenizer writes ") and not asked


def test_a_model_whose_logits_are_no_numbers_is_told_before_it_is_asked(talk, monkeypatch, capsys, student_folder):
    broken = generation.Completion((5,), (float("nan"),), "length")
    monkeypatch.setattr(Decoder, "generate", lambda self, requests: [broken])
    with pytest.raises(SystemExit) as ended:
        talk("One?\n")
    assert ended.value.code == 2
    assert f"{student_folder}: its logits are no numbers (NaN)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["nowhere"], "MODEL nowhere: no such folder, or it has no config.json; name a Hugging Face model folder"),
        (["{cache}"], "MODEL {cache}: is a cache of a teacher, which holds no model; name a model's folder"),
        (["{student}", "--teacher", "nowhere"], "--teacher nowhere: no such folder"),
        (["{cache}/t5.gguf"], "MODEL {cache}/t5.gguf: "),
        (["{student}", "--teacher", "{cache}/t5.gguf"], "--teacher {cache}/t5.gguf: "),
        (["{student}", "--tokenizer", "{cache}/t5.gguf"], "its tokenizer is of the kind t5, of which none but gpt2"),
        (["{student}", "--temperature", "-1"], "temperature=-1.0: must be 0 or more"),
        (["{student}", "--device", "nonsense"], "device=nonsense: no such device"),
        (["{student}", "--tokenizer", "nowhere"], "tokenizer.path=nowhere: no such folder"),
    ],
)
def test_what_cannot_be_is_told(student_folder, tmp_path, capsys, options, told):
    (tmp_path / "manifest.json").touch()
    writer = gguf.GGUFWriter(tmp_path / "t5.gguf", "t5")
    writer.add_tokenizer_model("t5")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(SystemExit) as ended:
        main(["chat", *(option.format(student=student_folder, cache=tmp_path) for option in options)])
    assert ended.value.code == 2 and told.format(cache=tmp_path) in capsys.readouterr().err
