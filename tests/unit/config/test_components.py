"""Arguments of components: what fits a signature is left alone, what does not is told."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from omegaconf import OmegaConf

from distill_tune.config.components import check_components


def takes(
    implicit: str = None,  # noqa: RUF013  (as torchtune's tokenizers write it)
    odd: int = "auto",
    text_or_list: str | list = "",
    text_or_texts: str | list[str] = "",
    text_or_mapping: str | dict = "",
    text_or_typed_mapping: str | dict[str, int] = "",
    maybe_list: list | None = None,
    texts: list[str] = (),
    mapping: dict = None,  # noqa: RUF013
    number_or_sequence: float | Sequence[float] = 1.0,
    anything: str | Any = "",
    chosen: Literal["a", "b"] = "a",
    function: Callable[[str], str] | str = "",
    typed: Mapping[str, int] | None = None,
) -> None: ...


@pytest.fixture
def faults_of(monkeypatch):
    monkeypatch.setitem(sys.modules, "taking", sys.modules[__name__])

    def faults(**arguments: object) -> list[str]:
        return check_components(OmegaConf.create({"x": {"_component_": "taking.takes", **arguments}}))

    return faults


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("implicit", None),
        ("implicit", "a"),
        ("odd", "auto"),
        ("odd", 3),
        ("text_or_list", ["a", 1]),
        ("text_or_texts", ["a"]),
        ("text_or_mapping", {"a": 1}),
        ("text_or_typed_mapping", {"a": 1}),
        ("maybe_list", [1]),
        ("maybe_list", None),
        ("mapping", {"a": 1}),
        ("mapping", None),
        ("number_or_sequence", [1.0, 2.0]),
        ("number_or_sequence", 2),
        ("anything", 5),
        ("chosen", "b"),
        ("function", "name.of.one"),
        ("typed", {"a": 1}),
    ],
)
def test_a_value_that_fits_is_left_alone(faults_of, argument, value):
    assert faults_of(**{argument: value}) == []


@pytest.mark.parametrize(
    ("argument", "value", "wanted"),
    [
        ("implicit", 5, "text"),
        ("odd", "atuo", "a whole number"),
        ("odd", True, "a whole number"),
        ("text_or_list", 5, "text or a list"),
        ("text_or_mapping", ["a"], "text or a mapping"),
        ("text_or_texts", ["a", 1], "text or a list of text"),
        ("texts", "a", "a list"),
        ("mapping", "a", "a mapping"),
        ("chosen", "c", "one of a, b"),
    ],
)
def test_a_value_that_does_not_is_told(faults_of, argument, value, wanted):
    assert faults_of(**{argument: value}) == [f"x.{argument}={value}: must be {wanted}"]


def test_null_is_what_torchtunes_tokenizers_have_where_they_say_text():
    given = {"_component_": "torchtune.models.qwen2.qwen2_tokenizer", "path": "vocab.json", "merges_file": None}
    assert check_components(OmegaConf.create({"tokenizer": given})) == []


def test_a_folder_is_still_asked_for_where_there_is_no_default(tmp_path: Path):
    given = {"_component_": "distill_tune.models.from_hf", "path": None}
    assert check_components(OmegaConf.create({"model": given})) == ["model.path=None: must be text"]
