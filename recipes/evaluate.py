"""Measure models on documents that none of them was trained on: the teacher, the student before and after, any others.

    distill-tune run evaluate --config tiny
    distill-tune run evaluate --config tiny 'models={fine-tuned: outputs/finetuned, shipped: outputs/student.gguf}'
    distill-tune run evaluate --config tiny tasks=docstring_choice

The documents are those of the config's dataset_test, or without one of its dataset_val: whole ones, in each model's own
tokens. Written to output_dir/evaluation are table.md, results.json and samples.jsonl with a line a document. On several
GPUs each has the whole models, and its share of the documents; the figures are the same.
"""

import time

from omegaconf import DictConfig

from distill_tune import config, evaluation, training


def main(cfg: DictConfig) -> None:
    # ---- Processes and settings
    device = training.init_distributed(cfg.device, cfg.get("collective_timeout_seconds", 600))
    training.find_dtype(cfg.dtype, device)
    seed = training.seed_everything(cfg.get("seed"))
    training.use_day(cfg.get("date"))

    # ---- Models without weights, and every document as each of them reads it
    tokenizer = config.build("tokenizer", cfg.tokenizer)
    tasks = evaluation.tasks_of(cfg, tokenizer)
    prepared = evaluation.prepare_evaluation(cfg, device, tokenizer)
    sampling = evaluation.sampling_of(cfg)
    print(prepared.documents.told())
    numbers = range(training.rank(), len(prepared.documents), training.num_ranks())  # this rank's documents
    asked = [number for number in numbers if number < cfg.get("num_answers", 100)]

    # ---- One after another: the teacher first, which stays, the others beside it
    timed = evaluation.Timed(prepared, device, cfg.get("measure_speed", True))
    found, teacher = {}, None
    for model in prepared.models:
        print(f"{model.label}: {model.kind} {model.path}")
        reader, pace = timed.load(model)
        tokens, started = {}, time.perf_counter()
        with training.Progress(len(numbers), unit="document", file="samples.jsonl") as progress:
            for batch in evaluation.scored_batches(prepared, model, reader, teacher, numbers, device):
                tokens |= batch
                progress.update(evaluation.so_far(tokens, time.perf_counter() - started, device))
        answers = evaluation.answered(
            prepared,
            model,
            reader,
            asked,
            sampling,
            seed=seed,
            max_slots=cfg.get("answers_at_once", 64),
            cache_bytes=cfg.get("cache_bytes"),
        )
        reached = evaluation.reached_in(tasks, prepared, model, reader, device)
        found[model.label] = evaluation.measured(model, pace, tokens, answers, reached)
        if model.label == prepared.teacher:
            teacher = reader
        else:
            model.release()  # before the next one is loaded
            del reader

    # ---- Figures, with their intervals, and what may be luck
    if training.is_main_process():
        folder = evaluation.evaluation_folder(cfg)
        print(evaluation.finish(folder, prepared, found, cfg.get("shown_documents", 5)))
    training.leave()


if __name__ == "__main__":
    config.run_recipe(main)
