"""How pictures are sent: the table of body kinds.

A kind is a class with a row in the table; nothing else knows them one by one.
"""

from __future__ import annotations

from typing import Final

from convserve.loadtest.bodies.call import Body, Call, Options
from convserve.loadtest.bodies.native import Json, Multipart, Raw
from convserve.loadtest.bodies.oip import Oip, OipBinary
from convserve.loadtest.bodies.predict import TfServing, TorchServe

__all__ = ["BODIES", "Body", "Call", "Options", "table"]


def table(*bodies: Body) -> dict[str, Body]:
    """Returns the kinds by name; raises ValueError if two have the same."""
    found: dict[str, Body] = {}
    for body in bodies:
        if body.name in found:
            raise ValueError(f"two body kinds are named {body.name}")
        found[body.name] = body
    return found


BODIES: Final = table(Raw(), Multipart(), Json(), Oip(), OipBinary(), TfServing(), TorchServe())
