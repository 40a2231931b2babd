"""Folders put onto a hub: what arrives, what is refused, and what is shown nowhere."""

import json

import pytest
from stand_in_hub import StandInHub, serving

FILES = {
    "config.json": b"{}",
    "README.md": b"# mine",
    "model.safetensors": bytes(range(256)) * 400,
    "export.json": b'{"passed": true}',
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "mine").mkdir()
    for name, content in FILES.items():
        (tmp_path / "mine" / name).write_bytes(content)
    return tmp_path / "mine"


@pytest.fixture
def upload(light_cli, tmp_path):
    def run(hub: StandInHub, folder, *arguments: str, **environment: str):
        settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        settings |= {"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_secret", "HOME": str(tmp_path)}
        return light_cli("upload", folder, "me/mine", *arguments, **settings | environment)

    return run


def test_all_files_arrive_and_the_address_is_told(upload, folder):
    with serving(StandInHub({}, token="hf_secret")) as hub:
        done = upload(hub, folder)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"{hub.url}/me/mine"
        assert hub.models["me/mine"] == FILES
        assert hub.private == {"me/mine": False}


def test_into_a_private_repository_and_a_branch(upload, folder):
    with serving(StandInHub({})) as hub:
        done = upload(hub, folder, "--private", "--revision", "v2")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == f"{hub.url}/me/mine/tree/v2"
        assert (hub.private["me/mine"], hub.branches["me/mine"]) == (True, ["main", "v2"])
        assert [path for method, path, _ in hub.requests if path.endswith("/commit/v2")]
        assert upload(hub, folder, "--revision", "v2").returncode == 0  # both are there already


def test_what_has_arrived_is_not_sent_again(upload, folder):
    with serving(StandInHub({})) as hub:
        hub.refused_commits = 1
        done = upload(hub, folder)
        assert done.returncode == 2
        assert "a second call goes on where this one stopped" in done.stderr
        assert hub.models["me/mine"] == {}
        assert upload(hub, folder).returncode == 0
        assert hub.models["me/mine"] == FILES
        assert len([method for method, _, _ in hub.requests if method == "PUT"]) == 1


def test_a_token_is_shown_nowhere(upload, folder, tmp_path):
    with serving(StandInHub({}, token="hf_right_secret_token")) as hub:
        for arguments, environment in [(["--token", "hf_wrong_token"], {}), ([], {"HF_TOKEN": "hf_wrong_token"})]:
            done = upload(hub, folder, *arguments, **environment)
            assert done.returncode == 2
            origin = "--token" if arguments else "HF_TOKEN"
            assert f"the hub does not know the token of {origin}; `hf auth login`" in done.stderr
            assert "hf_wrong" not in done.stdout + done.stderr
        done = upload(hub, folder, "--token", "hf_right_secret_token")
        assert done.returncode == 0, done.stderr
    assert "hf_right" not in done.stdout + done.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_right" in path.read_bytes()]


def test_without_a_token_it_is_told_how_to_log_in(upload, folder):
    with serving(StandInHub({}, token="hf_right")) as hub:
        done = upload(hub, folder, HF_TOKEN="")
        assert done.returncode == 2
        assert "the hub wants a token, and there is none; `hf auth login` takes one that may write" in done.stderr


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_a_setting_that_forbids_requests_is_named(upload, folder, name):
    with serving(StandInHub({})) as hub:
        done = upload(hub, folder, **{"HF_HUB_OFFLINE": "", name: "1"})
        assert done.returncode == 2
        assert f"{name} is set, which forbids every request; `env -u {name} distill-tune upload ...`" in done.stderr
        assert not hub.requests


def refused(upload, folder, *, because: str) -> None:
    with serving(StandInHub({})) as hub:
        done = upload(hub, folder)
        assert done.returncode == 2
        assert because in done.stderr
        assert not hub.requests


def test_a_folder_whose_checks_failed_is_refused(upload, folder):
    checks = [{"name": "token ids", "found": "other ones", "passed": False}]
    (folder / "export.json").write_text(json.dumps({"passed": False, "checks": checks}))
    refused(upload, folder, because="is not as its source (token ids: other ones); export once more")


def test_a_folder_under_the_name_of_a_failure_is_refused(upload, folder):
    refused(upload, folder.rename(folder.with_name("mine.failed")), because="is not as its source")


def test_an_adapter_whose_base_is_here_alone_is_refused(upload, folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    refused(upload, folder, because="which is on this machine alone; export once more with --base-model OWNER/NAME")


def test_a_secret_in_a_file_is_refused(upload, folder):
    (folder / "README.md").write_text("made with hf_abcdefghijklmnopqrst")
    refused(upload, folder, because="README.md has what looks like a token or a password")


def test_what_is_no_model_and_a_wrong_name_are_told(light_cli, upload, folder, tmp_path):
    refused(upload, tmp_path / "nothing", because="no such folder")
    done = light_cli("upload", folder, "mine")
    assert done.returncode == 2
    assert "name the repository as OWNER/NAME" in done.stderr


def test_a_folder_that_was_not_exported_is_told_of(upload, folder):
    (folder / "export.json").unlink()
    with serving(StandInHub({})) as hub:
        done = upload(hub, folder)
        assert done.returncode == 0
        assert "nobody has compared it with its source" in done.stdout
