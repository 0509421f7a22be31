"""Two steps on policy over two devices, in a process of a `Job`: child.py WORKDIR folder=FOLDER."""

import json
import pathlib
import sys

from lpm_jax.training import distributed, loop

if __name__ == "__main__":
  workdir, word = sys.argv[1:]
  distributed.start()
  from tests.distillation.stages import config_of  # after the processes have met

  config = config_of(pathlib.Path(json.loads(word.removeprefix("folder="))), "on_policy")
  config.steps, config.sharding.mesh = 2, {"data": 1, "fsdp": 2}
  loop.train(config, workdir)
