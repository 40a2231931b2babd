"""What the estimates count, part by part; tests/parity holds the sum to measured steps."""

import pytest
import torch
from omegaconf import OmegaConf
from tiny import model_arguments

import distill_tune._torchtune_compat  # noqa: F401  (before torchtune)
from distill_tune import models
from distill_tune.data.shape import Shape
from distill_tune.evaluation.duration import seconds_on, work_of
from distill_tune.evaluation.estimate import memory_of
from distill_tune.losses import HiddenLoss
from distill_tune.teachers import EMA, LiveTeacher
from distill_tune.training.gpus import find_gpu

from torchtune.models.llama2 import llama2
from torchtune.models.llama3_2 import llama3_2, lora_llama3_2

ADAMW = {"_component_": "torch.optim.AdamW", "lr": 1e-4}
SHAPE = Shape((20, 30), (10, 15))


def pair(hidden_loss=None):
    with torch.device("meta"):
        student, teacher = llama3_2(**model_arguments()), llama3_2(**model_arguments(width=64, layers=3))
    live = LiveTeacher(teacher)
    if hidden_loss is not None:
        models.match_layers(student, live, hidden_loss)
    return student, live


def memory(settings=None, shape=SHAPE, shards=None, hidden_loss=None):
    cfg = OmegaConf.create({"device": "cpu", "optimizer": ADAMW, **(settings or {})})
    return memory_of(cfg, *pair(hidden_loss), shape, shards)


def work(settings=None, shapes=(SHAPE,), steps=1, shards=1):
    return work_of(OmegaConf.create(settings or {}), *pair(), shapes, steps, shards)


def num_bytes(model):
    return 4 * sum(p.numel() for p in model.parameters())


def test_a_teacher_with_a_longer_prompt_takes_more_while_the_student_does_not():
    plain, longer = memory(), memory(shape=Shape((20, 30), (10, 15), teacher_lengths=(120, 120)))
    assert longer.teacher_activations > 3 * plain.teacher_activations
    assert (longer.activations, longer.head) == (plain.activations, plain.head)


def test_a_loss_between_layers_keeps_the_teachers_states_and_has_projectors_that_train():
    plain, between = memory(), memory({"hidden_loss": {}}, hidden_loss=HiddenLoss("uniform"))
    of_layer = 4 * 64 * sum(SHAPE.lengths)
    assert between.teacher_activations - plain.teacher_activations == of_layer  # the last one is there anyway
    projectors = 2 * 4 * 32 * 64
    assert between.student - plain.student == between.gradients - plain.gradients == projectors
    assert between.optimizer - plain.optimizer == pytest.approx(2 * projectors, rel=0.001)
    compared, read, gradients = 25 * 64 * 4, 25 * 32 * 4, 50 * 32 * 4
    assert between.hidden_loss == of_layer + 2 * (compared + read + gradients)
    assert plain.hidden_loss == 0


def test_an_average_of_a_lora_student_shares_what_is_frozen():
    with torch.device("meta"):
        student = lora_llama3_2(lora_attn_modules=["q_proj"], lora_rank=4, lora_alpha=8, **model_arguments())
    models.freeze_all_but_adapters(student)
    teacher = EMA()
    teacher.check(student, None, None)
    cfg = OmegaConf.create({"device": "cpu", "optimizer": ADAMW})
    adapters = sum(p.numel() for p in student.parameters() if p.requires_grad)
    assert memory_of(cfg, student, teacher, SHAPE).teacher == 4 * adapters


def test_a_streamed_teacher_is_told_with_its_host_memory():
    _, live = pair()
    streamed = memory({"teacher_offload": True})
    assert streamed.host == 4 * sum(p.numel() for p in live.model.layers.parameters())
    assert memory().host == 0
    assert streamed.teacher < memory().teacher


def test_sums_of_gradients_that_wait_for_the_last_micro_batch_are_whole_on_each_process():
    student, _ = pair()
    each_step = memory(shards=4)
    accumulated = memory({"gradient_accumulation_steps": 2}, shards=4)
    assert each_step.gradients == num_bytes(student) / 4
    assert accumulated.gradients == num_bytes(student)  # which its shards take the place of


def test_sharding_gathers_weights_in_one_process_too():
    student, live = pair()
    plain, sharded = memory(), memory(shards=1)
    assert sharded.student - plain.student == num_bytes(student)  # of two layers, both are there at a time
    assert sharded.teacher - plain.teacher == num_bytes(live.model) - num_bytes(live.model.layers[2])
    offloaded = memory({"fsdp_cpu_offload": True}, shards=1)
    assert (offloaded.student, offloaded.optimizer, offloaded.gradients) == (num_bytes(student), 0, 0)


def test_layers_that_stay_gathered_and_modules_that_do_not_are_counted_so():
    def untied(settings):
        with torch.device("meta"):
            student, teacher = (llama2(**model_arguments(layers=4)) for _ in range(2))
        cfg = OmegaConf.create({"device": "cpu", "optimizer": ADAMW, **settings})
        return memory_of(cfg, student, LiveTeacher(teacher), SHAPE, 1), student

    freed, student = untied({})
    kept, _ = untied({"fsdp_reshard_after_forward": False})
    assert kept.student - freed.student == 2 * num_bytes(student.layers[0])
    assert kept.teacher == freed.teacher
    own, _ = untied({"custom_sharded_layers": ["tok_embeddings", "output"]})
    assert freed.student - own.student == freed.teacher - own.teacher == num_bytes(student.output)


def test_gathered_weights_come_in_the_dtype_of_products():
    cfg = OmegaConf.create({"device": "cpu", "optimizer": ADAMW})
    student, live = pair()
    models.compute_in(student, torch.bfloat16)
    plain, sharded = (memory_of(cfg, student, live, SHAPE, shards) for shards in (None, 1))
    assert sharded.student == 1.5 * plain.student
    assert plain.head - sharded.head == num_bytes(student.tok_embeddings) / 2  # the loss casts it no more
    casts = num_bytes(student.layers[0]) / 2  # of each layer but the last, kept for its backward pass
    assert plain.activations - sharded.activations == pytest.approx(2 * casts, rel=0.1)


def test_what_processes_gather_and_sum_is_counted():
    student, live = pair()
    layers = 4 * sum(p.numel() for p in student.layers.parameters())
    micro_batch = num_bytes(student) + layers + num_bytes(live.model)  # layers again for the backward pass
    assert work().between_cards == work(shards=1).from_host == 0
    assert work(shapes=[SHAPE] * 2, shards=4).between_cards == 3 / 4 * (2 * micro_batch + num_bytes(student))
    kept = work({"fsdp_reshard_after_forward": False}, shards=4).between_cards
    assert kept == 3 / 4 * (micro_batch - layers + num_bytes(student))


def test_what_is_streamed_is_counted_for_each_micro_batch():
    _, live = pair()
    layers = 4 * sum(p.numel() for p in live.model.layers.parameters())
    assert work({"teacher_offload": True}, shapes=[SHAPE] * 3).from_host == 3 * layers


def test_checkpointing_computes_the_students_layers_a_second_time():
    plain, again = work(), work({"enable_activation_checkpointing": True})
    assert again.teacher == plain.teacher
    assert plain.student < again.student < 4 / 3 * plain.student


def test_a_step_takes_as_long_as_the_slower_of_products_and_links():
    gpu = find_gpu("4090")
    plain = seconds_on(gpu, work(), torch.float32, torch.float32)
    assert plain.products == pytest.approx((work().student + work().teacher) / gpu.fp32 / 0.4)
    streamed = seconds_on(gpu, work({"teacher_offload": True}), torch.float32, torch.float32)
    assert (
        streamed._replace(host=0).total
        == streamed.from_host
        == pytest.approx(work({"teacher_offload": True}).from_host / 32e9 / 0.7)
    )
    assert seconds_on(find_gpu("V100"), work(), torch.bfloat16, torch.float32) is None


def test_short_rows_take_as_long_as_the_host_takes_to_start_their_layers():
    student, live = pair()
    layers = len(student.layers), len(live.model.layers)
    for settings, times in (({}, 3), ({"enable_activation_checkpointing": True}, 4)):
        found = work(settings, shapes=[SHAPE] * 5)
        assert found.passes == 5 * (times * layers[0] + layers[1])
        seconds = seconds_on(find_gpu("H200"), found, torch.bfloat16, torch.bfloat16)
        assert seconds.total == seconds.host == pytest.approx(0.002 * found.passes)


def test_replicas_hand_round_the_sums_of_their_gradients():
    def between(replicas: int, shards: int) -> float:
        cfg = OmegaConf.create({"device": "cpu", "optimizer": ADAMW, "data_parallel_replicate_dim": replicas})
        return work_of(cfg, *pair(), [SHAPE], 1, shards).between_cards

    gradients = 4 * sum(p.numel() for p in pair()[0].parameters())
    assert between(1, 1) == 0
    assert between(4, 1) == pytest.approx(1.5 * gradients)
    assert between(2, 2) - between(1, 2) == pytest.approx(gradients / 2)
