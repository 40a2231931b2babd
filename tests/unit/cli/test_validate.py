"""What `run` finds before it loads a weight, `validate` finds."""

import sys

import pytest
from bad_inputs import OF_COMPONENTS, OF_FILES, Wrong

from distill_tune.cli.main import main

# Of the machine that runs, which need not be the one that checks.
OF_THE_RUN = ("device: no CUDA", "device: no MPS")
SETTINGS = [(overrides, lambda wrong, line=overrides: line.split(), message) for overrides, message in OF_COMPONENTS]
CASES = [case for case in (*SETTINGS, *OF_FILES) if case[0] not in OF_THE_RUN]


@pytest.fixture
def validate(write_config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def go(*overrides: str) -> tuple[str, str, object]:
        try:
            main(["validate", "--config", "config.yaml", *overrides])
            status = 0
        except SystemExit as end:
            status = end.code
        captured = capsys.readouterr()
        return captured.out, captured.err, status

    write_config(output_dir="out")
    return go


@pytest.mark.parametrize(("what", "break_it", "message"), CASES, ids=[case[0] for case in CASES])
def test_it_tells_what_a_run_tells(validate, tmp_path, tokenizer_file, what, break_it, message):
    _, told, status = validate(*break_it(Wrong(tmp_path, tokenizer_file)))
    assert message in told
    assert status == 2


def test_what_is_wrong_with_each_part_is_told_together(validate):
    _, told, status = validate("model.num_layers=3", "teacher_model.embed_dim=32", "optimizer.lr=-1", "~seed")
    assert status == 2
    assert "3 faults in config " in told
    for message in ("model does not fit checkpointer", "teacher_model does not fit", "Invalid learning rate: -1"):
        assert told.count(message) == 1


def test_keys_models_and_rows_are_told_in_one_go(validate, tmp_path):
    wrong = ["kd_raito=1", "model.num_layers=3", "optimizer.lr=-1", "dataset.source=nowhere.json", "optimizer.epps=1"]
    _, told, status = validate(*wrong[:-1])
    assert status == 2
    assert told.splitlines()[0] == "distill-tune: 4 faults in config config.yaml and the command line"
    for line, begins in zip(
        told.splitlines()[1:],
        ["kd_raito: no such key", "optimizer.lr=-1: ", "model does not fit", "dataset nowhere.json: no such file"],
        strict=True,
    ):
        assert line.startswith(f"  {begins}")
    _, told, _ = validate(*wrong)  # what an optimizer with a wrong argument says of another is not to be had
    assert told.splitlines()[0].startswith("distill-tune: 4 faults in")
    assert told.count("optimizer") == 1


def test_a_folder_that_holds_a_run_hides_nothing_else(validate, tmp_path):
    (tmp_path / "out" / "model").mkdir(parents=True)
    (tmp_path / "file").touch()
    logger = ["metric_logger=torchtune.training.metric_logging.DiskLogger", "metric_logger.log_dir=file/logs"]
    _, told, _ = validate(*logger, "model.num_layers=3", "dataset.source=nowhere.json")
    for line, begins in zip(
        told.splitlines()[1:],
        [
            "metric_logger.log_dir=file/logs: cannot be written",
            "output_dir=out: holds",
            "model does not",
            "dataset now",
        ],
        strict=True,
    ):
        assert line.startswith(f"  {begins}")


def test_both_datasets_are_told_also_where_one_is_on_the_hub(validate):
    of_validation = "+dataset_val={_component_: distill_tune.data.instruct, source: other.json}"
    _, told, _ = validate("dataset.source=nowhere.json", of_validation)
    assert told.splitlines()[1:] == [
        "  dataset nowhere.json: no such file or folder",
        "  dataset other.json: no such file or folder",
    ]
    out, told, _ = validate("dataset.source=someone/rows", of_validation)
    assert "dataset: someone/rows is no local file: its rows are checked by the run" in out
    assert told.splitlines()[1:] == ["  dataset other.json: no such file or folder"]


def test_sizes_are_told_of_models_whose_files_are_missing_and_not_beside_other_faults(validate):
    assert "model: " in validate("checkpointer.checkpoint_dir=nowhere")[0]
    assert "model: " not in validate("optimizer.lrr=1")[0]


def test_rows_are_told(validate, tmp_path):
    told, _, status = validate()
    assert status == 0
    assert "64 rows, " in told
    assert not (tmp_path / "out").exists()


def test_what_is_told_of_rows_is_told_once_though_they_are_read_twice(validate, tmp_path):
    validate()  # keeps the tokens
    (tmp_path / "bad.json").write_text("[{}]")
    out, told, status = validate("dataset_val={_component_: distill_tune.data.instruct, source: bad.json}")
    assert status == 2 and "dataset_val: 1 bad row" in told
    assert out.count("was tokenised before") == 1


def test_rows_of_the_hub_are_not_fetched(validate, monkeypatch):
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: pytest.fail("asks the hub"))
    told, _, status = validate("dataset=torchtune.datasets.alpaca_cleaned_dataset", "~dataset.source")
    assert status == 0
    assert "dataset: yahma/alpaca-cleaned is no local file: its rows are checked by the run" in told
    told, _, _ = validate("dataset.source=json", "+dataset.data_files=https://example.org/rows.json")
    assert "dataset: json is no local file" in told


def test_what_would_run_code_from_elsewhere_is_left_to_the_run(validate, tmp_path):
    (tmp_path / "mine.py").write_text("rows = Sgd = open('was_run', 'w')")
    told, _, status = validate("dataset._component_=mine.rows")
    assert status == 0
    assert "dataset: would run code from elsewhere, so rows are checked by the run alone" in told
    told, _, _ = validate("optimizer._component_=mine.Sgd")
    assert "optimizer: would run code from elsewhere, so models and rows are checked by the run alone" in told
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("mine.rowz", "mine has no rowz, did you mean rows?"),
        ("minee.rows", "no module named minee; is the package installed, or did you mean mine"),
        ("own.reeders.rows", "own has no reeders, did you mean readers?"),
        ("own.readers.row", "own.readers has no row, did you mean rows?"),
    ],
)
def test_what_a_users_own_module_lacks_is_told_without_an_import(validate, tmp_path, name, fault):
    for path in (tmp_path / "mine.py", tmp_path / "own" / "__init__.py", tmp_path / "own" / "readers.py"):
        path.parent.mkdir(exist_ok=True)
        path.write_text("open('was_run', 'w')\ndef rows(tokenizer): ...\n")
    _, told, status = validate(f"dataset._component_={name}")
    assert status == 2
    assert f"dataset._component_={name}: {fault}" in told
    assert not (tmp_path / "was_run").exists()


def test_names_that_a_module_may_have_otherwise_are_left_to_the_run(validate, tmp_path):
    (tmp_path / "mine.py").write_text("from elsewhere import *\n")
    assert validate("dataset._component_=mine.rows")[2] == 0


def test_what_this_machine_lacks_is_told_and_the_rest_is_checked(validate):
    told, _, status = validate("device=mps")
    assert status == 0
    assert "not on this machine: device=mps: there is no MPS device here" in told
    assert told.endswith("config.yaml: valid for kd_single_device on a machine that has it\n")
    told, _, _ = validate()
    assert told.endswith("config.yaml: valid for kd_single_device\n")
