"""`make gpu` without a GPU: all of it at tiny sizes, what it makes of faults, each of CUDA's checks on a stand-in."""

import contextlib
import getpass
import importlib
import itertools
import json
import os
import socket
import sys
import time
import types
from pathlib import Path

import pytest
import stand_in_cuda
import torch

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def first_hour(monkeypatch):
    """Its modules by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(f"first_hour.{name}")


def test_all_of_it_runs_on_a_cpu(command_server, tmp_path, tmp_path_factory):
    """With a C++ compiler that fails, which is a fault in one check."""
    only = [
        "attention",
        "head",
        "branches: teacher",
        "AdamW",
        "halves",
        "CPU's",
        "compile, fp32",
        "tests",
        "long_full",
        "generation",
    ]
    only += ["single_device tiny/tiny_lora"]
    command = [str(BENCHMARKS / "gpu.py"), "--first-hour", "--device", "cpu", "--small"]
    command += ["--folder", str(tmp_path), "--only", *only]
    environment = os.environ | {"CXX": "/bin/false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}
    output = tmp_path_factory.mktemp("output")
    done = command_server.start(command, tmp_path, environment, output, starting=3).completed()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-2:] == [
        f"results: {tmp_path / 'RESULTS_CPU.md'}",
        f"to send us: {tmp_path / 'RESULTS_CPU.json'}",
    ]
    found = json.loads((tmp_path / "RESULTS_CPU.json").read_text())
    sections = ("branches", "tests", "configs", "steps", "head", "generation")
    by_name = {of["name"]: of for section in sections for of in found[section]}
    states = {name: of["state"] for name, of in by_name.items()}
    assert by_name["compile, fp32"]["state"] == "failed"
    assert "C++ compiler" in by_name["compile, fp32"]["reason"]
    assert "Traceback" in by_name["compile, fp32"]["error"]
    assert {name for name, state in states.items() if state == "needs CUDA"} == {
        name
        for name in states
        if any(part in name for part in ("flash", "flex", "Triton", "mm with", "int", "NF4", "halves", "CPU's"))
    }
    rest = {name: of for name, of in by_name.items() if of["state"] not in ("needs CUDA", "failed")}
    assert {of["state"] for of in rest.values()} == {"ok"}
    assert len(rest) >= 10
    tests = by_name["tests marked gpu"]["figures"]
    assert tests["skipped"] == tests["tests"] > 10
    assert len(by_name["kd_single_device tiny/tiny_lora"]["figures"]["losses"]) == 3
    assert by_name["long_full, sharded"]["figures"]["ranks"] == 2
    assert len(found["plan"]) == 2
    assert all(abs(of["ratio"] - 1) < of["bound"] <= 0.25 for of in found["plan"])
    assert [bar["held"] for bar in found["bars"]] == [None] * 3
    assert found["bars"][0]["figure"].endswith("times")
    assert found["machine"]["packages"]["torch"] == torch.__version__
    page = (tmp_path / "RESULTS_CPU.md").read_text()
    sections = ("Machine", "Bars", "Branches", "Tests", "Configs", "Steps", "plan beside", "Head", "Answers")
    assert all(f"\n## {section}" in page for section in sections)
    assert "Left out." not in page
    assert "| compile, fp32 | failed: " in page


FAULTS = """
import os, subprocess, sys, time
from first_hour.outcome import Deviation, NotMeasured

def near(settings): return Deviation(1e-6, 1e-5)
def far(settings): return Deviation(1e-2, 1e-5)
def nan(settings): return Deviation(float("nan"), 1.0)
def raises(settings): raise ValueError("of the item")
def killed(settings): print("about to", file=sys.stderr); os.kill(os.getpid(), 9)
def leaves(settings): print("distill-tune: a mistake", file=sys.stderr); sys.exit(2)
def hangs(settings): time.sleep(100)
def lacks(settings): raise NotMeasured("trl is not installed")
def child(settings): subprocess.run(["echo", "noise"]); return {"figure": 1}
"""


def test_nothing_that_an_item_does_ends_the_run(first_hour, tmp_path, monkeypatch):
    (tmp_path / "of_test.py").write_text(FAULTS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.getenv('PYTHONPATH', '')}")
    outcome, told = first_hour("outcome"), []
    names = ["near", "raises", "far", "killed", "nan", "leaves", "hangs", "lacks", "child"]
    items = [outcome.Item("s", name, f"of_test:{name}", seconds=1 if name == "hangs" else 60) for name in names]
    items.insert(3, outcome.Item("s", "on a card", "of_test:near", needs_cuda=True))
    settings = outcome.Settings("cpu", True, tmp_path)
    started = time.monotonic()
    found = first_hour("workers").work_through(items, settings, told.append, at_once=3)
    assert time.monotonic() - started < 50
    assert [result["name"] for result in found] == [item.name for item in items]
    assert len(told) == len(items)
    words = {result["name"]: first_hour("report").words(result) for result in found}
    assert words == {
        "near": "ok (off by 1.0e-06, may be 1e-05)",
        "raises": "failed: ValueError: of the item",
        "far": "off by 1.0e-02, may be 1e-05",
        "on a card": "needs CUDA",
        "killed": words["killed"],
        "nan": "off by nan, may be 1e+00",
        "leaves": "failed: distill-tune: a mistake",
        "hangs": words["hangs"],
        "lacks": "not measured: trl is not installed",
        "child": "ok",
    }
    assert words["killed"].startswith("failed: its process ended with status -9: about to")
    assert "in hangs" in {result["name"]: result for result in found}["hangs"]["error"]


def test_a_long_error_keeps_its_beginning_and_its_end(first_hour):
    shortened = first_hour("outcome").shortened
    assert shortened("a fault") == "a fault"
    long = shortened("Traceback" + "x" * 10_000 + "ValueError: of it")
    assert long.startswith("Traceback") and long.endswith("ValueError: of it") and len(long) < 8_100


def test_what_is_sent_names_neither_user_nor_machine(first_hour, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "node17.some.where")
    monkeypatch.setattr(getpass, "getuser", lambda: "jane")
    told = (
        f'File "{Path.home()}/x.py", {BENCHMARKS}/gpu.py, {sys.prefix}/a.py, /home/jane/b.py, /tmp/of_jane/c on node17'
    )
    found = first_hour("report").without_names({"state": "failed", "figures": [told], "off": 1.0})
    assert found == {
        "state": "failed",
        "figures": ['File "~/x.py", ./benchmarks/gpu.py, PYTHON/a.py, ~/b.py, /tmp/of_USER/c on HOST'],
        "off": 1.0,
    }


def test_a_bar_is_judged_on_cuda_alone(first_hour):
    figures = {"times_as_fast": 1.4, "flops": 6e12, "seconds": 1.0, "rate": 1e13, "peak_bytes": 25 * 2**30}
    figures |= {"expected_bytes": 20 * 2**30}
    results = [
        {"section": section, "name": name, "state": "ok", "figures": figures}
        for section, name in (("head", "head beside TRL's"), ("steps", "long"), ("steps", "long_int4"))
    ]
    bars = first_hour("bars")
    assert [(bar.figure, bar.held) for bar in bars.bars(results, "cuda")] == [
        ("1.40 times", False),
        ("60%", True),
        ("25.0 GiB", False),
    ]
    assert [bar.held for bar in bars.bars(results, "cpu")] == [None] * 3
    assert [of["held"] for of in bars.plan_ratios(results, small=False)] == [False, False]
    results[0] |= {"state": "not measured", "reason": "trl is not installed"}
    assert bars.bars(results, "cuda")[0].why == "not measured: trl is not installed"


# ---- What only CUDA has, on stand-ins


def on_cpu(first_hour, item):
    module, _, function = item.function.partition(":")
    settings = first_hour("outcome").Settings("cpu", True, Path())
    return getattr(importlib.import_module(module), function)(settings, **item.arguments)


def branches(first_hour, *parts):
    found = [
        item for item in first_hour("items").all_items(True) if item.needs_cuda and any(p in item.name for p in parts)
    ]
    assert found
    return found


def assert_near(first_hour, *parts):
    for item in branches(first_hour, *parts):
        deviation = on_cpu(first_hour, item)
        assert deviation.off <= deviation.bound, item.name


def varlen(q, k, v, starts, starts_k, longest, longest_k, *, scale, window_size, enable_gqa=False):
    """What torch.nn.attention.varlen documents, a row after another."""
    rows = []
    for start, stop in itertools.pairwise(starts.tolist()):
        one = [x[start:stop].transpose(0, 1)[None] for x in (q, k, v)]
        near = torch.ones(stop - start, stop - start, dtype=torch.bool).tril()
        near = near if window_size[0] < 0 else near.triu(-window_size[0])
        rows.append(
            torch.nn.functional.scaled_dot_product_attention(*one, attn_mask=near, scale=scale, enable_gqa=True)
        )
    return torch.cat(rows, 2)[0].transpose(0, 1)


def test_packed_flash(first_hour, monkeypatch):
    from distill_tune.models import packed_rows

    monkeypatch.setattr(packed_rows, "varlen_attn", varlen)
    monkeypatch.setattr(packed_rows, "_VARLEN_ARGUMENTS", {"window_size", "enable_gqa"})
    assert_near(first_hour, "flash")
    monkeypatch.setattr(packed_rows, "varlen_attn", lambda *a, **named: varlen(*a, **named) * 1.02)
    for item in branches(first_hour, "flash"):
        deviation = on_cpu(first_hour, item)
        assert deviation.off > deviation.bound


def test_flex(first_hour, monkeypatch):
    from distill_tune.models import packed_rows

    def flex(q, k, v, score_mod, block_mask, scale, enable_gqa):
        """What flex attention documents: scores, then ``score_mod``, then what the mask lets through."""
        groups, at = q.shape[1] // k.shape[1], torch.arange(q.shape[2])
        scores = (q @ k.repeat_interleave(groups, 1).transpose(2, 3)).float() * scale
        scores = score_mod(scores, 0, 0, at[:, None], at[None])
        seen = block_mask.mask_mod(0, 0, at[:, None], at[None])
        return (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v.repeat_interleave(groups, 1).float()).to(q.dtype)

    monkeypatch.setattr(packed_rows, "_compiled_flex_attention", lambda: flex)
    assert_near(first_hour, "flex")


def test_the_kernel(first_hour, monkeypatch):
    """In Triton's interpreter."""
    pytest.importorskip("triton")
    from distill_tune.losses import rows

    first_hour("head")
    monkeypatch.setattr(rows, "_has_kernel", lambda *_: True)
    assert_near(first_hour, "Triton kernel")
    real = rows.losses_and_gradient

    def wrong(*arguments):
        ce, kd, gradient = real(*arguments)
        return ce, kd * 1.02, gradient

    monkeypatch.setattr(rows, "losses_and_gradient", wrong)
    for item in branches(first_hour, "Triton kernel"):
        deviation = on_cpu(first_hour, item)
        assert deviation.off > deviation.bound
    monkeypatch.setattr(rows, "_has_kernel", lambda *_: False)
    with pytest.raises(first_hour("outcome").NotMeasured, match="Triton is not installed"):
        on_cpu(first_hour, branches(first_hour, "Triton kernel")[0])


def test_products_into_float32(first_hour, monkeypatch):
    real = torch.mm

    def mm(a, b, *, out_dtype):
        return real(a.to(out_dtype), b.to(out_dtype))

    monkeypatch.setattr(torch, "mm", mm)
    assert_near(first_hour, "mm with")
    monkeypatch.setattr(torch, "mm", lambda a, b, *, out_dtype: real(a, b).to(out_dtype))  # rounded on the way
    assert on_cpu(first_hour, *branches(first_hour, "mm with")).off > 1e-4


def test_a_step_and_quantised_teachers(first_hour, monkeypatch):
    """The CPU as a device beside itself; int4 by torchao's kind for any device."""
    import torchao.quantization
    from torchao.quantization import IntxWeightOnlyConfig, PerGroup
    from torchao.quantization.quant_primitives import MappingType

    assert_near(first_hour, "against the CPU's, fp32", "int8", "NF4")

    def int4(**arguments):
        return IntxWeightOnlyConfig(torch.int4, PerGroup(128), MappingType.ASYMMETRIC)

    monkeypatch.setattr(torchao.quantization, "Int4WeightOnlyConfig", int4)
    assert_near(first_hour, "int4, tile")


def test_memory_that_runs_out(first_hour, monkeypatch):
    from distill_tune import losses

    steps, real = first_hour("steps"), losses.distillation_loss

    @contextlib.contextmanager
    def too_little(whole, halves):
        most = []

        def loss(hidden, *arguments, **named):
            most.append(len(hidden))
            if len(hidden) > 100:
                raise torch.OutOfMemoryError("of the test")
            return real(hidden, *arguments, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(losses, "distillation_loss", loss)
            yield
        assert len(most) == 3

    monkeypatch.setattr(steps, "too_little_memory", too_little)
    assert_near(first_hour, "halves")
    monkeypatch.setattr(steps, "too_little_memory", lambda *_: contextlib.nullcontext())
    with pytest.raises(RuntimeError, match="memory did not run out"):
        on_cpu(first_hour, *branches(first_hour, "halves"))


def test_memory_is_limited_to_what_halves_need(first_hour, monkeypatch):
    """The allocator's numbers and torch.cuda's calls are made up; that it obeys them is CUDA's."""
    set_to, needed = [], {"whole": (1000, 1300), "halves": (500, 700)}
    running = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: needed[running[-1]][0])
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: needed[running[-1]][1])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(total_memory=10_000))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_to.append)
    too_little = first_hour("steps").too_little_memory
    with too_little(lambda: running.append("whole"), lambda: running.append("halves")):
        assert set_to == [pytest.approx(0.085)]
    assert set_to[1:] == [1.0]
    needed["halves"] = (900, 1100)
    with pytest.raises(RuntimeError, match="nothing lies between"):
        with too_little(lambda: running.append("whole"), lambda: running.append("halves")):
            pass


def test_what_the_card_is(first_hour, monkeypatch):
    """What torch.cuda answers is made up."""
    card = types.SimpleNamespace(name="NVIDIA Some 4090", major=8, minor=9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (23, 24))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    machine = first_hour("machine")
    monkeypatch.setattr(machine, "_driver", lambda: "570.1")
    found = machine.about(first_hour("outcome").Settings("cuda", False, Path()))
    assert (found["card"], found["cards"], found["capability"]) == ("NVIDIA Some 4090", 2, "8.9")
    assert (found["free_bytes"], found["memory_bytes"], found["driver"]) == (23, 24, "570.1")


def test_compiled_is_compared_with_eager(first_hour, monkeypatch):
    """Traced and differentiated as for CUDA; the code that is made of it is not."""
    from distill_tune.models import packed_rows

    monkeypatch.setenv("TORCH_COMPILE_BACKEND", "aot_eager")
    stand_in_cuda.give_operators_cpu_kernels()
    monkeypatch.setattr(packed_rows, "_row_by_row", stand_in_cuda.packed_flash)
    settings = first_hour("outcome").Settings("cpu", True, Path())
    deviation = first_hour("steps").compiled(settings, "fp32")
    assert deviation.off <= deviation.bound
