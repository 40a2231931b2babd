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

import torch
from omegaconf import DictConfig

from distill_tune import config, data, losses, models, teachers, training

from torchtune.modules import TransformerSelfAttentionLayer
from torchtune.training import OffloadActivations, compile_model, set_activation_checkpointing


def main(cfg: DictConfig) -> None:
    # ---- Settings
    training.require_one_process()
    device = training.find_device(cfg.device)
    dtype = training.find_dtype(cfg.dtype, device)
    teacher_dtype = training.find_dtype(cfg.get("teacher_dtype") or cfg.dtype, device)
    kd_ratio, temperature = cfg.get("kd_ratio", 0.5), cfg.get("temperature", 1.0)
    run = training.RunFolder.of(cfg.output_dir)
    checkpoint = run.checkpoint_to_resume(cfg.get("resume_from_checkpoint", False))
    state = training.TrainingState.read(checkpoint) if checkpoint else None
    seed = training.seed_everything(state.seed if state and cfg.get("seed") is None else cfg.get("seed"))

    # ---- Checkpoints and data, checked before anything is loaded
    training.check_optimizer(cfg.optimizer, cfg.get("lr_scheduler"))
    student_checkpoint = models.Checkpoint.of("model", cfg.model, cfg.get("checkpointer"))
    student = models.checked_on_meta("model", cfg.model, student_checkpoint, dtype)
    tokenizer = config.instantiate(cfg.tokenizer)
    common_vocab_size = None
    if kd_ratio > 0:
        teacher_checkpoint = models.Checkpoint.of(
            "teacher_model", cfg.get("teacher_model"), cfg.get("teacher_checkpointer")
        )
        teacher_model = models.checked_on_meta(
            "teacher_model", cfg.get("teacher_model"), teacher_checkpoint, teacher_dtype
        )
        models.check_tokenizers(student_checkpoint.folder, teacher_checkpoint.folder)
        common_vocab_size = models.common_vocabulary(student, teacher_model, tokenizer)

    def plan_of(dataset: DictConfig, batch_size: int | None, accumulation: int, shuffle: bool) -> data.StepPlan:
        rows, weights = data.prepare_rows(dataset, tokenizer, cfg.tokenizer, on_bad_row=cfg.get("on_bad_row", "stop"))
        plan = data.StepPlan(
            rows,
            weights=weights,
            batch_size=batch_size,
            max_tokens_per_batch=cfg.get("max_tokens_per_batch") if batch_size is None else None,
            gradient_accumulation_steps=accumulation,
            seed=seed,
            shuffle=shuffle,
        )
        print(data.describe_rows(rows))
        models.require_length("model", student, plan.longest)
        if kd_ratio > 0:
            models.require_length("teacher_model", teacher_model, plan.longest)
        return plan

    plan = plan_of(cfg.dataset, cfg.batch_size, cfg.get("gradient_accumulation_steps", 1), cfg.get("shuffle", True))
    plan_val = None
    if cfg.get("dataset_val") is not None:
        plan_val = plan_of(cfg.get("dataset_val"), cfg.get("batch_size_val") or cfg.batch_size, 1, False)
    steps_per_epoch = min(plan.steps_per_epoch, cfg.get("max_steps_per_epoch") or plan.steps_per_epoch)
    total_steps = cfg.epochs * steps_per_epoch
    if state:
        state.require_same_plan(checkpoint, plan.identity)
    run.write_config(cfg, seed)

    # ---- Student and teacher
    models.load_weights(student, student_checkpoint, device)
    has_adapters = models.freeze_all_but_adapters(student)
    student_head = models.take_output_head(student)
    if cfg.get("enable_activation_checkpointing", False):
        set_activation_checkpointing(student, auto_wrap_policy={TransformerSelfAttentionLayer})
    offloading = OffloadActivations() if cfg.get("enable_activation_offloading", False) else contextlib.nullcontext()
    teacher = None
    if kd_ratio > 0:
        teacher = teachers.load_teacher(
            teacher_model,
            teacher_checkpoint,
            device,
            quantizer=cfg.get("teacher_quantizer"),
            offload=cfg.get("teacher_offload", False),
        )
    if cfg.get("compile", False):
        compile_model(student, verbose=False)
        if teacher:
            compile_model(teacher.model, verbose=False)

    # ---- Loss, optimizer, schedule
    cross_entropy = config.instantiate(cfg.get("loss")) if cfg.get("loss") else losses.CrossEntropy()
    divergence = config.instantiate(cfg.get("kd_loss")) if cfg.get("kd_loss") else losses.ForwardKL()
    optimizer = training.build_optimizer(cfg.optimizer, student.parameters())
    lr_scheduler = training.build_lr_scheduler(cfg.get("lr_scheduler"), optimizer, total_steps)
    profiler = training.build_profiler(cfg.get("profiler"))
    utilisation = training.Utilisation(student, teacher.model if teacher else None, device, dtype)
    step = 0
    if state:
        training.load_training_state(checkpoint, student, optimizer, lr_scheduler)
        step = state.step

    def loss_of(batch: data.Batch) -> losses.LossSums:
        """Summed loss of a micro-batch over its supervised positions."""
        batch = batch.to(device)
        attention = batch.attention()
        signal = teacher(batch, attention) if teacher else None
        with offloading:
            hidden = student(batch.tokens, **attention)  # [b, s, d]
        return losses.distillation_loss(
            hidden[batch.supervised],  # [n, d]
            student_head.projection_for_loss(),
            batch.targets[batch.supervised],
            signal,
            kd_ratio=kd_ratio,
            temperature=temperature,
            common_vocab_size=common_vocab_size,
            cross_entropy=cross_entropy,
            divergence=divergence,
        )

    @torch.no_grad()
    def validate(plan_val: data.StepPlan) -> dict[str, float]:
        student.eval()
        loss, ce, kd, num_tokens = 0.0, 0.0, 0.0, 0
        for batch in plan_val.epoch():
            sums = loss_of(batch)
            loss, ce, kd = loss + sums.loss.item(), ce + sums.ce.item(), kd + sums.kd.item()
            num_tokens += data.num_supervised([batch])
        student.train()
        return {"val_loss": loss / num_tokens, "val_ce_loss": ce / num_tokens, "val_kd_loss": kd / num_tokens}

    # ---- Training
    student.train()
    line = None
    logger = config.instantiate(cfg.get("metric_logger")) if cfg.get("metric_logger") else None
    if logger:
        logger.log_config(cfg)
    metrics = training.Metrics(
        run.metrics,
        step=step,
        logger=logger,
        log_every_n_steps=cfg.get("log_every_n_steps") or 1,
        log_peak_memory_stats=cfg.get("log_peak_memory_stats", True),
    )
    with metrics, profiler, training.Progress(total_steps, done=step) as progress:
        while step < total_steps:
            started = time.perf_counter()
            epoch, step_of_epoch = divmod(step, steps_per_epoch)
            batches = plan.micro_batches(epoch, step_of_epoch)
            num_tokens = data.num_supervised(batches)

            loss = ce = kd = torch.zeros((), device=device)
            for batch in batches:
                sums = loss_of(batch)
                (sums.loss / num_tokens).backward()
                loss, ce, kd = loss + sums.loss.detach(), ce + sums.ce, kd + sums.kd
            grad_norm = torch.nn.utils.clip_grad_norm_(student.parameters(), cfg.get("clip_grad_norm") or math.inf)
            lr = optimizer.param_groups[0]["lr"]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            lr_scheduler.step()
            profiler.step()
            step += 1

            loss, ce, kd = loss.item() / num_tokens, ce.item() / num_tokens, kd.item() / num_tokens
            seconds = time.perf_counter() - started
            lengths = plan.lengths(epoch, step_of_epoch)
            line = {
                "step": step,
                "epoch": epoch,
                "loss": loss,
                "ce_loss": ce,
                "kd_loss": kd,
                "lr": float(lr),
                "grad_norm": grad_norm.item(),
                "tokens": sum(lengths),
                "supervised_tokens": num_tokens,
                "tokens_per_second": sum(lengths) / seconds,
                "supervised_tokens_per_second": num_tokens / seconds,
                "peak_memory_bytes": training.peak_memory_bytes(device),
                "seconds": seconds,
            }
            line |= utilisation.of_step(lengths, num_tokens, seconds)
            every = cfg.get("run_val_every_n_steps")
            if plan_val and (step == total_steps or (every and step % every == 0)):
                line |= validate(plan_val)
                progress.say(
                    f"step {step}: " + ", ".join(f"{key} {line[key]:.4f}" for key in line if key[:4] == "val_")
                )
            metrics.write(line)
            progress.update(line)

            every = cfg.get("save_every_n_steps")
            if step % steps_per_epoch == 0 or (every and step % every == 0):
                now = training.TrainingState(step, seed, plan.identity)
                training.save_training_state(run.checkpoint(step), now, student, optimizer, lr_scheduler)

    # ---- What the run leaves
    if has_adapters:
        training.export_adapter(student, student_checkpoint, run.adapter)
    if not (has_adapters and cfg.get("save_adapter_weights_only", False)):
        training.export_model(student, student_checkpoint, run.model, dtype)
    print(run.summary(line))


if __name__ == "__main__":
    config.run_recipe(main)
