import json

from distill_tune.training import Metrics


class Logger:
    def __init__(self):
        self.heard = []

    def log_dict(self, payload, step):
        self.heard.append((step, dict(payload)))

    def close(self):
        self.heard.append("closed")


def test_a_resumed_run_drops_the_lines_that_it_will_write_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    with Metrics(path, step=2) as metrics:
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


def test_a_logger_hears_every_nth_step_and_of_memory_if_asked(tmp_path):
    logger = Logger()
    with Metrics(tmp_path / "m.jsonl", logger=logger, log_every_n_steps=2, log_peak_memory_stats=False) as metrics:
        for step in (1, 2, 3):
            metrics.write({"step": step, "loss": 0.5, "peak_memory_bytes": 7})
    assert logger.heard == [(2, {"loss": 0.5}), "closed"]
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 3
