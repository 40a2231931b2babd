"""A served teacher asked by a run: what is proven before any step, and what failures leave of the loss."""

import dataclasses
import json
import random
import shutil
import signal
import socket
import threading
import time

import pytest
import torch
from loopback import LoopbackServer, Reply
from omegaconf import OmegaConf
from served import Proxy, serving, started
from tiny import VOCAB_SIZE, write_model
from tiny_tokenizer import write_tokenizer

from distill_tune import models, teachers
from distill_tune.data.batch import Row, joined
from distill_tune.errors import UserError
from distill_tune.losses import (
    ChunkLikelihood,
    ForwardKL,
    LinearProjection,
    ReverseKL,
    TokenLikelihoods,
    TopTokens,
    distillation_loss,
)

pytest.importorskip("uvicorn")
ALERT = b"\x15\x03\x01\x00\x02\x02\x46"  # protocol version


@pytest.fixture(scope="module")
def url(tmp_path_factory, command_server, teacher_folder):
    with serving(tmp_path_factory, command_server, "--teacher", teacher_folder) as (_, found):
        yield found


@pytest.fixture(scope="module")
def student(student_folder):
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(student_folder)})
    checkpoint = models.open_checkpoint("model", component, None)
    return models.checked_on_meta("model", component, checkpoint), checkpoint


@pytest.fixture
def opened(student):
    """A teacher as the recipes open it."""

    def open_teacher(url, divergence=None, temperature=1.0, **settings):
        teacher = teachers.Served(url, **settings)
        teacher.require_loss(divergence or ForwardKL(), None, temperature)
        teacher.check(*student, None)
        teacher.load(None, torch.device("cpu"))
        return teacher

    return open_teacher


def batches(count=6):
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        rows = []
        for length in (9, 17):
            tokens = torch.randint(3, VOCAB_SIZE, (length,), generator=generator, dtype=torch.int32)
            labels = tokens.clone()
            labels[: length // 3] = -100
            rows.append(Row(tokens, labels))
        found.append(joined(rows))
    return found


def loss_of(signal, batch, temperature=1.0, divergence=None):
    """The divergence of a student that says the same of all batches."""
    n, generator = len(batch.supervised_positions), torch.Generator().manual_seed(2)
    hidden = torch.randn(n, 16, generator=generator, requires_grad=True)
    head = LinearProjection(torch.randn(VOCAB_SIZE, 16, generator=generator))
    sums = distillation_loss(
        hidden,
        head,
        batch.targets[0, batch.supervised_positions],
        signal,
        kd_ratio=1.0,
        temperature=temperature,
        divergence=divergence or ForwardKL(),
    )
    return sums.loss.item()


@pytest.fixture
def proxied(url):
    proxies = []

    def start(fails):
        proxies.append(Proxy(url, fails))
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def no_waits(monkeypatch):
    monkeypatch.setattr("distill_tune.serve.requests._FIRST_WAIT", 0.001)


def losses_of(teacher, all_batches):
    teacher.expect(iter(all_batches))
    found = []
    for batch in all_batches:
        assert teacher.lost([batch]) is None
        found.append(loss_of(teacher(batch), batch))
    return found


@pytest.mark.parametrize("kind", ["top_k", "sampled", "hidden"])
def test_the_loss_of_servers_that_fail_at_random_is_the_same_bit_for_bit(url, proxied, opened, no_waits, kind):
    all_batches = batches()
    wanted = losses_of(opened(url, kind=kind), all_batches)
    chance = random.Random(1)
    fails = ["hang up", "overloaded", "half"]
    # Each of them fails more often than it answers, once a run is under way.
    two = [proxied(lambda path, asked: asked > 1 and chance.random() < 0.6 and chance.choice(fails)) for _ in range(2)]
    assert losses_of(opened([proxy.url for proxy in two], kind=kind, retries=60), all_batches) == wanted
    assert sum(proxy.asked for proxy in two) > 2 + 2 * len(all_batches)


def test_served_and_live_losses_agree_to_the_stored_precision(url, opened, teacher_folder, student):
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(teacher_folder)})
    live = teachers.build_teacher(component)
    live.load(None, torch.device("cpu"))
    hidden, top = opened(url, kind="hidden"), opened(url, k=40)
    likelihood = opened(url, ChunkLikelihood(), 1.5, kind="likelihood")
    for batch in batches(2):
        wanted = loss_of(live(batch), batch)
        assert loss_of(hidden(batch), batch) == pytest.approx(wanted, rel=2e-3)  # bf16
        n = len(batch.supervised_positions)
        signal = live(batch)
        record = TopTokens.of(signal.logits(0, n, signal.memory(n)), 40)
        assert loss_of(top(batch), batch) == pytest.approx(loss_of(record, batch), rel=1e-3)  # 14 bits
        of_own = TokenLikelihoods.of(signal.logits(0, n, signal.memory(n)), batch.learned, 1.5)
        found = likelihood(batch)
        torch.testing.assert_close(found.log_probs, of_own.log_probs, rtol=1e-6, atol=1e-6)
        assert (found.temperature, found.vocab_size) == (1.5, VOCAB_SIZE)


def test_it_tells_of_the_students_likeliest_tokens_as_well(url, opened, teacher_folder, student):
    draws = torch.Generator().manual_seed(2)
    batch = batches(1)[0]
    n = len(batch.supervised_positions)
    batch = dataclasses.replace(batch, likeliest=torch.randint(0, VOCAB_SIZE, (n, 4), generator=draws))
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(teacher_folder)})
    live = teachers.build_teacher(component)
    live.load(None, torch.device("cpu"))
    signal = live(batch)
    wanted = TopTokens.of(signal.logits(0, n, signal.memory(n)), 5, others=batch.likeliest)
    teacher = opened(url, ReverseKL(), k=5, k_of_student=4)
    parts = batch.halves()
    for found in (teacher(batch), TopTokens.of_each_row([*map(teacher, parts)], rows_of(parts))):
        assert torch.equal(found.ids, wanted.ids) and torch.equal(found.is_token, wanted.is_token)
        torch.testing.assert_close(found.log_probs, wanted.log_probs, rtol=0, atol=2e-3)
        torch.testing.assert_close(found.log_rest, wanted.log_rest, rtol=0, atol=2e-3)
    assert teacher(batches(1)[0]).ids.shape[1] == 5  # as for validation


def rows_of(parts):
    first, second = (len(part.supervised_positions) for part in parts)
    return [torch.arange(first), torch.arange(first, first + second)]


def test_requests_are_under_way_before_they_are_asked_for(url, proxied, opened):
    begun = threading.Event()
    begun.set()
    proxy = proxied(lambda path, asked: None if begun.wait(60) else "hang up")
    teacher = opened(proxy.url, concurrency=3)
    asked_before, all_batches = proxy.asked, batches(12)
    begun.clear()  # an answer that came at once would let one more request begin
    teacher.expect(iter(all_batches))
    assert [one.answer.done() for one in teacher._coming] == [False] * 3
    begun.set()
    for one in list(teacher._coming):
        one.answer.result()
    assert proxy.asked - asked_before == 3
    for batch in all_batches:
        teacher(batch)
        assert len(teacher._coming) <= 6  # as many that wait as are begun
    assert proxy.asked - asked_before == 12  # none twice


def test_validation_comes_between_and_training_goes_on_with_what_was_expected(url, proxied, opened):
    proxy = proxied(lambda path, asked: None)
    teacher, all_batches = opened(proxy.url), batches(8)
    before = proxy.asked
    teacher.expect(iter(all_batches[:6]))
    teacher(all_batches[0])
    teacher.expect(iter(all_batches[6:]))
    for batch in [*all_batches[6:], *all_batches[1:6]]:
        assert len(teacher(batch)) == len(batch.supervised_positions)
    assert proxy.asked - before == 8


def test_halves_of_a_batch_are_asked_for_anew(url, opened):
    teacher, (whole, following) = opened(url), batches(2)
    teacher.expect(iter([whole, following]))
    first, second = whole.halves()
    assert len(teacher(first)) + len(teacher(second)) == len(whole.supervised_positions)
    assert [one.digests for one in teacher._coming] == [following.digests]


@pytest.mark.parametrize("combination", ["by_row", "sum"])
def test_each_of_several_asks_ahead_for_what_it_reads(proxied, opened, combination):
    proxies = [proxied(lambda path, asked: None) for _ in range(2)]
    both = [opened(proxy.url) for proxy in proxies]
    teacher = teachers.SeveralTeachers(both, [1.0, 1.0], ["a", "b"], combination)
    assert teacher.may_be_lost
    before = [proxy.asked for proxy in proxies]
    all_batches = [dataclasses.replace(batch, teacher_ids=(0, 1)) for batch in batches(3)]
    teacher.expect(iter(all_batches))
    for batch in all_batches:
        assert teacher.lost([batch]) is None
        first, second = teacher(batch).signals
        wanted = batch.num_supervised if combination == "by_row" else [sum(batch.num_supervised)] * 2
        assert [len(first), len(second)] == list(wanted)
    assert [proxy.asked - asked for proxy, asked in zip(proxies, before, strict=True)] == [3, 3]


def test_a_server_that_dies_is_left_out_and_told(url, proxied, opened, no_waits, capsys):
    dying = proxied(lambda path, asked: "hang up" if asked > 2 else None)
    all_batches = batches(12)
    wanted = losses_of(opened(url), all_batches)
    assert losses_of(opened([dying.url, url], retries=2, concurrency=1), all_batches) == wanted
    assert f"teacher at {dying.url}: left out" in capsys.readouterr().out


def test_a_server_that_is_silent_counts_as_failed(url, proxied, opened, no_waits):
    silent = proxied(lambda path, asked: "silent" if asked > 1 else None)
    all_batches = batches(2)
    wanted = losses_of(opened(url), all_batches)
    started = time.monotonic()
    assert losses_of(opened([silent.url, url], timeout=0.2), all_batches) == wanted
    assert time.monotonic() - started < 2


def test_once_all_have_died_it_is_lost_with_their_reasons(proxied, opened, no_waits):
    dying = proxied(lambda path, asked: "overloaded" if asked > 1 else None)
    teacher, (batch, *_) = opened(dying.url, retries=2), batches(1)
    assert f"{dying.url}: 503" in teacher.lost([batch])
    with pytest.raises(UserError, match="no server answers any more"):
        teacher(batch)


def test_several_servers_must_serve_the_same_teacher(url, start_cli, tmp_path, tokenizer_file, opened):
    other = write_model(tmp_path / "other", tokenizer_file, seed=9, width=64, layers=3)
    command, its = started(start_cli, "--teacher", other)
    with pytest.raises(UserError, match="serve the same teacher"):
        opened([url, its])
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) == 0


def test_another_tokenizer_is_told(start_cli, tmp_path, teacher_folder, opened):
    folder = tmp_path / "other"
    shutil.copytree(teacher_folder, folder)
    (folder / "tokenizer.model").unlink()
    (folder / "tokenizer_config.json").unlink()
    write_tokenizer(folder)
    command, its = started(start_cli, "--teacher", folder)
    with pytest.raises(UserError, match="tokenizer is not that of the rows"):
        opened(its)
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) == 0


def test_what_a_kind_cannot_serve_is_told(url, opened):
    with pytest.raises(UserError, match="kind=sampled: a sampled record serves ForwardKL, not ReverseKL"):
        opened(url, divergence=ReverseKL(), kind="sampled")
    with pytest.raises(UserError, match="temperature is a schedule: take kind hidden"):
        opened(url, temperature=None)
    with pytest.raises(UserError, match="gives 320 log-probabilities at most: k=400"):
        opened(url, k=400)


def test_it_tells_which_records_it_gives():
    kinds = {"top_k": "top_k", "sampled": "sampled", "likelihood": "likelihood", "hidden": ""}
    assert {kind: teachers.Served("http://x:1", kind=kind).record_kind for kind in kinds} == kinds


def test_a_setting_that_no_record_takes_is_told_before_anything_is_loaded(url, student):
    for settings, temperature, told in (({"draws": 5000}, 1.0, "draws=5000: must be"), ({}, 1e-9, "temperature=1e-09")):
        teacher = teachers.Served(url, kind="sampled", **settings)
        teacher.require_loss(ForwardKL(), None, temperature)
        with pytest.raises(UserError, match=f"teacher_model: {told}"):
            teacher.check(*student, None)


def test_a_row_that_the_teacher_cannot_read_is_told(url, opened):
    import numpy

    with pytest.raises(UserError, match="its longest sequence has 1000000000 tokens"):
        opened(url).require_rows(10**9, numpy.array([5]))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"url": "localhost:8000"}, "must be http://machine:port"),
        ({"url": "http://x:99999"}, "url=http://x:99999: "),
        ({"url": []}, "name a server"),
        ({"url": "http://me:secret@x:1"}, "names a user; a server is given a token"),
        ({"url": "http://x:1", "token": "a\n"}, "token: must be of printable ASCII"),
        ({"url": "http://x:1", "kind": "dense"}, "kind=dense: must be one of sampled, top_k, hidden, likelihood"),
        ({"url": "http://x:1", "engine": "llama"}, "engine=llama: must be one of auto, distill-tune, vllm, sglang"),
        ({"url": "http://x:1", "k": 0}, "k=0: must be at least 1"),
        ({"url": "http://x:1", "timeout": 0}, "timeout=0"),
    ],
)
def test_a_wrong_setting_is_told(settings, told):
    with pytest.raises(UserError, match=told):
        teachers.Served(**settings)


def test_no_server_is_told(opened):
    with pytest.raises(UserError, match=r"url=http://127.0.0.1:9: no server answers \(Connection refused\)"):
        opened("http://127.0.0.1:9")


def test_one_of_several_that_is_not_there_is_left_out_and_told(url, opened, capsys):
    all_batches = batches(2)
    wanted = losses_of(opened(url), all_batches)
    capsys.readouterr()
    assert losses_of(opened(["http://127.0.0.1:9", url]), all_batches) == wanted
    assert "teacher at http://127.0.0.1:9: left out (Connection refused); 1 of 2 answer" in capsys.readouterr().out


def test_an_address_as_clients_of_openai_write_it_is_told(url, opened):
    with pytest.raises(UserError, match="/v1: leave /v1 out"):
        opened(f"{url}/v1")


def test_https_to_a_server_without_tls_is_told(url, opened):
    with pytest.raises(UserError, match="does not speak TLS: take http:// in place of https://"):
        opened(url.replace("http:", "https:"))


@pytest.mark.parametrize(
    ("answer", "told"),
    [(b"", "closed connection without response.*is it one of https"), (ALERT, "speaks TLS: take https")],
)
def test_http_to_a_server_of_tls_is_told(opened, answer, told):
    """One hangs up, another answers with an alert."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        answering = threading.Thread(target=answer_once, args=(listening, answer))
        answering.start()
        with pytest.raises(UserError, match=told):
            opened(f"http://127.0.0.1:{listening.getsockname()[1]}")
        answering.join()


def answer_once(listening, answer):
    connection, _ = listening.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(answer)


def test_a_server_that_is_started_again_with_another_teacher_is_left_out(
    url, proxied, opened, no_waits, start_cli, tmp_path, tokenizer_file
):
    proxy = proxied(lambda path, asked: None)
    teacher, (first, second) = opened(proxy.url, retries=1, concurrency=1), batches(2)
    assert teacher.lost([first]) is None
    command, proxy.behind = started(
        start_cli, "--teacher", write_model(tmp_path / "other", tokenizer_file, seed=9, width=64, layers=3)
    )
    assert "409: serves another teacher now, other" in teacher.lost([second])
    command.send_signal(signal.SIGTERM)
    assert command.wait(30) == 0


def test_a_server_of_another_kind_is_told(opened):
    server = LoopbackServer(lambda method, path, body: Reply(200, json.dumps({"hello": "world"}).encode()))
    with pytest.raises(UserError, match="is none of distill-tune, vllm, sglang"):
        opened(server.url)
    server.close()
