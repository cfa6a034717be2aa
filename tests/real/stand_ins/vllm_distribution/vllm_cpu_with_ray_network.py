# mypy: ignore-errors
# (for the engine's interpreter: vllm is not installed where this repository is checked)
"""How the ranks of the plugin talk. A file of its own: vLLM must know its platform before this can be imported."""

from vllm.distributed.device_communicators.cpu_communicator import CpuCommunicator


class NetworkCommunicator(CpuCommunicator):
    """All ranks talk by torch.distributed (gloo).

    vLLM 0.32's own takes shared memory where all ranks agree on a name, and takes that for being on one host. With Ray
    the name comes from the port of the rendezvous: two hosts agree too, and start-up fails with "open shm in SHMManager
    failed. errno: 2".
    """

    def _all_group_ranks_share_shm_group_name(self) -> bool:
        return False
