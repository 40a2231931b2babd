"""`plan` on tiny models, and on GPUs that are too small for them."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from tiny import ROWS
from tiny_tokenizer import write_tokenizer

from distill_tune.cli.main import main
from distill_tune.less_memory import changes_of
from distill_tune.training import gpus


@pytest.fixture
def card_of(monkeypatch):
    """A card with so many bytes, all of which a run may have."""

    def make(num_bytes, name="A10"):
        monkeypatch.setattr("distill_tune.cli.plan.CONTEXT", 0)
        card = gpus.find_gpu(name)._replace(memory=num_bytes)
        monkeypatch.setattr(gpus, "find_gpu", lambda name: card)

    return make


def plan(capsys, *arguments):
    main(["plan", *map(str, arguments)])
    return capsys.readouterr().out


def test_it_tells_data_memory_disk_and_work(write_config, capsys):
    told = plan(capsys, "--config", write_config(), "--gpu", "A100")
    assert "64 rows" in told
    assert "steps: 4 (1 x 4)" in told
    for part in ("teacher", "student", "optimizer", "gradients", "activations", "head", "peak"):
        assert f"\n  {part} " in told
    assert "PFLOP in all" in told
    assert "A100 SXM4 80 GB: fits, " in told
    assert " of 80.0 GiB; less than a second" in told


def test_with_rollouts_it_counts_answers_as_long_as_they_may_be_and_their_cache(write_config, capsys):
    def needs(max_new_tokens, **changes):
        rollouts = {"_component_": "distill_tune.rollouts.OnPolicy", "sampling": {"max_new_tokens": max_new_tokens}}
        told = plan(capsys, "--config", write_config(kd_ratio=1.0, rollouts=rollouts | changes), "--gpu", "A100")
        tokens, longest = re.search(r"some (\d+) tokens each, (\d+) in the longest row", told).groups()
        return int(tokens), int(longest), float(re.search(r"key value cache +(\S+) KiB", told)[1])

    (tokens, longest, cache), (more, longer, larger) = needs(64), needs(84)
    assert (more - tokens, longer - longest) == (4 * 20, 20)
    # Keys and values of two layers with two heads of eight in float32, of the four rows of a step.
    assert cache == pytest.approx(4 * longest * 2 * 2 * 2 * 8 * 4 / 1024, abs=0.1)
    assert larger > cache
    assert needs(64, samples_per_prompt=2)[0] == 2 * tokens


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("sampled", "39 to 153 bytes each: the fewer, the surer the teacher is\n"),
        ("top_k", "202 bytes each\n"),
        ("hidden", "128 bytes each\n"),
    ],
)
def test_of_a_cache_it_tells_the_teachers_memory_the_disk_and_the_hours(write_config, capsys, card_of, kind, told):
    config = write_config(dataset_val="${dataset}")
    of_cache = plan(capsys, "teacher_cache", "--config", config, f"cache.kind={kind}", "--gpu", "A100")
    assert f"supervised tokens of {2 * len(ROWS)} rows, {told}" in of_cache
    assert re.search(r"A100 SXM4 80 GB: fits, .*; less than a second", of_cache)
    assert ("cache.kind=hidden would take 128 bytes" in of_cache) is (kind == "top_k")
    assert "optimizer" not in of_cache
    work = float(re.search(r"work: (\S+) PFLOP", of_cache)[1])
    doubled = plan(capsys, "--nproc_per_node", 2, "teacher_cache", "--config", config, f"cache.kind={kind}")
    assert float(re.search(r"work: (\S+) PFLOP", doubled)[1]) == pytest.approx(work, rel=0.2)  # rank 0's, twice
    card_of(2**20)
    small = plan(capsys, "teacher_cache", "--config", config, f"cache.kind={kind}", "--gpu", "A10")
    assert "does not fit 1.0 MiB; take more processes, or teacher_offload=True" in small


@pytest.mark.parametrize(
    ("named", "card"), [("h100", "H100 SXM5 80 GB"), ("rtx4090", "4090 24 GB"), ("L40", "L40 48 GB")]
)
def test_a_card_is_named_in_any_spelling(write_config, capsys, named, card):
    assert f"\n{card}: fits, " in plan(capsys, "--config", write_config(), "--gpu", named)


def test_of_a_size_memory_alone_is_told(write_config, capsys):
    told = plan(capsys, "--config", write_config(dtype="bf16"), "--gpu", "24GB").splitlines()[-1]
    assert re.fullmatch(r"any card of 24 GB: fits, \S+ MiB of 24\.0 GiB", told)


def test_what_a_card_cannot_compute_in_is_not_named_for_it(write_config, capsys, card_of):
    config = write_config()
    card_of(0.97 * peak_of(plan(capsys, "--config", config)), "v100")
    told = plan(capsys, "--config", config, "--gpu", "V100")
    assert "does not fit" in told and "batch_size=2" in told and "bf16" not in told.partition("does not fit")[2]


def test_a_wrong_card_and_a_wrong_config_are_told_in_one_go(write_config, capsys):
    with pytest.raises(SystemExit):
        plan(capsys, "--config", write_config(), "kd_raito=1", "--gpu", "4060 Tee", "--gpu", "A100")
    told = capsys.readouterr().err
    assert "--gpu 4060 Tee: not known, did you mean 4060 Ti" in told
    assert "there are T4, V100, A10, " in told
    assert "kd_raito: no such key" in told


def test_a_card_without_bf16_is_told(write_config, capsys):
    config = write_config(dtype="bf16")
    assert "V100 SXM2 32 GB: has no bf16" in plan(capsys, "--config", config, "--gpu", "v100")
    assert "V100 SXM2 32 GB: fits" in plan(capsys, "--config", config, "dtype=fp32", "--gpu", "v100")


def test_memory_is_that_of_the_longest_row_wherever_it_stands(write_config, tmp_path, capsys):
    """Of 151 steps the last one has it, which is none of those that the work is averaged over."""
    long = {"instruction": "What is it?", "output": "and so on " * 40}
    for name, rows in (("rare.json", [ROWS[0]] * 150 + [long]), ("only.json", [long] * 151)):
        (tmp_path / name).write_text(json.dumps(rows))
    settings = {"batch_size": 1, "shuffle": False, "max_steps_per_epoch": None}
    rare, only = (
        plan(capsys, "--config", write_config(dataset={**DATASET, "source": str(tmp_path / name)}, **settings))
        for name in ("rare.json", "only.json")
    )
    assert "steps: 151 " in rare
    for name in ("activations", "teacher activations", "head", "peak"):
        assert part(rare, name) == part(only, name) > 0
    assert work_of(rare) < work_of(only) / 5


def test_where_it_does_not_fit_changes_that_do_are_named(write_config, capsys, card_of):
    config = write_config()
    peak = peak_of(plan(capsys, "--config", config, "--gpu", "A10"))
    card_of(0.97 * peak)
    told = plan(capsys, "--config", config, "--gpu", "A10")
    assert "A10 24 GB: does not fit" in told
    changes = [line.split("   (")[0].split() for line in told.splitlines() if line.startswith("  ") and "=" in line]
    assert ["batch_size=2", "+gradient_accumulation_steps=2"] in changes
    streamed = next(line for line in told.splitlines() if "teacher_offload=True" in line)
    assert re.search(r"\([\d.]+ MiB, less than a second.*, [\d.]+ KiB pinned in host memory\)", streamed)
    for change in changes:  # what it says is so
        assert peak_of(plan(capsys, "--config", config, "--gpu", "A10", *change)) <= 0.98 * peak


def test_changes_are_named_where_a_component_is_replaced_too(write_config, capsys, card_of):
    config = write_config(optimizer={"_component_": "torch.optim.AdamW", "lr": 1e-3, "betas": [0.9, 0.95]})
    sgd = "optimizer=torch.optim.SGD"
    card_of(0.97 * peak_of(plan(capsys, "--config", config, "--gpu", "A10", sgd)))
    assert "batch_size=2 +gradient_accumulation_steps=2" in plan(capsys, "--config", config, "--gpu", "A10", sgd)


def test_where_no_change_is_enough_alone_several_are_named(write_config, capsys, monkeypatch, card_of):
    names = ("enable_activation_checkpointing", "batch_size")
    monkeypatch.setattr(
        "distill_tune.cli.smaller.changes_of",
        lambda *of: sorted((x for x in changes_of(*of) if x.overrides[0].startswith(names)), reverse=True),
    )
    config = write_config()
    first, second = "+enable_activation_checkpointing=True", ["batch_size=2", "+gradient_accumulation_steps=2"]
    alone = [peak_of(plan(capsys, "--config", config, *change)) for change in ([first], second)]
    together = peak_of(plan(capsys, "--config", config, first, *second))
    assert together < min(alone)
    card_of((together + min(alone)) / 2)
    told = plan(capsys, "--config", config, "--gpu", "A10")
    assert f"it would with\n  {first} {' '.join(second)}   (" in told


def test_when_nothing_is_enough_it_says_so(write_config, capsys, card_of):
    card_of(1000)
    assert "no change of settings is enough" in plan(capsys, "--config", write_config(), "--gpu=A10")


def test_weights_that_are_gathered_from_one_process_are_counted(write_config, capsys):
    config = write_config()
    plain, sharded = (plan(capsys, recipe, "--config", config) for recipe in ("kd_single_device", "kd_distributed"))
    assert part(sharded, "student") > 1.5 * part(plain, "student")
    assert part(sharded, "teacher") > 1.5 * part(plain, "teacher")


def test_several_processes_share_the_weights(write_config, capsys):
    config = write_config()
    alone = plan(capsys, "kd_distributed", "--config", config, "--gpu", "H100")
    shared = plan(capsys, "--nproc_per_node", 4, "kd_distributed", "--config", config, "--gpu", "H100")
    assert "memory of each process:" in shared
    assert "H100 SXM5 80 GB x 4: fits" in shared
    assert part(shared, "optimizer") == pytest.approx(part(alone, "optimizer") / 4, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "A1000"], "--gpu A1000: not known, did you mean A100"),
        (["kd_raito=1"], "kd_raito: no such key, did you mean kd_ratio?"),
        (["tokenizer.path=nowhere"], "tokenizer.path=nowhere: no such file"),
        ([f"tokenizer.path={__file__}"], "is no SentencePiece model, which torchtune.models.llama2"),
    ],
)
def test_mistakes_are_told(write_config, capsys, arguments, message):
    with pytest.raises(SystemExit) as end:
        plan(capsys, "--config", write_config(), *arguments)
    assert end.value.code == 2
    assert message in capsys.readouterr().err


def test_config_json_and_tokenizer_are_all_that_is_needed_of_a_model(write_config, tmp_path, student_folder, capsys):
    config = write_config()
    whole = plan(capsys, "--config", config, "--gpu", "H100")
    without = [tmp_path / "student", tmp_path / "teacher"]
    for folder, name in zip(without, ("checkpointer", "teacher_checkpointer"), strict=True):
        source = Path(yaml.safe_load(config.read_text())[name]["checkpoint_dir"])
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    places = [
        f"{name}checkpointer.checkpoint_dir={folder}" for name, folder in zip(("", "teacher_"), without, strict=True)
    ]
    assert plan(capsys, "--config", config, "--gpu", "H100", *places) == whole
    for folder, name in zip(without, ("model", "teacher_model"), strict=True):
        places += [
            f"{name}={{_component_: distill_tune.models.from_hf, path: {folder}}}",
            f"~{'teacher_' * (name != 'model')}checkpointer",
        ]
    told = plan(capsys, "--config", config, "--gpu", "H100", *places[2:])
    assert part(told, "teacher") == part(whole, "teacher")


def test_models_of_shipped_configs_are_known_without_their_folders(tmp_path, rows_file, capsys):
    (tmp_path / "Qwen2.5-0.5B-Instruct").mkdir()
    write_tokenizer(tmp_path / "Qwen2.5-0.5B-Instruct")  # without a config.json
    line = ["--config", "qwen2_5/7B_to_0.5B_lora", f"models_dir={tmp_path}", f"dataset.source={rows_file}"]
    told = plan(capsys, *line, "device=cpu", "--gpu", "H100")
    assert "Qwen2.5-7B-Instruct: is not here; its shape is taken as it is published" in told
    assert "teacher_model: Qwen2.5-7B-Instruct is not here, so its tokenizer was not compared with that of" in told
    assert part(told, "teacher") == pytest.approx(7.616e9 * 2, rel=0.01)  # 7.61 B, says its card
    another = plan(capsys, *line, "device=cpu", f"teacher_model.path={tmp_path}/gemma-2-2b-it")
    assert "gemma-2-2b-it is not here, so its tokenizer was not compared" in another
    with pytest.raises(SystemExit):
        plan(capsys, *line, "teacher_model.path=models/Qwen9-7B")
    assert "teacher_model.path=models/Qwen9-7B: no such folder" in capsys.readouterr().err


DATASET = {"_component_": "distill_tune.data.instruct"}
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def part(told, name):
    line = next(line for line in told.splitlines() if line.startswith(f"  {name} "))
    number, unit = line.removeprefix(f"  {name}").split()[:2]
    return float(number.replace(",", "")) * UNITS[unit]


def peak_of(told):
    return part(told, "peak")


def work_of(told):
    return float(told.partition("\nwork: ")[2].split()[0])
