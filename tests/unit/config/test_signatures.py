"""What is read off the source must be what importing finds."""

import inspect

import pytest

from distill_tune.config.components import find_component
from distill_tune.config.signatures import parameters_without_import

NAMES = [
    "distill_tune.data.chat",
    "distill_tune.data.hf_tokenizer",
    "torch.optim.AdamW",
    "torch.optim.SGD",
    "torch.optim.lr_scheduler.StepLR",
    "torchao.optim.AdamW8bit",
    "torchtune.datasets.alpaca_cleaned_dataset",
    "torchtune.datasets.chat_dataset",
    "torchtune.models.llama2.llama2_tokenizer",
    "torchtune.models.llama3_2.qlora_llama3_2_1b",
    "torchtune.models.qwen2_5.lora_qwen2_5_0_5b",
    "torchtune.training.FullModelHFCheckpointer",
    "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
    "torchtune.training.metric_logging.TensorBoardLogger",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_source_tells_what_importing_finds(name):
    read = parameters_without_import(name)
    assert read is not None
    found = inspect.signature(find_component(name)).parameters.values()
    keep = [p for p in found if p.kind is not p.VAR_POSITIONAL]
    assert [(p.name, p.default is p.empty) for p in read] == [(p.name, p.default is p.empty) for p in keep]


@pytest.mark.parametrize("name", ["nothing.here", "torch", "torch.optim.Nothing", "builtins.print", "json.dumps.x"])
def test_what_the_source_does_not_tell_is_left_open(name):
    assert parameters_without_import(name) is None
