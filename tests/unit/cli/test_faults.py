"""What a user gets wrong in a command or a config: the message, exit code 2, no traceback, and how soon."""

import sys
import time

import pytest
from tiny import VOCAB_SIZE, write_model

from distill_tune.cli.main import main

# One wrong setting each, told without importing anything heavy.
AT_ONCE = [
    ("kd_raito=0.1", "kd_raito: no such key, did you mean kd_ratio?"),
    ("mode.apply_lora_to_output=True", "mode: no such key, did you mean model?"),
    ("zzz=1", "zzz: no such key, and nothing would read it"),
    ("kd_ratio=1.5", "kd_ratio=1.5: must be a number from 0 to 1"),
    ("kd_ratio=half", "kd_ratio=half: must be a number from 0 to 1"),
    ("temperature=0", "temperature=0: must be a number above 0"),
    ("epochs=0", "epochs=0: must be a whole number of at least 1"),
    ("batch_size=2.5", "batch_size=2.5: must be a whole number of at least 1 or null"),
    (
        "max_tokens_per_batch=4096",
        "max_tokens_per_batch=4096: takes the place of batch_size; set batch_size=null as well",
    ),
    ("batch_size=null", "batch_size=null: needs max_tokens_per_batch"),
    ("teacher_dtype=int4", "teacher_dtype=int4: must be one of bf16, fp32"),
    ("teacher_quantizer=int4", "teacher_quantizer=int4: must be a component"),
    ("temperature_squared=2", "temperature_squared=2: must be True or False"),
    ("temperature=[1,2]", "temperature=[1, 2]: must be a number above 0, or a schedule, {_component_: distill_tune."),
    ("teacher_combination=vote", "teacher_combination=vote: must be one of mixture, sum, by_row"),
    ("teacher_combination=sum", "teacher_combination=sum: teacher_model names one teacher; give a list"),
    ("dataset_temperature=2", "dataset_temperature=2: dataset names one dataset; give a list"),
    (
        "teacher_model._component_=distill_tune.teachers.EMA teacher_offload=True",
        "teacher_offload: distill_tune.teachers.EMA does not heed it; it is for models",
    ),
    ("teacher_prompt_template=hello", "teacher_prompt_template=hello: must be text with {input}"),
    ("augmentations=3", "augmentations=3: must be a list of components"),
    ("dataset_temperature=0", "dataset_temperature=0: must be a number above 0 or null"),
    ("hidden_loss=uniform", "hidden_loss=uniform: must be a component"),
    ("teacher_model=[]", "teacher_model=[]: is an empty list"),
    ("+model.path=x.gguf", "model.path=x.gguf: no such file"),
    (
        "teacher_quantizer._component_=distill_tune.teachers.NF4 teacher_offload=True",
        "teacher_offload=True: streams plain weights alone; leave teacher_quantizer out",
    ),
    (
        "hidden_loss._component_=distill_tune.losses.HiddenLoss hidden_loss.positions=all teacher_max_seq_len=9",
        "hidden_loss.positions=all: teacher_max_seq_len has teacher and student read different rows",
    ),
    ("batch_size=True", "batch_size=True: must be a whole number of at least 1 or null"),
    ("max_steps_per_epoch=-1", "max_steps_per_epoch=-1: must be a whole number of at least 1 or null"),
    ("clip_grad_norm=0", "clip_grad_norm=0: must be a number above 0 or null"),
    ("dtype=fp16", "dtype=fp16: is not supported: gradients underflow in fp16 without loss scaling; take bf16"),
    ("dtype=float", "dtype=float: must be one of bf16, fp32"),
    ("device=gpu", "device=gpu: must be cpu, cuda, cuda:N, mps or auto (the fastest that is there)"),
    ("on_bad_row=ignore", "on_bad_row=ignore: must be one of stop, skip"),
    ("shuffle=maybe", "shuffle=maybe: must be True or False"),
    ("seed=-1", "seed=-1: must be a whole number of at least 0 or null"),
    ("resume_from_checkpoint=nowhere", "resume_from_checkpoint=nowhere: no such folder"),
    ("output_dir=config.yaml/out", "output_dir=config.yaml/out: cannot be made: config.yaml is a file"),
    ("optimizer.lr=1e-3 optimizer=3", "optimizer=3: must be a component"),
    ("dataset=[]", "dataset=[]: is an empty list"),
    ("tokenizer.path=nowhere.model", "tokenizer.path=nowhere.model: no such file"),
    ("checkpointer.checkpoint_dir=nowhere", "checkpointer.checkpoint_dir=nowhere: no such folder"),
    ("checkpointer.checkpoint_files=[b.safetensors]", "b.safetensors: no such file"),
    ("~teacher_model", "teacher_model: missing; kd_ratio=0.5 needs a teacher (kd_ratio=0 trains without one)"),
    ("~optimizer", "optimizer: missing; the recipe needs it"),
    ("~nothing", "~nothing: there is no nothing to remove"),
    ("+kd_ratio=0.1", "+kd_ratio=0.1: kd_ratio is there already; leave out the +"),
    ("kd_ratio", "kd_ratio: not an override; write key=value, +key=value or ~key"),
    ("kd_ratio=[", "kd_ratio=[: the value is not valid YAML"),
    ("seed.x=1", "seed={'x': 1}: must be a whole number"),
    ("--kd_ratio=1", "--kd_ratio=1: no such option; settings are written key=value"),
    (
        "enable_activation_offloading=True",
        "enable_activation_offloading=True: needs enable_activation_checkpointing=True",
    ),
]

LOSS, HIDDEN = "kd_loss._component_=distill_tune.losses.", "hidden_loss._component_=distill_tune.losses.HiddenLoss"
ARGUMENTS = ("vocab_size", "num_layers", "num_heads", "num_kv_heads", "embed_dim", "intermediate_dim", "max_seq_len")
KIND = " ".join(f"~teacher_model.{name}" for name in ARGUMENTS) + " teacher_model=distill_tune.teachers."
RATIO = "~kd_ratio kd_ratio._component_=distill_tune.training.Linear kd_ratio.start=0.5"

# One wrong argument each, found when the component's module is imported.
OF_COMPONENTS = [
    ("model.lora_rnk=8 model=torchtune.models.llama3_2.lora_llama3_2", "has no such argument, did you mean lora_rank"),
    (
        "model.num_layer=2",
        "model.num_layer: torchtune.models.llama3_2.llama3_2 has no such argument, did you mean num_layers?",
    ),
    ("model.num_layers=two", "model.num_layers=two: must be a whole number"),
    ("~model.vocab_size", "model.vocab_size: missing; torchtune.models.llama3_2.llama3_2 needs it"),
    (
        "optimizer=torch.optim.AdmW",
        "torch.optim.AdmW: torch.optim has no AdmW, did you mean AdamW",
    ),
    ("optimizer.lr=abc", "optimizer.lr=abc: must be a number"),
    ("optimizer.lr=-1", "optimizer: torch.optim.AdamW: Invalid learning rate: -1"),
    (f"{LOSS}JensenShannon kd_loss.beta=2", "kd_loss: distill_tune.losses.JensenShannon: beta=2: must be from 0 to 1"),
    (f"{LOSS}TopK kd_loss.k=0", "kd_loss: distill_tune.losses.TopK: k=0: must be at least 1"),
    (f"{LOSS}TopK kd_loss.n=5", "kd_loss.n: distill_tune.losses.TopK has no such argument"),
    (f"{HIDDEN} hidden_loss.layers=first", "HiddenLoss: layers=first: must be uniform, last, or pairs"),
    (f"{HIDDEN} hidden_loss.layers=[[9,1]]", "hidden_loss.layers: [9, 1]: the student has 2 layers, the teacher 3"),
    (f"{KIND}EMA +teacher_model.decay=2", "teacher_model.decay=2: must be from 0 to less than 1"),
    (f"{KIND}BaseModel", "the student without its adapters, and `model` has none"),
    (f"{KIND}HuggingFace +teacher_model.path=nowhere", "teacher_model.path=nowhere: no such folder"),
    (f"{RATIO} kd_ratio.change=1", "kd_ratio: its schedule gives 1.5 at step 1; it must stay from 0 to 1"),
    (RATIO, "kd_ratio: distill_tune.training.Linear: change or end: give one of them"),
    (
        "augmentations.0._component_=distill_tune.data.DropTokens augmentations.0.rate=2",
        "augmentations={'0': {'_component_'",
    ),
    ("optimizer.params=[]", "optimizer.params: the recipe passes this itself; leave it out"),
    ("optimizer=nopackage.Adam", "nopackage.Adam: no module named nopackage; is the package installed?"),
    ("dataset.train_on_inputs=True", "dataset.train_on_inputs: distill_tune.data.instruct has no such argument"),
    ("dataset=torchtune.datasets.alpaca_dataset dataset.sorce=x", "has no such argument, did you mean source?"),
    ("+loss._component_=torchtune.modules.loss.CEWithChunkedOutputLoss +loss.ignore_index=0", "must be -100"),
]


def fault(cli, *arguments):
    done = cli("run", "kd_single_device", "--config", "config.yaml", *arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "step 1" not in done.stdout
    return done.stderr


@pytest.fixture
def fault_here(tmp_path, monkeypatch, capsys):
    """As ``fault``, in this process, where everything heavy is imported already."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [])
        monkeypatch.setattr(sys, "path", list(sys.path))
        with pytest.raises(SystemExit) as ended:
            main(["run", "kd_single_device", "--config", "config.yaml", *map(str, arguments)])
        assert ended.value.code == 2
        captured = capsys.readouterr()
        assert "step 1" not in captured.out
        return captured.err

    return run


@pytest.mark.parametrize(("overrides", "message"), AT_ONCE, ids=[case[0] for case in AT_ONCE])
def test_a_wrong_key_or_plain_value_is_told_before_anything_heavy_is_imported(write_config, cli, overrides, message):
    write_config()
    started = time.perf_counter()
    assert message in fault(cli, *overrides.split())
    assert time.perf_counter() - started < 2  # torch alone takes longer; usually 0.2 s


@pytest.mark.parametrize(("overrides", "message"), OF_COMPONENTS, ids=[case[0] for case in OF_COMPONENTS])
def test_a_wrong_argument_of_a_component_is_told_before_anything_is_built(write_config, fault_here, overrides, message):
    write_config()
    assert message in fault_here(*overrides.split())


def test_all_faults_are_listed_at_once(write_config, cli):
    write_config()
    wrong = ["mode.apply_lora_to_output=True", "warmup_steps=0", "kd_ratio=2", "~epochs", "model.num_layer=1"]
    told = fault(cli, *wrong)
    assert told.splitlines()[0].startswith("distill-tune: 5 faults in config config.yaml and the command line")
    assert (
        "  model.num_layer: torchtune.models.llama3_2.llama3_2 has no such argument, did you mean num_layers?" in told
    )
    assert "  mode: no such key, did you mean model?" in told
    assert "  warmup_steps: no such key" in told
    assert "  kd_ratio=2: must be a number from 0 to 1" in told
    assert "  epochs: missing; the recipe needs it" in told


def test_a_nested_key_is_offered_where_it_is_what_was_meant(write_config, cli):
    write_config(
        lr_scheduler={
            "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
            "num_warmup_steps": 2,
        }
    )
    assert "warmup_steps: no such key, did you mean lr_scheduler.num_warmup_steps?" in fault(cli, "warmup_steps=0")


def test_a_broken_config_is_named(cli, tmp_path):
    for text, message in [
        ("a: [", "config config.yaml: not valid YAML"),
        ("a: 1\na: 2", "found duplicate key a"),
        ("- a", "must be a mapping of keys"),
        ("a: ${b}\nb: ${a}", "Recursive interpolation"),
        ("a: ${nothing}", "Interpolation key 'nothing' not found"),
    ]:
        (tmp_path / "config.yaml").write_text(text)
        assert message in fault(cli)


def test_names_that_there_are_not_are_told_with_near_ones(cli, tmp_path):
    for arguments, message in [
        (["run", "kd_singel_device", "--config", "tiny"], "no such recipe, did you mean kd_single_device?"),
        (["run", "mine.py", "--config", "tiny"], "recipe mine.py: no such file"),
        (["run", "kd_single_device", "--config", "tyny"], "config tyny: no such config, did you mean tiny"),
        (["run", "kd_single_device", "--config", "mine.yaml"], "config mine.yaml: no such file"),
        (["run", "kd_single_device"], "--config: missing"),
        (["run"], "run: name a recipe and a config"),
        (["cat", "tyny"], "did you mean tiny"),
        (["cp", "tiny", "a.py"], "name the copy so"),
    ]:
        started = time.perf_counter()
        done = cli(*arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert time.perf_counter() - started < 2
    (tmp_path / "there.yaml").write_text("mine")
    assert "there.yaml: is there already; overwrite it with --force" in cli("cp", "tiny", "there.yaml").stderr
    assert (tmp_path / "there.yaml").read_text() == "mine"


def test_a_checkpoint_that_does_not_fit_is_told_before_it_is_read(write_config, fault_here, tmp_path, tokenizer_file):
    write_config()
    assert "the checkpoint lacks layers.2.attn" in fault_here("model.num_layers=3")
    assert "shapes differ: tok_embeddings.weight" in fault_here("model.embed_dim=64")
    broken = write_model(tmp_path / "broken", tokenizer_file, seed=1)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "model.safetensors: cannot be read" in fault_here(f"checkpointer.checkpoint_dir={broken}")
    (broken / "config.json").write_text("{")
    assert "config.json is broken" in fault_here(f"checkpointer.checkpoint_dir={broken}")


def test_models_that_do_not_share_the_tokenizer_are_refused(write_config, fault_here, tmp_path, teacher_folder):
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
    told = fault_here(f"teacher_checkpointer.checkpoint_dir={other}")
    assert "its tokenizer is not the student's" in told
    assert "distillation by logits needs one tokenizer" in told


def test_rows_longer_than_the_model_and_too_few_rows_are_told(write_config, fault_here):
    write_config()
    assert "its longest sequence has" in fault_here("model.max_seq_len=16")
    assert "has 64 rows, but one step takes 100" in fault_here("batch_size=100")


def test_a_run_that_is_there_is_not_overwritten(write_config, fault_here, tmp_path):
    write_config()
    (tmp_path / "out" / "model").mkdir(parents=True)
    told = fault_here()
    assert "holds a run already; go on with it (resume_from_checkpoint=True), name another folder" in told
    assert "checkpoints has none" in fault_here("resume_from_checkpoint=True")


def test_cuda_that_is_not_there_is_told(write_config, fault_here):
    write_config()
    assert "device=cuda: PyTorch sees no CUDA device here" in fault_here(
        "device=cuda",
    )


def test_validate_prints_parameters_and_memory_and_writes_nothing(write_config, cli, tmp_path):
    write_config()
    done = cli("validate", "--config", "config.yaml")
    assert done.returncode == 0, done.stderr
    assert "model: " in done.stdout
    assert "trainable" in done.stdout
    assert "valid for kd_single_device" in done.stdout
    assert not (tmp_path / "out").exists()
    done = cli("validate", "kd_single_device", "--config", "config.yaml", "model.num_layers=3")
    assert done.returncode == 2
    assert "the checkpoint lacks" in done.stderr


def test_ls_cat_and_help_answer_without_importing_torch(cli):
    for arguments, expected in [
        (["ls"], "kd_single_device"),
        (["ls", "--path", "kd_single_device"], "kd_single_device.py"),
        (["cat", "tiny"], "kd_ratio: "),
        (["--help"], "distill-tune run kd_single_device --config tiny"),
        (["run", "--help"], "kd_ratio=0.1"),
    ]:
        started = time.perf_counter()
        done = cli(*arguments)
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
        assert time.perf_counter() - started < 2
