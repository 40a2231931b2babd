"""The download command with the hubs' own clients, against a hub on loopback."""

import argparse
import os

import pytest
from stand_in_hub import StandInHub, serving

from distill_tune.cli.download import _reason

WEIGHTS = os.urandom(24 * 2**20)  # the clients read in pieces of some 10 MiB
FILES = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": b"second",
    "model.safetensors.index.json": b"{}",
    "original/tokenizer.model": b"ranks",
    "README.md": b"a model",
    "pytorch_model.bin": b"pickled",
    "consolidated.safetensors": b"again",
    "original/consolidated.00.pth": b"again",
    "onnx/model.onnx": b"again",
    "onnx/config.json": b"{}",
}
NEEDED = set(FILES) - {
    "pytorch_model.bin",
    "consolidated.safetensors",
    "original/consolidated.00.pth",
    "onnx/model.onnx",
    "onnx/config.json",
}
SOURCES = ["huggingface", "modelscope"]


@pytest.fixture
def download(light_cli, tmp_path):
    def run(hub: StandInHub, source: str, *arguments: str, **environment: str):
        endpoint = {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "hf"),
            "MODELSCOPE_ENDPOINT": hub.url,
            "MODELSCOPE_CACHE": str(tmp_path / "modelscope"),
            "HOME": str(tmp_path),
        }
        return light_cli("download", "maker/Small", "--source", source, *arguments, **endpoint | environment)

    return run


def files_of(folder):
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith((".", "_"))
    }


@pytest.mark.parametrize("source", SOURCES)
def test_what_a_recipe_needs_comes_and_nothing_else(download, tmp_path, source):
    with serving(StandInHub({"maker/Small": FILES})) as hub:
        done = download(hub, source)
        assert done.returncode == 0, done.stderr
        folder = tmp_path / "models" / "Small"
        assert done.stdout.strip().endswith("models/Small")
        assert files_of(folder) == NEEDED
        assert (folder / "model-00001-of-00002.safetensors").read_bytes() == WEIGHTS
        done = download(hub, source, "--all-files", "--output", "all")
        assert done.returncode == 0, done.stderr
        assert files_of(tmp_path / "all") == set(FILES)


def test_without_safetensors_the_pickled_weights_come(download, tmp_path):
    pickled = {name: content for name, content in FILES.items() if "safetensors" not in name}
    with serving(StandInHub({"maker/Small": pickled})) as hub:
        assert download(hub, "huggingface").returncode == 0
    assert "pytorch_model.bin" in files_of(tmp_path / "models" / "Small")


@pytest.mark.parametrize("source", SOURCES)
def test_a_lost_connection_goes_on_where_it_stopped(download, tmp_path, source):
    with serving(StandInHub({"maker/Small": FILES}, cut_after=15 * 2**20)) as hub:
        done = download(hub, source)
        if done.returncode:
            assert "a second call goes on where this one stopped" in done.stderr
            done = download(hub, source)
        assert done.returncode == 0, done.stderr
        asked = [headers for _, path, headers in hub.requests if "00001-of-00002" in path]
    ranges = [value for headers in asked for key, value in headers.items() if key.lower() == "range"]
    assert any(found != "bytes=0-" for found in ranges)
    assert (tmp_path / "models" / "Small" / "model-00001-of-00002.safetensors").read_bytes() == WEIGHTS


def test_a_token_is_sent_and_shown_nowhere(download, tmp_path):
    with serving(StandInHub({"maker/Small": FILES}, token="hf_secret")) as hub:
        for arguments, environment in [(["--token", "hf_wrong"], {}), ([], {"HF_TOKEN": "hf_wrong"})]:
            done = download(hub, "huggingface", *arguments, **environment)
            assert done.returncode == 2
            assert "its licence must be accepted on the hub first" in done.stderr
            assert "hf_wrong" not in done.stdout + done.stderr
        done = download(hub, "huggingface", HF_TOKEN="hf_secret")
        assert done.returncode == 0, done.stderr
    assert "hf_secret" not in done.stdout + done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
    assert written == []


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_not_there_is_told(download, cli, source):
    with serving(StandInHub({})) as hub:
        done = download(hub, source)
    assert done.returncode == 2
    assert "no such model or revision there" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_out_of_reach_and_a_wrong_name_are_told(download, cli):
    with serving(StandInHub({})) as hub:
        pass
    done = download(hub, "huggingface")
    assert done.returncode == 2
    assert "a mirror is set with HF_ENDPOINT, ModelScope with --source modelscope" in done.stderr
    done = cli("download", "Small")
    assert done.returncode == 2
    assert "name a model as OWNER/NAME" in done.stderr


def test_what_asks_modelscope_already_is_not_sent_there():
    told = _reason(ConnectionError("no"), argparse.Namespace(source="modelscope", token=None))
    assert told == "ModelScope cannot be reached; without --source modelscope Hugging Face is asked"


def test_content_that_is_not_what_the_hub_lists_is_deleted(download, tmp_path):
    for name in ("model-00002-of-00002.safetensors", "config.json"):
        with serving(StandInHub({"maker/Small": FILES})) as hub:
            hub.listed[name] = b"as it was meant"
            done = download(hub, "huggingface")
        assert done.returncode == 2
        assert f"{name}: its content is not what the hub lists, so it was deleted" in done.stderr
        assert not (tmp_path / "models" / "Small" / name).exists()
    with serving(StandInHub({"maker/Small": FILES})) as hub:
        assert download(hub, "huggingface").returncode == 0  # what was deleted is fetched again


@pytest.mark.parametrize("name", ["../outside.json", "/tmp/outside.json", "a/../../outside.json"])
def test_a_hub_cannot_write_outside_of_the_folder(download, tmp_path, name):
    with serving(StandInHub({"maker/Small": FILES | {name: b"{}"}})) as hub:
        done = download(hub, "huggingface")
    assert done.returncode == 2
    assert f"the hub lists {name}, which lies outside of the model's folder" in done.stderr
    assert not hub.fetched()


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(download):
    with serving(StandInHub({"maker/Small": FILES})) as hub:
        hub.sizes["model-00001-of-00002.safetensors"] = 10**18
        done = download(hub, "huggingface")
    assert done.returncode == 2
    assert ": 931,322,574.6 GiB are needed, " in done.stderr and " left; free some" in done.stderr
    assert not hub.fetched()
