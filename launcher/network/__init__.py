"""The network of a pod: names to addresses, interfaces, RDMA devices, and the environment that collectives need.

Reading (sockets, sysfs) and deciding are apart: what decides is a pure function of what was read, so that every
situation can be built in a test. The rules are those of NCCL, PyTorch, UCX and the kernel, which are named where they
are used. This package knows neither engines nor groups.
"""
