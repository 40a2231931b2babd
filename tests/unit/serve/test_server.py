"""`distill-tune serve` in a process of its own, asked over HTTP."""

import json
import re
import shutil
import signal
import socket
import threading
import time

import pytest
import torch
from omegaconf import OmegaConf
from served import serving, started
from tiny import VOCAB_SIZE, write_model
from tiny_tokenizer import write_tokenizer

from distill_tune import teachers
from distill_tune.cache.encoding import encoding_of
from distill_tune.cache.vocabulary_file import fingerprint_of
from distill_tune.data.batch import Row, joined
from distill_tune.errors import UserError
from distill_tune.losses import MixtureOfTeachers, TopTokens
from distill_tune.models.vocabulary import Vocabulary
from distill_tune.serve.connection import NoAnswer, Refused, Server
from distill_tune.serve.load import config_of_teacher, teacher_of
from distill_tune.serve.own import DistillTune
from distill_tune.serve.run import loaded
from distill_tune.serve.wire import records_of, rows_as_bytes

pytest.importorskip("uvicorn")
TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def served(tmp_path_factory, command_server, teacher_folder):
    """One server for the tests of this file."""
    options = ["--teacher", teacher_folder, "--max-tokens-per-request", 4000]
    started_with = {"DISTILL_TUNE_SERVE_TOKEN": TOKEN}
    with serving(tmp_path_factory, command_server, *options, **started_with) as (command, url):
        yield Server(url, TOKEN, timeout=60)
    assert "stopped by SIGTERM" in command.told()[0]
    assert "Traceback" not in command.told()[1]


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    rows = []
    for length in (7, 21, 40):
        tokens = torch.randint(3, VOCAB_SIZE, (length,), generator=generator, dtype=torch.int32)
        labels = tokens.clone()
        labels[: length // 3] = -100
        rows.append(Row(tokens, labels))
    return joined(rows)


@pytest.fixture(scope="module")
def live(teacher_folder, batch):
    """The signal of the same teacher here."""
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(teacher_folder)})
    teacher = teachers.build_teacher(component)
    teacher.load(None, torch.device("cpu"))
    return teacher(batch)


def asked(server, batch, kind, **settings):
    about = json.loads(server.ask("/about"))
    own = {"vocab_size": about["vocab_size"]} | ({"width": about["width"]} if kind == "hidden" else {})
    encoding = encoding_of(kind, own | {name: value for name, value in settings.items() if name != "seed"})
    body = server.ask("/score", rows_as_bytes(batch), {"kind": kind} | settings)
    return encoding.decode(records_of(body, len(batch.lengths)))


def test_it_tells_what_it_serves(served, teacher_folder):
    about = json.loads(served.ask("/about"))
    assert about["model"] == teacher_folder.name
    assert about["vocab_size"] == VOCAB_SIZE
    assert about["kinds"] == ["sampled", "top_k", "hidden", "likelihood"]
    tokens = json.loads(served.ask("/vocabulary"))
    its = Vocabulary({int(index): text for index, text in tokens["tokens"].items()}, frozenset(tokens["added"]))
    assert its == Vocabulary.of(teacher_folder)
    assert fingerprint_of(its) == about["tokenizer"]


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_its_likeliest_tokens_are_the_live_teachers(served, batch, live, temperature):
    n = len(batch.supervised_positions)
    wanted = TopTokens.of(live.logits(0, n, live.memory(n)), 20, temperature)
    found = asked(served, batch, "top_k", k=20, temperature=temperature)
    assert torch.equal(found.ids, wanted.ids)
    torch.testing.assert_close(found.log_probs, wanted.log_probs, rtol=0, atol=2e-3)
    torch.testing.assert_close(found.log_rest, wanted.log_rest, rtol=0, atol=2e-3)


def test_its_hidden_states_are_the_live_teachers_in_bf16(served, batch, live):
    assert torch.equal(asked(served, batch, "hidden"), live.hidden.bfloat16())


def test_draws_are_of_the_row_and_the_seed_alone(served, batch):
    together = asked(served, batch, "sampled", draws=50, seed=3)
    apart = [asked(served, half, "sampled", draws=50, seed=3) for half in batch.halves()]
    assert len(apart) == 2
    start = 0
    for part in apart:
        k = min(part.ids.shape[1], together.ids.shape[1])
        assert torch.equal(part.ids[:, :k], together.ids[start : start + len(part), :k])
        start += len(part)
    assert torch.equal(asked(served, batch, "sampled", draws=50, seed=3).ids, together.ids)
    assert not torch.equal(asked(served, batch, "sampled", draws=50, seed=4).ids, together.ids)


def test_draws_follow_the_distribution(served, batch, live):
    """The share of draws of the likeliest token, of all positions together, is its probability."""
    found = asked(served, batch, "sampled", draws=2000)
    n = len(batch.supervised_positions)
    probs, likeliest = live.logits(0, n, live.memory(n)).softmax(-1).max(-1)
    share = found.weights[found.ids == likeliest[:, None]].sum() / n
    assert share == pytest.approx(probs.mean().item(), abs=0.01)


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ({}, "kind=: must be one of sampled, top_k, hidden"),
        ({"kind": "dense"}, "kind=dense: must be one of"),
        ({"kind": "top_k", "k": "many"}, "k=many: is no number"),
        ({"kind": "top_k", "k": 0}, "k=0: must be at least 1"),
        ({"kind": "top_k", "k": 5000}, "k=5000: must be from 1 to 1024"),
        ({"kind": "top_k", "draws": 3}, "draws: kind top_k has k, temperature, vocab_size"),
        ({"kind": "sampled", "temperature": 0}, "temperature=0: must be at least 0.001"),
        ({"kind": "sampled", "temperature": 1e-40}, "temperature=1e-40: must be at least 0.001"),
        ({"kind": "sampled", "proposal_temperature": 1e-40}, "proposal_temperature=1e-40: must be at least"),
        ({"kind": "top_k", "temperature": "inf"}, "temperature=inf: must be at least 0.001"),
        ({"kind": "top_k", "temperature": "nan"}, "temperature=nan: must be at least 0.001"),
        ({"kind": "top_k", "vocab_size": 100000}, "vocab_size=100000: must be from 1 to 320"),
        ({"kind": "sampled", "seed": -1}, "seed=-1: must be at least 0"),
        ({"kind": "hidden", "k": 3}, "k: kind hidden has no settings"),
    ],
)
def test_a_wrong_request_is_told_with_400(served, batch, query, told):
    with pytest.raises(Refused, match=told) as refused:
        served.ask("/score", rows_as_bytes(batch), query)
    assert refused.value.status == 400


def test_one_that_serves_another_teacher_now_refuses(served, batch):
    """A server that was started again with other weights."""
    with pytest.raises(Refused, match="serves another teacher now") as refused:
        served.ask("/score", rows_as_bytes(batch), {"kind": "top_k", "content": "of before"})
    assert refused.value.status == 409
    content = json.loads(served.ask("/about"))["content"]
    assert served.ask("/score", rows_as_bytes(batch), {"kind": "top_k", "content": content})


def test_a_body_that_is_none_is_told_with_400(served):
    with pytest.raises(Refused, match="no safetensors file") as refused:
        served.ask("/score", b"nothing", {"kind": "top_k"})
    assert refused.value.status == 400


def test_too_large_a_request_is_told_with_413(served):
    many = joined([Row(torch.ones(100, dtype=torch.int32), torch.ones(100, dtype=torch.int32))] * 41)
    with pytest.raises(Refused, match="a request of 4100 tokens: at most 4000 are taken") as refused:
        served.ask("/score", rows_as_bytes(many), {"kind": "top_k"})
    assert refused.value.status == 413
    with pytest.raises((Refused, NoAnswer)):  # it hangs up before all of it is sent
        served.ask("/score", bytes(10**7), {"kind": "top_k"})
    assert json.loads(served.ask("/about"))["engine"] == "distill-tune"


@pytest.mark.parametrize(("limit", "few"), [("_most_tokens", 61), ("_most_bytes", 14 * 50 * 3 + 5)])
@pytest.mark.parametrize("kind", ["sampled", "top_k"])
def test_more_than_it_takes_in_a_request_is_asked_for_in_parts(served, batch, monkeypatch, limit, few, kind):
    engine, encoding = DistillTune(served), encoding_of(kind, {"vocab_size": VOCAB_SIZE})
    whole = engine.records(batch, encoding, 0)
    asked_for, ask = [], served.ask
    monkeypatch.setattr(served, "ask", lambda path, body, *more: asked_for.append(body) or ask(path, body, *more))
    monkeypatch.setattr(engine, limit, few)
    found, wanted = encoding.decode(engine.records(batch, encoding, 0)), encoding.decode(whole)
    assert len(asked_for) > 1
    k = min(found.ids.shape[1], wanted.ids.shape[1])
    assert torch.equal(found.ids[:, :k], wanted.ids[:, :k])


def test_a_micro_batch_of_more_tokens_than_a_request_takes_has_its_records(served):
    many = joined([Row(torch.arange(3, 103, dtype=torch.int32), torch.arange(3, 103, dtype=torch.int32))] * 41)
    encoding = encoding_of("top_k", {"vocab_size": VOCAB_SIZE, "k": 5})
    assert len(encoding.decode(DistillTune(served).records(many, encoding, 0))) == 41 * 99


@pytest.mark.parametrize("token", [None, "another", ""])
@pytest.mark.parametrize("path", ["/about", "/vocabulary", "/output_layer", "/score"])
def test_without_its_token_it_answers_401(served, path, token):
    with pytest.raises(Refused, match="a wrong token, or none") as refused:
        Server(served.url, token).ask(path, b"" if path == "/score" else None)
    assert refused.value.status == 401


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_line(start_cli, teacher_folder, number):
    command, url = started(start_cli, "--teacher", teacher_folder)
    assert json.loads(Server(url).ask("/about"))["model"] == teacher_folder.name
    command.send_signal(number)
    assert command.wait(30) == 0
    output, errors = command.told()
    assert f"stopped by {signal.Signals(number).name}" in output
    assert errors == ""


def test_a_request_under_way_is_answered_before_it_ends(start_cli, teacher_folder):
    command, url = started(start_cli, "--teacher", teacher_folder)
    many = joined([Row(torch.ones(100, dtype=torch.int32), torch.ones(100, dtype=torch.int32))] * 400)
    answers = []
    asking = threading.Thread(target=lambda: answers.append(asked(Server(url), many, "top_k")))
    asking.start()
    time.sleep(0.3)
    assert asking.is_alive()
    command.send_signal(signal.SIGTERM)
    asking.join()
    assert len(answers[0]) == 400 * 99
    assert command.wait(30) == 0


def test_a_second_signal_ends_it_at_once_with_a_line(start_cli, teacher_folder):
    command, url = started(start_cli, "--teacher", teacher_folder)
    many = joined([Row(torch.ones(100, dtype=torch.int32), torch.ones(100, dtype=torch.int32))] * 2000)
    failures = []

    def ask():
        with pytest.raises(NoAnswer):
            asked(Server(url), many, "top_k")
        failures.append(True)

    asking = threading.Thread(target=ask)
    asking.start()
    time.sleep(0.5)
    command.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert asking.is_alive()
    command.send_signal(signal.SIGINT)
    assert command.wait(30) == 130
    asking.join()
    output, errors = command.told()
    assert failures and errors == ""
    assert "ended by a second SIGINT, requests under way unanswered" in output


def test_what_it_cannot_serve_is_told(cli, teacher_folder, tmp_path):
    for arguments, told in (
        (["--teacher", "nowhere", "--port", 0], "--teacher nowhere: no such folder, or it has no config.json"),
        (["--teacher", "x.gguf", "--port", 0], "--teacher x.gguf: no such file"),
        (["--teacher", teacher_folder, "--port", 70000], "--port 70000: must be from 0 to 65535"),
        (["--teacher", teacher_folder, "--port", 0, "--host", "0.0.0.0"], "other machines could ask; give a token"),
        (["--teacher", teacher_folder, "--port", 0, "--max-tokens-per-batch", 0], "-batch 0: must be at least 1"),
        (["--teacher", teacher_folder, "--port", 0, "--token", "a b"], "--token: must be of printable ASCII"),
        (["--port", 0], "name one teacher: --teacher MODEL, or --config CONFIG"),
        (["--teacher", teacher_folder], "--port: missing; 0 takes one that is free"),
        (["--teacher", teacher_folder, "dtype=fp32", "--port", 0], "dtype=fp32: settings are a config's"),
        (["--config", "tiny", "--offload", "--port", 0], "--offload: --config says how its teacher is loaded"),
    ):
        done = cli("serve", *arguments, DISTILL_TUNE_SERVE_TOKEN="")
        assert (done.returncode, told in done.stderr) == (2, True), done.stderr


def test_a_port_that_is_taken_is_told_before_the_weights_are_read(cli, teacher_folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = cli("serve", "--teacher", teacher_folder, "--port", taken.getsockname()[1])
    assert done.returncode == 2
    assert "Address already in use; take another port" in done.stderr


def test_a_gguf_file_is_served(start_cli, tmp_path, tokenizer_file):
    pytest.importorskip("gguf")
    from tiny import write_model
    from tiny_gguf import write_gguf

    folder = write_model(tmp_path / "model", tokenizer_file, seed=4, width=64)
    write_gguf(folder, tmp_path / "model.gguf", "Q4_0")
    command, url = started(start_cli, "--teacher", tmp_path / "model.gguf")
    about = json.loads(Server(url).ask("/about"))
    assert (about["model"], about["vocab_size"]) == ("model.gguf", VOCAB_SIZE)
    assert "hidden" in about["kinds"]
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) == 0


def test_a_configs_teachers_are_served_where_its_student_and_rows_are_not(
    start_cli, write_config, tmp_path, tokenizer_file, teacher_folder, batch
):
    """A mixture of two, one of which has more tokens."""
    other = write_model(tmp_path / "other", tokenizer_file, seed=9)
    of_other = {"_component_": "distill_tune.models.from_hf", "path": str(other)}
    mixture = [{"_component_": "distill_tune.models.from_hf", "path": str(teacher_folder), "weight": 3}, of_other]
    elsewhere = {"_component_": "distill_tune.models.from_hf", "path": "nowhere"}
    write_config(model=elsewhere, checkpointer=None, teacher_model=mixture, teacher_checkpointer=None)
    tokenizer = "tokenizer.path=nowhere/tokenizer.model"
    command, url = started(start_cli, "--config", "config.yaml", tokenizer, "dataset.source=nowhere.json")
    server = Server(url)
    about = json.loads(server.ask("/about"))
    assert (about["model"], about["kinds"]) == (f"{teacher_folder.name} + other", ["sampled", "top_k", "likelihood"])
    found = asked(server, batch, "top_k", k=20)
    signals = []
    for entry in mixture:
        component = OmegaConf.create({name: value for name, value in entry.items() if name != "weight"})
        teacher = teachers.build_teacher(component)
        teacher.load(None, torch.device("cpu"))
        signals.append(teacher(batch))
    n = len(batch.supervised_positions)
    wanted = TopTokens.of(MixtureOfTeachers(signals, [0.75, 0.25]).logits(0, n, None), 20)
    assert torch.equal(found.ids, wanted.ids)
    torch.testing.assert_close(found.log_probs, wanted.log_probs, rtol=0, atol=2e-3)
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) == 0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"teacher_model": None, "kd_ratio": 0}, "teacher_model: missing; there is nothing to serve"),
        ({"teacher_model": {"_component_": "distill_tune.teachers.EMA"}}, "EMA: is no model of its own"),
        ({"teacher_combination": "sum"}, "teacher_combination=sum: each teacher has a word of its own"),
        (
            {"teacher_model": {"_component_": "distill_tune.models.from_hf", "path": "x"}},
            "teacher_model.path=x: no such",
        ),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_a_config_whose_teacher_cannot_be_served_is_told(write_config, teacher_folder, changes, told):
    entry = {"_component_": "distill_tune.models.from_hf", "path": str(teacher_folder)}
    path = write_config(**{"teacher_model": [entry, entry], "teacher_checkpointer": None} | changes)
    with pytest.raises(UserError, match=re.escape(told)):
        config_of_teacher(str(path), [])


def test_teachers_of_other_tokens_are_not_served_together(tmp_path, write_config, teacher_folder):
    shutil.copytree(teacher_folder, tmp_path / "other")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / "other" / name).unlink()
    write_tokenizer(tmp_path / "other")
    entries = [
        {"_component_": "distill_tune.models.from_hf", "path": str(folder)}
        for folder in (teacher_folder, tmp_path / "other")
    ]
    path = write_config(teacher_model=entries, teacher_checkpointer=None)
    teacher = teacher_of(config_of_teacher(str(path), []), torch.float32)
    limits = {"most_tokens_of_batch": 64, "most_tokens_of_request": 64}
    with pytest.raises(UserError, match=r"teacher_model: .* have not the same tokens"):
        loaded(teacher, torch.device("cpu"), torch.float32, name="both", settings="", token=None, **limits)
