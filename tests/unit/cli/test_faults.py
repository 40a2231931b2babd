"""What a user gets wrong in a command or a config: the message, exit code 2, no traceback, and how soon."""

import re
import time

import pytest
from tiny import VOCAB_SIZE, write_model


@pytest.fixture
def fault(cli):
    def run(*arguments):
        done = cli("run", "kd_single_device", "--config", "config.yaml", *arguments)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        assert "step 1" not in done.stdout
        return done.stderr

    return run


def test_all_faults_are_listed_at_once(write_config, fault, cli):
    write_config()
    wrong = ["mode.apply_lora_to_output=True", "warmup_steps=0", "kd_ratio=2", "~epochs", "model.num_layer=1"]
    told = fault(*wrong)
    assert "  mode: no such key, did you mean model?" in told
    assert "  epochs: missing; the recipe needs it" in told
    done = cli("validate", "--config", "config.yaml", *wrong)
    assert done.returncode == 2
    told = done.stderr
    assert told.splitlines()[0].startswith("distill-tune: 5 faults in config config.yaml and the command line")
    assert (
        "  model.num_layer: torchtune.models.llama3_2.llama3_2 has no such argument, did you mean num_layers?" in told
    )
    assert "  mode: no such key, did you mean model?" in told
    assert "  warmup_steps: no such key" in told
    assert "  kd_ratio=2: must be a number from 0 to 1" in told
    assert "  epochs: missing; the recipe needs it" in told


def test_a_nested_key_is_offered_where_it_is_what_was_meant(write_config, fault):
    write_config(
        lr_scheduler={
            "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
            "num_warmup_steps": 2,
        }
    )
    assert "warmup_steps: no such key, did you mean lr_scheduler.num_warmup_steps?" in fault("warmup_steps=0")


def test_a_broken_config_is_named(fault, tmp_path):
    for text, message in [
        ("a: [", "config config.yaml: not valid YAML"),
        ("a: 1\na: 2", "found duplicate key a"),
        ("- a", "must be a mapping of keys"),
        ("a: ${b}\nb: ${a}", "Recursive interpolation"),
        ("a: ${nothing}", "Interpolation key 'nothing' not found"),
    ]:
        (tmp_path / "config.yaml").write_text(text)
        assert message in fault()


def test_names_that_there_are_not_are_told_with_near_ones(light_cli, tmp_path):
    (tmp_path / "there.json").write_text("{}")
    (tmp_path / "there.yaml").write_text("mine")
    for arguments, message in [
        (["run", "kd_singel_device", "--config", "tiny"], "no such recipe, did you mean kd_single_device?"),
        (["run", "mine.py", "--config", "tiny"], "recipe mine.py: no such file"),
        (["run", "kd_single_device", "--config", "tyny"], "config tyny: no such config, did you mean tiny"),
        (["run", "kd_single_device", "--config", "mine.yaml"], "config mine.yaml: no such file"),
        (["run", "kd_single_device", "--config", "."], "config .: is a folder; name a YAML file in it: there.yaml"),
        (["run", "kd_single_device", "--config", "there.json"], "config there.json: is not named as YAML is; a config"),
        (["run", "kd_single_device", "--config", "llama2"], "take one of llama2/7B_finetune_lora, llama2/7B_to"),
        (["run", "kd_single_device"], "--config: missing; name a config"),
        (["run", "kd_single_device", "mine.yaml", "epochs=1"], "--config: missing, did you mean --config mine.yaml?"),
        (["run"], "run: name a recipe and a config"),
        (["run", "tiny"], "recipe tiny: is a config; distill-tune run kd_single_device --config tiny"),
        (["run", "--config", "tiny", "kd_single_device"], "run: the recipe comes first: distill-tune run"),
        (["cat", "tyny"], "did you mean tiny"),
        (["cat", "nope"], "nope: no such recipe or config; `distill-tune ls` lists them all"),
        (["cp", "kd_single", "mine2.py"], "kd_single: no such recipe or config, did you mean kd_single_device?"),
        (["cp", "tiny", "a.py"], "name the copy so"),
    ]:
        started = time.perf_counter()
        done = light_cli(*arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert time.perf_counter() - started < 2
    assert "there.yaml: is there already; overwrite it with --force" in light_cli("cp", "tiny", "there.yaml").stderr
    assert (tmp_path / "there.yaml").read_text() == "mine"


def test_a_checkpoint_that_does_not_fit_is_told_before_it_is_read(write_config, fault, tmp_path, tokenizer_file):
    write_config()
    assert "the checkpoint lacks layers.2.attn" in fault("model.num_layers=3")
    assert "shapes differ: tok_embeddings.weight" in fault("model.embed_dim=64")
    broken = write_model(tmp_path / "broken", tokenizer_file, seed=1)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "model.safetensors: cannot be read" in fault(f"checkpointer.checkpoint_dir={broken}")
    (broken / "config.json").write_text("{")
    assert "config.json is broken" in fault(f"checkpointer.checkpoint_dir={broken}")


def test_what_needs_one_tokenizer_is_refused_where_there_are_two(write_config, fault, tmp_path, teacher_folder):
    import sentencepiece

    other = tmp_path / "other"
    other.mkdir()
    for file in teacher_folder.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["quite another text with other words " * 3] * 50),
        model_prefix=str(other / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    write_config()
    told = fault(
        f"teacher_checkpointer.checkpoint_dir={other}",
        "hidden_loss={_component_: distill_tune.losses.HiddenLoss}",
    )
    assert "hidden_loss: it compares hidden states token by token, and the tokenizer of teacher_model is not" in told


def test_rows_longer_than_the_model_are_told(write_config, fault):
    write_config()
    assert "its longest sequence has" in fault("model.max_seq_len=16")


def test_a_run_that_is_there_is_not_overwritten(write_config, fault, tmp_path):
    write_config()
    (tmp_path / "out" / "model").mkdir(parents=True)
    told = fault()
    assert "holds a run already; go on with it (resume=auto), name another folder" in told
    assert "checkpoints has none" in fault("resume_from_checkpoint=True")


def test_cuda_that_is_not_there_is_told(write_config, fault):
    write_config()
    assert "device=cuda: PyTorch sees no CUDA device here" in fault(
        "device=cuda",
    )


def test_validate_prints_parameters_and_memory_and_writes_nothing(write_config, cli, tmp_path):
    write_config()
    done = cli("validate", "--config", "config.yaml")
    assert done.returncode == 0, done.stderr
    assert "model: " in done.stdout
    assert re.search(r"trainable, [\d.]+ KiB for weights", done.stdout)
    assert "valid for kd_single_device" in done.stdout
    assert not (tmp_path / "out").exists()
    done = cli("validate", "kd_single_device", "--config", "config.yaml", "model.num_layers=3")
    assert done.returncode == 2
    assert "the checkpoint lacks" in done.stderr


def test_ls_cat_and_help_answer_without_importing_torch(fresh_cli):
    for arguments, expected in [
        (["ls"], "kd_single_device"),
        (["ls", "--path", "kd_single_device"], "kd_single_device.py"),
        (["cat", "tiny"], "kd_ratio: "),
        (["--help"], "distill-tune run kd_single_device --config tiny"),
        (["run", "--help"], "kd_ratio=0.1"),
    ]:
        started = time.perf_counter()
        done = fresh_cli(*arguments)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
        assert time.perf_counter() - started < 2
