import pytest

from distill_tune.evaluation.tables import results_markdown, results_text

NAMES = ("meta-llama-Llama-3.2-8B-Instruct", "before", "outputs/distilled-again/model")
BITS = (0.7, 1.5, 0.9)


def model(bits=0.9, **others):
    part = {"tokens": 5000, "bytes": 20_000, "nll": 9000.0, "perplexity": 12_345.6, "bits_per_byte": bits}
    kl = {"mean": 10.456, "median": 0.00123, "p99": 2.5, "p999": 9.75, "max": 31.0}
    return {
        "path": "somewhere",
        "kind": "run",
        "parameters": 8_030_261_248,
        "file_bytes": 17 * 2**30,
        "supervised": part,
        "all": part | {"tokens": 7000, "perplexity": 7.5},
        "to_teacher": {"forward_kl": kl, "reverse_kl": kl | {"mean": 0.25}, "agreement": 0.123, "agreement_top5": 0.5},
        "calibration": {"ece": 0.041, "bins": []},
        "answers": {"exact_match": 0.21, "rouge_l": 0.345, "mean_tokens": 31.25, "finished": 0.9, "documents": 40},
        "speed": {"prefill_tokens_per_second": {"1": 123_456.0, "16": 1e6}, "decode_tokens_per_second": {"16": 77.0}},
        "peak_memory_bytes": 3 * 2**30,
        "categories": {},
        "intervals": {"supervised.perplexity": [12_000.0, 13_000.0]},
    } | others


def results(**others):
    models = dict(zip(NAMES, map(model, BITS), strict=True))
    models[NAMES[0]] |= {"to_teacher": None}
    return {
        "version": 1,
        "teacher": NAMES[0],
        "base": NAMES[1],
        "data": {"name": "held_out.json", "documents": 1200, "scored": "The answers' tokens were scored."},
        "models": models,
        "pairs": [{"words": f"{NAMES[2]} is better than before by 0.6 bits per byte, p < 0.001"}],
        "tasks": None,
    } | others


def shown(width, of=None):
    return results_text(of or results(), width)


@pytest.mark.parametrize("width", [200, 120, 80, 60, 40, 24])
def test_no_name_and_no_digit_is_lost_where_the_terminal_is_narrow(width):
    text = shown(width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "…" not in text
    squeezed = "".join(text.split())
    for figure in ("8,030.26M", "12,346", "4.1%", "17.0GiB", "3.0GiB", "123,456", "1,000,000", "31.2"):
        assert squeezed.count(figure) == len(NAMES)
    assert squeezed.count("0.00123") == squeezed.count("10.456") == len(NAMES) - 1  # not of the teacher to itself
    # a name may go on in the next line, after its row's numbers
    for name in NAMES:
        assert name[:16] in text


def test_columns_without_room_go_on_below_and_where_there_is_little_each_model_has_a_list():
    assert all("peak" not in line for line in shown(80).splitlines() if "perplex-" in line)
    assert any("peak memory" in line for line in shown(250).splitlines() if "perplexity" in line)
    assert "peak memory" in shown(30) and "peak memory" not in shown(80)
    assert NAMES[0] in shown(40)


def test_without_a_terminal_tables_are_whole_and_no_line_is_padded(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.delenv("TTY_COMPATIBLE", raising=False)
    piped = shown(None)  # pytest's stdout is none
    for heading in ("parameters", "perplexity", "bits per byte", "agreement", "exact match", "peak memory"):
        assert any(heading in line for line in piped.splitlines() if "decode tokens/s of 16" in line)
    for name in NAMES:
        assert any(line.startswith(f" {name} ") and "12,346" in line for line in piped.splitlines())
    for text in (piped, shown(80), shown(24)):
        assert all(line == line.rstrip() for line in text.splitlines())
    monkeypatch.setenv("COLUMNS", "80")
    assert shown(None) == shown(80)


def test_what_no_model_has_takes_no_column():
    models = {"a": model(answers=None, speed=None, to_teacher=None, peak_memory_bytes=None)}
    text = shown(120, results(models=models, teacher=None, base=None, pairs=[]))
    for heading in ("exact", "prefill", "KL", "peak", "Distance", "Generated"):
        assert heading not in text


def test_how_far_a_figure_may_be_off_stands_below_it_and_in_markdown_its_bounds_do():
    lines = shown(80).splitlines()
    at = next(number for number, line in enumerate(lines) if "12,346" in line)
    assert "±500.00" in lines[at + 1]
    assert "| 12,346 (12,000 to 13,000) |" in results_markdown(results())


def test_a_small_figure_has_three_digits_and_what_rounding_leaves_has_none():
    kl = {"mean": 0.00012345, "median": 2.5e-7, "p99": -1e-9, "p999": 0.0456, "max": 0.0}
    models = {"a": model(to_teacher={"forward_kl": kl, "reverse_kl": kl, "agreement": 1.0}, intervals={})}
    text = results_markdown(results(models=models, teacher="teacher", base=None))
    assert "| 0.000123 | 100.0 % |" in text
    assert "| a | 0.000 | 0.000 | 0.046 | 0.000 | 0.000123 |" in text


def test_what_was_scored_the_gap_and_the_pairs_are_told():
    for text in (shown(200), results_markdown(results())):
        assert "The answers' tokens were scored." in text
        assert f"Of the gap between before and {NAMES[0]} in bits per byte are closed: {NAMES[2]} 75%." in text
        assert f"{NAMES[2]} is better than before by 0.6 bits per byte, p < 0.001." in text


def test_documents_that_a_model_could_not_answer_are_told():
    answers = {"documents": 12, "no_room": 0, "exact_match": 1.0, "rouge_l": 1.0, "mean_tokens": 3.0, "finished": 1.0}
    models = {"a": model(answers=answers), "b": model(answers=answers | {"no_room": 8})}
    told = "No room for an answer has b behind 8 prompts: answers are compared on the documents to which all models"
    assert told in shown(200, results(models=models, teacher=None, base=None))
    assert "No room" not in shown(200)


def test_a_base_that_is_as_good_as_the_teacher_leaves_no_gap():
    models = {"teacher": model(1.0, to_teacher=None), "before": model(0.9), "after": model(0.8)}
    text = shown(200, results(models=models, teacher="teacher"))
    assert "before has no more bits per byte than teacher: there is no gap to close." in text


def test_without_bits_per_byte_there_is_no_gap_to_tell():
    models = {"teacher": model(0.5, to_teacher=None), "before": model(1.0), "after": model(None), "last": model(0.75)}
    told = results(models=models, teacher="teacher")
    assert "between before and teacher in bits per byte are closed: last 50%." in shown(200, told)
    for label in ("teacher", "before"):
        without = models | {label: model(None)}
        assert "Of the gap" not in shown(200, results(models=without, teacher="teacher"))


def test_models_with_another_tokenizer_than_the_teachers_are_named():
    models = {"teacher": model(0.5, to_teacher=None), "before": model(0.9), "other": model(0.8, to_teacher=None)}
    text = shown(200, results(models=models, teacher="teacher"))
    assert "Not held against teacher token by token, since the tokenizers differ: other. Bits per byte" in text


def test_categories_have_a_row_for_each_model():
    figures = {"documents": 12, "supervised": {"perplexity": 3.25, "bits_per_byte": 0.5}}
    models = {name: model(categories={"code": figures, "prose|verse": figures}) for name in "ab"}
    of = results(models=models, teacher=None, base=None)
    assert "| prose\\|verse | b | 12 | 3.25 | 0.500 |" in results_markdown(of)
    assert shown(80, of).count("3.25") == 4
    one = {name: model(categories={"code": figures}) for name in "ab"}
    assert "By category" not in shown(80, results(models=one, teacher=None, base=None))


def test_tasks_have_a_row_for_each_figure_with_an_interval():
    of = results(tasks={"cloze": {"before": {"acc": 0.5, "acc_stderr": 0.1, "documents": 25}}})
    assert "| cloze | before | acc | 0.500 (0.304 to 0.696) |" in results_markdown(of)
    assert "±0.196" in shown(80, of)


def test_of_many_pairs_a_terminal_shows_those_by_the_first_measure():
    pairs = [
        {"words": f"a is better than {number} by 1 {measure}", "measure": measure}
        for measure in ("bits per byte", "nats", "points")
        for number in range(3)
    ]
    text, file = shown(120, results(pairs=pairs)), results_markdown(results(pairs=pairs))
    assert text.count("bits per byte.") == 3 and "nats." not in text
    assert "6 more comparisons, by other measures, are in the written table." in text
    assert all(f"{pair['words']}." in file for pair in pairs) and "more comparisons" not in file
    assert "nats." in shown(120, results(pairs=pairs[:8]))
