"""Whether MLflow is there, and what is said where it is not."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from datadiet import commands
from datadiet.errors import UserError
from datadiet.tracking import mlflow_store
from datadiet.tracking.failures import reason, repair
from datadiet.tracking.mlflow_store import AWAY
from datadiet.tracking.record import Record

RETRY_SECONDS = 30.0  # between two attempts to reach a store that went away


@dataclass
class Link:
    """Whether MLflow is there. A call to a dead server costs seconds, so after one none is made for a while."""

    offline: bool = False  # never call it
    say: Callable[[str], Any] = print
    retry_at: float = 0.0
    lost: bool = False  # it went away at least once
    refused: bool = False  # it refused at least one run
    _client: Any = None

    @property
    def client(self) -> Any:
        """An MlflowClient."""
        if self._client is None:
            self._client = mlflow_store.connect()
        return self._client

    def lose(self, error: Exception) -> None:
        """Note that a call failed; said once."""
        if not self.lost:
            sync = commands.command("sync")
            self.say(
                f"Warning: MLflow ({mlflow_store.store_name()}) is away ({reason(error)}). The work goes on; what "
                f"it lacks stays in exps/, and `{sync}` brings it there. {repair(error, sync)}."
            )
        self.lost, self.retry_at = True, time.monotonic() + RETRY_SECONDS

    def refuse(self, record: Record, experiment_id: str | None, error: Exception) -> bool:
        """Note that MLflow is there and refuses a run; said once.

        Returns:
            Whether the run, or its experiment, was deleted.
        """
        try:
            restoring = mlflow_store.gone(self.client, record.id, experiment_id)
        except (UserError, *AWAY):
            restoring = []
        if not self.refused:
            back = f", or into this one, once it is restored ({'; '.join(restoring)})" if restoring else ""
            self.say(
                f"Warning: MLflow ({mlflow_store.store_name()}) takes no more of {record.name} ({reason(error)}). The "
                f"work goes on in exps/ alone; `{commands.command('sync')}` brings it into a new run{back}."
            )
        self.refused = True
        return bool(restoring)

    @property
    def open(self) -> bool:
        """Whether a call is worth an attempt."""
        return not self.offline and time.monotonic() >= self.retry_at
