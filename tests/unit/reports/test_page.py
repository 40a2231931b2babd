"""A report in a real browser, where one is installed: its script runs, and each control does what it says."""

import json
import re

import pytest
from browser import find_browser, open_page
from made_runs import line, write_run

from distill_tune.reports.html import html_of
from distill_tune.reports.report import report_of
from distill_tune.reports.run_files import opened

pytestmark = pytest.mark.skipif(find_browser() is None, reason="no Chromium is installed")

BEFORE = "window.faults = []; addEventListener('error', (event) => faults.push(event.message));"
# As a user would: all that can be touched, and what is then seen.
USED = """
const seen = {}, plot = document.querySelector("svg"), line = plot.querySelector(".line.run0");
const path = () => line.getAttribute("d");
seen.asDrawn = path();
charts.forEach((chart) => chart.draw());
seen.drawnAgain = path();
const clientX = plot.getBoundingClientRect().left + 200;
plot.dispatchEvent(new PointerEvent("pointermove", { clientX, bubbles: true }));
seen.tip = document.querySelector(".tip").innerText;
document.querySelector("input[value=tokens]").click();
seen.byTokens = path();
const shown = (axis) => getComputedStyle(plot.querySelector(axis)).display;
seen.axis = shown("g.by-steps") + shown("g.by-tokens");
const smoothing = document.getElementById("smoothing");
smoothing.value = 0;
smoothing.dispatchEvent(new Event("input"));
seen.raw = path();
document.querySelector("input[data-run='1']").click();
seen.hidden = document.querySelector(".line.run1").style.display;
seen.wider = document.documentElement.scrollWidth - document.documentElement.clientWidth;
seen.ready = document.documentElement.dataset.ready;
seen.faults = faults;
document.title = JSON.stringify(seen);
"""


def test_the_script_runs_without_a_fault_and_redraws_what_was_drawn(tmp_path, evaluated, documents):
    lines = [
        line(step, val_kd_loss=2.0, grad_norm=None if step == 9 else 1.0, applied=step != 9) for step in range(1, 400)
    ]
    folders = [
        evaluated(
            write_run(tmp_path / "a <b>x", lines), samples=documents(2, text="<script>document.title = 1</script>")
        ),
        write_run(tmp_path / "second", 30),
    ]
    page = html_of(report_of(opened(folders)))
    page = re.sub(
        r"<meta http-equiv[^>]*>", f"<script>{BEFORE}</script>", page
    )  # whose policy lets no other script run
    (tmp_path / "used.html").write_text(page.replace("</body>", f"<script>{USED}</script></body>"))
    dom = open_page(tmp_path / "used.html", tmp_path / "profile", "--window-size=500,900")
    seen = json.loads(
        re.search(r"<title>(.*?)</title>", dom, re.DOTALL).group(1).replace("&lt;", "<").replace("&gt;", ">")
    )
    assert seen["faults"] == [] and seen["ready"] == "yes"
    assert places(seen["drawnAgain"]) == pytest.approx(places(seen["asDrawn"]), abs=0.15)  # both round to a tenth
    assert "a <b>x: " in seen["tip"] and "tokens" in seen["tip"] and "(validation)" in seen["tip"]
    assert places(seen["byTokens"]) != places(seen["raw"])
    assert seen["axis"] == "noneinline"
    assert seen["hidden"] == "none"
    assert seen["wider"] == 0


def places(path):
    return [float(number) for number in re.findall(r"-?[\d.]+", path)]


def test_its_own_policy_lets_its_script_run(tmp_path):
    (tmp_path / "page.html").write_text(html_of(report_of(opened([write_run(tmp_path / "run", 30)]))))
    assert '<html lang="en" data-ready="yes">' in open_page(tmp_path / "page.html", tmp_path / "profile")
