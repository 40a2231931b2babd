"""distill-tune beside its peers: the same weights, rows, batches, steps, dtype and threads, in fresh processes in turn.

    python benchmarks/run.py --against torchtune,trl,liger --peers PEERS_VENV --alpaca alpaca.json
    python benchmarks/run.py --case head,wide --rounds 5
    python benchmarks/run.py --case scaling --against torchtune

Run it with the Python of distill-tune's environment. torchtune is our own dependency and runs there; TRL and Liger run
in PEERS_VENV (`python -m venv PEERS_VENV`, then install torch and benchmarks/peers.txt with its pip). Prints tables as
they stand in RESULTS.md: medians over the rounds, and the ratio of the peer to us in each round, of which the median.
A run beside which others took more than a twentieth of the machine's CPU time is repeated, and refused the third time.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from cases import CASES, SCALING, WARM_UP, Case
from idle import run_alone

HERE = Path(__file__).parent
# Tokens; vocabulary, student's width, teacher's width
HEADS = {"cpu": (1_024, ["128256", "512", "1024"]), "cuda": (8_192, ["128256", "2048", "4096"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="torchtune", help="of torchtune, trl, liger (the head alone)")
    parser.add_argument("--case", default="head,memory,tiny,wide,alpaca,alpaca_tiny,long")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", type=Path, help="virtual environment of TRL and Liger")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="of the head alone; see also gpu.py")
    parser.add_argument("--alpaca", default="", help="a file of alpaca rows")
    options = parser.parse_args()
    peers = [peer for peer in options.against.split(",") if peer]
    if options.device == "cpu" and options.peers is None and {"trl", "liger"} & set(peers):
        parser.error("trl and liger need --peers")
    print(machine(options.peers), flush=True)
    names = [name for case in options.case.split(",") for name in (SCALING if case == "scaling" else [case])]
    for name in names:
        if name == "head":
            head_alone(options, peers)
        elif name == "memory":
            head_memory(options)
        elif (CASES | SCALING)[name].rows == "alpaca" and not options.alpaca:
            print(f"\n### {name}\nleft out: needs --alpaca")
        else:
            recipe((CASES | SCALING)[name], options, [peer for peer in peers if peer != "liger"])


def machine(peers: Path | None) -> str:
    model = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), ":")
    packages = {name: version(name) for name in ("torch", "torchtune", "torchao", "distill-tune")}
    if peers:
        listed = subprocess.run(
            [peers / "bin" / "pip", "list", "--format=json"], capture_output=True, check=True
        ).stdout
        wanted = ("trl", "liger-kernel", "transformers", "peft")
        packages |= {p["name"]: p["version"] for p in json.loads(listed) if p["name"].replace("_", "-") in wanted}
    shown = ", ".join(f"{name} {number}" for name, number in packages.items())
    cpu = model.partition(":")[2].strip()
    return f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, {shown}"


def python_of(tool: str, options: argparse.Namespace) -> str:
    own = options.device == "cpu" and tool in ("trl", "liger")  # on a GPU machine all stand in one environment
    return str(options.peers / "bin" / "python") if own else sys.executable


def call(tool: str, options: argparse.Namespace, script: str, *arguments: str) -> str:
    """A fresh process's output; all have the same number of threads, and the machine to themselves."""
    threads = str(os.cpu_count())
    paths = f"{HERE}{os.pathsep}{HERE.parent}"
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    command = [python_of(tool, options), str(HERE / script), *arguments]
    done = run_alone(
        f"{script} {tool}", lambda: subprocess.run(command, env=environment, capture_output=True, text=True)
    )
    if done.returncode:
        sys.exit(f"{script} {' '.join(arguments)} failed:\n{done.stderr[-4000:]}")
    return done.stdout


def head_alone(options: argparse.Namespace, peers: list[str]) -> None:
    tools = ["ours", "limit", *peers]
    found: dict[str, list[dict]] = {tool: [] for tool in tools}
    rows, sizes = HEADS[options.device]
    for _ in range(options.rounds):
        for tool in tools:
            output = call(tool, options, "head_of.py", tool, str(rows), *sizes, "2", options.device)
            found[tool].append(json.loads(output.splitlines()[-1]))
    v, d, d_t = sizes
    dtype = "fp32" if options.device == "cpu" else "bf16"
    print(f"\n### head: {rows:,} tokens, vocabulary {v}, student {d}, teacher {d_t}, {dtype}\n")
    print("| head | seconds | ratio to ours | added memory | CE | KL |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    seconds = {tool: [statistics.median(run["seconds"]) for run in found[tool]] for tool in tools}
    for tool in tools:
        ratio = statistics.median(a / b for a, b in zip(seconds[tool], seconds["ours"], strict=True))
        added = statistics.median(run["added_bytes"] for run in found[tool])
        losses = ["" if x is None else f"{x:.4f}" for x in found[tool][0]["losses"] or (None, None)]
        print(f"| {tool} | {statistics.median(seconds[tool]):.3f} | {ratio:.2f} | {added / 1e6:,.0f} MB | "
              f"{losses[0]} | {losses[1]} |")  # fmt: skip
    share = statistics.median(a / b for a, b in zip(seconds["limit"], seconds["ours"], strict=True))
    print(f"\nOurs runs at {share:.0%} of the bare products.", flush=True)


def head_memory(options: argparse.Namespace) -> None:
    print("\n### head: memory that ours adds, the budget being 268 MB, hidden states' gradient included\n")
    print("| tokens | added | of it for the gradient |\n| ---: | ---: | ---: |")
    for rows in (1_024, 8_192, 65_536):
        output = call("ours", options, "head_of.py", "ours", str(rows), "128256", "64", "64", "1", options.device)
        added = json.loads(output.splitlines()[-1])["added_bytes"]
        # hidden.grad, and the same before it is scaled
        print(f"| {rows:,} | {added / 1e6:,.0f} MB | {2 * rows * 64 * 4 / 1e6:,.0f} MB |", flush=True)


def recipe(case: Case, options: argparse.Namespace, peers: list[str]) -> None:
    tools = ["ours", "limit", *([] if case.ranks > 1 else peers)]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        call(
            "ours",
            options,
            "prepare.py",
            case.name,
            name,
            options.alpaca,
            str(case.steps * case.batch_size * case.ranks),
        )
        rows = json.loads((folder / "rows.json").read_text())
        found: dict[str, list[dict]] = {tool: [] for tool in tools}
        for _ in range(options.rounds):
            for tool in tools:
                if tool == "limit":
                    output = call("ours", options, "limit_of.py", name, case.name)
                    found[tool].append(json.loads(output.splitlines()[-1]))
                else:
                    call(tool, options, "step_of.py", tool, name, case.name)
                    found[tool].append(read_steps(folder / f"{tool}.jsonl"))
    print(f"\n### {case.name}: {describe(case, rows)}\n")
    tokens = sum(len(row["tokens"]) for row in counted(rows, case))
    supervised = sum(label != -100 for row in counted(rows, case) for label in row["labels"][1:])
    print("| tool | seconds a step | tokens/s | supervised tokens/s | ratio to ours | peak memory | first losses |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | --- |")
    total = {tool: [sum(run["seconds"]) for run in found[tool]] for tool in tools}
    for tool in tools:
        seconds, num_steps = statistics.median(total[tool]), case.steps - WARM_UP
        ratio = statistics.median(a / b for a, b in zip(total[tool], total["ours"], strict=True))
        peak = statistics.median(run.get("peak_bytes", 0) for run in found[tool])
        peak_shown = f"{peak / 1e9:.2f} GB" if peak else ""
        print(f"| {tool} | {seconds / num_steps:.3f} | {tokens / seconds:,.0f} | {supervised / seconds:,.0f} | "
              f"{ratio:.2f} | {peak_shown} | {found[tool][0].get('losses', '')} |")  # fmt: skip
    share = statistics.median(a / b for a, b in zip(total["limit"], total["ours"], strict=True))
    print(f"\nOurs runs at {share:.0%} of the bare products.", flush=True)


def counted(rows: list[dict], case: Case) -> list[dict]:
    return rows[WARM_UP * case.batch_size * case.ranks :]


def describe(case: Case, rows: list[dict]) -> str:
    tokens = sum(len(row["tokens"]) for row in rows)
    supervised = sum(label != -100 for row in rows for label in row["labels"][1:])
    batches = [rows[start : start + case.batch_size] for start in range(0, len(rows), case.batch_size)]
    padded = sum(len(batch) * max(len(row["tokens"]) for row in batch) for batch in batches)
    ranks = f" on each of {case.ranks} processes" if case.ranks > 1 else ""
    return (
        f"vocabulary {case.vocab_size:,}, {case.rows} rows, batch {case.batch_size}{ranks}, {tokens / len(rows):.0f} "
        f"tokens a row, {supervised / tokens:.0%} supervised, {1 - tokens / padded:.0%} padding where there is any"
    )


def read_steps(path: Path) -> dict:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    at = [line["at"] for line in lines]
    seconds = [after - before for before, after in zip(at[WARM_UP - 1 :], at[WARM_UP:], strict=False)]
    losses = ", ".join(f"{name} {value:.4f}" for name, value in lines[0].items() if name.endswith("loss"))
    return {"seconds": seconds, "peak_bytes": lines[-1]["peak_bytes"], "losses": losses}


if __name__ == "__main__":
    main()
