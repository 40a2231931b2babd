import errno
import json

from distill_tune.training import Metrics, read_metrics


class Logger:
    def __init__(self):
        self.heard = []

    def log_dict(self, payload, step):
        self.heard.append((step, dict(payload)))

    def close(self):
        self.heard.append("closed")


def test_a_resumed_run_begins_with_its_checkpoints_history(tmp_path):
    path, history = tmp_path / "metrics.jsonl", tmp_path / "history.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    history.write_text('{"step": 1}\n{"step": 2}\n')
    with Metrics(path, history) as metrics:
        metrics.write({"step": 3, "loss": 1.0})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 1},
        {"step": 2},
        {"step": 3, "loss": 1.0},
    ]


def test_a_fresh_run_begins_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with Metrics(tmp_path / "metrics.jsonl"):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_what_is_not_finite_is_null_in_the_file(tmp_path):
    with Metrics(tmp_path / "m.jsonl") as metrics:
        metrics.write({"step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    assert list(read_metrics(tmp_path / "m.jsonl")) == [{"step": 1, "loss": None, "grad_norm": None}]


def test_a_full_disk_loses_no_line(tmp_path, capsys, monkeypatch):
    metrics = Metrics(tmp_path / "m.jsonl")
    flush = metrics._file.flush

    class Full:
        name, write, close = "m.jsonl", metrics._file.write, metrics._file.close

        def flush(self):
            raise OSError(errno.ENOSPC, "No space left on device")

    full, metrics._file = metrics._file, Full()
    metrics.write({"step": 1})
    assert "No space left on device" in capsys.readouterr().err
    metrics._file = full
    flush()
    metrics.write({"step": 2})
    metrics.__exit__(None, None, None)
    assert [line["step"] for line in read_metrics(tmp_path / "m.jsonl")] == [1, 2]


def test_a_logger_hears_every_nth_step_and_of_memory_if_asked(tmp_path):
    logger = Logger()
    with Metrics(tmp_path / "m.jsonl", logger=logger, log_every_n_steps=2, log_peak_memory_stats=False) as metrics:
        for step in (1, 2, 3):
            metrics.write({"step": step, "loss": 0.5, "peak_memory_bytes": 7})
    assert logger.heard == [(2, {"loss": 0.5}), "closed"]
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 3
