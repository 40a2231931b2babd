"""Knowledge distillation on one device: a frozen teacher, a student with LoRA or trained whole.

    distill-tune run kd_single_device --config tiny
    distill-tune run kd_single_device --config llama3_2/8B_to_1B_lora kd_ratio=0.9 temperature=2

    loss = (1 - kd_ratio) * CE + kd_ratio * T^2 * KL(teacher_T || student_T)

kd_ratio=0 loads no teacher: plain fine-tuning, as for a teacher on one's own data first. Copy this file
(`distill-tune cp kd_single_device mine.py`) and edit it: every key that main reads from cfg becomes a valid key.
"""

import contextlib
import math
import time
from typing import Any

import torch
from omegaconf import DictConfig

from distill_tune import config, data, losses, models, qat, rollouts, training

from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.training import OffloadActivations, set_activation_checkpointing


def main(cfg: DictConfig) -> None:
    # ---- Settings
    training.require_one_process()
    device = training.find_device(cfg.device)
    dtype = training.find_dtype(cfg.dtype, device)
    if cfg.get("compile", False):
        models.check_compiler(device)
    cross_entropy = config.build("loss", cfg.get("loss"), losses.CrossEntropy())
    divergence = config.build("kd_loss", cfg.get("kd_loss"), losses.ForwardKL())
    token_weight = config.build("kd_token_weight", cfg.get("kd_token_weight"))
    run, checkpoints, checkpoint, state = training.open_run(cfg)
    seed = training.seed_everything(state.seed if state and cfg.get("seed") is None else cfg.get("seed"))
    training.use_day(cfg.get("date"), state, cfg.get("teacher_cache"))

    # ---- Models without weights and rows as steps: what is wrong is told here, as `distill-tune validate` tells it
    built = training.build_models(cfg, device)
    student, student_checkpoint, tokenizer, teacher, hidden_loss, common_vocab_size = built
    steps = training.plan_steps(cfg, built, seed)
    plan, plan_val, steps_per_epoch, total_steps, schedules = steps
    rows = rollouts.build_rows(cfg, built, steps, seed)
    identity = steps.identity_with(built)
    if state:
        state.require_same_plan(checkpoint, identity, cfg.get("resume_with_changes", False))
        plan.limits = state.limits
    profiler = training.build_profiler(cfg.get("profiler"))
    logger = config.build("metric_logger", cfg.get("metric_logger"))
    run.write_config(cfg, seed)

    # ---- Student and teacher
    has_adapters = models.freeze_all_but_adapters(student, training.dtype_to_train_in(cfg.optimizer, dtype, student))
    models.compute_in(student, dtype)
    models.load_weights(student, student_checkpoint, device)
    student_head = models.take_output_head(student)
    if cfg.get("enable_activation_checkpointing", False):
        set_activation_checkpointing(student, auto_wrap_policy={TransformerSelfAttentionLayer})
    offloading = OffloadActivations() if cfg.get("enable_activation_offloading", False) else contextlib.nullcontext()
    if cfg.get("compile", False):
        models.compile_layers(student)
    teacher.load(student, device, compile=cfg.get("compile", False))

    # ---- Optimizer and schedule
    optimizer = training.build_optimizer(cfg.optimizer, student.parameters())
    utilisation = training.Utilisation(student, teacher, device, dtype)
    step, tokens = (state.step, state.tokens) if state else (0, 0)
    if state:
        training.load_training_state(checkpoint, student, optimizer, cfg.optimizer, teacher)
    lr_scheduler = training.build_lr_scheduler(cfg.get("lr_scheduler"), optimizer, total_steps, done=step)
    checkpoints.begin(step)

    def loss_of(batch: data.Batch, weights: dict[str, float]) -> losses.LossSums:
        """Summed loss of a micro-batch over its supervised positions."""
        batch = batch.to(device)
        supervised = batch.supervised_positions
        signal = teacher(batch)
        with offloading:
            hidden, layers = models.hidden_states(student, batch.tokens, batch.attention())  # [1, s, d]
        sums = losses.distillation_loss(
            hidden[0, supervised],  # [n, d]
            student_head.projection_for_loss(),
            batch.targets[0, supervised],
            signal,
            kd_ratio=weights["kd_ratio"],
            temperature=weights["temperature"],
            temperature_squared=cfg.get("temperature_squared", True),
            common_vocab_size=common_vocab_size,
            cross_entropy=cross_entropy,
            divergence=divergence,
            token_weight=token_weight,
            num_own=batch.num_own,
        )
        between_layers = hidden_loss(layers, signal, supervised, models.projectors(student))
        return sums.plus_hidden(between_layers, weights["hidden_loss_weight"])

    def accumulate(batches: list[data.Batch], weights: dict[str, float], num_tokens: int) -> list[losses.LossSums]:
        """The gradient of a step; the sums of each micro-batch."""
        sums = []
        for batch in batches:
            of_batch = loss_of(batch, weights)
            (of_batch.loss / num_tokens).backward()
            sums.append(of_batch.detach())
        return sums

    @torch.no_grad()
    def validate(plan_val: data.StepPlan, weights: dict[str, float]) -> dict[str, float]:
        student.eval()
        sums, num_tokens = losses.LossSums.zero(device), 0
        teacher.expect(plan_val.epoch())
        for batch in plan_val.epoch():
            if training.is_lost(teacher, [batch]):  # which the next step tells
                student.train()
                return {}
            sums += loss_of(batch, weights)
            num_tokens += data.num_supervised([batch])
        student.train()
        return losses.per_token(torch.stack(sums.values()).tolist(), num_tokens, prefix="val_")

    def save(line: dict[str, Any]) -> None:
        """A checkpoint of the run as it stands after the step whose metrics are ``line``."""
        now = training.TrainingState.after(step, seed, identity, cfg, tokens, line, plan.limits)
        checkpoints.save(now, student, optimizer, teacher, say=progress.say)

    # ---- Training
    student.train()
    rows.begin(student, device, step, run.path)
    line, stopped_by = None, 0
    history = training.metrics_of_checkpoint(checkpoint) if checkpoint else None
    watch = training.LossWatch(training.read_metrics(history), cfg.get("max_bad_steps", 10))
    metrics = training.Metrics(
        run.metrics,
        history,
        logger=logger,
        config=config.without_secrets(cfg),
        log_every_n_steps=cfg.get("log_every_n_steps") or 1,
        log_peak_memory_stats=cfg.get("log_peak_memory_stats", True),
    )
    with metrics, profiler, training.StopSignals() as stop, training.Progress(total_steps, done=step) as progress:
        while step < total_steps and not stopped_by:
            started = time.perf_counter()
            batches, num_tokens, shape, of_answers = rows.of_step(step, progress.say)
            if reason := training.is_lost(teacher, batches):
                if line:
                    save(line)
                    checkpoints.wait(progress.say)
                raise training.lost_teacher(step, reason)
            weights = schedules.at(step)
            qat.begin_step(student, step)

            batches, sums = training.halved_if_too_large(
                accumulate, batches, weights, num_tokens, plan=plan, optimizer=optimizer, say=progress.say
            )
            grad_norm = torch.nn.utils.clip_grad_norm_(student.parameters(), cfg.get("clip_grad_norm") or math.inf)
            # The one place of a step where the CPU waits for the device.
            *totals, grad_norm = torch.stack([*losses.LossSums.total(sums).values(), grad_norm]).tolist()
            means = losses.per_token(totals, num_tokens)
            lr = optimizer.param_groups[0]["lr"]
            if is_good := watch.is_good(means["loss"], grad_norm):
                optimizer.step()
                teacher.after_step()
            optimizer.zero_grad(set_to_none=True)
            lr_scheduler.step()
            profiler.step()
            step += 1

            seconds = time.perf_counter() - started
            tokens += sum(shape.lengths)
            stopped_by = stop.number
            if not is_good:
                named = training.name_rows(plan, batches, sums, means["loss"], grad_norm)
                progress.say(f"step {step}: {named}")
            elif watch.spike:
                progress.say(f"step {step}: {watch.spike}")
            line = {
                "step": step,
                "epoch": (step - 1) // steps_per_epoch,
                **means,
                **weights,
                "lr": float(lr),
                "grad_norm": grad_norm,
                "applied": is_good,
                "tokens": sum(shape.lengths),
                "total_tokens": tokens,
                "supervised_tokens": num_tokens,
                "tokens_per_second": sum(shape.lengths) / seconds,
                "supervised_tokens_per_second": num_tokens / seconds,
                "peak_memory_bytes": training.peak_memory_bytes(device),
                "seconds": seconds,
            }
            line |= of_answers | utilisation.of_step(shape, seconds)
            every = cfg.get("run_val_every_n_steps")
            if plan_val and (step == total_steps or (every and step % every == 0)):
                line |= validate(plan_val, weights)
                progress.say(
                    f"step {step}: " + ", ".join(f"{key} {line[key]:.4f}" for key in line if key[:4] == "val_")
                )
            metrics.write(line)
            progress.update(line)

            every = cfg.get("save_every_n_steps")
            is_due = step % steps_per_epoch == 0 or (every and step % every == 0)
            if is_due or stopped_by or watch.is_lost or checkpoints.is_best(line):
                save(line)
            if watch.is_lost:
                checkpoints.wait(progress.say)
                raise watch.lost(step)

        checkpoints.close()
        if stopped_by and step < total_steps:
            stop.leave(step, stopped_by)

    # ---- What the run leaves
    if best := checkpoints.best():
        training.load_student(best, student)
    if has_adapters:
        training.export_adapter(student, student_checkpoint, run.adapter, tokenizer)
    if not (has_adapters and cfg.get("save_adapter_weights_only", False)) or student_checkpoint.adapter:
        training.export_model(student, student_checkpoint, run.model, dtype, tokenizer)
    print(run.finish(line))


if __name__ == "__main__":
    config.run_recipe(main)
