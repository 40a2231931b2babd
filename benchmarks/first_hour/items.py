"""All that is checked, run and measured, section by section."""

from typing import Any

from distill_tune.config.files import config_names
from first_hour.outcome import Item

MACHINE, BRANCHES, TESTS, CONFIGS = "machine", "branches", "tests", "configs"
STEPS, HEAD, GENERATION = "steps", "head", "generation"
DTYPES = ("fp32", "bf16")
_INT8, _INT4, _NF4 = (
    {"_component_": name}
    for name in (
        "torchao.quantization.Int8WeightOnlyConfig",
        "torchao.quantization.Int4WeightOnlyConfig",
        "distill_tune.teachers.NF4",
    )
)
_INT4_PACKED = _INT4 | {"int4_packing_format": "tile_packed_to_4d"}
KINDS = ("sampled", "top_k", "hidden")
_STORED: dict[str, dict[str, Any]] = {
    "of a teacher in int8": {"teacher": [f"+teacher_quantizer={_INT8['_component_']}"]},
    "of a streamed teacher": {"teacher": ["+teacher_offload=True"]},
    "of a teacher of Hugging Face": {"name": "signals/hugging_face_teacher"},
    "compiled": {"both": ["+compile=True"]},
}
# Single and sharded; the next three on one device alone; the last by torchtune too.
CASES = ("long", "long_full")
SINGLE_CASES = ("alpaca", "long_int4", "long_compiled")
CASES_OF_TORCHTUNE = ("long", "alpaca")


def all_items(small: bool) -> list[Item]:
    return [Item(MACHINE, "machine", "first_hour.machine:about"), *_branches(), *_runs(small), *_figures()]


def _branches() -> list[Item]:
    def branch(name: str, function: str, needs_cuda: bool = False, **arguments: Any) -> Item:
        return Item(BRANCHES, name, f"first_hour.{function}", arguments, needs_cuda)

    found = [
        branch("attention: packed flash, bf16", "attention:packed_flash", True),
        branch("attention: packed flash with a window, bf16", "attention:packed_flash", True, window=7),
    ]
    for dtype in DTYPES:
        found += [
            branch(f"attention: flex with a cap, {dtype}", "attention:flex", True, dtype=dtype),
            branch(f"attention: flex with a cap and a window, {dtype}", "attention:flex", True, dtype=dtype, window=7),
            branch(f"attention: a call a row, {dtype}", "attention:row_by_row", dtype=dtype),
            branch(f"attention: a call a row, window, {dtype}", "attention:row_by_row", dtype=dtype, window=7),
            branch(f"attention: a call a row, cap, {dtype}", "attention:row_by_row", dtype=dtype, softcap=2.0),
        ]
    settings: dict[str, dict[str, Any]] = {
        "plain": {},
        "temperature": {"temperature": 2.5},
        "divergence alone": {"kd_ratio": 1.0},
        "caps": {"softcap": 5.0, "teacher_softcap": 30.0},
        "differing vocabularies": {"same_vocabulary": False},
        "all of them": {"temperature": 2.5, "softcap": 5.0, "teacher_softcap": 30.0, "same_vocabulary": False},
    }
    for dtype in DTYPES:
        for name, arguments in settings.items():
            found.append(branch(f"head: Triton kernel, {name}, {dtype}", "head:kernel", True, dtype=dtype, **arguments))
        found.append(branch(f"head: losses and gradients, {dtype}", "head:whole", dtype=dtype))
    found += [
        branch("head: torch.mm with out_dtype=float32", "head:product", True),
        *(branch(f"a step against the CPU's, {dtype}", "steps:against_cpu", True, dtype=dtype) for dtype in DTYPES),
        branch("teacher_offload: the same bits", "loads:offloaded"),
        branch("teacher_quantizer: int8", "loads:quantised", True, quantizer=_INT8),
        branch("teacher_quantizer: NF4", "loads:quantised", True, quantizer=_NF4),
        branch("teacher_quantizer: int4", "loads:int4", True, quantizer=_INT4),
        branch("teacher_quantizer: int4, tile_packed_to_4d", "loads:int4", True, quantizer=_INT4_PACKED),
        branch("AdamW, fused", "steps:fused_adamw"),
        branch("out of memory: once more in halves", "steps:halved", True),
        *(branch(f"generation, {dtype}", "generation:against_whole_rows", dtype=dtype) for dtype in DTYPES),
        *(branch(f"compile, {dtype}", "steps:compiled", dtype=dtype) for dtype in DTYPES),
    ]
    return found


def _runs(small: bool) -> list[Item]:
    names = [name for name in config_names() if name.startswith(("tiny/", "signals/"))]
    tiny = [name for name in names if name.startswith("tiny/")]
    two = {"processes": 2} if small else {}
    single, several = "first_hour.configs:single_device", "first_hour.configs:distributed"
    stored = "first_hour.configs:stored"
    return [
        Item(TESTS, "tests marked gpu", "first_hour.suite:gpu_tests", seconds=1800),
        *(Item(CONFIGS, f"kd_single_device {name}", single, {"name": name}) for name in names),
        *(Item(CONFIGS, f"kd_distributed {name}", several, {"name": name, **two}) for name in tiny),
        *(Item(CONFIGS, f"a cache filled and read: {kind}", stored, {"kind": kind}) for kind in KINDS),
        *(
            Item(CONFIGS, f"a cache filled and read: {name}", stored, {"kind": KINDS[0], **settings})
            for name, settings in _STORED.items()
        ),
    ]


def _figures() -> list[Item]:
    def needs_cuda(case: str) -> bool:
        return case == "long_int4"

    return [
        Item(HEAD, "head beside TRL's", "first_hour.measures:head_beside_trl", alone=True),
        Item(GENERATION, "generation", "first_hour.generation:speed", alone=True),
        *(
            Item(STEPS, case, "first_hour.measures:step", {"case": case}, needs_cuda(case), alone=True)
            for case in (*CASES, *SINGLE_CASES)
        ),
        *(
            Item(
                STEPS, f"{case}, torchtune", "first_hour.measures:step", {"case": case, "tool": "torchtune"}, alone=True
            )
            for case in CASES_OF_TORCHTUNE
        ),
        *(
            Item(STEPS, f"{case}, sharded", "first_hour.measures:sharded_step", {"case": case}, alone=True)
            for case in CASES
        ),
    ]
