"""Whether what a config names to be written to can be, before rows are read and a model loads."""

import inspect
import os
import tempfile
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from distill_tune import cache
from distill_tune.config.components import find_component
from distill_tune.config.files import is_cache, local_path
from distill_tune.config.trust import is_known
from distill_tune.errors import CollectedFaults, UserError
from distill_tune.training.distributed import is_main_process

_FOLDERS = ("output_dir", "metric_logger.log_dir", "profiler.output_dir", "teacher_cache")
_OURS = "distill_tune.training.loggers"
_CALLED = ("log_config", "log_dict", "close")  # of a logger


def check_outputs(cfg: DictConfig) -> None:
    """
    Raises:
        UserError: a folder that cannot be made or written, a cache that another run is filling, or a class of a known
            package that is no logger; of other code a run tells it itself.
    """
    faults = CollectedFaults("what is written")
    for key in _FOLDERS:
        folder = OmegaConf.select(cfg, key)
        is_used = key != "profiler.output_dir" or OmegaConf.select(cfg, "profiler.enabled") is not False
        only_read = key == "teacher_cache" and isinstance(folder, str) and is_cache(local_path(folder))
        if isinstance(folder, str) and is_used and not only_read:
            with faults:
                require_writable(key, folder)
        elif only_read and is_main_process():
            with faults:
                _require_not_filled(key, local_path(folder))
    name = OmegaConf.select(cfg, "metric_logger._component_")
    if name and is_known(name):
        with faults:
            _require_logger(name)
    faults.tell()


def require_writable(key: str, folder: str) -> None:
    """Make a folder in one, or where it would be made, and take it away again.

    Raises:
        UserError: it cannot be made; ``key`` is named.
    """
    path = local_path(folder)
    try:
        there = next((place for place in (path, *path.parents) if place.exists()), Path())
        os.rmdir(tempfile.mkdtemp(prefix=".distill-tune-", dir=there))
    except OSError as error:
        raise UserError(f"{key}={folder}: cannot be written: {error.strerror}") from error


def _require_not_filled(key: str, folder: Path) -> None:
    """
    Raises:
        UserError: another run adds to a cache that has not all rows yet, or something else is there.
    """
    was = cache.cache_there(folder, key)
    if was is None or not was.finished:
        cache.require_free(folder, key)


def _require_logger(name: str) -> None:
    found = find_component(name)
    if inspect.isclass(found) and not all(hasattr(found, method) for method in _CALLED):
        told = f"is no logger, which has {', '.join(_CALLED)}"
        raise UserError(f"metric_logger={name}: {told}; name one of torchtune.training.metric_logging, or of {_OURS}")
