"""What is taken of each token, against float64 softmaxes of whole logits, transformers' own loss, and itself."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import VOCAB_SIZE, model_arguments

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.errors import UserError
from distill_tune.evaluation import Reader, Written, score, scoring
from distill_tune.teachers import HuggingFace, LiveTeacher, SeveralTeachers, open_model

from torchtune.models.llama3_2 import llama3_2

CPU = torch.device("cpu")
LENGTHS = (9, 20, 14, 5, 31)


def model(seed: int, vocab_size: int = VOCAB_SIZE):
    torch.manual_seed(seed)
    built = llama3_2(**model_arguments(vocab_size=vocab_size))
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else None
    return built


def reader(seed: int, context: int | None = None, stride: int | None = None, **shape) -> Reader:
    return Reader("student", LiveTeacher(model(seed, **shape)), context, stride)


def written(length: int, learned_from: int, seed: int = 0) -> Written:
    tokens = np.random.default_rng([seed, length]).integers(3, VOCAB_SIZE, length)
    supervised = np.arange(length) >= learned_from
    return Written(tokens, supervised, np.arange(length) > 0, 4 * length, 4 * int(supervised.sum()))


@pytest.fixture
def documents():
    return [written(length, 1 + length // 3) for length in LENGTHS]


@torch.no_grad()
def log_probs(seed: int, document: Written, size: int = VOCAB_SIZE, **shape) -> torch.Tensor:
    """Of each token but the first, float64, as the model is without packing or chunks."""
    logits = model(seed, **shape)(torch.from_numpy(document.tokens)[None])[0, :-1].double()
    return logits[:, :size].log_softmax(-1)


def test_each_measure_is_that_of_whole_logits(documents):
    found = score(reader(1), documents, CPU, reader(2))
    for of, document in zip(found, documents, strict=True):
        mine, its = log_probs(1, document), log_probs(2, document)
        targets, learned = torch.from_numpy(document.tokens[1:]), torch.from_numpy(document.supervised[1:])
        torch.testing.assert_close(
            torch.from_numpy(of.nll), F.nll_loss(mine, targets, reduction="none"), rtol=1e-5, atol=1e-5
        )
        q, p, targets = mine[learned], its[learned], targets[learned]
        assert of.confidence == pytest.approx(q.exp().amax(-1).numpy(), rel=1e-5)
        assert of.correct.tolist() == (q.argmax(-1) == targets).tolist()
        to_teacher = of.to_teacher
        wanted = {
            "forward_kl": F.kl_div(q, p, reduction="none", log_target=True).sum(-1),
            "reverse_kl": F.kl_div(p, q, reduction="none", log_target=True).sum(-1),
            "total_variation": (p.exp() - q.exp()).abs().sum(-1) / 2,
            "agreement": q.argmax(-1) == p.argmax(-1),
            "agreement_top5": torch.tensor(
                [len(set(a) & set(b)) / 5 for a, b in zip(q.topk(5)[1].tolist(), p.topk(5)[1].tolist(), strict=True)]
            ),
        }
        for name, values in wanted.items():
            assert getattr(to_teacher, name) == pytest.approx(values.numpy(), rel=1e-4, abs=1e-6), name
        assert of.nll.dtype == to_teacher.forward_kl.dtype == np.float64


def test_a_model_is_at_no_distance_from_itself(documents):
    for of in score(reader(1), documents, CPU, reader(1)):
        assert np.abs(of.to_teacher.forward_kl).max() < 1e-12 and of.to_teacher.agreement.all()
        assert (of.to_teacher.agreement_top5 == 1).all()


@pytest.mark.parametrize("context", [None, 8])
def test_no_figure_depends_on_what_is_scored_together_or_in_which_order(documents, monkeypatch, context):
    readers = reader(1, context), reader(2, context)
    together = score(readers[0], documents, CPU, readers[1])
    turned = score(readers[0], documents[::-1], CPU, readers[1])[::-1]
    alone = [score(readers[0], [document], CPU, readers[1])[0] for document in documents]
    monkeypatch.setattr(scoring, "_BATCH_TOKENS", 16)
    monkeypatch.setattr(scoring.losses, "chunk_rows", lambda n, size, device: 3)
    in_pieces = score(readers[0], documents, CPU, readers[1])
    for others in (turned, alone, in_pieces):
        for of, other in zip(together, others, strict=True):
            np.testing.assert_allclose(other.nll, of.nll, rtol=1e-6, atol=1e-6)
            np.testing.assert_allclose(other.to_teacher.forward_kl, of.to_teacher.forward_kl, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(other.to_teacher.agreement, of.to_teacher.agreement)


def test_a_long_document_is_what_its_windows_are(documents):
    """Token 12 of a window of 8 that moves on by 3 is predicted from tokens 6 to 11."""
    (of,) = score(reader(1, 8, 3), [documents[1]], CPU)
    tokens = torch.from_numpy(documents[1].tokens)
    with torch.no_grad():
        for token in range(1, len(tokens)):
            stop = 8 if token < 8 else min(8 + 3 * ((token - 8) // 3 + 1), len(tokens))
            start = 0 if token < 8 else stop - 8
            logits = model(1)(tokens[None, start:token])[0, -1].double()
            assert of.nll[token - 1] == pytest.approx(-logits.log_softmax(-1)[tokens[token]].item(), rel=1e-5)


def test_a_window_may_have_a_token_more_than_is_read(documents):
    """As lm-eval has them: of 8 tokens that are read token 8 is predicted from 0 to 7, and token 16 from 8 to 15."""
    of_tasks = reader(1, 8, 8)._replace(reads_last=False)
    (of,) = score(of_tasks, [documents[1]], CPU)
    tokens = torch.from_numpy(documents[1].tokens)
    read = scoring.read_together(of_tasks, [(documents[1], documents[1].supervised)])
    assert [length for batch in read for length in batch.lengths] == [8, 8, 8]
    with torch.no_grad():
        for token in range(1, len(tokens)):
            last = min((token - 1) // 8 * 8 + 8, len(tokens) - 1)  # that its window predicts
            logits = model(1)(tokens[None, last - 8 : token])[0, -1].double()
            assert of.nll[token - 1] == pytest.approx(-logits.log_softmax(-1)[tokens[token]].item(), rel=1e-5)


def test_the_teacher_reads_its_own_windows_and_prompts(documents):
    longer = [written(length + 6, 1 + length // 3 + 6, seed=1) for length in LENGTHS]
    for short, long in zip(documents, longer, strict=True):  # another prompt, the same answer
        long.tokens[1 + len(short.tokens) // 3 + 6 :] = short.tokens[1 + len(short.tokens) // 3 :]
    found = score(reader(1), documents, CPU, reader(2), longer)
    for of, short, long in zip(found, documents, longer, strict=True):
        q = log_probs(1, short)[torch.from_numpy(short.supervised[1:])]
        p = log_probs(2, long)[torch.from_numpy(long.supervised[1:])]
        wanted = F.kl_div(q, p, reduction="none", log_target=True).sum(-1).numpy()
        assert of.to_teacher.forward_kl == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_vocabularies_that_differ_by_padding_are_compared_on_what_both_have(documents):
    padded = reader(3, vocab_size=VOCAB_SIZE + 8)
    for of, document in zip(score(reader(1), documents, CPU, padded), documents, strict=True):
        learned = torch.from_numpy(document.supervised[1:])
        q, p = log_probs(1, document)[learned], log_probs(3, document, vocab_size=VOCAB_SIZE + 8)[learned]
        wanted = F.kl_div(q, p, reduction="none", log_target=True).sum(-1).numpy()
        assert of.to_teacher.forward_kl == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_likelihoods_are_those_of_transformers_however_a_folder_is_opened(student_folder, documents):
    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(student_folder, dtype=torch.float32)
    own = open_model("models.a", student_folder, torch.float32)
    by_transformers = HuggingFace(str(student_folder))
    for opened in (own, by_transformers):
        opened.load(getattr(opened, "model", None), CPU)
        found = score(Reader("a", opened), documents, CPU)
        for of, document in zip(found, documents, strict=True):
            tokens = torch.from_numpy(document.tokens)[None]
            labels = torch.where(torch.from_numpy(document.supervised), tokens, -100)
            with torch.no_grad():
                loss = theirs(tokens, labels=labels).loss
            assert of.nll[of.supervised].mean() == pytest.approx(loss.item(), rel=1e-5)


def test_several_teachers_are_one_distribution(documents):
    one, other = LiveTeacher(model(2)), LiveTeacher(model(3))

    both = Reader("teacher", SeveralTeachers([one, other], [0.25, 0.75], ["a", "b"], "sum"))
    for of, document in zip(score(reader(1), documents, CPU, both), documents, strict=True):
        learned = torch.from_numpy(document.supervised[1:])
        q, p, r = (log_probs(seed, document)[learned] for seed in (1, 2, 3))
        mixed = (0.25 * p.exp() + 0.75 * r.exp()).log()
        wanted = F.kl_div(q, mixed, reduction="none", log_target=True).sum(-1).numpy()
        assert of.to_teacher.forward_kl == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_logits_that_are_no_numbers_are_told(documents):
    broken = reader(1)
    broken.model.model.norm.scale.data.fill_(torch.nan)
    with pytest.raises(UserError, match=r"student: its logits are no numbers \(NaN\)"):
        score(broken, documents, CPU)
