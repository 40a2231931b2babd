"""Rows that a model has not seen, for the commands that measure."""

import argparse
import contextlib
import inspect
from collections.abc import Iterator

from omegaconf import DictConfig, OmegaConf

from distill_tune.errors import Faults, UserError


@contextlib.contextmanager
def named_as_given(options: argparse.Namespace) -> Iterator[None]:
    """Have what is wrong with rows name the option that they are from, which a config calls dataset."""
    try:
        yield
    except UserError as error:
        option = "--source" if options.source else "--dataset"
        if str(error).startswith(("dataset ", "dataset:")) and (options.source or options.dataset):
            raise UserError(option + str(error).removeprefix("dataset")) from error
        raise


def add_row_options(parser: argparse.ArgumentParser, num_rows: int) -> None:
    """``--source``, ``--dataset`` and ``--rows``, for :func:`dataset_of`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--source", help="held-out rows: a file or folder of chats, of prompts and answers, or of text; or a hub name"
    )
    which.add_argument(
        "--dataset",
        metavar="YAML",
        help="held-out rows as a config's dataset, e.g. '{_component_: distill_tune.data.chat, source: my.json, "
        "split: test}'",
    )
    parser.add_argument("--rows", type=int, help=f"how many held-out rows (default: {num_rows})")
    parser.set_defaults(default_rows=num_rows)


def require_num_rows(options: argparse.Namespace) -> None:
    """
    Raises:
        UserError: too few are asked for.
    """
    if options.rows is not None and options.rows < 1:
        raise UserError(f"--rows {options.rows}: must be 1 or more")


def dataset_of(options: argparse.Namespace) -> DictConfig:
    """The dataset that the row options name.

    Raises:
        UserError: it cannot be read.
    """
    num_rows = options.rows or options.default_rows
    if options.dataset:
        return _given(options.dataset, num_rows)
    if options.source:
        split = f"train[:{num_rows}]"
        return OmegaConf.create(
            {"_component_": _component_for(options.source, split), "source": options.source, "split": split}
        )
    return OmegaConf.create({"_component_": "distill_tune.data.docstrings", "num_rows": num_rows, "held_out": True})


def _component_for(source: str, split: str) -> str:
    """The dataset that reads rows like the first of these that can be read."""
    from distill_tune.data.datasets import dataset_for
    from distill_tune.data.sources import RowError, load_dataset

    rows = load_dataset(source, split=split)
    for index in range(len(rows)):
        try:
            return f"distill_tune.data.{dataset_for(rows[index])}"
        except RowError:
            continue
    return "distill_tune.data.instruct"


def _given(text: str, num_rows: int) -> DictConfig:
    from distill_tune.config.components import check_components, find_component
    from distill_tune.config.load import read_value

    component = OmegaConf.create({"dataset": read_value(f"--dataset={text}")}).dataset
    if not isinstance(component, DictConfig) or not isinstance(component.get("_component_"), str):
        raise UserError(
            f"--dataset {text}: must be a dataset as configs have it, "
            "{_component_: distill_tune.data.chat, source: my.json}"
        )
    if faults := check_components(OmegaConf.create({"dataset": component})):
        raise Faults("--dataset", faults)
    if "split" in inspect.signature(find_component(component["_component_"])).parameters:
        component.setdefault("split", f"train[:{num_rows}]")
    make_no_more(component, num_rows)
    return component


def make_no_more(component: DictConfig, num_rows: int) -> None:
    """Bound a dataset that makes its rows, as that of docstrings does."""
    from distill_tune.config.components import find_component

    if "num_rows" in inspect.signature(find_component(component["_component_"])).parameters:
        component["num_rows"] = min(component.get("num_rows") or num_rows, num_rows)
