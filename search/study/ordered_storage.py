"""What samplers see of a search: its trials with the numbers of their proposals, and in that order.

A search that was interrupted gives its trials back in another order than it proposed them in, and samplers weigh trials by
their order. So it is that of the numbers here, and nothing is kept that the trials themselves do not say.
"""

from collections.abc import Container
from typing import Any

from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from search.optuna_internals import renumber, trial_id, uncopied


class OrderedStorage(InMemoryStorage):
    """Storage of one study, in memory.

    Attributes:
        next_number: of the proposal that the next trial belongs to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.next_number = 0
        self._ids: dict[int, int] = {}  # number -> id of its latest trial
        self._forgotten: set[int] = set()

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        trial_id = super().create_new_trial(study_id, None if template_trial is None else uncopied(template_trial))
        renumber(self, trial_id, self.next_number)
        self._ids[self.next_number] = trial_id
        return trial_id

    def latest(self, number: int) -> int:
        """Id of the latest trial of a proposal."""
        return self._ids[number]

    def forget(self, trial_id: int) -> None:
        """Show a trial no more: a repetition counts only while something else is sought in its place."""
        self._forgotten.add(trial_id)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        trials = super().get_all_trials(study_id, deepcopy, states)
        return sorted((trial for trial in trials if trial_id(trial) not in self._forgotten), key=lambda trial: trial.number)

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return self.latest(trial_number)

    def get_trial_number_from_id(self, trial_id: int) -> int:
        return self.get_trial(trial_id).number

    def set_study_system_attr(self, study_id: int, key: str, value: Any) -> None:
        """Keep nothing: NSGA-II remembers here which parents it chose from the trials that had finished by then."""
