"""The room of studies, which can be called: `dd.study(…)` is `program.study`, and `datadiet.study` is this package."""

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    def __call__(self, *arguments: Any, **options: Any) -> Any:
        from datadiet.study.program import study

        return study(*arguments, **options)


sys.modules[__name__].__class__ = _Room
