"""The built wheel in an environment of its own, beside torchtune, whose wheel owns the top-level package `recipes`."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], check=True)
    (built,) = folder.glob("*.whl")
    return built


def test_it_carries_recipes_configs_and_demo_models_inside_the_package(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"distill_tune"}
    for name in (
        "_recipes/kd_single_device.py",
        "_configs/tiny/tiny.yaml",
        "_demo_models/teacher/model.safetensors",
        "_demo_models/student/tokenizer.model",
        "_demo_models/bpe_teacher/tokenizer.json",
    ):
        assert f"distill_tune/{name}" in names
    assert sum(info.file_size for info in zipfile.ZipFile(wheel).infolist() if "_demo_models" in info.filename) < 22e6


def test_it_runs_in_an_empty_folder_beside_torchtune(wheel, tmp_path):
    environment, work = tmp_path / "environment", tmp_path / "work"
    work.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    # The dependencies of this environment, but not distill-tune itself: a path file brings no editable install along.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_paths()["purelib"])
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(wheel)], check=True)

    def run(*command: str) -> str:
        variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(command, cwd=work, env=variables, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    code = (
        "from importlib.util import find_spec; print(*(find_spec(name).origin for name in ('distill_tune', 'recipes')))"
    )
    ours, theirs = run(str(python), "-c", code).split()
    assert ours.startswith(str(environment))
    assert theirs.startswith(sysconfig.get_paths()["purelib"])
    command = str(environment / "bin" / "distill-tune")
    listed = run(command, "ls")
    assert "kd_single_device" in listed
    assert str(environment) in listed
    run(command, "run", "kd_single_device", "--config", "tiny", "dataset.num_rows=16", "epochs=1")
    assert (work / "outputs" / "tiny" / "model" / "model.safetensors").is_file()
