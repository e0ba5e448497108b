"""The tokenize recipe: shards dealt out to processes. All that matters is in `jepa_tok.corpus.run`."""

from __future__ import annotations

from typing import final

from fairseq2.gang import Gangs
from fairseq2.logging import log
from fairseq2.recipe.base import Recipe, RecipeContext
from fairseq2.recipe.error import RecipeError
from fairseq2.task import Task
from typing_extensions import override

from jepa_tok.corpus.run import SKIPPED_FILE, CorpusRun
from jepa_tok.errors import JepaTokError
from jepa_tok.tokenizer import SpeechTokenizer
from recipes.tokenize.config import TokenizeConfig


@final
class TokenizeRecipe(Recipe):
    """Writes the shards of OUT; killed and rerun, also with another number of processes, it goes on."""

    def __init__(self) -> None:
        self.skipped = 0
        """Bad files of the finished run; known to rank 0."""

    @override
    def create_task(self, context: RecipeContext) -> Task:
        config = context.get_config_as(TokenizeConfig)
        try:
            tokenizer = SpeechTokenizer.from_pretrained(config.tokenizer).to(context.device)
            run = CorpusRun(
                config.source,
                context.output_dir,
                tokenizer,
                split=config.split,
                where=config.where or None,
                allow_pipes=config.allow_pipes,
                rows_per_shard=config.rows_per_shard,
                batch_seconds=config.batch_seconds,
                strict=config.strict,
                retry_skipped=config.retry_skipped,
            )
        except JepaTokError as e:
            raise RecipeError(str(e)) from None
        return TokenizeTask(self, run, config, context.gangs)

    @property
    @override
    def config_kls(self) -> type[object]:
        return TokenizeConfig


@final
class TokenizeTask(Task):
    """One process's share of the shards, and on rank 0 the beginning and the end."""

    def __init__(self, recipe: TokenizeRecipe, run: CorpusRun, config: TokenizeConfig, gangs: Gangs) -> None:
        self._recipe, self._corpus, self._config, self._gangs = recipe, run, config, gangs
        self._stop = False
        self._done = 0

    @override
    def run(self) -> None:
        try:
            self._run()
        except JepaTokError as e:
            raise RecipeError(str(e)) from None
        self._gangs.close()

    def _run(self) -> None:
        config, root = self._config, self._gangs.root
        if root.rank == 0:
            self._corpus.start(overwrite=config.overwrite)
        root.barrier()
        pending = self._corpus.pending()
        root.barrier()  # all have looked before the first shard appears: they deal out the same list
        share = pending[root.rank :: root.size]
        for shard in share:
            if self._stop:
                break
            self._corpus.make(shard, config.workers)
            self._done += 1
            log.info("Shard {} done, {} of {} of this process.", shard, self._done, len(share))
        root.barrier()
        if root.rank == 0 and not self._stop:
            summary = self._corpus.finish()
            self._recipe.skipped = summary.skipped
            log.info("{} of {} utterances tokenized into {} shards: {:.3f} hours, {} tokens, tokenizer {}.", summary.written, summary.utterances, summary.num_shards, summary.hours, summary.tokens, summary.hash)  # fmt: skip
            if summary.skipped:
                log.warning("{} files skipped: see {}; `retry_skipped=true` takes up those that are mended or back.", summary.skipped, self._corpus.out / SKIPPED_FILE)  # fmt: skip

    @override
    def request_stop(self) -> None:
        """SIGUSR1: each process ends after its shard; a rerun goes on."""
        self._stop = True

    @override
    def close(self) -> None:
        self._corpus.close()

    @property
    @override
    def step_nr(self) -> int:
        return self._done
