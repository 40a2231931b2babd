"""Have a model write answers: rows for a student to learn from, or to look at.

    distill-tune run generate --config generate/teacher_answers
    distill-tune run generate --config tiny prompt="What does json.dumps do?" output_dir=outputs/answers

The prompts are those of the config's dataset, with or without answers; who answers is its teacher_model, one or
several, or without one its model. Started again, it goes on where it was stopped or killed; with more prompts or
samples, it adds these; with other filters, it chooses anew among what is there. On several GPUs each has the whole
model, and its share of the prompts.
"""

import time

from omegaconf import DictConfig

from distill_tune import config, generation, training


def main(cfg: DictConfig) -> None:
    # ---- Processes and settings
    device = training.init_distributed(cfg.device, cfg.get("collective_timeout_seconds", 600))
    training.find_dtype(cfg.dtype, device)
    folder, made = training.find_answers(cfg.output_dir)
    seed = training.seed_everything(made.seed if made and cfg.get("seed") is None else cfg.get("seed"))
    training.use_day(cfg.get("date") or (made and made.date))

    # ---- Models without weights, and every prompt as its tokens
    tokenizer = config.build("tokenizer", cfg.tokenizer)
    prepared = training.prepare_answers(cfg, device, tokenizer)
    training.begin_answers(folder, cfg, prepared, seed, made)
    each, most = cfg.get("samples_per_prompt", 1), cfg.get("max_samples_per_prompt")
    record = generation.Record(folder / "samples")
    todos = [training.Todo(writer, prepared, record, seed, each, most) for writer in prepared.writers]
    lacking = [[one for question in prepared.questions for one in todo.of(question)] for todo in todos]
    shares = list(map(training.of_this_rank, lacking))
    counts, stopped_by = training.SharedCounts(), 0
    counts.add(0, 0, sum(map(len, shares)))
    training.wait_for_all()  # who writes changes what the others read

    # ---- Their answers
    started = time.perf_counter()
    with (
        generation.SampleFile(folder / "samples", training.rank()) as samples,
        training.StopSignals("answers that have come are kept", "the same command goes on", "answer") as stop,
        training.Progress(sum(map(len, lacking)), unit="answer", file="samples/") as progress,
    ):
        for writer, todo, wanted in zip(prepared.writers, todos, shares, strict=True):
            generator = writer.load(prepared.sampling, device, cfg) if wanted else None
            while wanted and not stopped_by:
                requests = [one.request(seed) for one in wanted]
                for number, completion in generator.completions(requests):
                    sample = wanted[number].sample(completion, writer, seed)
                    samples.add(sample)
                    todo.add(sample)
                    done, num_tokens, expected = counts.add(1, len(completion.tokens), 0)  # on all processes
                    progress.expect(expected)
                    progress.update(
                        {
                            "step": done,
                            "tokens_per_answer": num_tokens / done,
                            "tokens_per_second": num_tokens / (time.perf_counter() - started),
                            "peak_memory_bytes": training.peak_memory_bytes(device),
                        }
                    )
                    if stopped_by := stop.number:
                        break
                # Prompts of which no answer is right are asked again.
                wanted = [] if stopped_by else todo.more(wanted)
                counts.add(0, 0, len(wanted))
            del generator
            writer.release()  # before the next one is loaded
        if stopped_by:
            stop.leave(counts.add(0, 0, 0)[0], stopped_by)

    # ---- What is kept of them
    print(training.finish_answers(folder, cfg, prepared, seed))
    training.leave()


if __name__ == "__main__":
    config.run_recipe(main)
