"""Hydra's multirun, with rows that are no product, and with the jobs' outcomes kept.

Hydra looks for sweepers in the namespace package `hydra_plugins` only; hence this file's place.
"""

from __future__ import annotations

from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override

from nsft_exp.outcomes import CONFIGS, OUTCOMES


class StudySweeper(BasicSweeper):
    """The basic sweeper over `params` and the command line, times `arms`.

    Each arm is a string of overrides (`method=nsft variant=no_codebook`). Naming `method` or `variant`
    on the command line replaces the arms.
    """

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None = None,
        arms: list[str] | None = None,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.arms = list(arms or [])

    def split_arguments(self, overrides: list[Override], max_batch_size: int | None) -> list[list[list[str]]]:  # type: ignore[override]
        """Return batches of jobs, each job a list of overrides: the product of the sweeps times the arms."""
        batches = BasicSweeper.split_arguments(overrides, max_batch_size)
        named = {o.key_or_group for o in overrides}
        if not self.arms or named & {"method", "variant"}:
            return batches
        return [[[*arm.split(), *job] for arm in self.arms for job in jobs] for jobs in batches]

    def validate_batch_is_legal(self, batch: Any) -> None:
        """Compose every job before the first one starts, unless the launcher does so itself."""
        if not getattr(self.launcher, "composes_all_first", False):
            super().validate_batch_is_legal(batch)

    def sweep(self, arguments: list[str]) -> Any:
        """Run all jobs; a job returns its outcome instead of raising, so one failure stops nothing."""
        results = super().sweep(arguments)
        jobs = [job for batch in results for job in batch]
        OUTCOMES[:], CONFIGS[:] = [job.return_value for job in jobs], [job.cfg for job in jobs]
        return results
