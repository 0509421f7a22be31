#!/usr/bin/env bash
# From rendered puppet scenes to a talking character, with the same verbs a pod uses. Leaves everything in demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/${BIN:-.venv/bin}:$PATH" JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" TF_CPP_MIN_LOG_LEVEL=3
start=$SECONDS
say() { printf '\n\033[1m[%3ds] %s\033[0m\n' $((SECONDS - start)) "$*"; }

say "Render puppet scenes, then encode them with the shipped VAE"
lpm data puppets --config=configs/puppets/data.py:demo --workdir=demo/data
lpm data encode --config=configs/puppets/encode.py:demo --config.data_dir=demo/data --workdir=demo/latents

say "Continue training the shipped Base model: 4 steps, stop, resume, 4 more"
for steps in 4 8; do
  lpm train --config=configs/puppets/base.py:demo --config.steps=$steps --workdir=demo/training
done

say "Generate a dialogue for two held-out characters: listening, speaking, idle"
python -m data_pipelines.puppets.showcase --workdir=demo/inputs
for who in character1 character2; do
  lpm generate --config=configs/puppets/generate.py --config.inputs=demo/inputs/$who --workdir=demo/$who
done

say "Stream a conversation with the distilled Online model, a second at a time"
lpm stream --config=configs/puppets/stream.py --config.inputs=demo/inputs/character1 --workdir=demo/stream

say "Measure the shipped model beside the render, the VAE and a still picture"
lpm evaluate --config=configs/eval/puppets.py:quick --workdir=demo/evaluation

say "Done. Look at:"
ls -1 demo/character*/*.mp4 demo/stream/stream.mp4 demo/stream/stream.html demo/evaluation/report.html
