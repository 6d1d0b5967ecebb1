"""The policies a run compares, on one model: the base, its adapter, and the adapter in use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.contract import ADAPTER, BASE, COMPARE
from trainer.model import COMPARED, TRAINED, attach_adapter


class Policies:
    """One model in memory that answers as any of its policies.

    `model` is a base model, or one with the run's adapter on it. `compare`: the folder of a
    checked adapter to put beside it. Raises Refused where that does not fit the model.
    """

    def __init__(self, model: Any, compare: Path | None = None) -> None:
        from peft import PeftModel

        self.names: tuple[str, ...] = (BASE,)
        if isinstance(model, PeftModel):
            self.names += (ADAPTER,)
        if compare is not None:
            model = attach_adapter(model, compare, COMPARED)
            self.names += (COMPARE,)
        self.model = model
        self.settle()

    @contextmanager
    def using(self, name: str) -> Iterator[None]:
        """Have the model answer as one of `names`; afterwards as `settle` leaves it."""
        if name not in self.names:
            raise ValueError(f"there is no policy {name!r} here; there are {self.names}.")
        if self.names == (BASE,):
            yield
        elif name == BASE:
            with self.model.disable_adapter():
                yield
        else:
            self.model.set_adapter(COMPARED if name == COMPARE else TRAINED)
            try:
                yield
            finally:
                self.settle()

    def settle(self) -> None:
        """Make the run's own adapter the active one, where there is one."""
        if ADAPTER in self.names:
            self.model.set_adapter(TRAINED)

    def close(self) -> Any:
        """Take the compared adapter off; return the model as it was given."""
        if COMPARE in self.names:
            if ADAPTER in self.names:
                self.settle()
                self.model.delete_adapter(COMPARED)
            else:
                self.model = self.model.unload()
        return self.model
