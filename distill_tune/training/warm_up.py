"""How long the learning rate warms up: so many steps, or a share of the run's."""

from omegaconf import DictConfig, OmegaConf

from distill_tune.counts import counted


def with_warm_up_in_steps(component: DictConfig, num_training_steps: int) -> DictConfig:
    """A schedule whose ``num_warmup_steps`` below 1 has become that share of the run's steps, rounded down."""
    share = component.get("num_warmup_steps")
    if not isinstance(share, float) or not 0 < share < 1:
        return component
    return OmegaConf.merge(component, {"num_warmup_steps": int(share * num_training_steps)})  # type: ignore[return-value]


def schedule_remarks(cfg: DictConfig, total_steps: int) -> list[str]:
    """A line for a warm-up that the run is too short for: the optimizer's learning rate would never be reached."""
    told = []
    for key, value in (cfg.get("lr_scheduler") or {}).items():
        if "warmup" in key and isinstance(value, int) and value > total_steps:
            rate = cfg.optimizer.get("lr")
            aim = "the optimizer's own" if rate is None else f"optimizer.lr={rate}"
            told.append(
                f"lr_scheduler.{key}={value}: the run has {counted(total_steps, 'step')}, so the learning rate never "
                f"reaches {aim}; lower it, or give num_warmup_steps a share of the run, such as 0.03"
            )
    return told
