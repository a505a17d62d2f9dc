"""The public package: the command line and the version."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        # Imported late: `neighbours` must check the other packages before anything imports them.
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from service.system.version import package_version

        return package_version()
