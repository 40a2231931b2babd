"""Optuna's search: which settings to try next, and which trials to end early.

The study is made anew from the sweep's trials whenever it is asked, so that trials.jsonl is the one file that a killed
sweep goes on from. Each proposal's seed is its number: a search that was interrupted proposes what it would have.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from distill_tune.errors import UserError
from distill_tune.sweep.objective import Objective
from distill_tune.sweep.trials import Trial, identity
from distill_tune.sweep.values import Axis, Settings, Values, grid_size, same

_ATTEMPTS = 100  # to propose what has not been tried
_SEEDS = 1000  # of each number's attempts


class Search:
    """Tree-structured Parzen estimators, and the median of earlier trials at the same step.

    Args:
        axes: what varies; values of a list are categories.
        seed: the trials' own. Those with others repeat one, and tell the search nothing new.
        prunes: whether ``val_ce_loss`` of trials can be compared.

    Raises:
        UserError: Optuna is not there.
    """

    def __init__(self, axes: Sequence[Axis], objective: Objective, seed: int, prunes: bool) -> None:
        try:
            import optuna
        except ImportError as error:
            raise UserError(
                f"--search: needs the package {error.name}; pip install 'distill-tune[sweep]' (--random needs none)"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna = optuna
        self._axes, self._objective, self.seed = list(axes), objective, seed
        self._pruner = optuna.pruners.MedianPruner() if prunes else optuna.pruners.NopPruner()
        self._space = {axis.key: self._distribution(axis) for axis in axes}

    def propose(self, trials: Iterable[Trial]) -> dict[str, str] | None:
        """Settings that no trial has; None where there are no others."""
        trials = list(trials)
        tried = {identity(trial.settings, trial.seed) for trial in trials}
        if len(self.known(trials)) >= grid_size(self._axes):
            return None
        for attempt in range(_ATTEMPTS):
            seed = len(self.known(trials)) * _SEEDS + attempt
            study = self._study(trials, self._optuna.samplers.TPESampler(seed=seed, constant_liar=True))
            asked = study.ask(self._space).params
            settings = {
                axis.key: axis.texts[asked[axis.key]] if isinstance(axis, Values) else axis.text(asked[axis.key])
                for axis in self._axes
            }
            if identity(settings, self.seed) not in tried:
                return settings
        return None

    def is_pruned(self, trial: Trial, trials: Iterable[Trial]) -> bool:
        """Whether a trial that runs is behind at its last validation."""
        if not trial.validations:
            return False
        others = [other for other in trials if other is not trial]
        return bool(self._pruner.prune(self._study(others, None), self._frozen(trial)))

    def _study(self, trials: Sequence[Trial], sampler: Any) -> Any:
        study = self._optuna.create_study(sampler=sampler)
        study.add_trials([frozen for trial in self.known(trials) if (frozen := self._frozen(trial))])
        return study

    def known(self, trials: Iterable[Trial]) -> list[Trial]:
        """Those that are points of the space."""
        return [trial for trial in trials if trial.seed == self.seed and self._params(trial.settings) is not None]

    def _params(self, settings: Settings) -> dict[str, Any] | None:
        """None of settings that are outside."""
        if settings.keys() != {axis.key for axis in self._axes}:
            return None
        params = dict[str, Any]()
        for axis in self._axes:
            text = settings[axis.key]
            if isinstance(axis, Values):
                known = [same(axis.key, one) for one in axis.texts]
                if (value := same(axis.key, text)) not in known:
                    return None
                params[axis.key] = known.index(value)
            else:
                try:
                    number = float(text)
                except ValueError:
                    return None
                if not axis.low <= number <= axis.high:
                    return None
                params[axis.key] = round(number) if axis.is_whole else number
        return params

    def _frozen(self, trial: Trial) -> Any:
        """A trial as Optuna has it; with what is lower the better."""
        states = self._optuna.trial.TrialState
        state = {"finished": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}.get(
            trial.state, states.RUNNING
        )
        value = trial.figures.get(self._objective.name)
        if state == states.COMPLETE and value is None:  # measured by something else; it is run again
            state = states.RUNNING
        return self._optuna.trial.create_trial(
            state=state,
            value=self._objective.cost(value) if state == states.COMPLETE and value is not None else None,
            params=self._params(trial.settings),
            distributions=self._space,
            intermediate_values=trial.validations,
        )

    def _distribution(self, axis: Axis) -> Any:
        distributions = self._optuna.distributions
        if isinstance(axis, Values):
            return distributions.CategoricalDistribution(range(len(axis.texts)))
        if axis.is_whole:
            return distributions.IntDistribution(round(axis.low), round(axis.high))
        return distributions.FloatDistribution(axis.low, axis.high, log=axis.is_log)
