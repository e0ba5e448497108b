"""What all recipes share: their entry point with one-line errors, and defaults of sections."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection

from fairseq2.recipe.base import Recipe
from fairseq2.recipe.config import CommonSection, GangSection, LRSchedulerSection, RegimeSection
from fairseq2.recipe.error import RecipeConfigParseError, RecipeError
from fairseq2.utils.structured import StructureError
from fairseq2.utils.validation import ValidationResult
from fairseq2.utils.yaml import YamlError

from jepa_tok.errors import JepaTokError

USER_ERRORS = (RecipeConfigParseError, RecipeError, StructureError, YamlError, JepaTokError)


class OneLineErrors(logging.Filter):
    """Turns the logged traceback of a user's error into one line, and leaves other errors as they are."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, USER_ERRORS):
            record.msg, record.args = explain(error).replace("{", "{{").replace("}", "}}"), ()
            record.exc_info = record.exc_text = None
        return True


def is_news(record: logging.LogRecord) -> bool:
    """False for torcheval's remark on each mean that is 0, as that of dead dimensions should be."""
    return not str(record.msg).startswith("No calls to update() have been made")


def explain(error: BaseException) -> str:
    """The messages of an error and its causes in one line, outermost first, without those that say nothing new."""
    lines: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        text = " ".join(str(cause).split())
        if text and not text.startswith("Value cannot be structured to `<class") and text not in lines:
            lines.append(text.rstrip(":"))
        cause = cause.__cause__
    return " ".join(lines)


def run_main(recipe: Recipe) -> None:
    """Command line of a recipe: `fairseq2.recipe.cli.main` with errors told in one line."""
    from fairseq2.recipe.cli import main

    logging.getLogger("fairseq2").addFilter(OneLineErrors())
    logging.getLogger().addFilter(is_news)
    try:
        main(recipe)
    except JepaTokError as ex:
        print(ex, file=sys.stderr)
        sys.exit(2)


def default_common() -> CommonSection:
    """OUT itself is the run: a changed setting must not silently start another run beside the one to resume."""
    return CommonSection(no_sweep_dir=True)


def patient_gang() -> GangSection:
    """Processes wait for each other for two hours, where fairseq2's wait for 15 minutes: while rank 0 prepares a run, the others do.

    Not longer, since so much later a process that hangs is noticed.
    """
    return GangSection(timeout=2 * 60)


def constant_lr() -> LRSchedulerSection:
    """The paper tells one learning rate and no schedule."""
    return LRSchedulerSection(name="passthrough", config=None)


def default_regime(num_steps: int) -> RegimeSection:
    """Validation and checkpoint every 1,000 steps, the last two checkpoints kept."""
    return RegimeSection(
        num_steps=num_steps,
        validate_every_n_steps=1_000,
        checkpoint_every_n_steps=1_000,
        keep_last_n_checkpoints=2,
        publish_metrics_every_n_steps=100,
    )


def check_score(regime: RegimeSection, absent: Collection[str]) -> None:
    """RecipeError where the score is one of the losses that no validation has; fairseq2 would end the run at the first one."""
    if regime.score_metric in absent:
        raise RecipeError(
            f"`regime.score_metric` must be a metric that the model is validated by, but '{regime.score_metric}' is not computed with this configuration."
        )


def check_warmup(result: ValidationResult, lr_scheduler: LRSchedulerSection, regime: RegimeSection) -> None:
    """Adds an error where the warm-up is as long as the run: fairseq2 would divide by zero."""
    warmup, steps = getattr(lr_scheduler.config, "num_warmup_steps", 0), regime.num_steps
    if steps is not None and warmup >= steps:
        result.add_error(
            f"`lr_scheduler.config.num_warmup_steps` must be less than `regime.num_steps` ({steps}), but is {warmup} instead."
        )
