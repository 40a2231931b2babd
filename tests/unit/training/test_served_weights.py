"""A student's whole weights on the server that answers for it, by a stand-in of vLLM's weight transfer."""

import importlib.util

import pytest
import stand_in_vllm
import torch
from omegaconf import OmegaConf
from sent_weights import LIKELIEST, REQUESTS, assert_answers_follow
from stand_in_vllm import StandInVLLMOfWeights

from distill_tune import models
from distill_tune.errors import UserError
from distill_tune.generation import Server
from distill_tune.generation.server import ServerDecoder
from distill_tune.training.served_weights import ServedWeights

CPU = torch.device("cpu")


@pytest.fixture(params=["from_hf", "lora_from_hf"])
def student(student_folder, request):
    arguments = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 4} if request.param == "lora_from_hf" else {}
    name = f"distill_tune.models.{request.param}"
    config = OmegaConf.create({"_component_": name, "path": str(student_folder), **arguments})
    checkpoint = models.open_checkpoint("model", config, None)
    return models.load_model(config, checkpoint, torch.float32, CPU), checkpoint


@pytest.fixture
def server(student_folder):
    server = StandInVLLMOfWeights(None, student_folder)
    yield server
    server.close()


def learn(model):
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.ndim > 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)


def test_answers_are_those_of_the_weights_that_were_sent_last(server, student, monkeypatch):
    stand_in_vllm.installed(monkeypatch)
    model, checkpoint = student
    decoder = ServerDecoder(Server(server.url, retries=0), {2}, LIKELIEST)
    served = ServedWeights(decoder, checkpoint, torch.float32, CPU)
    assert_answers_follow(decoder, served, model, learn)
    update = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/resume"]
    assert server.calls == ["/pause", "/init_weight_transfer_engine", *update, "/pause", *update]
    server._version = "initial"  # as after a new start, with the base's weights
    with pytest.raises(UserError, match="answers by weights initial, not by those that were sent last"):
        decoder.generate(REQUESTS)


def test_a_server_that_takes_no_weights_says_so(server, student, monkeypatch):
    stand_in_vllm.installed(monkeypatch)
    server.is_allowed = False
    served = ServedWeights(ServerDecoder(Server(server.url), {2}), student[1], torch.float32, CPU)
    with pytest.raises(
        UserError, match=rf"url={server.url}: sending the student's weights: 404: .* VLLM_SERVER_DEV_MODE"
    ):
        served.send(student[0], 1)


def test_vllm_must_be_installed_here_to_send_it_weights(server, student):
    if importlib.util.find_spec("vllm"):
        pytest.skip("vLLM is installed")
    with pytest.raises(UserError, match="pip install vllm, or train by LoRA"):
        ServedWeights(ServerDecoder(Server(server.url), {2}), student[1], torch.float32, CPU)
