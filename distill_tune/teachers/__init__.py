"""Where the teacher's signal comes from."""

from distill_tune.teachers.live import LiveTeacher

__all__ = ["LiveTeacher"]
