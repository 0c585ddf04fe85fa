#!/usr/bin/env bash
# The main job on a laptop: make the toy world, train TV2TV on it with two processes, sample, steer, score.
# Every stage keeps what it finished, so an interrupted run goes on where it was when started again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

config=configs/toy_world.yaml
data=data/toy_world
run=runs/toy_world
if ! nvidia-smi >/dev/null 2>&1; then export DS_ACCELERATOR=cpu; fi

stage() { printf '\n== %s\n' "$*"; }

stage "1/5 codec: a small causal network learns to code the toy world's videos"
[ -f $data/codec.safetensors ] || python tools/train_codec.py --toy 1500 --out $data/codec.safetensors

stage "2/5 shards: episodes become latents and timed words"
[ -d $data/train ] || python tools/make_shards.py --config $config --toy 3000 --split train --out $data/train
[ -d $data/val ] || python tools/make_shards.py --config $config --toy 128 --split val --stats $data/train --out $data/val

stage "3/5 training: two processes; loss curves and preview pictures in $run"
deepspeed --num_gpus 2 launch/train.py --config $config --resume auto

stage "4/5 sampling: one start, left alone and with the words changed at 0.81 s"
[ -d $run/sample ] || python -m megatv.sample --checkpoint $run --example 0 \
    --intervene "0.8125:(space). 0, 0, 0, 0." --compare --out $run/sample

stage "5/5 scoring: do the pictures do what the words say?"
python tools/score_toy_world.py --checkpoint $run --out $run/scores.json

printf '\nLook at %s/sample/contact_sheet.png and the videos beside it; the scores are in %s/scores.json.\n' $run $run
printf 'To steer it yourself: source .venv/bin/activate && python -m megatv.studio --checkpoint %s\n' $run
