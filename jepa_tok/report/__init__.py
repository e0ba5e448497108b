"""One self-contained HTML page of a run: what ran, what it learned, how it sounds.

`build_report(run_dir, out_html)` reads what is in the run's folder and leaves nothing else behind. Layout that it expects
(each part may be missing; the page then says so):

    run.json                    title, note, commit, seeds, date, machine; `manifest` names another manifest than below
    commands.jsonl              a row a command: stage, name, command, seconds, status, started
    corpus/all.jsonl            manifest (or data/all.jsonl); corpus/corpus.json is its summary
    stage1|stage2|lm/metrics/   JSONL of the recipes: train.jsonl, valid/*.jsonl
    tokenizer/                  config.json, model.safetensors
    tokens/                     parquet token shards
    generate/                   generations.json of recipes.lm.generate and the WAV files that it names
    probes/TASK/results.json    one of each probe

    rundir.py reads, media.py and charts.py draw, training.py, listen.py and results.py write sections, page.py binds them.
"""

from __future__ import annotations

from jepa_tok.report.page import build_report

__all__ = ["build_report"]
