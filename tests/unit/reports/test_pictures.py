"""The plots as PNG."""

import importlib.util
from pathlib import Path

import pytest
from made_runs import line, write_run

from distill_tune.cli.main import main


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_plots_lie_beside_the_report_and_markdown_names_them(tmp_path, capsys):
    lines = [line(step, val_kd_loss=2.0) for step in range(1, 500)]
    runs = [str(write_run(tmp_path / name, lines)) for name in ("a", "b")]
    main(["report", *runs, "--format", "md", "--output", str(tmp_path / "my card.md")])
    written = capsys.readouterr().out.splitlines()
    assert str(tmp_path / "my card_kd_loss.png") in written
    assert all(Path(path).read_bytes()[:4] == b"\x89PNG" for path in written[1:])
    assert "![KL to the teacher](my%20card_kd_loss.png)" in (tmp_path / "my card.md").read_text()


def test_without_matplotlib_there_are_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("distill_tune.reports.pictures.find_spec", lambda name: None)
    main(["report", str(write_run(tmp_path / "a", 3))])
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / "a" / "report.html")]
