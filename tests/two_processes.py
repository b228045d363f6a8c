"""One of two processes that train together, started by `test_sharding.py` under torchrun. Its arguments are palora's.

accelerate shards a model over GPUs only. Here its state is told to do so on CPUs too, and all else is its own.
"""

import json
import os
import sys
from pathlib import Path

from accelerate import DistributedType, FullyShardedDataParallelPlugin
from transformers import Trainer

from palora import cli
from palora.training import injection


def on_cpus(self, real=Trainer.create_accelerator_and_postprocess):
    real(self)
    state = self.accelerator.state
    state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
    state._shared_state["distributed_type"] = DistributedType.FSDP
    self.is_fsdp_enabled = True


def told(model, *rest, real=injection.inject, **named):
    """What `inject` gives; of which sizes the parameters are, whole and here, is written to RANK.json."""
    tuned, record = real(model, *rest, **named)
    sizes = {n: [list(p.shape), list(getattr(p, "_local_tensor", p).shape)] for n, p in tuned.named_parameters()}
    Path(os.environ["TOLD"], f"{os.environ['RANK']}.json").write_text(json.dumps(sizes))
    return tuned, record


Trainer.create_accelerator_and_postprocess = on_cpus
injection.inject = told
if __name__ == "__main__":
    sys.argv[0] = "palora"
    cli.main()
