"""What a run needs besides the algorithm: devices, schedules, checkpoints, metrics, the folder it leaves."""

from distill_tune.training.adapters import export_adapter
from distill_tune.training.checkpoints import TrainingState, load_training_state, save_training_state
from distill_tune.training.device import find_device, find_dtype, require_one_process, seed_everything
from distill_tune.training.export import export_model
from distill_tune.training.metrics import Metrics, peak_memory_bytes
from distill_tune.training.optimizer import build_lr_scheduler, build_optimizer, build_profiler, check_optimizer
from distill_tune.training.progress import Progress
from distill_tune.training.run_folder import RunFolder

__all__ = [
    "Metrics",
    "Progress",
    "RunFolder",
    "TrainingState",
    "build_lr_scheduler",
    "build_optimizer",
    "build_profiler",
    "check_optimizer",
    "export_adapter",
    "export_model",
    "find_device",
    "find_dtype",
    "load_training_state",
    "peak_memory_bytes",
    "require_one_process",
    "save_training_state",
    "seed_everything",
]
