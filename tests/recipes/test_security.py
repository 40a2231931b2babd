"""What a stranger's config, folder or hub could do, and where a user's tokens could end up."""

import ast
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from tiny import model_arguments

import distill_tune
from distill_tune.config.files import recipes_folder
from distill_tune.secrets import hide_in_arguments, hide_secrets, without_secrets

CANARIES = {
    "HF_TOKEN": "hf_canaryAAAAAAAAAAAAAAAAAAAA",
    "WANDB_API_KEY": "canary-of-wandb-0123456789",
    "MODELSCOPE_API_TOKEN": "canary-of-modelscope-987",
    "MY_PASSWORD": "canary of a password",
}
WRITTEN_OUT = "canary-in-the-config"
RUN = ("run", "kd_single_device", "--config", "config.yaml")
SOURCES = [*Path(distill_tune.__file__).parent.rglob("*.py"), *recipes_folder().glob("*.py")]


def assert_hidden(tmp_path: Path, *told: str) -> None:
    contents = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    contents |= {f"told {number}": text.encode() for number, text in enumerate(told)}
    for secret in (*CANARIES.values(), WRITTEN_OUT):
        assert not [name for name, content in contents.items() if secret.encode() in content], secret


@pytest.fixture
def with_secrets(write_config, tmp_path, rows_file):
    write_config(
        dataset={"_component_": "distill_tune.data.instruct", "source": str(rows_file), "token": "${oc.env:HF_TOKEN}"},
        metric_logger={"_component_": "torchtune.training.metric_logging.DiskLogger", "log_dir": "logs"},
        save_every_n_steps=2,
    )


def test_tokens_reach_no_file_and_no_line_of_a_run(with_secrets, cli, tmp_path):
    done = cli(*RUN, f"dataset.token={WRITTEN_OUT}", **CANARIES)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "logs").is_dir() and (tmp_path / "out" / "checkpoints" / "step_2" / "state.json").is_file()
    assert_hidden(tmp_path, done.stdout, done.stderr)
    written = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())
    assert written["dataset"]["token"] == "***"
    assert "dataset.token=***" in (tmp_path / "out" / "config.yaml").read_text().splitlines()[0]


@pytest.mark.parametrize("override", ["kd_ratio=${oc.env:HF_TOKEN}", "dataset.source=${oc.env:WANDB_API_KEY}"])
def test_tokens_reach_no_message(with_secrets, cli, tmp_path, override):
    done = cli(*RUN, override, **CANARIES)
    assert done.returncode == 2
    assert "***" in done.stderr
    assert_hidden(tmp_path, done.stdout, done.stderr)


def test_tokens_reach_no_traceback(with_secrets, cli, tmp_path):
    assert cli("cp", "kd_single_device", "mine.py").returncode == 0
    source = (tmp_path / "mine.py").read_text()
    failing = "import os; raise KeyError('https://me:secret-word@hub/?' + os.environ['HF_TOKEN'])\n"
    (tmp_path / "mine.py").write_text(source.replace("    # ---- Settings\n", f"    {failing}"))
    done = cli("run", "mine.py", "--config", "config.yaml", **CANARIES)
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "KeyError" in done.stderr and "https://***@hub/?***" in done.stderr
    assert_hidden(tmp_path, done.stdout, done.stderr)


def test_what_is_hidden_and_what_is_not(monkeypatch):
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    for secret in CANARIES.values():
        assert hide_secrets(f"a {secret} b") == "a *** b"
    assert hide_secrets("hf_abcdefghijklmnopqrstuvwxyz") == "***"
    monkeypatch.setenv("DISTILL_TUNE_SERVE_TOKEN", "of\ntwo lines")
    assert hide_secrets(repr("of\ntwo lines")) == "'***'"
    assert hide_secrets("eos_token </s>, 4096 tokens, key=value") == "eos_token </s>, 4096 tokens, key=value"
    config = OmegaConf.create({"eos_token": "</s>", "hf_token": "x", "deep": [{"token": "y", "max_tokens": 5}]})
    hidden = {"eos_token": "</s>", "hf_token": "***", "deep": [{"token": "***", "max_tokens": 5}]}
    assert without_secrets(config) == hidden
    assert hide_in_arguments(["a.token=x", "api_key=y", "optimizer.lr=3", "tokenizer.path=z", "token"]) == [
        *("a.token=***", "api_key=***", "optimizer.lr=3", "tokenizer.path=z", "token")
    ]


EVIL = "open('was_run', 'w').close()\ndef build(**arguments): open('was_run', 'w').close()\n"


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["kd_loss=evil.build"], "kd_loss: evil.build, from "),
        (["model=evil.build"], "model: evil.build, from "),
        (
            ["kd_loss=evil.build", "kd_loss.deep._component_=nowhere.build"],
            "kd_loss.deep: nowhere.build, which is not installed",
        ),
        (["+augmentations=[{_component_: evil.build}]"], "augmentations.0: evil.build, from "),
        (
            ["kd_loss._component_=distill_tune.losses.TopK", "kd_loss.divergence._component_=evil.build"],
            "evil.build, from ",
        ),
        (["kd_loss._component_=os.system", "kd_loss.command=touch was_run"], "kd_loss: os.system, from "),
        # Reached through packages that are known, and not called either.
        (["kd_loss._component_=distill_tune.disk.os.system", "kd_loss.command=touch was_run"], ""),
        (["kd_loss._component_=torch.hub.load_state_dict_from_url", "kd_loss.url=file:///was_run"], ""),
        (["model._component_=torch.load", "model.f=was_run"], ""),
        # Named in a text that torchtune imports.
        (
            [
                "tokenizer._component_=torchtune.models.mistral.mistral_tokenizer",
                "+tokenizer.prompt_template=evil.build",
            ],
            "tokenizer: would run code from elsewhere",
        ),
        (
            [
                *(f"~teacher_model.{name}" for name in model_arguments()),
                "teacher_model=distill_tune.teachers.HuggingFace",
                "teacher_model.path=model",
                "teacher_model.trust_remote_code=True",
            ],
            "trust_remote_code=True runs the Python files of model",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_strangers_config_is_validated_without_running_what_it_names(write_config, cli, tmp_path, overrides, told):
    write_config(kd_loss={"_component_": "distill_tune.losses.ForwardKL"})
    (tmp_path / "evil.py").write_text(EVIL)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "x", "auto_map": {"AutoConfig": "evil.build"}}')
    (tmp_path / "model" / "evil.py").write_text(EVIL)
    done = cli("validate", "--config", "config.yaml", *overrides)
    assert told in done.stdout
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("was_run"))


def calls_in(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def test_nothing_is_evaluated_and_nothing_unpickled_but_as_weights():
    calls = [(path.name, name, keywords) for path in SOURCES for name, keywords in calls_in(path)]
    assert len(calls) > 2000
    forbidden = {"eval", "exec", "compile", "__import__", "pickle.load", "pickle.loads", "os.system", "torch.hub.load"}
    assert not [call for call in calls if call[1] in forbidden]
    loads = [keywords for _, name, keywords in calls if name == "torch.load"]
    assert loads and all(keywords.get("weights_only") == "True" for keywords in loads)
    assert not [call for call in calls if call[2].get("trust_remote_code") == "True" or call[2].get("shell") == "True"]
