"""llama.cpp's own tools, by scripts in their place that write down what they were asked."""

import subprocess
from pathlib import Path

import pytest

from distill_tune.errors import UserError
from distill_tune.export.gguf import LlamaCpp

CONVERTER = """\
import pathlib, sys
model, _, file, _, kind = sys.argv[1:]
if pathlib.Path(model).name == "unknown":
    sys.exit("Model UnknownForCausalLM is not supported")
pathlib.Path(file).write_text(f"{model} as {kind}")
"""
QUANTISER = """\
#!/bin/sh
echo "main: build = 7123 (abc123f)"
[ "$3" = Q9_K ] && echo "invalid ftype '$3'" && exit 1
[ "$3" = IQ1_S ] && exit 0
(cat "$1"; echo " then $3") > "$2"
"""


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "llama.cpp"
    (folder / "build" / "bin").mkdir(parents=True)
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER)
    tool = folder / "build" / "bin" / "llama-quantize"
    tool.write_text(QUANTISER)
    tool.chmod(0o755)
    return folder


def test_the_converter_writes_its_own_kinds(sources, tmp_path):
    told = LlamaCpp.find(sources).write(Path("student"), tmp_path / "model.gguf", "bf16")
    assert (tmp_path / "model.gguf").read_text() == "student as bf16"
    assert told == [f"{sources / 'convert_hf_to_gguf.py'}: version unknown"]


def test_the_quantiser_writes_all_others_of_the_best_that_the_converter_has(sources, tmp_path):
    told = LlamaCpp.find(sources / "build" / "bin").write(Path("student"), tmp_path / "model.gguf", "q4_k_m")
    assert (tmp_path / "model.gguf").read_text().split("\n")[0] == "student as auto then Q4_K_M"
    assert told[1] == f"{sources / 'build' / 'bin' / 'llama-quantize'}: build 7123 (abc123f)"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["llama.cpp", "model.gguf"]


def test_the_version_of_a_checkout_is_told(sources):
    git = ["git", "-C", str(sources), "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"], ["tag", "b7123"]):
        subprocess.run([*git, *command], check=True)
    assert LlamaCpp.find(sources).version == "b7123"


@pytest.mark.parametrize(
    ("model", "kind", "said"),
    [
        ("unknown", "f16", r"convert_hf_to_gguf.py failed \(1\): Model UnknownForCausalLM is not supported"),
        ("student", "q9_k", r"llama-quantize failed \(1\): main: build = 7123 \(abc123f\)\ninvalid ftype 'Q9_K'"),
        ("student", "iq1_s", "llama-quantize: wrote no file: main: build"),
    ],
)
def test_what_a_tool_says_is_passed_on(sources, tmp_path, model, kind, said):
    with pytest.raises(UserError, match=said):
        LlamaCpp.find(sources).write(Path(model), tmp_path / "model.gguf", kind)
    assert [path.name for path in tmp_path.iterdir()] == ["llama.cpp"]


def test_a_folder_without_the_converter_is_told(tmp_path):
    with pytest.raises(UserError, match=r"has no convert_hf_to_gguf.py; name the folder of llama.cpp's sources"):
        LlamaCpp.find(tmp_path)


def test_a_quantiser_that_was_not_built_is_told(sources, tmp_path):
    (sources / "build" / "bin" / "llama-quantize").unlink()
    with pytest.raises(UserError, match=r"gguf:q6_k: is made by llama-quantize, which .* has not built: cmake"):
        LlamaCpp.find(sources).write(Path("student"), tmp_path / "model.gguf", "q6_k")
