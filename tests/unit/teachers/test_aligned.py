"""Teachers of other tokenizers: found, refused where they cannot teach, and the same gradient however rows are cut."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from stand_in_engines import StandInVLLM
from tiny import ROWS, write_model_of_another_tokenizer

from distill_tune import cache, data, losses, models, training
from distill_tune.cli.verified_cache import verify
from distill_tune.config.load import load_config
from distill_tune.disk import release_locks
from distill_tune.errors import UserError
from distill_tune.export.gguf import write_gguf
from distill_tune.losses import head
from distill_tune.models.tokenizer_files import open_tokenizer
from distill_tune.teachers import AlignedTeacher, LiveTeacher

CPU = torch.device("cpu")
HF = "distill_tune.models.from_hf"
TOKENIZER = "distill_tune.data.hf_tokenizer"
CHUNKS = {"kd_loss": {"_component_": "distill_tune.losses.ChunkLikelihood"}, "temperature": 2.0}


@pytest.fixture(scope="module")
def others(tmp_path_factory, tokenizer_file):
    """Folders of teachers of two other tokenizers."""
    folder = tmp_path_factory.mktemp("models")
    sizes = {"a": 288, "b": 264}
    return {
        name: write_model_of_another_tokenizer(folder / name, tokenizer_file, size, vocab_size=size)
        for name, size in sizes.items()
    }


@pytest.fixture
def configured(write_config, others):
    """A config whose teacher has another tokenizer, or whose teachers have, by the names of their folders."""

    def configure(*names, **changes):
        entries = [{"_component_": HF, "path": str(others.get(name, name)), "name": str(name)} for name in names]
        teacher = entries if len(entries) > 1 else {"_component_": HF, "path": str(others.get(names[0], names[0]))}
        return load_config(write_config(**{"teacher_model": teacher, "teacher_checkpointer": None} | changes))

    return configure


def gradient(cfg, divergence=None):
    """Of a step's loss for the student's weights, and the sums, summed over the ranks and micro-batches of the plan."""
    built = training.build_models(cfg, CPU)
    plan = training.plan_steps(cfg, built, 0).plan
    models.load_weights(built.student, built.student_checkpoint, CPU)
    built.teacher.load(built.student, CPU)
    own_head, sums = models.take_output_head(built.student), []
    for batch in plan.micro_batches(0, 0):
        hidden, _ = models.hidden_states(built.student, batch.tokens, batch.attention())
        sums.append(
            losses.distillation_loss(
                hidden[0, batch.supervised_positions],
                own_head.projection_for_loss(),
                batch.targets[0, batch.supervised_positions],
                built.teacher(batch),
                kd_ratio=0.9,
                temperature=2.0,
                common_vocab_size=built.common_vocab_size,
                divergence=divergence,
            )
        )
        sums[-1].loss.backward()
    total = losses.LossSums.total([of.detach() for of in sums])
    return torch.cat([p.grad.flatten() for p in built.student.parameters()]), total, len(sums)


def distance(one, other):
    return float((one - other).norm() / other.norm())


def test_a_teacher_of_another_tokenizer_is_found_by_its_folder(configured, capsys):
    teacher = training.build_models(configured("a"), CPU).teacher
    assert isinstance(teacher, AlignedTeacher)
    assert "the answers are aligned byte by byte" in capsys.readouterr().out


def test_the_same_tokenizer_in_another_folder_goes_the_plain_way(configured, teacher_folder, tmp_path):
    shutil.copytree(teacher_folder, tmp_path / "copied")
    built = training.build_models(configured(tmp_path / "copied"), CPU)
    assert type(built.teacher) is LiveTeacher
    assert not training.plan_steps(configured(tmp_path / "copied"), built, 0).plan.datasets[0].others


def test_a_gguf_files_own_tokenizer_is_read(configured, others, tmp_path, capsys):
    write_gguf(others["a"], tmp_path / "a.gguf", "f32")
    live, sums, _ = gradient(configured("a", batch_size=24))
    found, of_file, _ = gradient(configured(tmp_path / "a.gguf", batch_size=24))
    assert f"its tokenizer, that of {tmp_path / 'a.gguf'}, is not that of the rows" in capsys.readouterr().out
    assert of_file.kd.item() == pytest.approx(sums.kd.item(), rel=1e-5)
    assert distance(found, live) < 1e-5


def without_tokenizer(folder, to):
    return shutil.copytree(folder, to, ignore=shutil.ignore_patterns("tokenizer*", "special_tokens*"))


@pytest.mark.parametrize("is_another", [True, False])
def test_where_the_students_folder_has_no_tokenizer_that_of_the_rows_is_compared(
    configured, student_folder, teacher_folder, tokenizer_file, tmp_path, is_another
):
    bare = without_tokenizer(student_folder, tmp_path / "bare")
    rows = {"_component_": "torchtune.models.llama2.llama2_tokenizer", "path": str(tokenizer_file)}
    cfg = configured(
        "a" if is_another else teacher_folder, model={"_component_": HF, "path": str(bare)}, tokenizer=rows
    )
    assert isinstance(training.build_models(cfg, CPU).teacher, AlignedTeacher) == is_another


def test_a_teacher_whose_tokenizer_is_not_known_is_told_of(configured, others, teacher_folder, tmp_path, capsys):
    """And refused where it knows more or fewer tokens than padding would make."""
    bare = without_tokenizer(teacher_folder, tmp_path / "bare")
    of_other_size = without_tokenizer(others["a"], tmp_path / "other_size")
    with pytest.raises(UserError, match=r"knows 288 tokens where the student knows 320.*\+teacher_tokenizer\."):
        training.build_models(configured(of_other_size), CPU)
    training.build_models(configured(bare), CPU)
    told = f"teacher_model: no tokenizer of {bare} can be compared with that of the rows, so it is taken for the same"
    assert told in capsys.readouterr().out


def test_one_that_has_the_tokens_of_the_rows_is_not_needed(configured, teacher_folder, capsys):
    named = {"_component_": TOKENIZER, "path": str(teacher_folder)}
    built = training.build_models(configured(teacher_folder, teacher_tokenizer=named), CPU)
    assert type(built.teacher) is LiveTeacher
    assert "teacher_tokenizer: has the tokens of the rows, which are read as they are" in capsys.readouterr().out


def test_one_of_torchtunes_is_known_by_the_bytes_of_its_tokens(configured, teacher_folder, student_folder):
    torchtunes = {
        "_component_": "torchtune.models.llama2.llama2_tokenizer",
        "path": str(student_folder / "tokenizer.model"),
    }
    assert (
        type(training.build_models(configured(teacher_folder, teacher_tokenizer=torchtunes), CPU).teacher)
        is LiveTeacher
    )


@pytest.mark.parametrize("names", [("a",), ("a", "b", "same")], ids=str)
def test_the_gradient_does_not_depend_on_how_the_step_is_cut(configured, teacher_folder, others, monkeypatch, names):
    folders = [teacher_folder if name == "same" else name for name in names]
    several = {"teacher_combination": "sum"} if len(names) > 1 else {}
    one, sums, micro_batches = gradient(configured(*folders, batch_size=24, **several))
    assert micro_batches == 1
    changes = {"batch_size": 2, "gradient_accumulation_steps": 12, "max_tokens_per_batch": None}
    many, of_many, micro_batches = gradient(configured(*folders, **changes, **several))
    assert micro_batches > 5
    assert distance(many, one) < 2e-6
    assert of_many.kd.item() == pytest.approx(sums.kd.item(), rel=1e-5)
    monkeypatch.setitem(head.CHUNK_BYTES, "cpu", 20_000)  # few rows in a chunk
    chunked, _, _ = gradient(configured(*folders, batch_size=24, **several))
    assert distance(chunked, one) < 2e-6


def test_a_sum_of_teachers_is_that_of_each(configured, teacher_folder):
    each = [gradient(configured(name))[1].kd for name in ("a", "b", teacher_folder)]
    together = gradient(configured("a", "b", teacher_folder, teacher_combination="sum"))[1].kd
    assert together.item() == pytest.approx(sum(each).item() / 3, rel=1e-5)


def test_each_row_follows_its_own_teacher(configured, teacher_folder, tmp_path):
    def of_rows(*numbers, names=("a", teacher_folder), **changes):
        rows = [ROWS[number] | {"teacher_id": str(names[number % 2])} for number in numbers]
        (tmp_path / "own.json").write_text(json.dumps(rows))
        dataset = {"_component_": "distill_tune.data.instruct", "source": str(tmp_path / "own.json")}
        return gradient(configured(*names, dataset=dataset, teacher_combination="by_row", batch_size=8, **changes))[
            1
        ].kd

    together = of_rows(0, 1, 2, 3)
    assert together.item() == pytest.approx((of_rows(0, 2) + of_rows(1, 3)).item(), rel=1e-5)


def test_a_mixture_is_refused(configured, teacher_folder):
    with pytest.raises(UserError, match=r"teacher_combination=mixture: .* take sum, or by_row"):
        training.build_models(configured("a", teacher_folder), CPU)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"teacher_tokenizer": [None, None]},
            "teacher_tokenizer: is a list of 2, and teacher_model names 1 teacher: give",
        ),
        (
            {"kd_token_weight": {"_component_": "distill_tune.losses.TeacherCertainty"}},
            "TeacherCertainty is of a teacher's own tokens",
        ),
        ({"teacher_tokenizer": {"_component_": TOKENIZER}}, "name its own as teacher_tokenizer"),
    ],
    ids=str,
)
def test_what_cannot_be_is_told(configured, student_folder, changes, told):
    if isinstance(named := changes.get("teacher_tokenizer"), dict):
        changes = {"teacher_tokenizer": named | {"path": str(student_folder)}}
    with pytest.raises(UserError, match=told):
        training.build_models(configured("a", **changes), CPU)


@pytest.fixture
def changed(others, tmp_path):
    """A folder whose tokenizer's files are others."""

    def change(file, **settings):
        folder = tmp_path / "changed"
        shutil.copytree(others["a"], folder)
        content = json.loads((folder / file).read_text()) | settings
        (folder / file).write_text(json.dumps(content))
        return folder

    return change


def test_one_that_writes_other_answers_is_refused(configured, changed, tmp_path):
    (tmp_path / "loud.json").write_text(json.dumps([{"instruction": "Say it.", "output": "THIS IS LOUD"}] * 4))
    dataset = {"_component_": "distill_tune.data.instruct", "source": str(tmp_path / "loud.json")}
    cfg = configured(changed("tokenizer.json", normalizer={"type": "Lowercase"}), dataset=dataset)
    with pytest.raises(
        UserError, match=r"teacher_tokenizer: \d+% of the answers' bytes are not found in what it writes"
    ):
        training.plan_steps(cfg, training.build_models(cfg, CPU), 0)


def test_rows_of_its_own_that_it_cannot_read_name_its_own_keys(configured, changed):
    cfg = configured(changed("config.json", max_position_embeddings=20))
    told = "teacher_tokenizer: its longest sequence .* teacher_model reads 20 at most; cut .* teacher_max_seq_len=20"
    with pytest.raises(UserError, match=told):
        training.plan_steps(cfg, training.build_models(cfg, CPU), 0)


def test_tokens_of_its_own_that_its_model_has_not_name_its_own_key(configured, changed):
    folder = changed("config.json", vocab_size=100)
    weights = load_file(folder / "model.safetensors")
    few = {name: value[:100].clone() if len(value) == 288 else value for name, value in weights.items()}
    save_file(few, folder / "model.safetensors", metadata={"format": "pt"})
    cfg = configured(folder)
    with pytest.raises(UserError, match=r"teacher_tokenizer: its rows have the token .* 100, .*; name the model's own"):
        training.plan_steps(cfg, training.build_models(cfg, CPU), 0)


def test_faults_of_its_template_name_its_own_key(configured, changed):
    cfg = configured(changed("tokenizer_config.json", chat_template="{{ messages | length }}"))
    with pytest.raises(
        UserError, match=r"^teacher_tokenizer.path=.* name another with teacher_tokenizer.chat_template="
    ):
        training.plan_steps(cfg, training.build_models(cfg, CPU), 0)


@pytest.mark.parametrize("name", ["ChunkLikelihood", "UniversalLogit", "Gold", "BytePrefixMass"])
def test_a_loss_between_tokenizers_needs_two(configured, teacher_folder, name):
    method = {"kd_loss": {"_component_": f"distill_tune.losses.{name}"}}
    built = training.build_models(configured("a", **method), CPU)
    assert isinstance(built.teacher, AlignedTeacher)
    with pytest.raises(UserError, match=f"kd_loss: {name} is for a teacher of another tokenizer"):
        training.build_models(configured(teacher_folder, **method), CPU)


def test_packed_rows_are_those_that_are_not(configured, rows_file):
    dataset = {"_component_": "distill_tune.data.instruct", "source": str(rows_file), "split": "train[:12]"}
    plain, sums, _ = gradient(configured("a", dataset=dataset, batch_size=12))
    packed, of_packed, _ = gradient(configured("a", dataset=dataset | {"packed": True}, batch_size=12))
    assert of_packed.kd.item() == pytest.approx(sums.kd.item(), rel=1e-5)
    assert distance(packed, plain) < 2e-6


@pytest.mark.parametrize(("kind", "most"), [("hidden", 1e-2), ("likelihood", 1e-5)])
def test_a_run_fills_a_cache_with_its_word_and_reads_it(configured, rows_file, tmp_path, capsys, kind, most):
    rows = {"_component_": "distill_tune.data.instruct", "source": str(rows_file)}
    keys = {"dataset": rows | {"split": "train[:24]"}, "batch_size": 24, "epochs": 1, **CHUNKS}
    live, sums, _ = gradient(configured("a", **keys), losses.ChunkLikelihood())
    keys |= {"teacher_cache": str(tmp_path / "cache"), "cache": {"kind": kind}}
    capsys.readouterr()
    validated = {"dataset_val": rows | {"split": "train[20:30]"}}
    for told in ("lacks 30 of 30 rows", "has all 30 rows; the teacher is not loaded"):
        found, of_record, _ = gradient(configured("a", **keys, **validated), losses.ChunkLikelihood())
        release_locks()
        assert of_record.kd.item() == pytest.approx(sums.kd.item(), rel=most)
        assert distance(found, live) < most
        assert told in capsys.readouterr().out
    cfg = configured("a", **keys, **validated)
    built = training.build_models(cfg, CPU)
    training.plan_steps(cfg, built, 0)
    assert not built.teacher.models and not built.teacher.may_be_lost


def test_a_cache_of_a_run_serves_the_loss_or_is_refused(configured, tmp_path):
    keys = {"teacher_cache": str(tmp_path / "cache"), "cache": {"kind": "likelihood"}}
    with pytest.raises(UserError, match=r"teacher_cache=.*: a likelihood record serves ChunkLikelihood, .* ForwardKL"):
        training.build_models(configured("a", **keys), CPU)
    with pytest.raises(UserError, match=r"cache.kind=top_k: the teacher's tokenizer is not that of the rows; keep one"):
        training.build_models(configured("a", **keys | {"cache": {"kind": "top_k"}}), CPU)


@pytest.fixture
def stored(configured, others, tmp_path):
    """The keys of a run whose teachers are caches of kind likelihood, by the names of their folders."""

    def store(*names, **changes):
        for name in names:
            cfg = configured(name, cache={"kind": "likelihood"}, **CHUNKS, **changes)
            built = training.build_models(cfg, CPU, with_cache=False)
            steps, encoding = training.plan_steps(cfg, built, 0), training.encoding_for(cfg.cache, built, cfg)
            manifest = training.begin_cache(tmp_path / name, cfg, built, steps, encoding, 0)
            built.teacher.itself.load(built.student, CPU)
            with cache.CacheWriter(tmp_path / name) as writer:
                plan = data.StepPlan.of_teacher([steps.plan], 200)
                for step in range(plan.steps_per_epoch):
                    (batch,) = plan.micro_batches(0, step)
                    rows, _ = training.recorded(built.teacher.itself, encoding, batch, 0)
                    writer.add(batch.record_keys, rows)
            training.finish_cache(tmp_path / name, manifest, [steps.plan])
        entries = [{"_component_": "distill_tune.teachers.Cached", "path": str(tmp_path / name)} for name in names]
        tokenizers = [{"_component_": TOKENIZER, "path": str(others[name])} for name in names]
        if len(names) == 1:
            return {"teacher_model": entries[0], "teacher_tokenizer": tokenizers[0]}
        of_each = [entry | {"name": name} for entry, name in zip(entries, names, strict=True)]
        return {"teacher_model": of_each, "teacher_tokenizer": tokenizers, "teacher_combination": "sum"}

    yield store
    release_locks()


def test_such_records_are_verified_by_the_teacher(stored, write_config, others, tmp_path, capsys):
    stored("a")

    def verified(name):
        teacher = {"teacher_model": {"_component_": HF, "path": str(others[name])}, "teacher_checkpointer": None}
        verify(tmp_path / "a", str(write_config(**teacher, **CHUNKS)), [], 5)

    verified("a")
    told = capsys.readouterr().out
    assert "rows again: log-probabilities of the rows' own tokens: differ by" in told
    with pytest.raises(UserError, match="is not what this teacher says: it knows 264 tokens, what is stored is of 288"):
        verified("b")


@pytest.mark.parametrize("names", [("a",), ("a", "b")], ids=str)
def test_records_of_how_likely_its_tokens_are_teach_as_it_does(configured, stored, names):
    several = {"teacher_combination": "sum"} if len(names) > 1 else {}
    live, sums, _ = gradient(configured(*names, batch_size=24, **CHUNKS, **several), losses.ChunkLikelihood())
    keys = stored(*names)
    recorded, of_recorded, _ = gradient(configured("a", batch_size=24, **CHUNKS, **keys), losses.ChunkLikelihood())
    assert sums.kd.item() > 0
    assert of_recorded.kd.item() == pytest.approx(sums.kd.item(), rel=1e-5)
    assert distance(recorded, live) < 1e-5


def test_each_row_follows_the_records_of_its_own_teacher(configured, stored, tmp_path):
    rows = [ROWS[number] | {"teacher_id": "ab"[number % 2]} for number in range(8)]
    (tmp_path / "own.json").write_text(json.dumps(rows))
    source = {"_component_": "distill_tune.data.instruct", "source": str(tmp_path / "own.json")}
    keys = {"dataset": source, "batch_size": 8, "teacher_combination": "by_row", **CHUNKS}
    live, sums, _ = gradient(configured("a", "b", **keys), losses.ChunkLikelihood())
    keys |= stored("a", "b", dataset=source) | {"teacher_combination": "by_row"}
    for halved in ({}, {"batch_size": 2, "gradient_accumulation_steps": 4}):
        recorded, of_recorded, _ = gradient(configured("a", **keys | halved), losses.ChunkLikelihood())
        assert of_recorded.kd.item() == pytest.approx(sums.kd.item(), rel=1e-5)
        assert distance(recorded, live) < 1e-5


def test_a_server_that_tells_how_likely_its_tokens_are_teaches_as_its_model_does(configured, others):
    live, sums, _ = gradient(configured("a", batch_size=24, **CHUNKS), losses.ChunkLikelihood())
    built = training.build_models(configured("a"), CPU)
    built.teacher.load(built.student, CPU)
    server = StandInVLLM(built.teacher.itself, open_tokenizer(others["a"]), heeds_temperature=True, longest=512)
    try:
        served = {"_component_": "distill_tune.teachers.Served", "url": server.url, "kind": "likelihood"}
        named = {"_component_": TOKENIZER, "path": str(others["a"])}
        cfg = configured("a", teacher_model=served, teacher_tokenizer=named, batch_size=24, **CHUNKS)
        found, of_served, _ = gradient(cfg, losses.ChunkLikelihood())
    finally:
        server.close()
    assert of_served.kd.item() == pytest.approx(sums.kd.item(), rel=1e-5)
    assert distance(found, live) < 1e-5


def test_what_such_records_cannot_serve_is_told_before_anything_loads(configured, stored, teacher_folder):
    keys = stored("a")
    told = "teacher_model.path=.*: a likelihood record serves ChunkLikelihood, .* not ForwardKL: .* or kind hidden"
    with pytest.raises(UserError, match=told):
        training.build_models(configured("a", **keys, temperature=2.0), CPU)
    with pytest.raises(UserError, match="made at temperature 2 serves no other, and the loss is at 1"):
        training.build_models(configured("a", **keys, kd_loss=CHUNKS["kd_loss"]), CPU)
    assert not training.build_models(configured("a", **keys, **CHUNKS), CPU).teacher.answers_new_rows
    cfg = configured(teacher_folder, cache={"kind": "likelihood"})
    built = training.build_models(cfg, CPU, with_cache=False)
    told = "cache.kind=likelihood: is for a teacher of another tokenizer, and this one has the student's; take sampled"
    with pytest.raises(UserError, match=told):
        training.encoding_for(cfg.cache, built, cfg)
    cfg = configured("a", cache={"kind": "top_k"})
    built = training.build_models(cfg, CPU, with_cache=False)
    with pytest.raises(UserError, match=r"cache.kind=top_k: .* with cache.kind=hidden, or likelihood for ChunkLike"):
        training.encoding_for(cfg.cache, built, cfg)
