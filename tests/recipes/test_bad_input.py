"""Every wrong input through the real command: its message, exit code 2, no traceback, nothing loaded."""

import pytest
from bad_inputs import AT_ONCE, OF_COMPONENTS, OF_FILES, Wrong

RUN = ("run", "kd_single_device", "--config", "config.yaml")
SETTINGS = [
    *((f"at once: {overrides}", lambda wrong, line=overrides: line.split(), message) for overrides, message in AT_ONCE),
    *((overrides, lambda wrong, line=overrides: line.split(), message) for overrides, message in OF_COMPONENTS),
]
CASES = [*SETTINGS, *OF_FILES]


@pytest.mark.parametrize(("what", "break_it", "message"), CASES, ids=[case[0] for case in CASES])
def test_it_is_told_with_exit_code_2(write_config, cli, light_cli, tmp_path, tokenizer_file, what, break_it, message):
    write_config(output_dir="out")
    overrides = break_it(Wrong(tmp_path, tokenizer_file))
    if what.startswith("at once: "):
        done = light_cli(*RUN, *overrides)  # nothing heavy is imported for it
    else:
        done = cli(*RUN, *overrides, FORBIDDEN="distill_tune.models.load_weights")
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "was_run").exists()


def test_there_are_many_of_them():
    assert len({case[0] for case in CASES}) == len(CASES) > 120
