"""Where the teacher's signal comes from."""

from distill_tune.teachers.live import LiveTeacher
from distill_tune.teachers.load import load_teacher

__all__ = ["LiveTeacher", "load_teacher"]
