#!/usr/bin/env bash
# LibriSpeech from audio to tokens, a language model and probes, stage by stage. Thin over the recipes.
#
#   egs/librispeech/run.sh --librispeech DIR [--arch small] [--tokenizer small] [--hardware cpu|gpu80|8gpu] [--stage N] [--stop-stage M]
#
#   0  download          --download "train-clean-100 dev-clean" into DIR's parent (torchaudio)
#   1  data              manifests in EXP/data
#   2  stage 1           JEPA encoder                    -> EXP/stage1           (not with --tokenizer)
#   3  stage 2           tokenizer                       -> EXP/stage2, exported to EXP/tokenizer
#                        --tokenizer NAME or FOLDER: a trained one, copied to EXP/tokenizer
#   4  tokens            every utterance                 -> EXP/tokens
#   5  language model    on the training readers' tokens -> EXP/lm
#   6  continuation      of an unseen reader's prompt    -> EXP/generate
#   7  probes            ASR, speaker, with controls     -> EXP/probes
#   8  results           one table                       -> EXP/results.md
#
# Killed and run again, training resumes from its last checkpoint and tokenizing from its last shard; --stage N skips what is
# done. Steps, batch sizes and the like: --stage1-args, --stage2-args, --lm-args take the recipes' own `key=value`; --asr-args those of
# `python -m probes asr`.
set -euo pipefail
main() { # one function: bash reads it whole before it starts, so that the file may change while it runs
cd "$(dirname "$0")/../.."

librispeech= download= tokenizer= arch=tiny hardware=cpu exp= stage=1 stop_stage=8 python=.venv/bin/python seed=2
stage1_args= stage2_args= lm_args= asr_args=
while [ $# -gt 0 ]; do
    case $1 in
        --librispeech | --download | --tokenizer | --arch | --hardware | --exp | --stage | --stop-stage | --python | --seed | --stage1-args | --stage2-args | --lm-args | --asr-args)
            [ $# -ge 2 ] || { echo "run.sh: error: $1 needs a value" >&2; exit 2; }
            name=${1#--}
            printf -v "${name//-/_}" %s "$2"
            shift 2 ;;
        -h | --help) sed -n '2,/^set -e/{/^set -e/d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
        *) echo "run.sh: error: unknown option $1; see --help" >&2; exit 2 ;;
    esac
done
[ -n "$librispeech" ] || { echo "run.sh: error: --librispeech DIR is needed: the folder that holds train-clean-100 and the like" >&2; exit 2; }
[ -x "$python" ] || { echo "run.sh: error: $python does not exist; run 'make setup' first" >&2; exit 2; }
exp=${exp:-exp/librispeech_$arch}

launch=("$python" -m)
case $hardware in
    cpu) configs=(tiny_cpu tiny_cpu tiny_cpu) device=cpu ;;
    gpu80) configs=(gpu80 gpu80 gpu80) device=cuda ;;
    8gpu) configs=(8gpu 8gpu 8gpu) device=cuda launch=("$python" -m torch.distributed.run --standalone --nproc-per-node 8 -m) ;;
    *) echo "run.sh: error: --hardware must be cpu, gpu80 or 8gpu, but is '$hardware' instead" >&2; exit 2 ;;
esac
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} FAIRSEQ2_NO_PROGRESS=${FAIRSEQ2_NO_PROGRESS:-1}
mkdir -p "$exp/logs"

# run NAME COMMAND...: shows the command, keeps its output in EXP/logs, records it with its seconds, stops where it fails.
run() {
    local name=$1 begun=$SECONDS status=0
    shift
    echo "run.sh: $name"
    echo "  \$ $*"
    "$@" >"$exp/logs/$name.log" 2>&1 || status=$?
    "$python" - "$exp/commands.jsonl" "$now" "$name" "$((SECONDS - begun))" "$status" "$@" <<'EOF'
import json, shlex, sys
from probes.results import commit

path, stage, name, seconds, status, *command = sys.argv[1:]
row = {"stage": int(stage), "name": name, "command": shlex.join(command), "seconds": int(seconds), "status": int(status), "commit": commit()}
open(path, "a").write(json.dumps(row) + "\n")
EOF
    if [ "$name" = tokens ] && [ "$status" -eq 1 ]; then # done, but for bad files
        echo "run.sh: warning: files were skipped; see $exp/tokens/skipped.jsonl" >&2
    elif [ "$status" -ne 0 ]; then
        tail -n 3 "$exp/logs/$name.log" | sed 's/^/  | /' >&2
        echo "run.sh: error: $name ended with status $status; its output is in $exp/logs/$name.log" >&2
        exit "$status"
    fi
    echo "  done in $((SECONDS - begun)) s"
}
at() { now=$1 && [ "$stage" -le "$1" ] && [ "$1" -le "$stop_stage" ]; }

data=$exp/data
if at 0 && [ -n "$download" ]; then
    # shellcheck disable=SC2086  # several subsets in one option
    run download "$python" -m egs.librispeech.prepare "$(dirname "$librispeech")" "$data" --download $download
fi
if at 1; then
    run data "$python" -m egs.librispeech.prepare "$librispeech" "$data"
fi
# shellcheck disable=SC2206  # the recipes' own key=value pairs, several in one option
if at 2 && [ -z "$tokenizer" ]; then
    run stage1 "${launch[@]}" recipes.jepa "$exp/stage1" --no-rich --config-file "recipes/jepa/configs/${configs[0]}.yaml" \
        --config "dataset.config_overrides.manifests=[$data/all.jsonl]" model.arch="$arch" common.seed="$seed" $stage1_args
fi
if at 3 && [ -n "$tokenizer" ]; then
    run tokenizer "$python" -c "import sys; from jepa_tok import SpeechTokenizer as T; T.from_pretrained(sys.argv[1]).save_pretrained(sys.argv[2])" \
        "$tokenizer" "$exp/tokenizer"
elif at 3; then
    run stage2 "${launch[@]}" recipes.codec "$exp/stage2" --no-rich --config-file "recipes/codec/configs/${configs[1]}.yaml" \
        --config "dataset.config_overrides.manifests=[$data/all.jsonl]" model.arch="$arch" common.seed="$seed" encoder.path="$exp/stage1" $stage2_args
    run export "$python" -m recipes.codec.export "$exp/stage2" "$exp/tokenizer" --name "librispeech-$arch"
fi
if at 4; then
    if [ "$hardware" = 8gpu ]; then
        run tokens "${launch[@]}" recipes.tokenize "$exp/tokens" --no-rich --config source="$data/all.jsonl" tokenizer="$exp/tokenizer"
    else
        run tokens "$python" -m jepa_tok tokenize "$data/all.jsonl" "$exp/tokens" --tokenizer "$exp/tokenizer" --device "$device"
    fi
fi
if at 5; then
    run lm "${launch[@]}" recipes.lm "$exp/lm" --no-rich --config-file "recipes/lm/configs/${configs[2]}.yaml" \
        --config "dataset.config_overrides.shards=[$exp/tokens]" dataset.config_overrides.train_split=train dataset.config_overrides.valid_split=dev common.seed="$seed" $lm_args
fi
if at 6; then
    run generate "$python" -m recipes.lm.generate "$exp/generate" --no-rich --config common.assets.prev_checkpoint_dir="$exp/lm/checkpoints" \
        tokenizer="$exp/tokenizer" "prompts.tokens=[$exp/tokens]" prompts.split=dev prompts.limit=3
fi
if at 7; then
    # shellcheck disable=SC2086
    run probe_asr "$python" -m probes asr --tokens "$exp/tokens" --labels "$data/all.jsonl" --random-config "$arch" --out "$exp/probes/asr" $asr_args
    run probe_speaker "$python" -m probes speaker --tokens "$exp/tokens" --labels "$data/all.jsonl" --split-column split_utt --verification-column split \
        --random-config "$arch" --out "$exp/probes/speaker"
fi
if at 8; then
    run results "$python" -m egs.librispeech.results "$exp"
    echo "run.sh: results: $exp/results.md"
fi
}
main "$@" && exit
