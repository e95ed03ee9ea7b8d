"""Traces of chosen steps by torch's profiler, to look at in https://ui.perfetto.dev or chrome://tracing."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from consumer.config import ProfileConfig

log = logging.getLogger(__name__)


class Profiler:
    """Profiles this rank's chosen steps into `folder`; whatever goes wrong with a trace ends no training."""

    def __init__(self, config: ProfileConfig, rank: int, folder: Path) -> None:
        self.config, self.rank, self.folder = config, rank, folder
        self._chosen = frozenset(config.steps) if rank in config.ranks else frozenset[int]()
        self._left = config.limit_mb * 1e6

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around step `number`, from 1."""
        if number not in self._chosen or self._left <= 0:
            yield
            return
        kinds = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        trace = profile(activities=kinds, record_shapes=self.config.shapes, profile_memory=self.config.memory)
        trace.start()
        try:
            yield
        finally:
            self._end(trace, number)

    def _end(self, trace: profile, number: int) -> None:
        path = self.folder / f"step-{number:08d}-rank-{self.rank:05d}.json.gz"
        aside = path.with_name(f".{path.name}")
        try:
            trace.stop()
            self.folder.mkdir(parents=True, exist_ok=True)
            trace.export_chrome_trace(str(aside))
            os.replace(aside, path)
            self._left -= path.stat().st_size
        except (OSError, RuntimeError) as error:
            log.warning("%s was not written: %s", path, error)
            return
        if self._left <= 0:
            log.warning(
                "traces of rank %d passed profile.limit_mb %g; no further steps are profiled",
                self.rank,
                self.config.limit_mb,
            )
