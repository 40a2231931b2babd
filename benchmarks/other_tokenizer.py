"""What a teacher of another tokenizer is worth on the demo's models, and what a step with it costs.

    python benchmarks/other_tokenizer.py gain --folder OUT [--teacher FOLDER] [--same FOLDER] [--markdown GAIN.md]
    python benchmarks/other_tokenizer.py cost --same FOLDER [--rounds 5]

gain: plain fine-tuning and each method, the same steps, over several seeds; bits per byte of answers that no model has
seen, mean and standard deviation over the seeds. ``--same`` is a teacher of the same size with the student's tokenizer,
the most that can be had (``assets/make_demo_models.py --only bpe_teacher --same-tokens``). Runs that are there already
are not run again. cost: seconds a step in turn, both teachers of one size, medians and their ratio; a run beside which
others took more than a twentieth of the machine's CPU time is repeated.
"""

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from held_out import figures
from idle import run_alone

from distill_tune.config.files import demo_model_folder

HELD_OUT = {"_component_": "distill_tune.data.docstrings", "num_rows": 300, "held_out": True, "min_characters": 250}
METHODS = {
    "byte-prefix mass": [],
    "byte-prefix mass, reverse KL": ["kd_loss=distill_tune.losses.ReverseKL"],
    "ChunkLikelihood": ["kd_loss=distill_tune.losses.ChunkLikelihood"],
    "UniversalLogit": ["kd_loss=distill_tune.losses.UniversalLogit"],
    "Gold": ["kd_loss=distill_tune.losses.Gold"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["gain", "cost"])
    parser.add_argument("--folder", type=Path, default=Path("outputs/other_tokenizer_gain"))
    parser.add_argument("--teacher", type=Path, default=demo_model_folder("bpe_teacher"))
    parser.add_argument("--same", type=Path, help="a teacher of the same size with the student's tokenizer")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2, help="of 75 steps of 16 rows")
    parser.add_argument("--kd-ratio", type=float, default=0.5, help="of all methods; two of them need cross-entropy")
    parser.add_argument("--only", default="", help="names of methods, with commas")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    gain(options) if options.what == "gain" else cost(options)


# ---- What it is worth


def gain(options: argparse.Namespace) -> None:
    wanted = [name for name in options.only.split(",") if name] or list(METHODS)
    runs = {"fine-tuned": ["--config", "tiny", "kd_ratio=0", "optimizer.lr=3e-4"]}
    for name in wanted:
        teacher = f"teacher_model.path={options.teacher.resolve()}"
        runs[name] = ["--config", "other_tokenizer", teacher, *METHODS[name]]
    if options.same:
        runs["the same tokenizer"] = ["--config", "other_tokenizer", f"teacher_model.path={options.same.resolve()}"]
    options.folder.mkdir(parents=True, exist_ok=True)
    lines = ["| student | bits per byte | seconds a step |", "| --- | ---: | ---: |"]
    lines.append(f"| base student | {bits_per_byte(demo_model_folder('student')):.4f} | |")
    for name, run in runs.items():
        found, seconds = [], []
        for seed in range(options.seeds):
            out = options.folder / f"{name.replace(' ', '_').replace(',', '')}_{seed}"
            share = [] if name == "fine-tuned" else [f"kd_ratio={options.kd_ratio}"]
            train([*run, *share, f"seed={seed}", f"epochs={options.epochs}"], out)
            found.append(bits_per_byte(out / "model"))
            seconds += seconds_of(out)
        spread = f" +- {statistics.stdev(found):.4f}" if len(found) > 1 else ""
        lines.append(f"| {name} | {statistics.fmean(found):.4f}{spread} | {statistics.median(seconds):.2f} |")
        print("\n".join(lines), flush=True)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n")


def train(run: list[str], out: Path) -> None:
    if not (out / "model").is_dir():
        command = [sys.executable, "-m", "distill_tune", "run", "kd_single_device", *run]
        subprocess.run([*command, f"output_dir={out}"], check=True, stdout=subprocess.DEVNULL)


def seconds_of(out: Path) -> list[float]:
    return [json.loads(line)["seconds"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def bits_per_byte(folder: Path) -> float:
    """Of the answers of held-out rows, by a student of the demo's tokenizer."""
    return figures({folder.name: folder}, HELD_OUT)[folder.name].bits_per_byte


# ---- What it costs


def cost(options: argparse.Namespace) -> None:
    """A step of 16 rows with a teacher of either tokenizer."""
    found: dict[str, list[float]] = {"other": [], "same": []}
    folders = {"other": options.teacher, "same": options.same}
    with tempfile.TemporaryDirectory() as name:
        for number in range(options.rounds):
            for kind, folder in folders.items():
                out = Path(name) / f"{kind}_{number}"
                run = ["--config", "other_tokenizer", f"teacher_model.path={folder.resolve()}", "epochs=1"]
                run_alone(kind, functools.partial(train, run, out))
                found[kind].append(statistics.median(seconds_of(out)[5:]))
    ratio = statistics.median(other / same for other, same in zip(found["other"], found["same"], strict=True))
    shown = {kind: statistics.median(seconds) for kind, seconds in found.items()}
    print(f"seconds a step: another tokenizer {shown['other']:.3f}, the same {shown['same']:.3f}; {ratio:.2f} times")


if __name__ == "__main__":
    main()
