"""The real 17B step, compiled for absent topologies, against a golden; plans of a small step."""

import json
import subprocess
import sys

import pytest
from ml_collections import ConfigDict

from lpm_jax.parallel import options
from lpm_jax.plan import assumptions, compiled, flops, printing, schedule, train
from tests.fixtures import plan_17b

libtpu = pytest.mark.skipif(
  not compiled.compiler_is_there(), reason="libtpu, the TPU compiler, is not installed"
)


def fact(kind: str, name: str) -> dict:
  done = subprocess.run(
    [sys.executable, "-m", "tests.fixtures.plan_17b", kind, name], capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return json.loads(done.stdout.splitlines()[-1])


def golden(kind: str, name: str) -> dict:
  known = json.loads(plan_17b.GOLDEN.read_text())
  if kind not in known:
    pytest.skip(f"no golden yet: python -m tests.fixtures.plan_17b write {kind}")
  return known[kind][name]


@libtpu
@pytest.mark.parametrize("name", sorted(plan_17b.PRESETS))
def test_the_whole_step_compiles_and_no_new_collective_appears(name):
  known = golden("compiled", name)
  found = fact("compiled", name)
  assert found["layers"] == 40 and found["fits"]
  assert found["gib"] == pytest.approx(known["gib"], rel=0.05)
  new = set(found["collectives"]) - set(known["collectives"])
  assert not new, f"not in {plan_17b.GOLDEN.name}: {sorted(new)}"


@libtpu
@pytest.mark.parametrize("name", sorted(plan_17b.PRESETS))
def test_parameters_lie_where_they_did(name):
  assert fact("shardings", name) == golden("shardings", name)


def test_assumed_numbers_are_replaced_one_by_one():
  plain = assumptions.assumptions("v5p:2x2x2")
  found = assumptions.assumptions("v5p:2x2x2", "kernel_share=0.5,dcn=1e9,clock=1e9")
  assert (found.chip.kernel_share, found.links.dcn, found.clock) == (0.5, 1e9, 1e9)
  assert found.chip.flops == plain.chip.flops and found.links.axis == plain.links.axis
  assert found.kernel_source != plain.kernel_source
  assert assumptions.assumptions("tpu7x:2x2x1").peak() == 2307e12


def test_a_kernel_takes_its_operations_at_a_share_of_the_peak_or_is_an_error():
  shapes = ((2, 8), (4, 8)), ((2, 8),)
  work = flops.Work(0, (flops.KernelCall("attention", *shapes, flops=10**9, calls=1),))
  clock = train.kernel_clock(work, assumptions.assumptions("v5p:2x2x2", "kernel_share=0.5"))

  def call(*read: tuple[int, int]) -> schedule.Operation:
    plain = dict(operands=(), moved=0, cycles=0, source="", part="", groups=(), body="", trips=1)
    arrays = (schedule.Array((2, 8), 32, "HBM"),)
    return schedule.Operation("k.1", "custom-call", arrays=arrays, kernel=True, read=read, **plain)

  assert clock(call((2, 8), (4, 8))) == pytest.approx(1e9 / 459e12 / 0.5)
  with pytest.raises(ValueError, match="kernel k.1: no kernel of the traced step"):
    clock(call((2, 8), (5, 8)))


@pytest.mark.parametrize("wrong", ["kernel_shar=0.5", "dcn", "dcn=fast"])
def test_assumptions_that_are_not_known(wrong):
  with pytest.raises(ValueError, match="assume: found .*expected NAME=NUMBER"):
    assumptions.assumptions("v5p:2x2x2", wrong)


def test_groups_of_options_that_are_not_known():
  config = ConfigDict(dict(topology="v5p:2x2x2", flags=("asinc",)))
  with pytest.raises(ValueError, match="flags: found 'asinc', expected names of .'async'"):
    options.options_of(config)


def test_temporaries_alone_may_be_too_much():
  message = "the total memory required for HLO temporaries (95.5G) exceeds available HBM (95.73G)"
  made = compiled.refusal(
    RuntimeError(f"RESOURCE_EXHAUSTED: CompileTimeHbmOom: {message}. HLO module: jit_f")
  )
  assert (made.needed, made.needed_for) == (int(95.5 * 2**30), "temporaries")


def test_what_does_not_fit_says_by_how_much():
  made = compiled.refusal(
    RuntimeError("RESOURCE_EXHAUSTED: HbmOom: Used 104.05G of 95.74G hbm. Exceeded by 8G")
  )
  assert made.needed == int(104.05 * 2**30) and made.memory is None
  memory = {"device": {}, "host": {}, "hbm": 95.74 * 2**30, "fits": False}
  memory |= {"total": made.needed, "spare": -0.0868}
  (line,) = [printing.fit(memory)]
  assert "104.05 of 95.7: does not fit" in line


def test_memory_is_what_the_compiler_allocates():
  found = compiled._memory(
    """allocation 0: size 100, page 0, parameter 0, shape |f32[25]| at ShapeIndex {}:
 value: <0 x @0> (size=100,offset=0): f32[25]
allocation 1: size 7, color 1, page 0, preallocated-temp:
allocation 2: size 40, page 0, thread-local:
allocation 3: size 1000, page 0, preallocated-temp:
allocation 4: size 30, color 5, page 0, preallocated-temp:
"""
  )
  assert found == compiled.Memory(total=1100, code=0, host=30)


MESHES = """
import importlib
from configs.lpm_17b import pods
from lpm_jax.parallel.mesh import make_mesh
from lpm_jax.plan import chips

for resolution in ("480p", "720p"):
  for name in pods.PODS:
    config = importlib.import_module(f"configs.lpm_17b.base_{resolution}").get_config(name)
    devices = chips.devices_of(config.topology)
    mesh = make_mesh(config.sharding.mesh, devices, slices=config.sharding.get("slices"))
    assert config.batch_size % (mesh.shape["data"] * mesh.shape["fsdp"]) == 0, (resolution, name)
    groups = mesh.devices.reshape(mesh.shape["data"], -1)
    slices = [{getattr(d, "slice_index", 0) for d in group} for group in groups]
    assert all(len(found) == 1 for found in slices), (resolution, name)
"""


@libtpu
def test_every_pod_has_a_mesh_whose_slices_meet_along_the_data_axis_only():
  done = subprocess.run([sys.executable, "-c", MESHES], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-3000:]
