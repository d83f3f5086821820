"""Lightning's Trainer, set up for one phase."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

import lightning as L

from moc.config.schema import TrainerConfig
from moc.data.module import StudyDataModule
from moc.errors import StudyInterrupted
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule
from moc.train.strategies import accelerator_of, build_strategy, num_devices

Callbacks = Sequence[L.Callback]  # called in this order


def fit(
    module: StudyModule,
    data: StudyDataModule,
    config: TrainerConfig,
    *,
    logger: JournalLogger,
    callbacks: Callbacks,
) -> None:
    """Train ``module`` on the rest of its phase.

    Raises:
        StudyInterrupted: on a second SIGINT or SIGTERM, or one during an evaluation.
    """
    _quiet_lightning()
    trainer = L.Trainer(
        accelerator=accelerator_of(config),
        strategy=build_strategy(config),
        devices=num_devices(config),
        num_nodes=config.num_nodes,
        precision=config.precision,
        logger=logger,
        callbacks=list(callbacks),
        max_epochs=1,
        log_every_n_steps=1,  # moc.train.logger decides what is recorded
        use_distributed_sampler=False,  # the data module gives every rank its own share
        enable_checkpointing=False,  # moc.callbacks.checkpoint does it
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(module, datamodule=data)
    except SystemExit as error:  # Lightning's answer to a KeyboardInterrupt
        raise StudyInterrupted("stopped at once") from error


def _quiet_lightning() -> None:
    """Keep Lightning's advice, which our own settings answer, out of the progress lines."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (".*does not have many workers.*", ".*`isinstance.treespec, LeafSpec.*"):
        warnings.filterwarnings("ignore", message)
