"""Tiny models, a tokenizer and rows, made once a session; the real CLI in a folder of its own."""

import gc
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:
    gc.disable()  # until all is imported: a collection looks at all modules again and again
    # Before anything imports PyTorch, here or in what a test starts.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import warm_python
import yaml
from command_server import Command, CommandServer, look_at_installed_code_once
from served import serving

# As `distill-tune` does, before PyTorch is imported: the tests' processes wait for one another on few cores.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub: no test may reach the network


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ and config.getoption("tx", None):
        return  # it hands tests out, and needs no PyTorch
    import torch

    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: its kernels then run on the CPU


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list) -> None:
    """Have all processes that run tests forked from one that has imported what they need."""
    folder = tempfile.TemporaryDirectory(prefix="warm")
    path = f"{folder.name}/socket"
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    warm = subprocess.Popen([sys.executable, warm_python.__file__, path], stdin=subprocess.PIPE, env=environment)
    os.environ["WARM_PYTHON"] = path
    for spec in specs:
        spec.python = shlex.join([sys.executable, "-S", warm_python.__file__, path])

    def end() -> None:
        assert warm.stdin is not None
        warm.stdin.close()
        warm.wait()
        folder.cleanup()

    config.add_cleanup(end)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name != "test_smollm2.py")  # whose tests take longest, beside all others
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs CUDA"))


def pytest_collection_finish() -> None:
    """No collection looks at what is imported by now; they took a tenth of the time of all tests."""
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _quiet_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or fills the user's own cache."""
    import torch

    look_at_installed_code_once()
    os.environ["DISTILL_TUNE_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)  # as many as there are cores, together


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SentencePiece model of VOCAB_SIZE pieces."""
    from tiny import write_tokenizer

    return write_tokenizer(tmp_path_factory.mktemp("tokenizer") / "tokenizer.model")


@pytest.fixture(scope="session")
def student_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Path:
    from tiny import write_model

    return write_model(tmp_path_factory.mktemp("models") / "student", tokenizer_file, seed=1)


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_file: Path) -> Path:
    from tiny import write_model

    return write_model(tmp_path_factory.mktemp("models") / "teacher", tokenizer_file, seed=2, width=64, layers=3)


@pytest.fixture(scope="session")
def rows_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tiny import ROWS

    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text(json.dumps(ROWS))
    return path


@pytest.fixture
def write_config(tmp_path: Path, student_folder: Path, teacher_folder: Path, rows_file: Path) -> Callable[..., Path]:
    """Write tmp_path/config.yaml: a valid config on the tiny models; top-level keys replaced or, by None, removed."""
    from tiny import model_arguments

    def checkpointer(folder: Path) -> dict:
        return {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": str(folder),
            "checkpoint_files": ["model.safetensors"],
            "output_dir": "${output_dir}",
            "model_type": "LLAMA3_2",
        }

    def write(**changes: object) -> Path:
        config: dict[str, object] = {
            "output_dir": str(tmp_path / "out"),
            "model": {"_component_": "torchtune.models.llama3_2.llama3_2", **model_arguments()},
            "checkpointer": checkpointer(student_folder),
            "teacher_model": {
                "_component_": "torchtune.models.llama3_2.llama3_2",
                **model_arguments(width=64, layers=3),
            },
            "teacher_checkpointer": checkpointer(teacher_folder),
            "tokenizer": {
                "_component_": "torchtune.models.llama2.llama2_tokenizer",
                "path": str(student_folder / "tokenizer.model"),
                "max_seq_len": 128,
            },
            "dataset": {"_component_": "distill_tune.data.instruct", "source": str(rows_file)},
            "batch_size": 4,
            "seed": 0,
            "kd_ratio": 0.5,
            "optimizer": {"_component_": "torch.optim.AdamW", "lr": 1e-3},
            "epochs": 1,
            "max_steps_per_epoch": 4,
            "device": "cpu",
            "dtype": "fp32",
        }
        config |= changes
        path = tmp_path / "config.yaml"
        path.write_text(
            yaml.safe_dump({k: v for k, v in config.items() if v is not None}, allow_unicode=True, sort_keys=False)
        )
        return path

    return write


@pytest.fixture(scope="session")
def command_server(_quiet_cache: None) -> Iterator[CommandServer]:
    server = CommandServer()
    yield server
    server.close()


@pytest.fixture(scope="session")
def light_command_server(_quiet_cache: None) -> Iterator[CommandServer]:
    """That has not imported PyTorch."""
    server = CommandServer(heavy=False)
    yield server
    server.close()


@pytest.fixture(scope="session")
def demo_teacher_url(tmp_path_factory: pytest.TempPathFactory, command_server: CommandServer) -> Iterator[str]:
    """A server of the demo's teacher, as the config tiny names it."""
    pytest.importorskip("uvicorn")
    with serving(tmp_path_factory, command_server, "--config", "tiny") as (_, url):
        yield url


@pytest.fixture
def start_cli(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, command_server: CommandServer
) -> Callable[..., Command]:
    """Start the real command in a process of its own, in tmp_path or ``folder``; what is heavy is imported already."""
    output = tmp_path_factory.mktemp("output")

    def start(*arguments: object, folder: Path = tmp_path, **environment: str) -> Command:
        return command_server.start(
            ["-m", "distill_tune", *map(str, arguments)], folder, os.environ | environment, output
        )

    return start


@pytest.fixture
def cli(start_cli: Callable[..., Command]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As ``start_cli``, to the command's end."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return start_cli(*arguments, **environment).completed()

    return run


@pytest.fixture
def light_cli(tmp_path: Path, light_command_server: CommandServer) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As ``cli``, of a command that must not import PyTorch: it would end with 99."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"NOT_TO_BE_IMPORTED": "torch"} | environment
        command = ["-m", "distill_tune", *map(str, arguments)]
        return light_command_server.start(command, tmp_path, environment, output=tmp_path).completed()

    return run


@pytest.fixture
def fresh_cli(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """As ``cli``, in a fresh Python."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "distill_tune", *map(str, arguments)],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run
