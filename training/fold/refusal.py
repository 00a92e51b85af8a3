"""A "no" that carries its reason. Questions return either their answer or a Refusal; the report shows the reason."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Refusal:
    """Why something is left as it is: names the node and the tensor that stand in the way."""

    reason: str
