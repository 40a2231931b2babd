import json
import resource

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


def test_a_full_disk_loses_no_line_and_is_told_once(tmp_path, capsys):
    """A file that may not grow any more is refused as one on a full disk is: the last write in part, the next whole."""
    path, steps, (soft, hard) = tmp_path / "m.jsonl", range(1, 103), resource.getrlimit(resource.RLIMIT_FSIZE)
    with Metrics(path) as metrics:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
        try:
            for step in steps[:-1]:
                metrics.write({"step": step, "text": "x" * 400})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        written = path.read_bytes()
        assert 4_000 < len(written) <= 5_000 and written.endswith(b"\n")
        metrics.write({"step": steps[-1]})
        assert [line["step"] for line in read_metrics(path)] == list(steps)
    assert capsys.readouterr().err == f"{path}: File too large; what it lacks follows once there is room\n"


def test_a_disk_that_stays_full_to_the_end_is_told_with_how_many_lines_it_lacks(tmp_path, capsys):
    path, (soft, hard) = tmp_path / "m.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with Metrics(path) as metrics:
            for step in range(1, 5):
                metrics.write({"step": step, "text": "x" * 60})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [line["step"] for line in read_metrics(path)] == [1]
    assert capsys.readouterr().err.endswith(f"{path}: the last 3 lines could not be written\n")


def test_a_logger_that_fails_in_the_middle_is_told_once_and_left_out(tmp_path, capsys):
    class Unreachable(Logger):
        def log_dict(self, payload, step):
            super().log_dict(payload, step)
            if step > 1:
                raise ConnectionError("tracker unreachable\nsee its log")

        def close(self):
            raise ConnectionError("tracker unreachable")

    logger = Unreachable()
    with Metrics(tmp_path / "m.jsonl", logger=logger) as metrics:
        for step in (1, 2, 3):
            metrics.write({"step": step})
    assert [step for step, _ in logger.heard] == [1, 2]
    assert [line["step"] for line in read_metrics(tmp_path / "m.jsonl")] == [1, 2, 3]
    (told,) = capsys.readouterr().err.splitlines()
    assert told.startswith("metric_logger: ConnectionError: tracker unreachable; it is left out from here on, ")
    logger.log_config = lambda config: heard.append(config) or logger.close()
    heard: list = []
    with Metrics(tmp_path / "third.jsonl", logger=logger, config={"seed": 1}) as metrics:
        metrics.write({"step": 7})
    assert heard == [{"seed": 1}] and (7, {}) not in logger.heard
    assert capsys.readouterr().err.startswith("metric_logger: ConnectionError: tracker unreachable; it is left out")
    with Metrics(tmp_path / "other.jsonl", logger=Unreachable()):
        pass  # nor does its end keep a run from what comes then
    assert "metric_logger: ConnectionError" in capsys.readouterr().err


def test_a_logger_hears_every_nth_step_and_of_memory_if_asked(tmp_path):
    logger = Logger()
    with Metrics(tmp_path / "m.jsonl", logger=logger, log_every_n_steps=2, log_peak_memory_stats=False) as metrics:
        for step in (1, 2, 3):
            metrics.write({"step": step, "loss": 0.5, "peak_memory_bytes": 7})
    assert logger.heard == [(2, {"loss": 0.5}), "closed"]
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 3
