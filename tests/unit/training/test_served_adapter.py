"""A LoRA student's adapters on the server that answers for it."""

import pytest
import torch
from omegaconf import OmegaConf
from sent_weights import LIKELIEST, REQUESTS, assert_answers_follow
from stand_in_engines import StandInVLLM

from distill_tune import models, teachers
from distill_tune.errors import UserError
from distill_tune.generation import Server
from distill_tune.generation.server import ServerDecoder
from distill_tune.models.adapters import adapter_names
from distill_tune.training.served_adapter import ServedAdapter

CPU = torch.device("cpu")


def loaded(folder, component, **arguments):
    config = OmegaConf.create({"_component_": f"distill_tune.models.{component}", "path": str(folder), **arguments})
    checkpoint = models.open_checkpoint("model", config, None)
    return models.load_model(config, checkpoint, torch.float32, CPU), checkpoint


@pytest.fixture
def server(student_folder):
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(student_folder)})
    base = teachers.build_teacher(component)
    base.load(None, CPU)
    server = StandInVLLM(base, None)
    server.base = student_folder
    yield server
    server.close()


@pytest.fixture
def student(student_folder):
    return loaded(student_folder, "lora_from_hf", lora_attn_modules=["q_proj", "v_proj"], lora_rank=4, lora_alpha=64)


def learn(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in adapter_names(model):
                parameter.normal_(std=0.3)


def test_answers_are_those_of_the_student_as_it_was_sent_last(server, student, tmp_path):
    model, checkpoint = student
    decoder = ServerDecoder(Server(server.url), {2}, LIKELIEST)
    served = ServedAdapter(decoder, checkpoint, tmp_path / "adapters")
    found = assert_answers_follow(decoder, served, model, learn)
    assert [folder.name for folder in (tmp_path / "adapters").iterdir()] == list(server._adapted)
    server._adapted.clear()  # as after a new start
    served.send(model, 3)
    assert decoder.generate(REQUESTS) == found
    again = ServerDecoder(Server(server.url), {2}, LIKELIEST)  # of a run that goes on: it finds an adapter there
    ServedAdapter(again, checkpoint, tmp_path / "adapters").send(model, 2)
    assert again.generate(REQUESTS) == found


def test_a_server_that_takes_no_adapters_is_told_how_to_be_started(server, student, tmp_path):
    server.base = None
    served = ServedAdapter(ServerDecoder(Server(server.url), {2}), student[1], tmp_path)
    with pytest.raises(UserError, match="start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        served.send(student[0], 1)


def test_a_student_without_adapters_is_refused(server, student_folder, tmp_path):
    model, checkpoint = loaded(student_folder, "from_hf")
    served = ServedAdapter(ServerDecoder(Server(server.url), {2}), checkpoint, tmp_path)
    with pytest.raises(UserError, match="train one with LoRA"):
        served.send(model, 1)
