"""The front door: what people type and import."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        # Late, because nothing beside this package may be imported before `neighbours` has looked.
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from service.system.version import package_version

        return package_version()
