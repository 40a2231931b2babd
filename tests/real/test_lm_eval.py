"""The real lm-eval, offline, on the demo's models: `make test-real` installs it."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import distill_tune
from distill_tune import data
from distill_tune.errors import UserError
from distill_tune.evaluation import named_models, tasks
from distill_tune.evaluation.documents import Written
from distill_tune.evaluation.scoring import Reader, score

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.models.huggingface import HFLM  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402

from distill_tune.evaluation.task_model import TaskModel  # noqa: E402

DEMO = Path(distill_tune.__file__).parent / "_demo_models"
CPU = torch.device("cpu")
CONTEXT = 24
TEXTS = [
    "Return the mean of some values.",
    "Serialize an object to a JSON formatted string, sorted by its keys if sort_keys is true.",
    "Größe, naïve, 你好 🙂\n\n    indented",
    "a",
    "Read all lines of a file, one after another, and close it when there are none left. " * 4,
]


@pytest.fixture(scope="module")
def ours():
    tokenizer = data.hf_tokenizer(str(DEMO / "student"))
    named = named_models.open_named("student", str(DEMO / "student"), tokenizer, torch.float32)
    return TaskModel(named, Reader("student", named.load(CPU), CONTEXT), tokenizer, CPU)


def lm_evals_own(**settings):
    model = AutoModelForCausalLM.from_pretrained(DEMO / "student", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "student")
    return HFLM(pretrained=model, tokenizer=tokenizer, max_length=CONTEXT, batch_size=2, device="cpu", **settings)


@pytest.fixture(scope="module")
def theirs():
    return lm_evals_own()


def asked(*arguments):
    return SimpleNamespace(args=arguments)


def test_the_likelihood_of_whole_texts_is_lm_evals_in_and_beyond_a_window(ours):
    theirs = lm_evals_own(add_bos_token=False)  # else it scores the token that begins a text behind itself
    requests = [asked(text) for text in TEXTS]
    assert len(ours.tok_encode(TEXTS[-1])) > 2 * CONTEXT
    assert ours.loglikelihood_rolling(requests) == pytest.approx(
        theirs.loglikelihood_rolling(requests, disable_tqdm=True), rel=1e-5, abs=1e-3
    )


def test_it_is_also_transformers_own_and_what_evaluate_scores(ours, theirs):
    for text, found in zip(TEXTS[:2], ours.loglikelihood_rolling([asked(text) for text in TEXTS[:2]]), strict=True):
        tokens = theirs.tokenizer(text, return_tensors="pt")["input_ids"]  # with the token that begins a text
        with torch.no_grad():
            loss = theirs.model(tokens, labels=tokens).loss.item()
        assert -found == pytest.approx(loss * (tokens.shape[1] - 1), abs=1e-3)
        array = tokens[0].numpy()
        whole = Written(array, array >= 0, array >= 0, len(text.encode()), len(text.encode()))
        [scored] = score(Reader("student", ours._reader.model), [whole], CPU)
        assert -found == pytest.approx(scored.nll.sum(), rel=1e-6)


def test_continuations_are_as_likely_and_as_greedy_as_to_lm_eval(ours, theirs):
    pairs = [(question, f" {answer}") for question in TEXTS[:2] for answer in ("the", "Return the sum", "42.")]
    pairs += [("", "Return the"), ("The mean ", "of values"), (TEXTS[-1], " None")]
    words = TEXTS[-1].split()
    pairs += [(" ".join(words[:number]), " None") for number in range(8, 20)]  # as long as a window, and to both sides
    greedy = theirs.generate_until([asked(TEXTS[0], {"until": [], "max_gen_toks": 3})], disable_tqdm=True)[0]
    pairs.append((TEXTS[0], greedy))
    ours_found = ours.loglikelihood([asked(*pair) for pair in pairs], disable_tqdm=True)
    theirs_found = theirs.loglikelihood([asked(*pair) for pair in pairs], disable_tqdm=True)
    assert [likely for likely, _ in ours_found] == pytest.approx([likely for likely, _ in theirs_found], abs=1e-3)
    assert [is_greedy for _, is_greedy in ours_found] == [is_greedy for _, is_greedy in theirs_found]


def test_answers_are_those_of_lm_eval(ours, theirs):
    settings = [{"until": ["."], "max_gen_toks": 8}, {"until": ["\n"], "max_gen_toks": 5, "do_sample": False}]
    prompts = ["Return the", "Write a", "Read all lines of", "The value is", TEXTS[-1]]
    requests = [asked(text, settings[number % 2]) for number, text in enumerate(prompts)]
    found = [text.strip() for text in ours.generate_until(requests)]
    assert found == [text.strip() for text in theirs.generate_until(requests, disable_tqdm=True)]
    assert len(set(found)) == len(prompts)


TASK = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def folder(tmp_path):
    rows = [
        {"question": f"What does json.{name} do?", "choices": ["Return it.", "Write a file.", "No"], "answer": k % 3}
        for k, name in enumerate(["dumps", "dump", "load", "loads", "JSONDecoder", "JSONEncoder", "tool"])
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.yaml").write_text(TASK.format(name="mine", file=tmp_path / "rows.jsonl"))
    (tmp_path / "broken.yaml").write_text(TASK.format(name="broken", file=tmp_path / "absent.jsonl"))
    return tmp_path


def test_a_task_that_is_not_there_and_one_without_rows_are_told(folder):
    with pytest.raises(UserError, match=r"tasks=docstring_choise: no such task or file, did you mean docstring_choice"):
        tasks.open_tasks(["docstring_choise"])
    with pytest.raises(UserError, match=r"tasks=broken: cannot be loaded: FileNotFoundError: "):
        tasks.open_tasks(["broken"], str(folder))
    with pytest.raises(UserError, match=r"task_folder=nowhere: no such folder"):
        tasks.open_tasks(["mine"], "nowhere")


def test_a_file_and_a_name_in_a_folder_are_the_same_task_and_right_is_what_lm_eval_calls_right(folder, ours, theirs):
    by_name, by_file = tasks.open_tasks(["mine"], str(folder)), tasks.open_tasks([str(folder / "mine.yaml")])
    found = tasks.reached(by_name, ours._model, ours._reader, ours.tokenizer, CPU)["mine"]
    again = tasks.reached(by_file, ours._model, ours._reader, ours.tokenizer, CPU)["mine"]
    assert found.figures == again.figures and found.figures["documents"] == 7
    expected = lm_eval.evaluate(theirs, by_name.loaded, bootstrap_iters=10)["results"]["mine"]
    assert found.figures["acc"] == expected["acc,none"] == found.right["acc"].mean()
    assert found.figures["acc_stderr"] == expected["acc_stderr,none"]


def test_in_chat_a_question_is_the_users_turn_and_begins_once(folder, ours, theirs):
    in_chat = dataclasses.replace(tasks.open_tasks(["mine"], str(folder)), in_chat=True)
    found = tasks.reached(in_chat, ours._model, ours._reader, ours.tokenizer, CPU)["mine"]
    expected = lm_eval.evaluate(theirs, in_chat.loaded, bootstrap_iters=10, apply_chat_template=True)
    assert found.figures["acc"] == expected["results"]["mine"]["acc,none"]
    written = ours.apply_chat_template([{"role": "user", "content": "Why?"}])
    assert written == theirs.apply_chat_template([{"role": "user", "content": "Why?"}])
    assert ours.tok_encode(written) == theirs.tok_encode(written)
    assert ours.tok_encode(written).count(ours.tokenizer.bos_id) == 1


def test_the_recipe_reaches_the_same_on_two_processes(folder, cli):
    few = ["num_answers=0", "measure_speed=False", "dataset_test.num_rows=3", "device=cpu", "~teacher_model"]
    few += ["tasks=[mine,docstring_choice]", f"task_folder={folder}", f"models={{again: {DEMO / 'student'}}}"]
    found = []
    for name, processes in (("one", []), ("two", ["--nproc_per_node", "2"])):
        run = cli("run", *processes, "evaluate", "--config", "tiny", f"output_dir={folder / name}", *few)
        assert run.returncode == 0, run.stderr
        found.append(json.loads((folder / name / "evaluation" / "results.json").read_text()))
    one, two = found
    assert one["tasks"] == two["tasks"] and set(one["tasks"]) == {"mine", "docstring_choice"}
    assert one["tasks"]["docstring_choice"]["before"]["documents"] == 200
    assert one["tasks"]["docstring_choice"]["before"]["acc_norm"] > 0.28  # a guess is right in 0.25
    pairs = [pair for pair in one["pairs"] if pair["measure"] == "tasks.mine.acc"]
    assert pairs[0]["words"] == "no difference: before and again, in points of acc in mine"
