"""What a run needs of a machine."""

from __future__ import annotations

from typing import NamedTuple

from moc.config.schema import StudyConfig
from moc.errors import ConfigError
from moc.plan.study_plan import plan_study
from moc.train.strategies import accelerator_of

LIBRARIES_BYTES = 600_000_000  # of every process, before it has a model
_BESIDE_GPU_BYTES = 6_000_000_000  # of the host
_MARGIN = 1.5  # of memory that is asked for, over what is expected


class Needs(NamedTuple):
    cpus: int
    gpus: float
    memory_bytes: int  # to ask for

    @classmethod
    def of(cls, study: StudyConfig) -> Needs:
        """
        Raises:
            ConfigError: for runs of several devices.
        """
        launch = study.launch
        if (study.trainer.devices or 1) * study.trainer.num_nodes > 1:
            raise ConfigError("--launch: each run has one device; set trainer.devices=1")
        gpus = launch.gpus
        if gpus is None:
            gpus = float(accelerator_of(study.trainer) != "cpu")
        memory = _MARGIN * (_BESIDE_GPU_BYTES if gpus else expected_bytes(study))
        if launch.memory_gb is not None:
            memory = launch.memory_gb * 10**9
        return cls(launch.cpus or 1, gpus, int(memory))


def expected_bytes(study: StudyConfig) -> int:
    """Of memory, for a run on a CPU."""
    arms = plan_study(study).arms.values()
    return LIBRARIES_BYTES + max(arm.state_bytes + arm.activation_bytes for arm in arms)
