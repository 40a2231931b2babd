import base64
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.torchao


def test_importing_prints_nothing_and_peft_lives_in_one_environment_with_torchtune():
    modules = "distill_tune._torchtune_compat, torchtune, torchtune.training, torchtune.datasets, torchtune.generation"
    modules += ", peft.tuners.lora"
    code = f"import {modules}, distill_tune.data, distill_tune.models, distill_tune.training, distill_tune.evaluation"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_removed_quantizer_says_what_became_of_it():
    import torchao.quantization

    import distill_tune._torchtune_compat  # noqa: F401

    if "distill_tune" not in torchao.quantization.int4_weight_only.__module__:
        pytest.skip("this torchao still has it")
    with pytest.raises(NotImplementedError, match=r"int4_weight_only was removed in torchao 0\.16"):
        torchao.quantization.int4_weight_only()


def test_a_torchao_that_torch_is_too_old_for_is_told(fresh_cli, tmp_path):
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").write_text("from torch.nn.functional import not_there_yet")
    done = fresh_cli("run", "kd_single_device", "--config", "tiny", PYTHONPATH=str(tmp_path))
    assert done.returncode == 2
    assert "does not work with torch" in done.stderr and "not_there_yet" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_tiktoken_file_that_is_another_at_the_same_path_is_read_anew(tmp_path, monkeypatch):
    import distill_tune._torchtune_compat  # noqa: F401

    from torchtune.modules.transforms.tokenizers import TikTokenBaseTokenizer

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    path = tmp_path / "tokenizer.model"
    for pieces in ([b"ab", b"abc"], [b"bc"]):
        ranks = [bytes([byte]) for byte in range(256)] + pieces
        path.write_text("".join(f"{base64.b64encode(piece).decode()} {rank}\n" for rank, piece in enumerate(ranks)))
        tokenizer = TikTokenBaseTokenizer(str(path), "mine", r".+", bos_id=300, eos_id=301, special_tokens={})
        tokens = tokenizer.encode("abc", add_bos=False, add_eos=False)
        assert tokens == ([257] if b"abc" in pieces else [97, 256])


def test_every_module_that_imports_torchtune_imports_the_compatibility_first():
    package = Path(__file__).parents[2] / "distill_tune"
    for path in package.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        torchtune = re.search(r"^\s*(from|import) torchtune", source, re.MULTILINE)
        compatibility = source.find("import distill_tune._torchtune_compat")
        assert not torchtune or 0 <= compatibility < torchtune.start(), path
