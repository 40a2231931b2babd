"""A student as a GGUF file, for llama.cpp, Ollama and what else reads that format."""

from distill_tune.export.gguf.llama_cpp import LlamaCpp
from distill_tune.export.gguf.modelfile import write_modelfile
from distill_tune.export.gguf.said import otherwise_said
from distill_tune.export.gguf.tensors import KINDS
from distill_tune.export.gguf.write import Written, write_gguf

__all__ = ["KINDS", "LlamaCpp", "Written", "otherwise_said", "write_gguf", "write_modelfile"]
