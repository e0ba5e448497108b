"""What all readers check before they go on from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping

from fairseq2.recipe.error import RecipeError


def check_identity(state_dict: Mapping[str, object], identity: Mapping[str, object]) -> None:
    """RecipeError, in one line, where the plan of batches in which `state_dict` names a position is another than today's.

    :param identity: All that a reader's plan follows from, by name; its state holds the same.
    """
    for name, value in identity.items():
        if state_dict.get(name) != value:
            raise RecipeError(
                f"The run's data must stay what it was to resume: `{name}` was {state_dict.get(name)}, but is {value} now; restore it or start in a new folder."
            )
