"""Which generator a model gets."""

import transformers

from distill_tune.generation import Decoder, Server, generator_of
from distill_tune.generation.hf import HuggingFaceDecoder
from distill_tune.generation.server import ServerDecoder

from torchtune.models.llama3_2 import llama3_2


def test_each_kind_of_model_has_its_generator():
    theirs = transformers.AutoModelForCausalLM.from_config(
        transformers.GPT2Config(vocab_size=9, n_layer=1, n_embd=4, n_head=1)
    )
    ours = llama3_2(9, 1, 1, 1, 4, 16)
    models = (ours, theirs, Server("http://localhost:1"))
    assert [type(generator_of(model, {2})) for model in models] == [Decoder, HuggingFaceDecoder, ServerDecoder]
