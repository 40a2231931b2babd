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
    kd_ratio, temperature = cfg.get("kd_ratio", 0.5), cfg.get("temperature", 1.0)  # numbers or schedules
    cross_entropy = config.build("loss", cfg.get("loss"), losses.CrossEntropy())
    divergence = config.build("kd_loss", cfg.get("kd_loss"), losses.ForwardKL())
    token_weight = config.build("kd_token_weight", cfg.get("kd_token_weight"))
    hidden_loss = config.build("hidden_loss", cfg.get("hidden_loss"), losses.HiddenLoss([], weight=0))
    run = training.RunFolder.of(cfg.output_dir)
    checkpoint = run.checkpoint_to_resume(cfg.get("resume_from_checkpoint", False))
    state = training.TrainingState.read(checkpoint) if checkpoint else None
    seed = training.seed_everything(state.seed if state and cfg.get("seed") is None else cfg.get("seed"))

    # ---- Checkpoints and data, checked before anything is loaded
    training.check_optimizer(cfg.optimizer, cfg.get("lr_scheduler"))
    student_checkpoint = models.Checkpoint.of("model", cfg.model, cfg.get("checkpointer"))
    student = models.checked_on_meta("model", cfg.model, student_checkpoint, dtype)
    tokenizer = config.instantiate(cfg.tokenizer)
    teacher = teachers.build_teacher(
        cfg.get("teacher_model") if kd_ratio != 0 or cfg.get("hidden_loss") else None,
        cfg.get("teacher_checkpointer"),
        dtype=teacher_dtype,
        combination=cfg.get("teacher_combination", "mixture"),
        quantizer=cfg.get("teacher_quantizer"),
        offload=cfg.get("teacher_offload", False),
    )
    common_vocab_size = teacher.check(student, student_checkpoint, tokenizer)
    reading = data.Reading(
        cfg.get("student_prompt_template"),
        cfg.get("teacher_prompt_template"),
        cfg.get("teacher_system_prompt"),
        cfg.get("teacher_max_seq_len"),
        teacher.names,
    )
    augmentations = data.Augmentations(
        [config.build("augmentations", entry) for entry in cfg.get("augmentations") or []], tokenizer, seed
    )

    def plan_of(dataset: DictConfig, batch_size: int | None, accumulation: int, training_rows: bool) -> data.StepPlan:
        rows, shares = data.prepare_rows(
            dataset, tokenizer, cfg.tokenizer, on_bad_row=cfg.get("on_bad_row", "stop"), reading=reading
        )
        plan = data.StepPlan(
            rows,
            weights=shares,
            batch_size=batch_size,
            max_tokens_per_batch=cfg.get("max_tokens_per_batch") if batch_size is None else None,
            gradient_accumulation_steps=accumulation,
            seed=seed,
            shuffle=training_rows and cfg.get("shuffle", True),
            augmentations=augmentations if training_rows else None,
            dataset_temperature=cfg.get("dataset_temperature") if training_rows else None,
        )
        print(data.describe_rows(rows))
        models.require_length("model", student, plan.longest)
        teacher.require_length(plan.longest_of_teacher)
        return plan

    plan = plan_of(cfg.dataset, cfg.batch_size, cfg.get("gradient_accumulation_steps", 1), True)
    plan_val = None
    if cfg.get("dataset_val") is not None:
        plan_val = plan_of(cfg.get("dataset_val"), cfg.get("batch_size_val") or cfg.batch_size, 1, False)
    steps_per_epoch = min(plan.steps_per_epoch, cfg.get("max_steps_per_epoch") or plan.steps_per_epoch)
    total_steps = cfg.epochs * steps_per_epoch
    schedules = training.Schedules(
        steps_per_epoch,
        total_steps,
        {"kd_ratio": kd_ratio, "temperature": temperature, "hidden_loss_weight": hidden_loss.weight},
    )
    if state:
        state.require_same_plan(checkpoint, plan.identity)
    run.write_config(cfg, seed)

    # ---- Student and teacher
    models.match_layers(student, teacher, hidden_loss)
    models.load_weights(student, student_checkpoint, device)
    has_adapters = models.freeze_all_but_adapters(student)
    student_head = models.take_output_head(student)
    if cfg.get("enable_activation_checkpointing", False):
        set_activation_checkpointing(student, auto_wrap_policy={TransformerSelfAttentionLayer})
    offloading = OffloadActivations() if cfg.get("enable_activation_offloading", False) else contextlib.nullcontext()
    if cfg.get("compile", False):
        compile_model(student, verbose=False)
    teacher.load(student, device, compile=cfg.get("compile", False))

    # ---- Optimizer and schedule
    optimizer = training.build_optimizer(cfg.optimizer, student.parameters())
    lr_scheduler = training.build_lr_scheduler(cfg.get("lr_scheduler"), optimizer, total_steps)
    profiler = training.build_profiler(cfg.get("profiler"))
    utilisation = training.Utilisation(student, teacher.models, device, dtype)
    step = 0
    if state:
        training.load_training_state(checkpoint, student, optimizer, lr_scheduler, teacher)
        step = state.step

    def loss_of(batch: data.Batch, weights: dict[str, float]) -> losses.LossSums:
        """Summed loss of a micro-batch over its supervised positions."""
        batch = batch.to(device)
        supervised = batch.supervised[0]
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
        )
        between_layers = hidden_loss(layers, signal, supervised, models.projectors(student))
        return sums.plus_hidden(between_layers, weights["hidden_loss_weight"])

    @torch.no_grad()
    def validate(plan_val: data.StepPlan, weights: dict[str, float]) -> dict[str, float]:
        student.eval()
        sums, num_tokens = losses.LossSums.zero(device), 0
        for batch in plan_val.epoch():
            sums += loss_of(batch, weights)
            num_tokens += data.num_supervised([batch])
        student.train()
        return losses.per_token([value.item() for value in sums.values()], num_tokens, prefix="val_")

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
            weights = schedules.at(step)
            num_tokens = data.num_supervised(batches)

            sums = losses.LossSums.zero(device)
            for batch in batches:
                of_batch = loss_of(batch, weights)
                (of_batch.loss / num_tokens).backward()
                sums += of_batch.detach()
            grad_norm = torch.nn.utils.clip_grad_norm_(student.parameters(), cfg.get("clip_grad_norm") or math.inf)
            lr = optimizer.param_groups[0]["lr"]
            optimizer.step()
            teacher.after_step()
            optimizer.zero_grad(set_to_none=True)
            lr_scheduler.step()
            profiler.step()
            step += 1

            means = losses.per_token([value.item() for value in sums.values()], num_tokens)
            seconds = time.perf_counter() - started
            lengths = plan.lengths(epoch, step_of_epoch)
            line = {
                "step": step,
                "epoch": epoch,
                **means,
                **weights,
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
                line |= validate(plan_val, weights)
                progress.say(
                    f"step {step}: " + ", ".join(f"{key} {line[key]:.4f}" for key in line if key[:4] == "val_")
                )
            metrics.write(line)
            progress.update(line)

            every = cfg.get("save_every_n_steps")
            if step % steps_per_epoch == 0 or (every and step % every == 0):
                now = training.TrainingState(step, seed, plan.identity)
                training.save_training_state(run.checkpoint(step), now, student, optimizer, lr_scheduler, teacher)

    # ---- What the run leaves
    if has_adapters:
        training.export_adapter(student, student_checkpoint, run.adapter)
    if not (has_adapters and cfg.get("save_adapter_weights_only", False)):
        training.export_model(student, student_checkpoint, run.model, dtype)
    print(run.summary(line))


if __name__ == "__main__":
    config.run_recipe(main)
