"""What the kernel says of this machine: processes and how they end, GPUs, cgroups, /dev/shm, CPU pressure.

The guard imports from here, so nothing heavy may be imported: no network, no asyncio.
"""
