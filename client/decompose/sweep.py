"""``sweep``: every combination of parameters, one subtask each."""

from collections.abc import Callable, Mapping
from typing import Any


class Sweep:
    """Combinations of parameters.

    Arguments: each parameter with the list of its values. The input is a dict of one value for
    each parameter, the last one changing fastest; the id is ``rate=0.1,size=3``.
    """

    name = "sweep"
    version = 1

    def prepare(self, arguments: Mapping[str, Any]) -> tuple[Callable[[Any], list[list[Any]]], Any]:
        """See ``Decomposer``."""
        if not arguments:
            raise ValueError("give at least one parameter with its values")
        value = []
        for name, values in arguments.items():
            if isinstance(values, str | bytes) or not hasattr(values, "__iter__"):
                raise TypeError(f"{name} is {values!r:.60}; give a list of values")
            value.append([name, list(values)])

        def split(value: Any) -> list[list[Any]]:
            import itertools

            names = [name for name, _ in value]
            pairs: list[list[Any]] = []
            for combination in itertools.product(*(values for _, values in value)):
                chosen = dict(zip(names, combination, strict=True))
                pairs.append([",".join(f"{name}={chosen[name]}" for name in names), chosen])
            return pairs

        return split, value
