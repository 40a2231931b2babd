"""Loggers beside those of torchtune.training.metric_logging: Trackio and MLflow.

Both write on this machine unless they are told otherwise. A run begins with :meth:`log_config`, which notes in
``output_dir`` how the tracker calls it; a resumed run goes on with that one, a fresh start begins another. The steps
that a resumed run takes again are told again.
"""

import json
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune.disk import write_text
from distill_tune.metrics_file import read_metrics

from torchtune.training.metric_logging import MetricLoggerInterface, Scalar, flatten_dict

_NOTE = "tracked.json"
# What MLflow takes: of a batch so many, of a name these characters, of a value so many.
_PARAMETERS_A_BATCH, _PARAMETER_NAME, _LONGEST_VALUE = 100, re.compile(r"[/\w.\- :]{1,250}"), 6000


class TrackioLogger(MetricLoggerInterface):
    """Trackio: an SQLite database below ``TRACKIO_DIR`` (by default in the cache of Hugging Face), seen by
    ``trackio show``.

    Trackio itself asks the hub who is logged in, where somebody is.

    Args:
        project: of several runs.
        name: of the run; default that of ``output_dir`` with the time.
        **arguments: of ``trackio.init``; ``space_id`` or ``server_url`` send the metrics and the config there.
    """

    def __init__(self, project: str = "distill-tune", name: str | None = None, **arguments: Any) -> None:
        import trackio

        self._trackio: Any = trackio
        self._project, self._name, self._arguments = project, name, arguments
        self._run: Any = None

    def log_config(self, config: DictConfig) -> None:
        folder = Path(config.output_dir).expanduser()
        before = _noted(folder, "trackio")
        name = before or self._name or f"{folder.resolve().name}-{time.strftime('%Y%m%d-%H%M%S')}"
        self._run = self._trackio.init(
            project=self._project,
            name=name,
            config=OmegaConf.to_container(config, resolve=True),
            resume="allow" if before else "never",
            **({"embed": False} | self._arguments),
        )
        _note(folder, "trackio", name)

    def log(self, name: str, data: Scalar, step: int) -> None:
        self.log_dict({name: data}, step)

    def log_dict(self, payload: Mapping[str, Scalar], step: int) -> None:
        if self._run is not None:
            self._run.log(_numbers(payload), step=step)

    def close(self) -> None:
        if self._run is not None:
            self._trackio.finish()
            self._run = None


class MLflowLogger(MetricLoggerInterface):
    """MLflow: parameters, metrics and config.yaml; by default in ``mlflow.db`` of the current folder, seen by
    ``mlflow ui``. Its telemetry is off, unless MLFLOW_DISABLE_TELEMETRY says otherwise.

    Args:
        experiment_name: of several runs; made where there is none of this name.
        tracking_uri: default ``MLFLOW_TRACKING_URI``, or what MLflow takes without it.
        run_name: default the name of ``output_dir``.
    """

    def __init__(
        self, experiment_name: str = "distill-tune", tracking_uri: str | None = None, run_name: str | None = None
    ) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        import mlflow

        self._mlflow: Any = mlflow
        self._experiment_name, self._tracking_uri, self._run_name = experiment_name, tracking_uri, run_name
        self._client: Any = None
        self._run_id: str | None = None

    def log_config(self, config: DictConfig) -> None:
        folder = Path(config.output_dir).expanduser()
        self._client = self._mlflow.MlflowClient(self._tracking_uri)
        self._run_id, parameters = self._resumed(_noted(folder, "mlflow")) or (self._begun(folder), {})
        _note(folder, "mlflow", self._run_id)
        self._client.log_text(self._run_id, OmegaConf.to_yaml(config, resolve=True), "config.yaml")
        # A parameter cannot be changed: of a run that is resumed with changes, config.yaml has them.
        new = [
            self._mlflow.entities.Param(name, str(value)[:_LONGEST_VALUE])
            for name, value in flatten_dict(OmegaConf.to_container(config, resolve=True)).items()
            if name not in parameters and _PARAMETER_NAME.fullmatch(name)
        ]
        for first in range(0, len(new), _PARAMETERS_A_BATCH):
            self._client.log_batch(self._run_id, params=new[first : first + _PARAMETERS_A_BATCH])

    def _begun(self, folder: Path) -> str:
        experiment = self._client.get_experiment_by_name(self._experiment_name)
        number = experiment.experiment_id if experiment else self._client.create_experiment(self._experiment_name)
        return self._client.create_run(number, run_name=self._run_name or folder.resolve().name).info.run_id

    def _resumed(self, run_id: str | None) -> tuple[str, Mapping[str, str]] | None:
        """The run and its parameters; None where there is none, or it was deleted."""
        if run_id is None:
            return None
        try:
            self._client.update_run(run_id, status="RUNNING")
            return run_id, self._client.get_run(run_id).data.params
        except self._mlflow.MlflowException:
            return None

    def log(self, name: str, data: Scalar, step: int) -> None:
        self.log_dict({name: data}, step)

    def log_dict(self, payload: Mapping[str, Scalar], step: int) -> None:
        if self._run_id is not None:
            now = time.time_ns() // 1_000_000
            metrics = [
                self._mlflow.entities.Metric(name, value, now, step) for name, value in _numbers(payload).items()
            ]
            self._client.log_batch(self._run_id, metrics=metrics)

    def close(self) -> None:
        if self._run_id is not None:
            error = sys.exc_info()[1]  # by which training ends
            status = "FINISHED" if error is None else "FAILED" if isinstance(error, Exception) else "KILLED"
            self._client.set_terminated(self._run_id, status)
            self._run_id = None


def _numbers(payload: Mapping[str, Scalar]) -> dict[str, float]:
    return {name: float(value) for name, value in payload.items()}


def _noted(folder: Path, tracker: str) -> str | None:
    """How a tracker calls the run that goes on in a folder; None of a fresh start, which has no metrics yet."""
    if not any(True for _ in read_metrics(folder / "metrics.jsonl")):
        return None
    try:
        return json.loads((folder / _NOTE).read_text(encoding="utf-8")).get(tracker)
    except (OSError, ValueError):
        return None


def _note(folder: Path, tracker: str, name: str) -> None:
    write_text(folder / _NOTE, json.dumps({tracker: name}) + "\n")
