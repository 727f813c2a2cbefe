"""One run of Lightning's trainer: from its checkpoint to its last step, stopped by a signal or by Ctrl-C."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import Strategy

from nsft_exp.checkpoint import AtomicCheckpointIO, Checkpoints, RunFiles, StopSignals
from nsft_exp.child import pass_on
from nsft_exp.progress import StepBar
from nsft_exp.recipe import TrainerOptions
from nsft_exp.world import World


def quiet() -> None:
    """Keep Lightning from talking about what is meant as it is."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module=r"lightning\..*")


def begin(trainer: TrainerOptions, folder: Path) -> None:
    """Set the threads, make the folder and count the peak memory from here."""
    quiet()
    if trainer.threads:
        torch.set_num_threads(trainer.threads)
    folder.mkdir(parents=True, exist_ok=True)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def run(
    module: L.LightningModule,
    loader: Any,
    files: RunFiles,
    num_steps: int,
    options: TrainerOptions,
    device: torch.device,
    precision: str,
    world: World,
    progress: bool,
    checkpoint_every: int | None = None,
    strategy: str | Strategy = "auto",
) -> None:
    """Train from the checkpoint, if there is one, to the last of `num_steps` optimizer steps.

    It is written every `checkpoint_every` steps (None: as the options say).
    """
    done = files.resume_step()
    if world.first:
        files.cut_after(done or -1)  # nothing of a run that was killed before its first checkpoint
    if done == num_steps:
        module.load_state_dict(files.read_checkpoint()["state_dict"], strict=False)
        return
    every = checkpoint_every or options.checkpoint_every
    callbacks: list[Any] = [Checkpoints(files.checkpoint, every, num_steps)]
    stop = StopSignals(files.checkpoint, world)
    callbacks.append(stop)
    if progress and world.first:
        callbacks.append(StepBar(num_steps))
    # Deterministic algorithms would also fill every new tensor before it is written: a tenth of a small step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    trainer = L.Trainer(
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=options.devices if world.size > 1 else 1,
        num_nodes=options.num_nodes if world.size > 1 else 1,
        strategy=strategy,
        precision=precision,  # type: ignore[arg-type]
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        deterministic="warn" if device.type == "cuda" else True,
        default_root_dir=files.folder,
        plugins=[AtomicCheckpointIO()],
        callbacks=callbacks,
    )
    checkpoint = files.checkpoint if done else None
    try:
        with _interruptible(trainer):
            trainer.fit(module, train_dataloaders=loader, ckpt_path=checkpoint, weights_only=True)
    except KeyboardInterrupt:
        pass_on(stop.heard)
        raise


@contextmanager
def _interruptible(trainer: L.Trainer) -> Iterator[None]:
    """Let Ctrl-C be KeyboardInterrupt: Lightning would exit the process and ignore further signals."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if not trainer.interrupted:
            raise
        signal.signal(signal.SIGINT, handler)
        raise KeyboardInterrupt from error
