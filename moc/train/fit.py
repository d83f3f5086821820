"""Lightning's Trainer, set up for one phase."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import warnings
from collections.abc import Sequence

import lightning as L
from lightning.pytorch.strategies.launchers import subprocess_script

from moc.config.schema import TrainerConfig
from moc.data.module import StudyDataModule
from moc.errors import StudyInterrupted, Terminated
from moc.train.logger import JournalLogger
from moc.train.module import StudyModule
from moc.train.ranks import start_watch, training
from moc.train.signals import handlers_kept
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
        StudyInterrupted: on SIGINT or SIGTERM, to any rank.
        RankLost: if another rank has failed, or does not come.
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
    # Lightning's handlers talk to the other ranks wherever they are, and save what we do not read.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    # Nor may its watch over launched processes kill this one before it has saved: ours is at hand.
    subprocess_script._launch_process_observer = lambda child_processes: start_watch(
        config, in_training=True
    )
    try:
        with handlers_kept(), training(config):
            trainer.fit(module, datamodule=data)
    except SystemExit as error:  # Lightning's answer to a KeyboardInterrupt
        asked = isinstance(error.__context__, Terminated)
        number = signal.SIGTERM if asked else signal.SIGINT
        raise StudyInterrupted("stopped at once", number) from error
    finally:
        _end_workers()


def _end_workers() -> None:
    """Of a loader: one may hang in its data, and ignore what would end it otherwise. To torch's
    handler their death would be an error, raised wherever this process is by then."""
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        for worker in multiprocessing.active_children():
            worker.kill()
            worker.join()
    finally:
        signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


def _quiet_lightning() -> None:
    """Keep Lightning's advice, which our own settings answer, out of the progress lines."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*`isinstance.treespec, LeafSpec.*",
        ".*`srun` command is available.*",
    ):
        warnings.filterwarnings("ignore", message)
