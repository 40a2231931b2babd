"""A run whose teacher is another process: `distill-tune serve`."""

import pytest
from served import Proxy, serving
from stored_teacher import ALONE
from tiny import MEASURED, metrics_of

pytest.importorskip("uvicorn")
RUN = ["run", "kd_single_device", "--config", "config.yaml"]


@pytest.fixture(scope="module")
def url(tmp_path_factory, command_server, teacher_folder):
    with serving(tmp_path_factory, command_server, "--teacher", teacher_folder) as (_, found):
        yield found


@pytest.fixture
def served(write_config):
    def write(url, *, changes=None, **settings):
        teacher = {"_component_": "distill_tune.teachers.Served", "url": url, **settings}
        return write_config(**{"teacher_model": teacher, "teacher_checkpointer": None} | (changes or {}))

    return write


@pytest.fixture
def run(cli, tmp_path):
    def go(folder, *overrides):
        done = cli(*RUN, f"output_dir={folder}", *overrides)
        assert done.returncode == 0, done.stderr
        return [
            {name: value for name, value in line.items() if name not in MEASURED}
            for line in metrics_of(tmp_path / folder)
        ]

    return go


def test_a_served_teacher_trains_as_the_live_one_to_the_stored_precision(write_config, served, run, url, rows_file):
    validation = {"dataset_val": {"_component_": "distill_tune.data.instruct", "source": str(rows_file)}}
    write_config(**validation)
    live = run("live")
    likeliest = run("likeliest", "kd_loss._component_=distill_tune.losses.TopK", "kd_loss.k=40")
    served(url, kind="hidden", changes=validation)
    hidden = run("hidden")
    served(url, k=40, changes=validation)
    top = run("top")
    # Hidden states in bf16; log-probabilities in 14 bits.
    for wanted, found, tolerance in ((live, hidden, 2e-3), (likeliest, top, 1e-3)):
        for name in ("kd_loss", "ce_loss"):
            assert [line[name] for line in found] == pytest.approx([line[name] for line in wanted], rel=tolerance)
        assert found[-1]["val_kd_loss"] == pytest.approx(wanted[-1]["val_kd_loss"], rel=tolerance)


def test_sampled_records_train_and_their_loss_is_the_divergence(write_config, served, run, url):
    write_config()
    live = run("live")
    served(url, kind="sampled", draws=400)
    found = run("sampled")
    assert [line["kd_loss"] for line in found] == pytest.approx([line["kd_loss"] for line in live], rel=0.05)


def test_compare_measures_beside_served_hidden_states_and_refuses_others(served, cli, url, student_folder, rows_file):
    rows = {"dataset_val": {"_component_": "distill_tune.data.instruct", "source": str(rows_file)}}
    served(url, kind="hidden", changes=rows)
    done = cli("compare", "--config", "config.yaml", student_folder, "--rows", 8)
    assert done.returncode == 0, done.stderr
    served(url, changes=rows)
    done = cli("compare", "--config", "config.yaml", student_folder, "--rows", 8)
    assert "teacher_model.kind=top_k: whole distributions are needed; take kind=hidden" in done.stderr


def test_a_served_teacher_is_stored_from_its_hidden_states(served, run, cli, url):
    served(url, kind="hidden")
    wanted = run("served")
    line = ["run", "teacher_cache", "--config", "config.yaml", "output_dir=cache", "cache.kind=hidden"]
    done = cli(*line, **ALONE)
    assert done.returncode == 0, done.stderr
    stored = ["teacher_model=distill_tune.teachers.Cached", "+teacher_model.path=cache"]
    assert run("stored", *stored) == wanted
    served(url)
    assert (
        "cache.kind=hidden another; take teacher_model.kind=hidden, of which any kind can be stored"
        in cli(*line, **ALONE).stderr
    )
    for setting in ("cache.k=4", "cache.temperature=2"):
        done = cli(*line, "cache.kind=top_k", setting, **ALONE)
        assert "what is served is a record already, with " in done.stderr and f"leave {setting} out" in done.stderr


@pytest.mark.parametrize("kind", ["top_k", "sampled"])
def test_served_records_are_kept_as_they_come_and_the_next_epoch_asks_no_server(served, run, cli, url, tmp_path, kind):
    changes = {"max_steps_per_epoch": None, "batch_size": 8, "epochs": 2}
    served(url, kind=kind, changes=changes)
    wanted = run("served")
    proxy = Proxy(url, lambda path, asked: "overloaded" if asked > 2 and asked % 3 == 0 else None)
    served(proxy.url, kind=kind, changes=changes)
    assert run("through", "teacher_cache=cache", f"cache.kind={kind}") == wanted
    asked = proxy.asked
    assert asked >= 8
    assert run("again", "teacher_cache=cache") == wanted
    assert proxy.asked < asked + 4  # as it is probed
    proxy.close()
    line = ["run", "teacher_cache", "--config", "config.yaml", "output_dir=made", f"cache.kind={kind}"]
    done = cli(*line, f"teacher_model.url={url}", **ALONE)
    assert done.returncode == 0, done.stderr
    assert run("from_made", "teacher_model=distill_tune.teachers.Cached", "+teacher_model.path=made") == wanted


def test_a_run_that_loses_its_servers_goes_on_with_what_it_has_written(served, run, cli, url, tmp_path):
    changes = {"max_steps_per_epoch": None, "batch_size": 8, "epochs": 2}
    served(url, changes=changes)
    wanted = run("served")
    proxy = Proxy(url, lambda path, asked: "hang up" if asked > 5 else None)
    served(proxy.url, concurrency=1, retries=1, changes=changes)
    through = ["teacher_cache=cache", "cache.kind=top_k"]
    died = cli(*RUN, "output_dir=died", *through)
    assert died.returncode == 2 and "the teacher is lost" in died.stderr
    proxy.close()
    steps = len(metrics_of(tmp_path / "died"))
    assert 0 < steps < 8
    served(url, changes=changes)
    done = cli(*RUN, "output_dir=died", *through, "resume=auto")
    assert done.returncode == 0, done.stderr
    assert f"lacks {64 - 8 * steps} of 64 rows" in done.stdout
    assert run("again", *through) == wanted


@pytest.mark.parametrize("in_validation", [False, True])
def test_a_run_whose_servers_die_leaves_a_checkpoint_and_goes_on_bit_for_bit(
    served, run, cli, url, tmp_path, rows_file, in_validation
):
    changes = {"max_steps_per_epoch": 8}
    if in_validation:  # 16 batches, after the second step
        validation = {"_component_": "distill_tune.data.instruct", "source": str(rows_file)}
        changes |= {"dataset_val": validation, "run_val_every_n_steps": 2}
    served(url, changes=changes)
    wanted = run("whole")
    proxy = Proxy(url, lambda path, asked: "hang up" if asked > (12 if in_validation else 5) else None)
    served(proxy.url, concurrency=1, retries=1, changes=changes)
    died = cli(*RUN, "output_dir=died")
    assert died.returncode == 2
    assert "the teacher is lost" in died.stderr and "resume=auto goes on" in died.stderr
    assert f"teacher at {proxy.url}: left out" in died.stdout
    steps = len(metrics_of(tmp_path / "died"))
    assert 0 < steps < 8
    assert (tmp_path / "died" / "checkpoints" / f"step_{steps}" / "state.json").exists()
    served(url, changes=changes)  # at another address
    found = run("died", "resume=auto")
    trained = [name for name in wanted[-1] if not name.startswith("val_")]
    assert [[line[name] for name in trained] for line in found] == [[line[name] for name in trained] for line in wanted]
    assert found[-1] == wanted[-1]
    proxy.close()


def test_two_ranks_ask_for_their_own_rows_and_end_together_when_the_teacher_is_lost(served, cli, url, tmp_path):
    served(url, changes={"max_steps_per_epoch": 3})
    line = ["run", "--nproc_per_node", 2, "kd_distributed", "--config", "config.yaml"]
    done = cli(*line, "output_dir=whole")
    assert done.returncode == 0, done.stderr
    proxy = Proxy(url, lambda path, asked: "hang up" if asked > 6 else None)
    served(proxy.url, concurrency=1, retries=1, changes={"max_steps_per_epoch": 30, "epochs": 9})
    died = cli(*line, "output_dir=died")
    assert died.returncode != 0
    assert "the teacher is lost" in died.stderr
    steps = len(metrics_of(tmp_path / "died"))
    assert steps > 0
    assert (tmp_path / "died" / "checkpoints" / f"step_{steps}" / "state.json").exists()
    proxy.close()
