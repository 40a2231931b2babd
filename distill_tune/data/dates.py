"""The day that chat templates write."""

from datetime import datetime


def today() -> datetime:
    return datetime.now()


def strftime(form: str) -> str:
    return today().strftime(form)
