"""What a report shows of runs in every state, as HTML and as Markdown, and how large it may be."""

import html
import json
import re

import pytest
from made_runs import line, write_run

from distill_tune.cli.main import main
from distill_tune.disk import keep_to_oneself, release_lock
from distill_tune.reports.html import html_of
from distill_tune.reports.markdown import markdown_of
from distill_tune.reports.report import report_of
from distill_tune.reports.run_files import RunFiles, opened

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>`|*[a](javascript:b)"
FACTS = {
    "total_steps": 300,
    "device": "NVIDIA H100",
    "processes": 2,
    "started": "2026-11-26T18:00:00+00:00",
    "versions": {"torch": "2.13.0", "distill-tune": "0.1.0"},
    "student_parameters": 920_000,
    "teacher_parameters": 5_770_000,
    "data": [{"name": "dataset", "source": "my.json", "rows": 1200, "tokens": 9000, "fingerprint": "abc123"}],
    "data_val": [],
}


def page_of(*folders):
    return html_of(report_of(opened(folders)))


def text_of(page):
    """What is read of it."""
    body = re.sub(r"<(style|script)\b.*?</\1>", "", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", body))


def titles_of(page):
    return re.findall(r"<figcaption>(.*?) ?<span", page)


def test_a_report_lies_in_the_run_and_shows_each_figure_in_its_own_plot(tmp_path, capsys):
    run = write_run(tmp_path / "run", facts=FACTS)
    main(["report", str(run)])
    assert capsys.readouterr().out.splitlines()[0] == str(run / "report.html")
    page = (run / "report.html").read_text()
    assert titles_of(page) == [
        *("KL to the teacher", "Cross-entropy", "Loss as optimised", "Learning rate", "Gradient norm", "Speed"),
        "Peak memory",
    ]
    text = text_of(page)
    for shown in ("Finished after 100 steps", "abc123", "NVIDIA H100", "2.13.0", "920k", "5.77M", "step 100 of 300"):
        assert shown in text
    assert "0.0278" in text  # device hours: 100 steps of half a second on two devices


@pytest.mark.parametrize(
    ("losses", "title", "unit"),
    [
        ("distill_tune.losses.ReverseKL", "Divergence from the teacher: ReverseKL", "nats a token"),
        ("distill_tune.losses.LogitMSE", "Divergence from the teacher: LogitMSE", "a token"),
        ("torchtune.modules.loss.ForwardKLLoss", "KL to the teacher", "nats a token"),
    ],
)
def test_a_divergence_is_called_by_its_name_and_in_nats_where_it_is(tmp_path, losses, title, unit):
    run = write_run(tmp_path / "run", 3, config={"kd_loss": {"_component_": losses}})
    assert f'<figcaption>{title} <span class="soft">{unit}</span>' in page_of(run)


def test_what_has_no_weight_is_not_drawn(tmp_path):
    run = write_run(tmp_path / "run", [line(step, kd_loss=0.0, kd_ratio=0.0) for step in range(1, 10)])
    assert not any("KL" in title for title in titles_of(page_of(run)))


def test_a_running_a_stopped_and_an_empty_run_have_reports(tmp_path):
    running = write_run(tmp_path / "running", 5, facts=FACTS, finished=False)
    keep_to_oneself(running)
    try:
        # Another process looks: it does not have the lock itself.
        from multiprocessing import get_context

        with get_context("spawn").Pool(1) as pool:
            assert "Running: step 5 of 300" in text_of(pool.apply(page_of, (running,)))
    finally:
        release_lock(running)
    assert "Stopped after step 5 of 300; the same line with resume=auto goes on" in text_of(page_of(running))
    one = page_of(write_run(tmp_path / "one", [line(1, val_kd_loss=2.0)], finished=False))
    assert 'class="dots alone run0' in one and 'class="dots run0' in one  # of training, and of validation
    along = one[one.index('<g class="by-steps">') : one.index('<g class="by-tokens">')]
    assert re.findall(r">([\d.,]+)</text>", along) == ["0", "1", "2"]
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "config.yaml").write_text("a: 1")
    assert "There is no step yet." in text_of(page_of(tmp_path / "none"))


def test_steps_that_were_not_applied_are_marked(tmp_path):
    run = write_run(tmp_path / "run", [line(1), line(2, grad_norm=None, loss=None, applied=False), line(3)])
    assert page_of(run).count('class="bad run0"') == 1


def test_runs_lie_over_one_another_and_only_what_differs_of_their_configs_is_listed(tmp_path):
    folders = [
        write_run(tmp_path / name, 30, config={"kd_ratio": ratio, "output_dir": name})
        for name, ratio in (("a", 0.1), ("b", 0.9))
    ]
    page = page_of(*folders)
    assert page.count("line run0") == page.count("line run1") == 7
    differs = page[page.index("What differs") :]
    assert re.findall(r"<td class=name>(.*?)</td>", differs[: differs.index("</table>")]) == ["kd_ratio", "0.1", "0.9"]


def test_runs_are_found_below_a_folder_and_one_that_is_none_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        write_run(tmp_path / "outputs" / name, 3)
    main(["report", "outputs"])
    assert "2 runs" in (tmp_path / "report.html").read_text()
    (tmp_path / "empty").mkdir()
    for name, told in (("empty", "no run has written there or below"), ("nothing", "no such folder")):
        with pytest.raises(SystemExit):
            main(["report", name])
        assert f"report: {name}: {told}" in capsys.readouterr().err


def test_an_evaluation_is_shown_with_answers_side_by_side_and_tokens_by_their_divergence(
    tmp_path, evaluated, documents
):
    run = evaluated(write_run(tmp_path / "run", 3), samples=documents(3))
    page = page_of(run)
    text = text_of(page)
    assert "7.40" in text and "7.10 to 7.70" in text
    assert "No difference between before and after in bits per byte is significant." in text
    first = page[page.index("<h3>document 0</h3>") :]
    order = re.findall(r"<b>(.*?)</b>", first[: first.index("document 1")])
    assert order == ["reference", "teacher", "before", "after"]
    marked = re.findall(r"<i class=k(\d) title=\"(.*?)\">(.*?)</i>", page)
    assert marked[:3] == [("2", "0.5", " answer"), ("3", "1.5", " is"), ("5", "5", " an answer")]
    assert "nats:" in text and "from 4" in text


def test_an_evaluation_of_another_version_is_named_and_the_rest_is_shown(tmp_path, evaluated):
    text = text_of(page_of(evaluated(write_run(tmp_path / "run", 3), version=2)))
    assert "results.json is of version 2" in text and "KL to the teacher" in text


def test_answers_that_were_written_while_it_trained_are_marked(tmp_path):
    run = write_run(tmp_path / "run", 3)
    rollout = {"step": 3, "row": "row 7", "prompt": "Why?", "marks": [["Be", -2.5], ["cause", 0.3], [".", None]]}
    (run / "rollouts.jsonl").write_text(json.dumps(rollout) + "\n")
    page = page_of(run)
    assert '<i class=k4 title="2.5">Be</i>cause.' in page


def evil_run(tmp_path, evaluated, documents):
    """All that users, files and models may write."""
    facts = FACTS | {"device": EVIL, "versions": {EVIL: EVIL}, "data": [{"name": EVIL, "source": EVIL}]}
    folder = tmp_path / EVIL.replace("/", "")
    run = evaluated(
        write_run(folder, 3, config={EVIL: EVIL, "kd_loss": {"_component_": EVIL}}, facts=facts),
        samples=documents(2, text=EVIL, category=EVIL),
        pairs=[{"words": EVIL}],
    )
    (run / "rollouts.jsonl").write_text(json.dumps({"step": EVIL, "row": EVIL, "prompt": EVIL, "marks": [[EVIL, -9]]}))
    return run


def test_nothing_that_was_written_becomes_markup(tmp_path, evaluated, documents):
    run = evil_run(tmp_path, evaluated, documents)
    page = page_of(run)
    tags = set(re.findall(r"<([a-zA-Z!/][^\s>]*)", re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)))
    assert not tags & {"img", "alert(1)"}
    assert page.count("<script") == 2 and page.count("</script") == 2
    assert EVIL in text_of(page)


def test_nothing_is_fetched_and_the_policy_forbids_it(tmp_path):
    page = page_of(write_run(tmp_path / "run", 3))
    assert not re.search(r"https?://|\bsrc=|\bhref=|@import|url\(", page)
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page).group(1)
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-")


def test_markdown_has_the_same_and_nothing_in_it_is_markup(tmp_path, evaluated, documents, capsys):
    run = evil_run(tmp_path, evaluated, documents)
    main(["report", str(run), "--format", "md", "--output", str(tmp_path / "card.md")])
    text = (tmp_path / "card.md").read_text()
    outside = re.sub(r"^(`{3,})\w+\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert "<" not in outside and not re.search(r"(?<!\\)\]\(", outside)
    tables = [row for row in outside.splitlines() if row.startswith("| ")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in tables} >= {3}
    assert "### Evaluation" in text and "What differs" not in text


def big_run(tmp_path, name, number, validations):
    """100,000 steps, of which some are validated; that are never written to a disk."""
    run = RunFiles.open(write_run(tmp_path / name, 1, facts=FACTS))
    drawn = ("loss", "ce_loss", "kd_loss", "lr", "grad_norm", "total_tokens", "peak_memory_bytes", "seconds")
    template = {name: value for name, value in line(1).items() if name in drawn}
    steps = [
        template | {"step": step, "total_tokens": 2000 * step, "kd_loss": 1 + step % 7 / 7} for step in range(1, number)
    ]
    for step in steps[:: number // validations]:
        step |= {"val_loss": 1.5, "val_ce_loss": 2.5, "val_kd_loss": 0.123456789, "val_seconds": 1.0}
    steps[number // 2]["kd_loss"] = 77.0
    run.__dict__["steps"] = steps
    return run


def test_a_page_of_100_000_steps_is_below_300_kB_and_keeps_their_extremes(tmp_path, evaluated, documents):
    run = big_run(tmp_path, "big", 100_000, 1000)
    evaluated(run.path, samples=documents(50, text="很长的回答" * 200 + "<&" * 300))
    page = html_of(report_of([run]))
    assert len(page.encode()) < 300_000
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL).group(1))
    assert max(data["charts"][0]["curves"][0]["h"]) == 77.0


def test_a_page_of_many_runs_is_below_300_kB(tmp_path, evaluated, documents):
    runs = [big_run(tmp_path, f"trial_{number}", 300, 60) for number in range(24)]
    for run in runs:
        evaluated(run.path, samples=documents(10, text="long " * 300))
    page = html_of(report_of(runs))
    assert len(page.encode()) < 300_000
    assert "first 16 of 24 runs" in page


def test_markdown_of_a_run_without_pictures_has_none(tmp_path):
    report = report_of(opened([write_run(tmp_path / "run", 3, facts=FACTS)]))
    assert "![" not in markdown_of(report, {})


@pytest.mark.parametrize("steps", [20, 60])
def test_of_few_steps_it_is_said_that_losses_were_not_looked_at(tmp_path, steps):
    text = text_of(page_of(write_run(tmp_path / "run", steps)))
    assert "None of the 10 rules has anything to say" in text
    assert ("Losses fall or rise too little to tell before step 50." in text) is (steps == 20)
    assert ("losses, gradients, time and memory look as they should" in text) is (steps == 60)


def test_a_last_validation_that_is_not_finite_is_no_earlier_ones(tmp_path):
    lines = [line(1, val_ce_loss=7.125, val_kd_loss=6.125), line(2, val_ce_loss=None, val_kd_loss=6.25)]
    rows = report_of(opened([write_run(tmp_path / "run", lines)])).summary.rows
    assert [cell.text for cell in rows[0] if "." in cell.text and cell.text.startswith(("6", "7"))] == ["6.25"]


@pytest.mark.parametrize(
    "odd", ["text", -1, 1e308, pytest.param(10**400, id="huge"), 1e400, [], {}, None, [None], {"a": [1]}]
)
def test_figures_of_another_kind_than_expected_are_left_out(tmp_path, odd):
    facts = dict.fromkeys(FACTS, odd)
    lines = [line(1), dict.fromkeys(line(1), odd) | {"step": 2}, line(3)]
    run = write_run(
        tmp_path / "run", lines, config={"optimizer": odd, "kd_loss": odd, "lr_scheduler": odd}, facts=facts
    )
    assert "KL to the teacher" in page_of(run) or "Divergence" in page_of(run)
