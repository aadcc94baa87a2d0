"""A plugin of vLLM's that takes its ranks through snapshots with `glowplug.nccl`.

vLLM loads it in each of its processes, before a worker makes its groups, where this folder is on PYTHONPATH:
the entry point lies beside it. On GPUs the communicators that PyTorch does not know, vLLM's own, are
suspended too.
"""

from glowplug import nccl


def enable():
    import torch

    if torch.distributed.is_initialized():
        return
    nccl.enable()
    nccl.before_release(suspend)
    nccl.after_rebuild(resume)
    if not torch.cuda.is_available():
        add_up_over_gloo()


def suspend():
    from vllm.distributed import parallel_state

    parallel_state.suspend_device_comms()


def resume():
    from vllm.distributed import parallel_state

    parallel_state.resume_device_comms()
    print(f"glowplug.nccl: this rank is back, generation {nccl.status().generation}", flush=True)


def add_up_over_gloo():
    """On a CPU vLLM adds up through shared memory, unless its ranks say that they share none."""
    from vllm.distributed.device_communicators import cpu_communicator

    cpu_communicator.CpuCommunicator._all_group_ranks_share_shm_group_name = lambda self: False
