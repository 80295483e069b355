"""`gradprism` under FSDP2 on a CPU: `torchrun -m helpers.fsdp_on_cpu sft …`. PAUSE seconds make each step longer.

accelerate shards models on accelerators only; torch shards them on any device. This adds the CPU to accelerate's list.
"""

import inspect
import os
import textwrap

import accelerate.state

from gradprism.cli.main import main
from helpers.ranks import slow_down

# What accelerate reads of a configuration like configs/accelerate/fsdp-8gpu.yaml.
FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}


def allow_cpu() -> None:
    """Makes accelerate's state take CPU processes for processes that may shard."""
    source = textwrap.dedent(inspect.getsource(accelerate.state.AcceleratorState.__init__))
    changed = source.replace("DistributedType.MULTI_GPU,", "DistributedType.MULTI_GPU, DistributedType.MULTI_CPU,")
    assert changed != source
    exec(changed, accelerate.state.__dict__)
    accelerate.state.AcceleratorState.__init__ = accelerate.state.__dict__.pop("__init__")


if __name__ == "__main__":
    os.environ.update(FSDP2)
    allow_cpu()
    slow_down(float(os.environ.get("PAUSE", "0")))
    main()
