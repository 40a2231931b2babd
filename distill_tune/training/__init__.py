"""What a run needs besides the algorithm: devices, schedules, checkpoints, metrics, the folder it leaves."""

from distill_tune.metrics_file import read_metrics
from distill_tune.training.adapters import export_adapter
from distill_tune.training.answers import (
    Todo,
    begin_answers,
    find_answers,
    finish_answers,
    of_this_rank,
    prepare_answers,
)
from distill_tune.training.checkpoint_contents import load_student, load_training_state
from distill_tune.training.checkpoints import Checkpoints, metrics_of_checkpoint
from distill_tune.training.day import use_day
from distill_tune.training.device import find_device, find_dtype, require_one_process
from distill_tune.training.distributed import (
    SharedCounts,
    device_mesh,
    first_of_each_machine_first,
    from_main_process,
    init_distributed,
    is_main_process,
    leave,
    most_of_ranks,
    num_ranks,
    rank,
    reduced_over_ranks,
    require_same_on_all_ranks,
    sum_over_ranks,
    wait_for_all,
    whole,
)
from distill_tune.training.export import export_model
from distill_tune.training.flops import Utilisation
from distill_tune.training.full_weights import full_weights
from distill_tune.training.loss_watch import LossWatch, name_rows
from distill_tune.training.lost_teacher import is_lost, lost_teacher
from distill_tune.training.metrics import Metrics, peak_memory_bytes
from distill_tune.training.optimizer import (
    build_lr_scheduler,
    build_optimizer,
    build_profiler,
    check_lr_scheduler,
    check_optimizer,
    dtype_to_train_in,
)
from distill_tune.training.out_of_memory import halved_if_too_large
from distill_tune.training.preparation import build_models, open_run, plan_steps
from distill_tune.training.progress import Progress
from distill_tune.training.run_facts import write_facts
from distill_tune.training.run_folder import RunFolder
from distill_tune.training.schedules import Cosine, Exponential, Linear, Schedules
from distill_tune.training.seed import seed_everything
from distill_tune.training.sharding import shard_student, shard_teacher
from distill_tune.training.state import TrainingState
from distill_tune.training.stop import StopSignals
from distill_tune.training.teacher_cache import (
    begin_cache,
    describe_cache,
    encoding_for,
    find_cache,
    finish_cache,
    recorded,
    remark_on_size,
    require_serving,
    tokens_of_a_batch,
    write_output_layer,
)
from distill_tune.training.tokenizer_check import check_tokenizer, describe_others
from distill_tune.training.warm_up import schedule_remarks

__all__ = [
    "Checkpoints",
    "Cosine",
    "Exponential",
    "Linear",
    "LossWatch",
    "Metrics",
    "Progress",
    "RunFolder",
    "Schedules",
    "SharedCounts",
    "StopSignals",
    "Todo",
    "TrainingState",
    "Utilisation",
    "begin_answers",
    "begin_cache",
    "build_lr_scheduler",
    "build_models",
    "build_optimizer",
    "build_profiler",
    "check_lr_scheduler",
    "check_optimizer",
    "check_tokenizer",
    "describe_cache",
    "describe_others",
    "device_mesh",
    "dtype_to_train_in",
    "encoding_for",
    "export_adapter",
    "export_model",
    "find_answers",
    "find_cache",
    "find_device",
    "find_dtype",
    "finish_answers",
    "finish_cache",
    "first_of_each_machine_first",
    "from_main_process",
    "full_weights",
    "halved_if_too_large",
    "init_distributed",
    "is_lost",
    "is_main_process",
    "leave",
    "load_student",
    "load_training_state",
    "lost_teacher",
    "metrics_of_checkpoint",
    "most_of_ranks",
    "name_rows",
    "num_ranks",
    "of_this_rank",
    "open_run",
    "peak_memory_bytes",
    "plan_steps",
    "prepare_answers",
    "rank",
    "read_metrics",
    "recorded",
    "reduced_over_ranks",
    "remark_on_size",
    "require_one_process",
    "require_same_on_all_ranks",
    "require_serving",
    "schedule_remarks",
    "seed_everything",
    "shard_student",
    "shard_teacher",
    "sum_over_ranks",
    "tokens_of_a_batch",
    "use_day",
    "wait_for_all",
    "whole",
    "write_facts",
    "write_output_layer",
]
