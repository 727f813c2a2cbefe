"""Hydra's launchers for one machine: the jobs of a multirun one after another, or several at once.

Both compose every job before the first one starts, and run none that ended well the last time and is still
finished. Hydra looks for launchers in the namespace package `hydra_plugins` only; hence this file's place.
"""

from __future__ import annotations

import os
import sys
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

from nsft_exp.config import without_hydra
from nsft_exp.device import assign_slots, device_groups, num_cores, num_gpus, visible_devices


class CellLauncher(Launcher):
    """What launchers of this machine have in common; the jobs are cells of ours."""

    composes_all_first = True

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what jobs are composed from."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run the jobs that are not finished, in order, and return what all of them returned, in order."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        jobs = [self.compose(list(o), number) for number, o in enumerate(job_overrides, initial_job_idx)]
        found = self.look(jobs)
        todo = [job for job, end in zip(jobs, found, strict=True) if end is None]
        if len(todo) < len(jobs):
            print(f"{len(jobs) - len(todo)} of {len(jobs)} cells are finished", file=sys.stderr)
        ran = iter(self.run(todo))
        return [as_return(job, end) if end else next(ran) for job, end in zip(jobs, found, strict=True)]

    def look(self, jobs: Sequence[DictConfig]) -> list[dict[str, Any] | None]:
        """Return the outcomes of the jobs that are finished, None for the others."""
        from nsft_exp.finished import FinishedCells

        finished = FinishedCells(self.config)
        found = []
        for job in jobs:
            with in_job(job):
                found.append(finished.find(job, output_folder(job)))
        return found

    @abstractmethod
    def run(self, jobs: Sequence[DictConfig]) -> Iterable[JobReturn]:
        """Run jobs (configs with their `hydra` nodes) and yield what they returned, in order."""

    def compose(self, overrides: list[str], number: int) -> DictConfig:
        """Return a job's config with its `hydra` node, as Hydra's basic launcher makes it."""
        job = self.hydra_context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(job):
            job.hydra.job.id = job.hydra.job.num = number
        return job


class SequentialLauncher(CellLauncher):
    """Runs one cell after another in this process."""

    def run(self, jobs: Sequence[DictConfig]) -> Iterable[JobReturn]:
        """Run jobs as Hydra's basic launcher does."""
        for job in jobs:
            returned = run_job(
                hydra_context=self.hydra_context,
                task_function=self.task_function,
                config=job,
                job_dir_key="hydra.sweep.dir",
                job_subdir_key="hydra.sweep.subdir",
            )
            configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
            yield returned


class LocalLauncher(CellLauncher):
    """Runs `slots` cells at once, each a child that sees `devices_per_cell` GPUs.

    A child runs `nsft_exp.cell.run_cell` on the job's config.
    """

    def __init__(self, slots: int | None = None, devices_per_cell: int = 1) -> None:
        super().__init__()
        self.slots, self.devices_per_cell = slots, devices_per_cell

    def run(self, jobs: Sequence[DictConfig]) -> Iterable[JobReturn]:
        """Start the jobs in order.

        Raises UserError for slots or devices that cannot be. At an interrupt or SIGTERM every child is
        ended before KeyboardInterrupt goes on.
        """
        from nsft_exp.cell_pool import CellPool
        from nsft_exp.cell_process import CellProcess

        if not jobs:
            return []
        cells = [CellProcess(job, output_folder(job)) for job in jobs]
        outcomes = CellPool(self.devices(), len(cells)).run(cells)
        return [as_return(job, outcome) for job, outcome in zip(jobs, outcomes, strict=True)]

    def devices(self) -> list[str | None]:
        """The devices of each slot."""
        names = visible_devices(os.environ.get("CUDA_VISIBLE_DEVICES"), num_gpus())
        groups = device_groups(names, self.devices_per_cell)
        return assign_slots(self.slots, groups, self.config.trainer.get("threads"), num_cores())


@contextmanager
def in_job(job: DictConfig) -> Iterator[None]:
    """Have HydraConfig be the job's inside the block: its values may ask for it (`${hydra:job.num}`)."""
    hydra_config = HydraConfig.instance()
    before = hydra_config.cfg
    hydra_config.set_config(job)
    try:
        yield
    finally:
        hydra_config.cfg = before


def output_folder(job: DictConfig) -> str:
    """The job's own folder."""
    with in_job(job):
        return os.path.abspath(os.path.join(str(job.hydra.sweep.dir), str(job.hydra.sweep.subdir)))


def as_return(job: DictConfig, outcome: dict[str, Any]) -> JobReturn:
    """Return what Hydra's sweepers expect of a job that ended, be its cell ok or failed."""
    returned = JobReturn(
        overrides=list(job.hydra.overrides.task),
        cfg=without_hydra(job),
        hydra_cfg=OmegaConf.masked_copy(job, "hydra"),
        working_dir=os.getcwd(),
        task_name=str(job.hydra.job.name),
        status=JobStatus.COMPLETED,
    )
    returned.return_value = outcome
    return returned
