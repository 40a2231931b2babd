"""On-policy distillation on the demo's models: seconds a step beside TRL's, and what it is worth.

    python benchmarks/on_policy.py speed [--peers PEERS_VENV] [--against gkd,distillation] [--steps 8] [--rounds 3]
    python benchmarks/on_policy.py gain --folder OUT [--seeds 3] [--epochs 3] [--markdown GAIN.md]

speed: 16 prompts a step, answers of up to 128 tokens drawn at temperature 1, reverse KL, all tools in fresh processes
in turn; medians over the steps without the first two, and the ratio to ours of each round, of which the median. A run
beside which others took more than a twentieth of the machine's CPU time is repeated, and refused the third time,
unless ``--beside-others``. gain: students that have taken equally many steps, and one of plain KD that has trained as
long; the means over seeds, and the answers of each to three held-out questions.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from held_out import figures, loaded
from idle import run_alone, share_of_others
from omegaconf import OmegaConf
from on_policy_step_of import NEW_TOKENS, ROWS

from distill_tune import config, data, losses
from distill_tune.config.files import demo_model_folder, find_config
from distill_tune.config.load import load_config
from distill_tune.data.batch import joined
from distill_tune.generation import Decoder, Request, Sampling, stream_of
from distill_tune.rollouts.prompts import answered, prompt_of

HERE = Path(__file__).parent
EPOCH = 75  # steps
HELD_OUT = {"_component_": "distill_tune.data.docstrings", "num_rows": 200, "held_out": True, "min_characters": 250}
SHOWN = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["speed", "gain"])
    parser.add_argument("--peers", type=Path, help="virtual environment of TRL; default this one")
    parser.add_argument("--against", default="gkd,distillation")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--beside-others", action="store_true", help="measure though the machine is not idle")
    parser.add_argument("--folder", type=Path, default=Path("outputs/on_policy_gain"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3, help="of 75 steps of 16 rows, before the on-policy one")
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    speed(options) if options.what == "speed" else gain(options)


# ---- Seconds a step


def speed(options: argparse.Namespace) -> None:
    tools = ["ours", *filter(None, options.against.split(","))]
    found: dict[str, list[float]] = {tool: [] for tool in tools}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for model in ("student", "teacher"):
            shutil.copytree(demo_model_folder(model), folder / model)
        (folder / "prompts.json").write_text(json.dumps(prompts(ROWS * options.steps)))
        for _ in range(options.rounds):
            for tool in tools:
                found[tool].append(statistics.median(call(tool, folder, options)[2:]))
    print(f"\n### {ROWS} prompts a step, answers of up to {NEW_TOKENS} tokens\n")
    print("| tool | seconds a step | ratio to ours |\n| --- | ---: | ---: |")
    for tool in tools:
        ratio = statistics.median(its / ours for its, ours in zip(found[tool], found["ours"], strict=True))
        print(f"| {tool} | {statistics.median(found[tool]):.2f} | {ratio:.2f} |")


def prompts(count: int) -> list[list[int]]:
    cfg = load_config(find_config("on_policy"), [f"dataset.num_rows={count}"])
    (rows,), _ = data.prepare_rows(cfg.dataset, config.instantiate(cfg.tokenizer), cfg.tokenizer)
    return [prompt_of(*rows[number][:2]).tolist() for number in range(len(rows))]


def call(tool: str, folder: Path, options: argparse.Namespace) -> list[float]:
    """The seconds of each step, of a fresh process."""
    own = options.peers and tool != "ours"
    python = str(options.peers / "bin" / "python") if own else sys.executable
    paths = f"{HERE}{os.pathsep}{HERE.parent}"
    environment = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count()), "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"}
    command = [python, str(HERE / "on_policy_step_of.py"), tool, str(folder), str(options.steps)]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    if options.beside_others:
        done, share = share_of_others(run)
        print(f"{tool}: others took {share:.0%} of the machine's CPU time", flush=True)
    else:
        done = run_alone(tool, run)
    if done.returncode:
        sys.exit(f"{tool} failed:\n{done.stderr[-4000:]}")
    return json.loads((folder / f"{tool}.json").read_text())


# ---- What it is worth


def gain(options: argparse.Namespace) -> None:
    options.folder.mkdir(parents=True, exist_ok=True)
    of_seeds = [students(options.folder / f"seed_{seed}", seed, options.epochs) for seed in range(options.seeds)]
    plan, names = held_out(), list(of_seeds[0])
    folders = {"teacher": demo_model_folder("teacher"), "base student": demo_model_folder("student")}
    folders |= {f"{name} {seed}": found[name][0] for seed, found in enumerate(of_seeds) for name in names}
    compared = figures(folders, HELD_OUT)
    own = {name: on_own_answers(folders[name], plan) for name in folders if name != "teacher"}
    lines = [
        "| student | seconds | perplexity | KL, held-out rows | KL, its own answers | tokens of an answer | cut |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in ["base student", *names]:
        rows = [name] if name in compared else [f"{name} {seed}" for seed in range(options.seeds)]
        seconds = statistics.fmean(found[name][1] for found in of_seeds) if name in names else 0.0
        values = [(compared[row].perplexity, compared[row].kl, *own[row][:3]) for row in rows]
        means = [statistics.fmean(column) for column in zip(*values, strict=True)]
        spread = [
            f" +- {statistics.stdev(column):.3f}" if len(rows) > 1 else "" for column in zip(*values, strict=True)
        ]
        cells = [f"{mean:.3f}{its}" for mean, its in zip(means[:3], spread, strict=False)]
        lines.append(f"| {name} | {seconds:.0f} | {' | '.join(cells)} | {means[3]:.0f} | {means[4]:.0%} |")
    answers = [f"\n{row}:\n" + "\n".join(f"    {text!r}" for text in own[row][3]) for row in own if row[-1] in "0t"]
    text = "\n".join([*lines, *answers]) + "\n"
    print(text)
    if options.markdown:
        options.markdown.write_text(text)


def students(folder: Path, seed: int, epochs: int) -> dict[str, tuple[Path, float]]:
    """The model of each way to train one, and the seconds of its steps, with those of the run that it went on from."""

    def train(name: str, cfg: str, *settings: str, before: float = 0.0) -> tuple[Path, float]:
        out = folder / name
        if not (out / "model").is_dir():
            command = ["run", "kd_single_device", "--config", cfg, f"seed={seed}", f"max_steps_per_epoch={EPOCH}"]
            run(*command, *settings, f"output_dir={out}")
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return out / "model", before + sum(line["seconds"] for line in lines)

    found = {
        "fine-tuned": train("fine_tuned", "tiny", "kd_ratio=0", "optimizer.lr=3e-4", f"epochs={epochs + 1}"),
        "KD": train("kd", "tiny", f"epochs={epochs + 1}"),
    }
    first, seconds = found["KD, from which on-policy begins"] = train("kd_first", "tiny", f"epochs={epochs}")
    found["KD, then on-policy"] = train("on_policy", "on_policy", f"model.path={first}", "epochs=1", before=seconds)
    more = round((found["KD, then on-policy"][1] / found["KD"][1]) * (epochs + 1))
    if more > epochs + 1:
        found["KD, as long as on-policy"] = train("kd_longer", "tiny", f"epochs={more}")
    if not (folder / "answers" / "answers.jsonl").is_file():
        run("run", "generate", "--config", "teacher_answers", f"seed={seed}", f"output_dir={folder / 'answers'}")
    rows = f"dataset={{_component_: distill_tune.data.chat, source: {folder / 'answers' / 'answers.jsonl'}}}"
    found["KD on the teacher's answers"] = train("kd_on_answers", "tiny", rows, f"epochs={epochs + 1}")
    return found


def run(*command: str) -> None:
    subprocess.run([sys.executable, "-m", "distill_tune", *command], check=True, stdout=subprocess.DEVNULL)


def held_out() -> data.StepPlan:
    cfg = load_config(find_config("tiny"))
    rows, _ = data.prepare_rows(OmegaConf.create(HELD_OUT), config.instantiate(cfg.tokenizer), cfg.tokenizer)
    return data.StepPlan(rows, batch_size=ROWS, shuffle=False)


@torch.no_grad()
def on_own_answers(folder: Path, plan: data.StepPlan) -> tuple[float, float, float, Sequence[str]]:
    """KL(student || teacher) a token of the student's answers, their mean length, the share that is cut, and some."""
    student, teacher = map(loaded, (folder, demo_model_folder("teacher")))
    tokenizer = config.instantiate(load_config(find_config("tiny")).tokenizer)
    rows = [row for step in range(plan.steps_per_epoch) for row in plan.rows(0, step)]
    decoder = Decoder(student.model, {tokenizer.eos_id}, Sampling(max_new_tokens=NEW_TOKENS))
    requests = [
        Request(prompt_of(*row[:2]).tolist(), stream_of(number), min(NEW_TOKENS, 256 - len(prompt_of(*row[:2]))))
        for number, row in enumerate(rows)
    ]
    answers = decoder.generate(requests)
    total = num_tokens = 0.0
    for start in range(0, len(rows), ROWS):
        batch = joined([answered(row, it.tokens) for row, it in zip(rows, answers, strict=True)][start : start + ROWS])
        mine = student(batch)
        sums = losses.distillation_loss(
            mine.hidden,
            mine.projection,
            batch.targets[0, batch.supervised_positions],
            teacher(batch),
            kd_ratio=1.0,
            divergence=losses.ReverseKL(),
        )
        total, num_tokens = total + sums.kd.item(), num_tokens + len(batch.supervised_positions)
    cut = sum(answer.finish_reason == "length" for answer in answers) / len(answers)
    shown = [tokenizer.decode(list(answer.tokens)) for answer in answers[:SHOWN]]
    return total / num_tokens, num_tokens / len(answers), cut, shown


if __name__ == "__main__":
    main()
