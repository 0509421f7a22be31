"""What the backward pass keeps of a pair of blocks, by name; the rest it computes anew.

Kept in the memory of the device, or sent to the host's and fetched when it is needed. Output and
log-sum-exp of self-attention are the dearest to compute and 2 of some 40 numbers a token and
channel: with them the backward pass never runs the attention kernel forward again.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from lpm_jax.models.flash import RESIDUALS

INPUT = "block_input"
PROJECTIONS = "projections"
POLICIES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # kept on the device, on the host
  "full": ((), ()),
  "attention": ((RESIDUALS,), ()),
  "projections": ((RESIDUALS, PROJECTIONS), ()),
  "attention_offload": ((), (RESIDUALS,)),
  "inputs_offload": ((RESIDUALS,), (INPUT,)),
  "all_offload": ((), (RESIDUALS, INPUT)),
}
_Result = TypeVar("_Result")


def checkpointed(
  run: Callable[[Array, tuple], _Result], policy: str
) -> Callable[[Array, tuple], _Result]:
  """`run(x, ...)`, the body of a scan, under a policy of POLICIES; "none" keeps everything.

  Raises ValueError for a policy that is not known.
  """
  if policy == "none":
    return run
  if policy not in POLICIES:
    raise ValueError(f"remat: found {policy!r}, expected none or one of {', '.join(POLICIES)}")
  kept, sent = POLICIES[policy]
  rule = jax.checkpoint_policies.save_only_these_names(*kept)
  if sent:
    rule = jax.checkpoint_policies.save_and_offload_only_these_names(
      names_which_can_be_saved=list(kept),
      names_which_can_be_offloaded=list(sent),
      offload_src="device",
      offload_dst="pinned_host",
    )

  def named(x: Array, rest: tuple) -> _Result:
    return run(checkpoint_name(x, INPUT), rest)

  return jax.checkpoint(named, policy=rule, prevent_cse=False)
