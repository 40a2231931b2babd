"""Where the teacher's signal comes from."""

from distill_tune.teachers.aligned import AlignedTeacher, KeysOfModel, own_tokenizers, with_own_tokenizers
from distill_tune.teachers.build import build_teacher
from distill_tune.teachers.cached import Cached, require_lasting_prompts, require_served_by, what_it_lacks
from distill_tune.teachers.from_path import open_model, require_model
from distill_tune.teachers.hf import HuggingFace
from distill_tune.teachers.live import LiveTeacher
from distill_tune.teachers.load import NF4
from distill_tune.teachers.own import EMA, BaseModel, EarlierCheckpoint
from distill_tune.teachers.served import Served
from distill_tune.teachers.several import SeveralTeachers
from distill_tune.teachers.teacher import Shard, Teacher

__all__ = [
    "EMA",
    "NF4",
    "AlignedTeacher",
    "BaseModel",
    "Cached",
    "EarlierCheckpoint",
    "HuggingFace",
    "KeysOfModel",
    "LiveTeacher",
    "Served",
    "SeveralTeachers",
    "Shard",
    "Teacher",
    "build_teacher",
    "open_model",
    "own_tokenizers",
    "require_lasting_prompts",
    "require_model",
    "require_served_by",
    "what_it_lacks",
    "with_own_tokenizers",
]
