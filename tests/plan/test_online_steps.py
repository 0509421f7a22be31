"""Steps of distillation as plans see them: counted against closed forms, compiled, at 17B."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax import ShapeDtypeStruct as Shape
from ml_collections import ConfigDict

from configs.puppets import online as puppets
from lpm_jax.distillation import heard, tasks
from lpm_jax.distillation.replay import SCOPE
from lpm_jax.distillation.rollout import EVALUATION
from lpm_jax.models.attention import ChunkCausal
from lpm_jax.models.cache import KVCache
from lpm_jax.models.transformer import VideoTransformer
from lpm_jax.plan import compiled, flops, online, train
from lpm_jax.plan.lowering import AbstractStep, trace_train_step
from lpm_jax.training.samples import encode_window
from tests.models.test_transformer import TINY, make_inputs

libtpu = pytest.mark.skipif(
  not compiled.compiler_is_there(), reason="libtpu, the TPU compiler, is not installed"
)

STARTS = ("regression", "refiner_start")


def config_of(stage: str) -> ConfigDict:
  config = puppets.get_config(f"{stage},tiny")
  config.data.height = config.data.width = 32
  if stage in STARTS:
    config.levels = (1.0, 0.757, 0.522, 0.0)  # no trajectories are needed
    config.data.path = "no_such_folder"
  return config


@functools.cache
def traced(stage: str) -> AbstractStep:
  return trace_train_step(config_of(stage), jax.devices()[:1])


def products(stage: str, **shares: float) -> float:
  return flops.count_work(traced(stage).traced.jaxpr.jaxpr, shares).products


def count(run, *shapes) -> float:
  return flops.count_work(jax.make_jaxpr(run)(*shapes).jaxpr).products


def test_a_turn_of_the_student_asks_the_teacher_three_times():
  step = traced("on_policy")
  built = nnx.eval_shape(lambda: step.task.build(nnx.Rngs(0)))
  graphdef, state = nnx.split(built.scores.teacher)

  def encoded(state, batch):
    return encode_window(nnx.merge(graphdef, state), batch)

  def asked(state, batch, latents, t):
    return nnx.merge(graphdef, state)(latents, t, encoded(state, batch))

  frames = 1 + step.task.chunks * step.task.frames
  given = Shape((2, frames, 4, 4, 16), jnp.float32), Shape((2, frames), jnp.float32)
  one = count(asked, state, step.batch, *given) - count(encoded, state, step.batch)
  turn = products("on_policy") - products("on_policy", **{tasks.TURN: 0})
  tables = one - turn / 3  # rotary angles are the same for all clips: once, not three times
  assert 0 <= tables < 0.02 * one


def test_the_mean_of_steps_leaves_out_what_they_do_not_do():
  shares = traced("on_policy").task.shares()
  assert set(shares) == {tasks.TURN, tasks.BEGINNING, SCOPE, *(f"{EVALUATION}{i}" for i in (0, 1))}
  assert (shares[f"{EVALUATION}0"], shares[f"{EVALUATION}1"]) == (1.0, 0.5)
  whole = products("on_policy")
  for name, share in shares.items():
    without = products("on_policy", **{name: 0})
    assert without < whole, name
    mean = products("on_policy", **{name: share})
    assert mean == pytest.approx(share * whole + (1 - share) * without)


def test_stage_2_takes_its_student_s_gradient_only_in_its_turn():
  """A forward pass again, and a backward pass: three times what a step computes anyway."""
  replay = products("off_policy") - products("off_policy", **{SCOPE: 0})
  assert replay > 0.2 * products("off_policy")


def test_what_a_chunk_sees_costs_the_closed_form():
  """Two chunks held against none, in the traced `extend`."""
  frames, slots, tokens = 2, 2, 4
  graphdef, state = nnx.split(nnx.eval_shape(lambda: VideoTransformer(TINY, rngs=nnx.Rngs(0))))
  latents, _, conditions = make_inputs()
  track = jnp.zeros((len(latents), frames, *conditions.speak.shape[2:]))
  conditions = conditions.replace(speak=track, listen=track).without_references()

  def extended(grids: int) -> float:
    head = TINY.width // TINY.heads
    shape = TINY.layers // 2, 2, len(latents), TINY.heads, grids, tokens, head
    key, time = Shape(shape, jnp.float32), Shape((len(latents), grids), jnp.int32)

    def run(state, turned, *given):
      return nnx.merge(graphdef, state).extend(*given, [turned], jnp.int32(5))

    def turned(state, cache):
      return nnx.merge(graphdef, state).turned(cache, 4, 4)

    cache = KVCache(key, key, time, Shape(time.shape, bool))
    cache = jax.eval_shape(turned, state, cache)
    timestep = Shape((len(latents), 1), jnp.float32)
    return count(run, state, cache, latents[:, :frames], timestep, conditions)

  def closed(held: int) -> float:
    sizes = dict(frames=frames, grid=tokens, slots=0, text=4, audio=4 * frames)
    seen = frames * (1 + slots + (held + 1) * frames)
    return len(latents) * flops.forward_flops(TINY, seen=seen, **sizes)

  found = extended(1 + slots + 2 * frames) - extended(1 + slots)
  assert found == closed(2) - closed(0) > 0


def test_a_stream_s_chunks_hold_what_its_age_allows():
  clip = online._Clip(traced("on_policy").task, grid=4, slots=2)
  assert clip.causal == ChunkCausal(frames=3, sink=1, window=1)
  config = clip.task.model_config.transformer
  each = 4 * 3 * 3 * 4**2 * config.width * config.layers  # to see one chunk more
  young, old = clip.chunk(1), clip.chunk(2)  # held: 0, 1 and 0, 1, 2, 2
  assert old - young == pytest.approx((1.25 - 0.5) * each)


def test_a_refiner_begins_with_the_backbone_s_passes_and_a_round_more_than_a_regression():
  """In the traced losses, encoders left out, and in the closed form, which counts backward too."""

  def passes(stage: str) -> float:
    step = traced(stage)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: step.task.build(nnx.Rngs(0))))
    batch = step.batch | jax.eval_shape(step.task.draw, step.batch, jax.random.key(0))

    def loss(state, batch):
      return step.task.loss(nnx.merge(graphdef, state), batch, None, None)

    def encoded(state, batch):
      model = nnx.merge(graphdef, state)
      lpm = model if stage == "regression" else model.backbone
      return heard.streamed_conditions(lpm, batch, step.task.chunks, step.task.frames)

    return count(loss, state, batch) - count(encoded, state, batch)

  assert passes("refiner_start") == pytest.approx(4 * passes("regression"), rel=0.01)
  closed = [online.clip_flops(traced(stage).task, grid=4, slots=2) for stage in STARTS]
  assert closed[1] / closed[0] == pytest.approx((3 + 2 + 1) / 3)


@libtpu
def test_a_stage_is_compiled_and_its_turns_make_a_step_longer():
  config = puppets.get_config("on_policy,tiny")
  config.topology, config.codegen, config.batch_size = "v5p:2x2x1", False, 4
  config.sharding.mesh = dict(fsdp=2, data=-1)
  found = train.report(config)
  assert found["memory"]["fits"] and found["shares"][tasks.TURN] == 0.5
  assert found["time"]["step"] > 0 and found["work"]["convention"] == online.CONVENTION
  config.loss.every = 1
  assert train.report(config)["time"]["step"] > found["time"]["step"]


AT_17B = """
import json, math
from jax.tree import leaves
from configs.lpm_17b import online_480p
from lpm_jax.plan.lowering import abstract_state, shard_bytes
from lpm_jax.training.task import make_task

found = {}
for name in ("regression,v5p_512", "on_policy,v6e_256", "refiner,v5p_512"):
  config = online_480p.get_config(name)
  mesh, state = abstract_state(config)
  found[name] = {
    "learn": sum(math.prod(x.shape) for x in leaves(state.params)) / 1e9,
    "held": shard_bytes(state.rest) / 2**30,
    "clips": config.batch_size * mesh.shape["context"] / mesh.devices.size,
    "batch": {k: list(v.shape) for k, v in make_task(config).abstract_batch(2).items()},
  }
print(json.dumps(found))
"""


@libtpu
def test_the_stages_at_17b_have_the_networks_and_caches_that_they_say():
  done = subprocess.run([sys.executable, "-c", AT_17B], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
  found = json.loads(done.stdout.splitlines()[-1])
  frozen = 2 * 17.4e9 / 256 / 2**30  # in bfloat16, over all devices
  grid = 2 * 40 * 1560 * 5120 * 2 / 2**30  # keys and values of a latent
  for name, facts in found.items():
    stage, _, pod = name.partition(",")
    cache = 35 * grid / dict(v5p_512=4, v6e_256=8)[pod]
    held = dict(regression=0, on_policy=frozen + cache, refiner=2 * frozen)
    fake = 0 if stage == "regression" else 17.435  # a transformer; students have encoders as well
    assert facts["learn"] == pytest.approx(17.54 + fake, rel=1e-3), name
    assert facts["held"] == pytest.approx(held[stage], rel=0.05, abs=0.01), name
    assert facts["clips"] == 1 and facts["batch"]["latents"] == [2, 31, 60, 104, 16], name
  assert found["regression,v5p_512"]["batch"]["trajectory"] == [2, 4, 31, 60, 104, 16]
