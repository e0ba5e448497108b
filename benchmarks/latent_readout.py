"""What a linear reader finds of the sound in z and in the codes: trained encoder beside untrained ones.

    python benchmarks/latent_readout.py exp/librispeech_tiny/stage1 exp/librispeech_tiny/data/all.jsonl [--json FILE]

Ridge regression from each latent frame (400 ms) to the log-mels of its 20 sub-frames (20 ms, 40 filters), fitted on `train` rows,
judged on `dev` rows of other speakers. The penalty is chosen on training clips held out from the fit. R2 is against
predicting the mean of the training frames; dB is the mean absolute log-mel error. Codes are those of a calibrated quantiser,
as stage 2 takes them, for trained and untrained encoders alike.

    N frames   D latent dimensions   M mel values of a frame (20 x 40)
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import Ridge

from jepa_tok._fairseq2.checkpoint import ENCODER_FAMILY, find_checkpoint, part_of
from jepa_tok.audio import load_audio
from jepa_tok.config import EncoderConfig, QuantizerConfig
from jepa_tok.corpus.manifest import read_corpus
from jepa_tok.errors import JepaTokError
from jepa_tok.models.encoder import Encoder
from jepa_tok.models.fsq import FSQ
from jepa_tok.models.jepa import Jepa
from jepa_tok.models.logmel import LogMel
from jepa_tok.training_config import JepaConfig

SUBFRAMES, MELS, SECONDS = 20, 40, 10.0
PENALTIES = (1.0, 10.0, 100.0, 1000.0)
TO_DB = 20.0 / math.log(10.0) * LogMel.DEVIATION


def load_waves(manifest: Path, split: str, limit: int, config: EncoderConfig) -> list[torch.Tensor]:
    """Up to `limit` clips of a split, spread evenly, cut to whole frames of at most 10 s."""
    rows = read_corpus(manifest, split=split)
    rows = rows[:: max(1, len(rows) // limit)][:limit]
    waves = [load_audio(row.path, config.sample_rate, end=SECONDS) for row in rows]
    return [w[: len(w) // config.hop * config.hop] for w in waves if len(w) >= config.hop]


@torch.inference_mode()
def read(encoder: Encoder, fsq: FSQ, waves: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    """z [N, D] and dequantised codes [N, D] of the clips."""
    z = torch.cat([encoder(wave[None]).latents[0] for wave in waves])
    return z.numpy(), fsq.dequantize(fsq.quantize(z)).numpy()


def mels(waves: list[torch.Tensor], config: EncoderConfig) -> np.ndarray:
    """Log-mels of each frame's sub-frames [N, M]."""
    logmel = LogMel(config.sample_rate, config.n_fft, config.hop // SUBFRAMES, MELS)
    return torch.cat([logmel(wave[None])[0].reshape(-1, SUBFRAMES * MELS) for wave in waves]).numpy()


def readout(
    x: np.ndarray, y: np.ndarray, x_dev: np.ndarray, y_dev: np.ndarray, penalties: Sequence[float] = PENALTIES
) -> dict[str, float]:
    """R2 and mean absolute error (dB) on dev frames; the penalty is chosen on the last 15 % of the training frames."""
    mean, std = x.mean(0), x.std(0) + 1e-6
    x, x_dev = (x - mean) / std, (x_dev - mean) / std
    cut = int(0.85 * len(x))
    errors = {a: np.square(Ridge(a).fit(x[:cut], y[:cut]).predict(x[cut:]) - y[cut:]).sum() for a in penalties}
    penalty = min(errors, key=lambda a: errors[a])
    error = Ridge(penalty).fit(x, y).predict(x_dev) - y_dev
    r2 = 1.0 - np.square(error).sum() / np.square(y_dev - y.mean(0)).sum()
    return {"r2": float(r2), "db": float(np.abs(error).mean() * TO_DB)}


def run(stage1: Path, manifest: Path, seeds: int, limit: int) -> dict[str, object]:
    """The whole comparison."""
    checkpoint = find_checkpoint(stage1, None)
    config: JepaConfig = checkpoint.config_as(ENCODER_FAMILY, JepaConfig)
    trained = Encoder(config.encoder)
    trained.load_state_dict(part_of(checkpoint.state(lambda: Jepa(config)), "encoder"))
    encoders = [("trained", trained)]
    for seed in range(seeds):
        torch.manual_seed(seed)
        encoders.append(("untrained", Encoder(config.encoder)))

    train = load_waves(manifest, "train", limit, config.encoder)
    dev = load_waves(manifest, "dev", limit // 4, config.encoder)
    y, y_dev = mels(train, config.encoder), mels(dev, config.encoder)
    rows: dict[str, dict[str, list[float]]] = {}
    for name, encoder in encoders:
        encoder.eval()
        fsq = FSQ(QuantizerConfig(dim=config.encoder.latent_dim, bound="norm")).requires_grad_(False)
        fsq.calibrate(torch.from_numpy(read(encoder, fsq, train)[0]))
        for kind, x, x_dev in zip(("z", "codes"), read(encoder, fsq, train), read(encoder, fsq, dev)):
            for metric, value in readout(x, y, x_dev, y_dev).items():
                rows.setdefault(f"{name}, {kind}", {}).setdefault(metric, []).append(value)
    baseline = float(np.abs(y_dev - y.mean(0)).mean() * TO_DB)
    return {"train_frames": len(y), "dev_frames": len(y_dev), "rows": rows, "mean_spectrum_db": baseline}


def main() -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description="Linear readout of log-mels from z and from codes.")
    parser.add_argument("stage1", type=Path, help="a run of recipes.jepa")
    parser.add_argument("manifest", type=Path, help="manifest with the splits train and dev")
    parser.add_argument("--seeds", type=int, default=3, help="untrained encoders (default: 3)")
    parser.add_argument("--limit", type=int, default=240, help="training clips (default: 240)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args()
    try:
        found = run(args.stage1, args.manifest, args.seeds, args.limit)
    except JepaTokError as error:
        print(f"latent_readout: error: {error}", file=sys.stderr)
        return 2
    print(
        f"{found['train_frames']} training and {found['dev_frames']} dev frames; mean spectrum {found['mean_spectrum_db']:.2f} dB"
    )
    print(f"{'reader of':20} {'R2':>15} {'dB':>15}")
    for name, metrics in found["rows"].items():  # type: ignore[attr-defined]
        cells = [
            f"{statistics.fmean(v):.3f} ± {statistics.stdev(v) if len(v) > 1 else 0:.3f}" for v in metrics.values()
        ]
        print(f"{name:20} " + " ".join(f"{cell:>15}" for cell in cells))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
