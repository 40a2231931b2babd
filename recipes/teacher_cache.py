"""Store a teacher's word on every row of a config, to train from without the teacher.

    distill-tune run teacher_cache --config tiny cache.kind=sampled output_dir=cache
    distill-tune run kd_single_device --config tiny \\
        'teacher_model={_component_: distill_tune.teachers.Cached, path: cache}'

With the very config that will train: its rows, tokenizer and teacher. Started again, it goes on where it was stopped or
killed; with more rows, it adds these. On several GPUs the teacher is sharded as kd_distributed shards it.
"""

import math
import time

import torch
from omegaconf import DictConfig

from distill_tune import cache, config, data, models, training
from distill_tune.errors import FinishedRun

from torchtune.modules import TransformerDecoder


def main(cfg: DictConfig) -> None:
    # ---- Processes and settings
    device = training.init_distributed(cfg.device, cfg.get("collective_timeout_seconds", 600))
    mesh = training.device_mesh(device, cfg.get("data_parallel_replicate_dim", 1))
    if cfg.get("compile", False):
        models.check_compiler(device)
    folder, made = training.find_cache(cfg.output_dir)
    seed = training.seed_everything(made.seed if made and cfg.get("seed") is None else cfg.get("seed"))
    training.use_day(cfg.get("date") or (made and made.date))

    # ---- The teacher without weights, and every row of dataset and dataset_val once
    built = training.build_models(cfg, device, with_cache=False)
    teacher = built.teacher.itself
    encoding = training.encoding_for(cfg.cache, built, cfg)
    steps = training.plan_steps(cfg, built, seed)
    plans = [steps.plan] + ([steps.plan_val] if steps.plan_val else [])
    plan = data.StepPlan.of_teacher(plans, training.tokens_of_a_batch(cfg, plans))
    manifest = training.begin_cache(folder, cfg, built, steps, encoding, seed)
    writer = cache.CacheWriter(folder)
    todo = [step for step in range(plan.steps_per_epoch) if writer.lacks(plan.record_keys(0, step))]
    if not todo and encoding.kind == "hidden" and not (folder / cache.OUTPUT_LAYER).exists():
        todo = [0]  # of which nothing is written but the output layer
    todo = training.from_main_process(todo)
    if not todo and cache.is_whole(folder, manifest):
        training.leave()
        raise FinishedRun(f"output_dir={folder}: this cache has all {plan.num_rows} rows; nothing is left to do")

    # ---- The teacher's weights: sharded where there are several processes
    def shard_teacher(model: TransformerDecoder) -> torch.device:
        offload = cfg.get("fsdp_cpu_offload", False)
        layers = cfg.get("custom_sharded_layers") or []
        training.shard_teacher(model, mesh, cpu_offload=offload, custom_sharded_layers=layers)
        return torch.device("cpu") if offload else device

    if todo:
        shard = shard_teacher if training.num_ranks() > 1 else None
        teacher.load(built.student, device, shard=shard, compile=cfg.get("compile", False))
        teacher.expect(batch for step in todo for batch in plan.micro_batches(0, step))

    # ---- Its word on each row
    done, stopped_by = plan.steps_per_epoch - len(todo), 0
    with (
        writer,
        training.StopSignals("finishing the step, what is done is written", "the same command goes on") as stop,
        training.Progress(plan.steps_per_epoch, done=done) as progress,
    ):
        for step in todo:
            started = time.perf_counter()
            (batch,) = plan.micro_batches(0, step)
            batch = batch.to(device)
            rows, output_layer = training.recorded(teacher, encoding, batch, seed)
            training.write_output_layer(folder, output_layer)
            del output_layer
            teacher.release()
            writer.add(batch.record_keys, rows)
            done += 1

            counts = (len(batch.supervised_positions), sum(map(len, rows)))
            (positions, num_bytes), (signal_number, peak_memory) = training.reduced_over_ranks(
                counts, most=(stop.number, training.peak_memory_bytes(device))
            )
            seconds = time.perf_counter() - started
            progress.update(
                {
                    "step": done,
                    "bytes_per_token": num_bytes / positions if positions else math.nan,
                    "tokens_per_second": sum(plan.shape(0, step).lengths) / seconds,
                    "peak_memory_bytes": int(peak_memory),
                }
            )
            if stopped_by := int(signal_number):
                break
        writer.close()
        if stopped_by and done < plan.steps_per_epoch:
            stop.leave(done, stopped_by)

    # ---- What the run leaves
    print(training.finish_cache(folder, manifest, plans, built.teacher.other_tokenizers))
    training.leave()


if __name__ == "__main__":
    config.run_recipe(main)
