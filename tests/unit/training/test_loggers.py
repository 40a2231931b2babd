"""Loggers of a run that is resumed: of the packages themselves where they are installed, and of stand-ins."""

import importlib.util
import inspect
import json
import math
import sqlite3
import sys
import time
import types

import pytest
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill_tune.config.nodes import components_of
from distill_tune.config.values import check_values
from distill_tune.secrets import without_secrets
from distill_tune.training import Metrics
from distill_tune.training.loggers import MLflowLogger, TrackioLogger

from torchtune.training.metric_logging import TensorBoardLogger, WandBLogger

SECRET = "hf_abcdefghijklmnopqrstuvwxyz123456"
NAMES = ("loss", "applied", "tokens")
LONG = [{"source": "rows.json", "column_map": {"prompt": "问题"}, "note": "x" * 7000}]


def take_steps(logger, folder, steps, history=None, ends_by=None):
    """As a recipe does."""
    folder.mkdir(exist_ok=True)
    config = OmegaConf.create(
        {"output_dir": str(folder), "optimizer": {"lr": 1e-3}, "hub_token": SECRET, "dataset": LONG}
    )
    with Metrics(folder / "metrics.jsonl", history, logger=logger, config=without_secrets(config)) as metrics:
        for step in steps:
            loss = math.nan if step == 2 else 1 / step
            metrics.write({"step": step, "loss": loss, "applied": step != 2, "mfu": None, "tokens": 10 * step})
        if ends_by:
            raise ends_by


@pytest.fixture
def resumed(tmp_path):
    """Three runs of two folders: one is killed after its third step and resumed from its second, one begins anew."""

    def run(build):
        folder = tmp_path / "one"
        take_steps(build(), folder, (1, 2, 3))
        history = tmp_path / "history.jsonl"
        history.write_text("".join((folder / "metrics.jsonl").read_text().splitlines(keepends=True)[:2]))
        take_steps(build(), folder, (3, 4), history)
        take_steps(build(), tmp_path / "two", (1,))
        return json.loads((folder / "tracked.json").read_text())

    return run


# ---- Stand-ins, with the signatures of the packages


class Trackio(types.ModuleType):
    """As trackio 0.43 is called."""

    def __init__(self):
        super().__init__("trackio")
        self.runs, self.called = {}, []

    def init(self, project, name=None, *, config=None, resume="never", embed=True, space_id=None):
        assert (resume == "allow") == ((project, name) in self.runs)
        self.called.append((project, name, resume, embed, space_id))
        self.current = self.runs.setdefault((project, name), types.SimpleNamespace(heard=[], config=config))
        self.current.log = lambda metrics, step=None: self.current.heard.append((step, metrics))
        return self.current

    def finish(self):
        self.current.heard.append("finished")


class MLflow(types.ModuleType):
    """As mlflow 3.17's client is called, which is the module's own."""

    class MlflowException(Exception): ...

    def __init__(self):
        super().__init__("mlflow")
        self.experiments, self.runs, self.uris = {}, {}, []
        self.entities = types.SimpleNamespace(
            Metric=lambda key, value, timestamp, step: (step, key, value), Param=lambda key, value: (key, value)
        )

    def MlflowClient(self, tracking_uri=None):
        self.uris.append(tracking_uri)
        return self

    def get_experiment_by_name(self, name):
        return self.experiments.get(name)

    def create_experiment(self, name):
        self.experiments[name] = types.SimpleNamespace(experiment_id=f"of {name}")
        return self.experiments[name].experiment_id

    def create_run(self, experiment_id, run_name=None):
        run_id = f"{run_name} {experiment_id} {len(self.runs)}"
        data = types.SimpleNamespace(params={}, heard=[], files={}, status="RUNNING")
        self.runs[run_id] = types.SimpleNamespace(info=types.SimpleNamespace(run_id=run_id), data=data)
        return self.runs[run_id]

    def get_run(self, run_id):
        return self.runs[run_id]

    def update_run(self, run_id, status):
        if run_id not in self.runs:
            raise self.MlflowException("no such run")
        self.runs[run_id].data.status = status

    set_terminated = update_run

    def log_text(self, run_id, text, artifact_file):
        self.runs[run_id].data.files[artifact_file] = text

    def log_batch(self, run_id, metrics=(), params=()):
        data = self.runs[run_id].data
        assert len(params) <= 100 and not set(dict(params)) & set(data.params)
        assert all(len(value) <= 6000 for _, value in params)
        data.params.update(params)
        data.heard += metrics


@pytest.fixture
def stand_in(monkeypatch):
    def use(module):
        monkeypatch.setitem(sys.modules, module.__name__, module)
        return module

    return use


def test_trackio_hears_config_and_steps_and_a_resumed_run_goes_on(stand_in, resumed):
    trackio = stand_in(Trackio())
    noted = resumed(lambda: TrackioLogger(project="mine", space_id="me/space"))
    (one, of_one), (two, of_two) = trackio.runs.items()
    assert noted == {"trackio": one[1]} and one[1].startswith("one-20") and two[1].startswith("two-20")
    assert trackio.called == [
        ("mine", one[1], "never", False, "me/space"),
        ("mine", one[1], "allow", False, "me/space"),
        ("mine", two[1], "never", False, "me/space"),
    ]
    heard = [entry[0] for entry in of_one.heard if entry != "finished"]
    assert heard == [1, 2, 3, 3, 4] and of_one.heard[-1] == of_two.heard[-1] == "finished"
    assert of_one.heard[0] == (1, {"loss": 1.0, "applied": 1.0, "tokens": 10.0})
    assert of_one.config["optimizer"] == {"lr": 1e-3} and of_one.config["hub_token"] == "***"


def test_a_name_that_is_given_is_taken(stand_in, tmp_path):
    trackio = stand_in(Trackio())
    take_steps(TrackioLogger(name="first"), tmp_path / "a", (1,))
    assert list(trackio.runs) == [("distill-tune", "first")]


def test_mlflow_hears_config_and_steps_and_a_resumed_run_goes_on(stand_in, resumed):
    mlflow = stand_in(MLflow())
    noted = resumed(lambda: MLflowLogger(tracking_uri="sqlite:///here.db"))
    one, _ = mlflow.runs
    assert noted == {"mlflow": one} and one == "one of distill-tune 0"
    data = mlflow.runs[one].data
    assert [(step, value) for step, key, value in data.heard if key == "tokens"] == [
        (step, 10.0 * step) for step in (1, 2, 3, 3, 4)
    ]
    assert {key for _, key, _ in data.heard} == {"loss", "applied", "tokens"}
    assert data.params["optimizer.lr"] == "0.001" and data.params["hub_token"] == "***"
    assert "问题" in data.files["config.yaml"] and SECRET not in str(vars(data))
    assert data.status == "FINISHED" and set(mlflow.uris) == {"sqlite:///here.db"}


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED"), (SystemExit(143), "KILLED")]
)
def test_how_a_run_ended_is_told(stand_in, tmp_path, error, status):
    mlflow = stand_in(MLflow())
    with pytest.raises(type(error)):
        take_steps(MLflowLogger(), tmp_path / "a", (1,), ends_by=error)
    assert [run.data.status for run in mlflow.runs.values()] == [status]


def test_a_fresh_start_in_the_same_folder_and_a_run_that_was_deleted_begin_anew(stand_in, tmp_path):
    mlflow = stand_in(MLflow())
    take_steps(MLflowLogger(), tmp_path / "a", (1,))
    take_steps(MLflowLogger(), tmp_path / "a", (1,))
    assert len(mlflow.runs) == 2
    mlflow.runs.clear()
    history = tmp_path / "history.jsonl"
    history.write_text('{"step": 1}\n')
    take_steps(MLflowLogger(), tmp_path / "a", (2,), history)
    (run,) = mlflow.runs.values()
    assert {step for step, _, _ in run.data.heard} == {2}


@pytest.mark.parametrize(("logger", "package"), [("TrackioLogger", "trackio"), ("MLflowLogger", "mlflow")])
def test_a_package_that_is_missing_is_told_before_anything_loads(monkeypatch, logger, package):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == package else there(name, *more)
    )
    name = f"distill_tune.training.loggers.{logger}"
    config = OmegaConf.create({"metric_logger": {"_component_": name}})
    assert dict(components_of(config))
    told = [fault for fault in check_values(config) if fault.startswith("metric_logger")]
    assert told == [f"metric_logger: {name} needs the package {package}; pip install {package}"]


# ---- The packages themselves


def test_trackio_itself(resumed, tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    assert set(inspect.signature(Trackio.init).parameters) - {"self"} <= set(inspect.signature(trackio.init).parameters)
    for module in (trackio.utils, trackio.sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "db")
    noted = resumed(lambda: TrackioLogger(project="mine", auto_log_cpu=False))
    (file,) = (tmp_path / "db").rglob("mine.db")
    stored = sqlite3.connect(file).execute(
        "select run_id, step, metrics from metrics where run_name = ?", tuple(noted.values())
    )
    rows = stored.fetchall()
    assert [step for _, step, _ in rows] == [1, 2, 3, 3, 4] and len({run for run, _, _ in rows}) == 1
    assert json.loads(rows[0][2])["loss"] == 1.0
    assert SECRET.encode() not in file.read_bytes()


def test_mlflow_itself(resumed, tmp_path):
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    noted = resumed(lambda: MLflowLogger(tracking_uri=uri))
    client = mlflow.MlflowClient(uri)
    run = client.get_run(noted["mlflow"])
    assert [(metric.step, metric.value) for metric in client.get_metric_history(noted["mlflow"], "tokens")] == [
        (step, 10.0 * step) for step in (1, 2, 3, 3, 4)
    ]
    assert run.data.params["optimizer.lr"] == "0.001" and run.info.status == "FINISHED"
    assert SECRET.encode() not in (tmp_path / "mlflow.db").read_bytes()


def test_torchtunes_tensorboard_logger_has_every_figure(tmp_path):
    take_steps(TensorBoardLogger(log_dir=str(tmp_path / "board")), tmp_path / "a", (1, 2, 3))
    (folder,) = (tmp_path / "board").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    stored = {name: [(event.step, event.tensor_proto.float_val[0]) for event in events.Tensors(name)] for name in NAMES}
    assert stored["tokens"] == [(step, 10.0 * step) for step in (1, 2, 3)]
    assert math.isnan(stored["loss"][1][1]) and stored["applied"][1] == (2, 0.0)


def test_torchtunes_wandb_logger_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    take_steps(WandBLogger(log_dir=str(tmp_path / "w"), mode="offline"), tmp_path / "a", (1, 2, 3))
    (file,) = (tmp_path / "w").rglob("*.wandb")
    end = time.monotonic() + 30
    while b"tokens" not in file.read_bytes() and time.monotonic() < end:
        time.sleep(0.1)  # another process of wandb's writes it
    assert b"tokens" in file.read_bytes() and SECRET.encode() not in file.read_bytes()
