"""`jepa-tok info`: what a tokenizer, a preset, tokens or an audio file are."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa_tok.cli.common import duration, file_path
from jepa_tok.config import TokenizerConfig
from jepa_tok.config_dict import to_dict
from jepa_tok.errors import AudioError, ConfigError
from jepa_tok.presets import PRESETS, tokenizer_config

if TYPE_CHECKING:
    from jepa_tok.corpus.schema import ShardMetadata, TokenRow


def add_parser(verbs: Any) -> None:
    """Adds the verb."""
    parser = verbs.add_parser(
        "info",
        help="describe a tokenizer, tokens or an audio file",
        description="Describes a tokenizer (folder, packaged name or preset), tokens (a shard, or a folder in any format) or an audio file.",
        epilog="example: jepa-tok info my_tokenizer\n         jepa-tok info tokens.parquet --check",
    )
    parser.add_argument(
        "target", metavar="TARGET", type=lambda text: str(file_path(text)), help="a name, a folder or a file"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--check", action="store_true", help="tokens: read and check every row")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Looks at what the target is, and prints what is known of it."""
    facts = _facts(args.target, args.check)
    if args.json:
        print(json.dumps(facts, indent=1, ensure_ascii=False))
    else:
        rows = list(_flat(facts))
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            print(f"{name:{width}}  {value}")
    return 0


def _facts(target: str, check: bool) -> dict[str, Any]:
    path = Path(target).expanduser()
    if path.suffix == ".parquet" or (path.is_dir() and any(path.glob("tokens-*.parquet"))):
        return _of_shards(path, check)
    if path.is_dir() and (path / "metadata.json").exists():
        return _of_export(path, check)
    if path.is_file():
        return _of_audio(path)

    from jepa_tok.hub import find_pretrained, list_pretrained, read_folder

    if path.exists() or find_pretrained(target):
        folder = read_folder(target)
        return {
            "tokenizer": str(folder.path),
            "hash": folder.hash,
            "weights": folder.weights,
            **_of_config(folder.config),
        }
    if target in PRESETS:
        return {"preset": target, "weights": "none packaged", **_of_config(tokenizer_config(target))}
    raise ConfigError(
        f"`{target}` must be a file, a folder, a packaged tokenizer ({', '.join(list_pretrained()) or 'none yet'}) "
        f"or a preset ({', '.join(PRESETS)}), but is none."
    )


def _of_config(config: TokenizerConfig) -> dict[str, Any]:
    import torch

    from jepa_tok.models.encoder import Encoder
    from jepa_tok.models.fsq import FSQ
    from jepa_tok.models.generator import Generator

    with torch.device("meta"):  # shapes without memory
        parts = {
            "encoder": Encoder(config.encoder),
            "quantizer": FSQ(config.quantizer),
            "generator": Generator(config.generator),
        }
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    quantizer, rate = config.quantizer, config.encoder.frame_rate
    return {
        "sample_rate": config.encoder.sample_rate,
        "hop": config.encoder.hop,
        "frame_rate": rate,
        "num_groups": quantizer.num_groups,
        "tokens_per_second": rate * quantizer.num_groups,
        "bits_per_second": round(rate * sum(math.log2(r) for r in quantizer.radices), 6),
        "vocab_sizes": quantizer.vocab_sizes,
        "parameters": sizes,
        "config": to_dict(config),
    }


def _of_shards(path: Path, check: bool) -> dict[str, Any]:
    import pyarrow.compute as pc

    from jepa_tok.corpus.schema import RESERVED
    from jepa_tok.corpus.shards import find_shards, open_shard, read_metadata, read_shards

    shards = find_shards(path)
    metadata = read_metadata(path)
    rows = frames = samples = 0
    for shard in shards:
        table = open_shard(shard).read(columns=["n_frames", "n_samples"])
        rows += table.num_rows
        frames += pc.sum(table.column("n_frames")).as_py() or 0
        samples += pc.sum(table.column("n_samples")).as_py() or 0
    columns = {f.name: str(f.type) for f in open_shard(shards[0]).schema_arrow if f.name not in RESERVED}
    facts = {"tokens": str(path), "format": "parquet", "shards": len(shards)}
    facts |= _of_tokens(metadata, rows, frames, samples, columns)
    return facts | (_checked(read_shards(path), rows) if check else {})


def _of_export(path: Path, check: bool) -> dict[str, Any]:
    from jepa_tok.corpus.formats import ExportInfo, open_tokens

    info = ExportInfo.read(path)
    facts = {"tokens": str(path), "format": info.layout}
    facts |= _of_tokens(info.metadata, info.utterances, info.frames, info.samples, info.columns)
    return facts | (_checked(open_tokens(path).rows(), info.utterances) if check else {})


def _of_tokens(
    metadata: ShardMetadata, rows: int, frames: int, samples: int, columns: dict[str, str]
) -> dict[str, Any]:
    return {
        "rows": rows,
        "frames": frames,
        "num_tokens": frames * metadata.num_groups,
        "audio": duration(samples / metadata.sample_rate),
        "tokenizer_hash": metadata.hash,
        "sample_rate": metadata.sample_rate,
        "frame_rate": metadata.frame_rate,
        "num_groups": metadata.num_groups,
        "vocab_sizes": list(metadata.vocab_sizes),
        "columns": columns,
    }


def _checked(rows: Iterable[TokenRow], total: int) -> dict[str, Any]:
    from tqdm import tqdm

    return {"checked": f"{sum(1 for _ in tqdm(rows, total=total, desc='check', disable=None))} rows are sound"}


def _of_audio(path: Path) -> dict[str, Any]:
    import soundfile

    from jepa_tok.audio import load_audio

    size = len(load_audio(path))  # by all the rules of input: what is printed here can be encoded
    try:
        header = soundfile.info(str(path))
    except (soundfile.SoundFileError, OSError) as e:
        raise AudioError(f"'{path}' cannot be read: {e}.") from None
    return {
        "audio": str(path),
        "duration": duration(header.frames / header.samplerate),
        "sample_rate": header.samplerate,
        "channels": header.channels,
        "format": f"{header.format} {header.subtype}",
        "samples_at_24_kHz": size,
        "frames_at_2.5_Hz": -(-size // 9600),
    }


def _flat(values: dict[str, Any], prefix: str = "") -> Any:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield (
                prefix + name,
                f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else _short(value),
            )


def _short(value: Any) -> str:
    # Nineteen sizes, of which all but the last are equal, read better as runs.
    if not isinstance(value, list) or not value:
        return str(value)
    runs: list[list[Any]] = []
    for v in value:
        if runs and runs[-1][0] == v:
            runs[-1][1] += 1
        else:
            runs.append([v, 1])
    return ", ".join(f"{v} x {n}" if n > 2 else ", ".join([str(v)] * n) for v, n in runs)
