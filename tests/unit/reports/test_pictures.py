"""The plots as PNG."""

import importlib.util
import sys
from pathlib import Path

import pytest
from made_runs import line, write_run

from distill_tune.cli.main import main


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_plots_lie_beside_the_report_and_markdown_names_them(tmp_path, capsys):
    lines = [{"step": step, "kd_loss": line(step)["kd_loss"], "val_kd_loss": 2.0} for step in range(1, 500)]
    runs = [str(write_run(tmp_path / name, lines)) for name in ("a", "b")]
    main(["report", *runs, "--png", "--format", "md", "--output", str(tmp_path / "my card.md")])
    written = capsys.readouterr().out.splitlines()
    assert str(tmp_path / "my card_kd_loss.png") in written
    assert all(Path(path).read_bytes()[:4] == b"\x89PNG" for path in written[1:])
    assert "![KL to the teacher](my%20card_kd_loss.png)" in (tmp_path / "my card.md").read_text()


def test_unasked_there_are_none_and_without_matplotlib_its_extra_is_named(tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path / "a", 3)
    main(["report", str(run)])
    assert capsys.readouterr().out.splitlines() == [str(run / "report.html")]
    assert not list(run.glob("*.png"))
    for name in ("matplotlib", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit):
        main(["report", str(run), "--png", "--output", str(tmp_path / "b.html")])
    assert "--png: " in (told := capsys.readouterr().err) and "pip install 'distill-tune[report]'" in told
    assert not (tmp_path / "b.html").exists()
