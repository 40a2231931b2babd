"""The page of keys, the help and the checks say the same, since all come from one table."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from distill_tune.cli.keys_page import help_text, page
from distill_tune.config.keys import KEYS
from distill_tune.config.values import check_values


def test_the_page_is_the_table():
    told = (Path(__file__).parents[3] / "docs" / "keys.md").read_text(encoding="utf-8")
    assert told == page(), "python -m distill_tune.cli.keys_page > docs/keys.md"


@pytest.mark.parametrize("key", KEYS)
def test_each_key_has_a_line_on_the_page_and_in_the_help_and_a_wrong_value_is_answered_with_it(key):
    (line,) = [line for line in page().splitlines() if line.startswith(f"| `{key}` |")]
    assert f"\n  {key} (" in help_text()
    wrong = OmegaConf.create({key: 5 if key in ("profiler", "cache", "models") else {"no": "component"}})
    (told,) = [fault for fault in check_values(wrong) if "must be" in fault and fault.startswith(f"{key}=")]
    assert told.partition("must be ")[2].startswith(line.split(" | ")[1])


def test_the_help_of_run_fits_and_has_the_keys(fresh_cli):
    told = fresh_cli("run", "--help").stdout
    assert help_text() in told
    assert max(map(len, help_text().splitlines())) <= 80
