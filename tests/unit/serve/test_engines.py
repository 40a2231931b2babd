"""vLLM and SGLang, by stand-ins that answer as their documentation says."""

import dataclasses
import json
import shutil

import numpy
import pytest
import torch
from omegaconf import OmegaConf
from stand_in_engines import StandInSGLang, StandInVLLM
from tiny import VOCAB_SIZE
from tiny_tokenizer import write_tokenizer

from distill_tune import models, teachers
from distill_tune.data.batch import Row, joined
from distill_tune.errors import UserError
from distill_tune.losses import ChunkLikelihood, ForwardKL, TokenLikelihoods, TopTokens
from distill_tune.models.tokenizer_files import open_tokenizer

K = 8
BOTH = pytest.mark.parametrize("kind_of_server", [StandInVLLM, StandInSGLang])


@pytest.fixture(scope="module")
def live(teacher_folder):
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(teacher_folder)})
    teacher = teachers.build_teacher(component)
    teacher.load(None, torch.device("cpu"))
    return teacher


@pytest.fixture
def served(live, teacher_folder):
    found = []

    def start(kind_of_server, tokenizer_folder=teacher_folder, **settings):
        tokenizer = tokenizer_folder and open_tokenizer(tokenizer_folder)
        found.append(kind_of_server(live, tokenizer, **settings))
        return found[-1]

    yield start
    for server in found:
        server.close()


@pytest.fixture
def opened(student_folder):
    component = OmegaConf.create({"_component_": "distill_tune.models.from_hf", "path": str(student_folder)})
    checkpoint = models.open_checkpoint("model", component, None)
    student = models.checked_on_meta("model", component, checkpoint)

    def open_teacher(server, temperature=1.0, **settings):
        teacher = teachers.Served(server.url, **{"k": K, "retries": 0} | settings)
        teacher.require_loss(ChunkLikelihood() if teacher.kind == "likelihood" else ForwardKL(), None, temperature)
        teacher.check(student, checkpoint, None)
        teacher.require_rows(40, numpy.arange(3, VOCAB_SIZE))
        teacher.load(None, torch.device("cpu"))
        return teacher

    return open_teacher


@pytest.fixture(scope="module")
def batch():
    """Rows that are learned from their first token on, in part, in pieces, to their end."""
    generator, rows = torch.Generator().manual_seed(1), []
    for length, learned in ((9, range(1, 9)), (30, range(20, 30)), (12, (3, 4, 8, 11)), (6, (5,))):
        tokens = torch.randint(3, VOCAB_SIZE, (length,), generator=generator, dtype=torch.int32)
        labels = torch.full_like(tokens, -100)
        labels[list(learned)] = tokens[list(learned)]
        rows.append(Row(tokens, labels))
    return joined(rows)


@BOTH
@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_records_are_the_live_teachers_with_the_exact_rest(served, opened, live, batch, kind_of_server, temperature):
    server = served(kind_of_server, heeds_temperature=True)
    found = opened(server, temperature)(batch)
    n, signal = len(batch.supervised_positions), live(batch)
    wanted = TopTokens.of(signal.logits(0, n, signal.memory(n)), K, temperature)
    assert torch.equal(found.ids, wanted.ids)
    torch.testing.assert_close(found.log_probs, wanted.log_probs, rtol=0, atol=2e-3)
    torch.testing.assert_close(found.log_rest, wanted.log_rest, rtol=0, atol=2e-3)
    assert found.temperature == temperature


@BOTH
@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_how_likely_the_rows_own_tokens_are_is_told(served, opened, live, batch, kind_of_server, temperature):
    server = served(kind_of_server, heeds_temperature=True)
    found = opened(server, temperature, kind="likelihood")(batch)
    n, signal = len(batch.supervised_positions), live(batch)
    wanted = TokenLikelihoods.of(signal.logits(0, n, signal.memory(n)), batch.learned, temperature)
    torch.testing.assert_close(found.log_probs, wanted.log_probs, rtol=1e-5, atol=1e-5)
    assert (found.temperature, found.vocab_size) == (temperature, VOCAB_SIZE)
    assert [body.get("prompt_logprobs", body.get("top_logprobs_num")) for body in server.asked][-1] == 0  # no others


@pytest.fixture
def with_others(live, batch):
    """With three tokens that a student holds likeliest, of which the first is the teacher's as well."""
    n, signal = len(batch.supervised_positions), live(batch)
    likeliest = signal.logits(0, n, signal.memory(n)).topk(1).indices
    drawn = torch.randint(3, VOCAB_SIZE, (n, 2), generator=torch.Generator().manual_seed(5))
    return dataclasses.replace(batch, likeliest=torch.cat([likeliest, drawn], 1))


def test_vllm_tells_of_the_students_likeliest_tokens_as_well(served, opened, live, with_others):
    server = served(StandInVLLM)
    found = opened(server, k_of_student=3)(with_others)
    n, signal = len(with_others.supervised_positions), live(with_others)
    wanted = TopTokens.of(signal.logits(0, n, signal.memory(n)), K, others=with_others.likeliest)
    assert torch.equal(found.ids, wanted.ids) and torch.equal(found.is_token, wanted.is_token)
    torch.testing.assert_close(found.log_probs, wanted.log_probs, rtol=0, atol=2e-3)
    torch.testing.assert_close(found.log_rest, wanted.log_rest, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("kind_of_server", "settings", "temperature", "told"),
    [
        (StandInSGLang, {}, 1.0, "sglang cannot serve it: .*token_ids_logprob.* same at every position"),
        (StandInVLLM, {"scores_token_ids": False}, 1.0, "k_of_student=3: 404"),
        (StandInVLLM, {"of_token_id": lambda log_probs: log_probs - 9.0}, 1.0, "raw_logprobs they are the same"),
        (StandInVLLM, {}, 2.0, "vllm serves it at temperature=1 alone, not 2"),
    ],
)
def test_a_server_that_cannot_tell_of_them_is_refused(
    served, opened, monkeypatch, kind_of_server, settings, temperature, told
):
    for name, value in settings.items():
        monkeypatch.setattr(kind_of_server, name, staticmethod(value) if callable(value) else value)
    with pytest.raises(UserError, match=told):
        opened(served(kind_of_server), temperature, k_of_student=3)


def test_an_sglang_before_0_5_17_lists_them_to_the_same_records(served, opened, batch):
    """Its answers have more than twice the bytes, and three times with ids of six digits."""
    records, sizes = [], []
    for knows_arrays in (True, False):
        server = served(StandInSGLang, knows_arrays=knows_arrays)
        records.append(opened(server)(batch))
        _, answers = server.post("/generate", server.asked[-1])
        sizes.append(len(json.dumps([one["meta_info"] | {"input_token_logprobs": []} for one in answers])))
    assert torch.equal(records[0].ids, records[1].ids)
    torch.testing.assert_close(records[0].log_probs, records[1].log_probs, rtol=0, atol=2e-3)
    assert sizes[1] > 2 * sizes[0]


@pytest.mark.parametrize(
    ("key", "wrong"),
    [
        ("input_top_logprobs_shape", [1, K]),
        ("input_top_logprobs_null_prefix", 2),
        ("input_top_logprobs_val_flat_b64_dtype", "float16"),
        ("input_top_logprobs_idx_flat_b64", None),
    ],
)
def test_arrays_of_another_form_are_no_answer(served, opened, batch, monkeypatch, key, wrong):
    server = served(StandInSGLang)
    teacher, right = opened(server), server.post

    def other(path, body):
        status, found = right(path, body)
        for one in found:
            one["meta_info"][key] = wrong
        return status, found

    monkeypatch.setattr(server, "post", other)
    assert "input_top_logprobs" in teacher.lost([batch])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda entries: entries.update({token: {"logprob": None} for token in entries}),
        lambda entries: entries.update({token: {} for token in entries}),
        lambda entries: entries.update(dict.fromkeys(entries, -1.0)),
        lambda entries: entries.update({"-1": {"logprob": -4.5}}),
        lambda entries: entries.update({"7": {"logprob": float("nan")}}),
        lambda entries: entries.update({"word": {"logprob": -1.0}}),
    ],
)
def test_what_vllm_lists_otherwise_is_no_answer(served, opened, batch, monkeypatch, spoil):
    server = served(StandInVLLM)
    teacher, right = opened(server), server.post

    def wrong(path, body):
        status, found = right(path, body)
        for choice in found["choices"]:
            for entries in choice["prompt_logprobs"][1:]:
                spoil(entries)
        return status, found

    monkeypatch.setattr(server, "post", wrong)
    assert server.url in teacher.lost([batch])


@pytest.mark.parametrize("entry", [None, [None, 5, None], [-1.0], [-1.0, None, None], [-1.0, -5, None], 3])
@pytest.mark.parametrize("key", ["input_token_logprobs", "input_top_logprobs"])
def test_what_sglang_lists_otherwise_is_no_answer(served, opened, batch, monkeypatch, key, entry):
    server = served(StandInSGLang, knows_arrays=False)
    teacher, right = opened(server), server.post

    def wrong(path, body):
        status, found = right(path, body)
        for one in found:
            listed = one["meta_info"][key]
            listed[1:] = [entry if key == "input_token_logprobs" else [entry] * K for _ in listed[1:]]
        return status, found

    monkeypatch.setattr(server, "post", wrong)
    assert server.url in teacher.lost([batch])


@BOTH
def test_what_a_servers_own_sampling_would_cut_is_asked_not_to(served, opened, batch, kind_of_server):
    server = served(kind_of_server)
    opened(server)(batch)
    for body in server.asked:
        settings = body.get("sampling_params", body)
        assert (settings["temperature"], settings["top_p"], settings["top_k"], settings["min_p"]) == (1.0, 1.0, -1, 0.0)
        assert settings["repetition_penalty"] == 1.0


@BOTH
@pytest.mark.parametrize("kind", ["top_k", "likelihood"])
def test_answers_of_other_positions_are_never_taken(served, opened, batch, kind_of_server, kind, monkeypatch):
    """A server that is wrong by one in which token an answer is of."""
    server = served(kind_of_server)
    teacher, right = opened(server, kind=kind), server.post

    def wrong(path, body):
        status, found = right(path, body)
        of_vllm = kind_of_server is StandInVLLM
        for one in found["choices"] if of_vllm else found:
            values = one["prompt_logprobs"] if of_vllm else one["meta_info"]["input_token_logprobs"]
            values[1:] = [*values[2:], values[1]]  # of the first there is nothing in any case
        return status, found

    monkeypatch.setattr(server, "post", wrong)
    assert "not" in teacher.lost([batch])


@BOTH
def test_temperature_that_has_no_effect_is_told(served, opened, kind_of_server):
    with pytest.raises(UserError, match="temperature=2 does not soften the log-probabilities"):
        opened(served(kind_of_server), 2.0)


@BOTH
def test_another_tokenizer_is_told_by_what_its_tokens_are(served, opened, tmp_path, teacher_folder, kind_of_server):
    shutil.copytree(teacher_folder, tmp_path / "other")
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / "other" / name).unlink()
    write_tokenizer(tmp_path / "other")
    with pytest.raises(UserError, match="rows have tokens that are others in the tokenizer of tiny at http"):
        opened(served(kind_of_server, tmp_path / "other"))


@BOTH
def test_a_server_that_does_not_write_its_tokens_is_told(served, opened, kind_of_server):
    with pytest.raises(UserError, match="does not tell the text of tokens"):
        opened(served(kind_of_server, None))


@BOTH
def test_kinds_that_it_does_not_give_are_told(served, opened, kind_of_server):
    server = served(kind_of_server)
    with pytest.raises(UserError, match=f"{server.owner}, serving tiny, gives top_k, likelihood, not kind=sampled"):
        opened(server, kind="sampled")


@BOTH
def test_rows_that_are_too_long_for_it_are_told(served, opened, kind_of_server):
    with pytest.raises(UserError, match=r"its longest sequence has 40 tokens, .* reads 29 at most"):
        opened(served(kind_of_server, longest=30))


def test_more_log_probabilities_than_vllm_gives_are_told_with_its_own_words(served, opened):
    with pytest.raises(UserError, match=r"k=50: 400: Requested .* greater than max allowed: 20"):
        opened(served(StandInVLLM), k=50)


def test_a_model_of_several_is_named(served, opened, monkeypatch):
    server = served(StandInVLLM)
    cards = [{"id": name, "owned_by": "vllm", "max_model_len": 128} for name in ("tiny", "another")]
    monkeypatch.setattr(server, "get", lambda path: {"data": cards} if path == "/v1/models" else None)
    with pytest.raises(UserError, match="serves several models: name one with model; there are tiny, another"):
        opened(server)
    with pytest.raises(UserError, match="does not serve model=third; there are tiny, another"):
        opened(server, model="third")
    opened(server, model="another")
    assert {body["model"] for body in server.asked} == {"another"}


def test_a_distribution_that_is_none_is_told(served, opened, batch, monkeypatch):
    server = served(StandInVLLM)
    teacher, right = opened(server), server.log_probs
    monkeypatch.setattr(server, "log_probs", lambda *arguments: right(*arguments) + 2)
    assert "they are no distribution" in teacher.lost([batch])


def test_a_row_of_which_nothing_is_learned_has_no_positions(served, opened, batch):
    empty = joined([Row(torch.tensor([5, 6, 7], dtype=torch.int32), torch.full((3,), -100, dtype=torch.int32))])
    for kind_of_server in (StandInVLLM, StandInSGLang):
        for kind in ("top_k", "likelihood"):
            assert len(opened(served(kind_of_server), kind=kind)(empty)) == 0
