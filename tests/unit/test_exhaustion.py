"""No thread, no process, no descriptor to be had: whatever is short for a while costs that while. Real limits.

Each case runs in a process of its own, for limits are a process's.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMON = """
import asyncio, os, resource, threading, time

def no_threads():
    # a thread's stack no longer fits into the address space
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (2 << 20), resource.RLIM_INFINITY))
    try:
        threading.Thread(target=print).start()
    except RuntimeError:
        return
    raise SystemExit("a thread could be started all the same")

def threads_again():
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def no_descriptors():
    free = os.dup(0)
    os.close(free)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
"""


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", COMMON + script],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=Path(__file__).parents[2],
    )


def test_the_guards_output_waits_for_a_thread() -> None:
    done = run(
        """
from launcher.guard.output import Writer
writer = Writer(1)
no_threads()
writer.put(b"first ")
writer.put(b"second ")
assert writer.waiting == 13
threads_again()
writer.put(b"third")
writer.flush(30, 30)
"""
    )
    assert (done.stdout, done.returncode) == ("first second third", 0), done.stderr


def test_threads_are_there_before_they_are_needed() -> None:
    done = run(
        """
from launcher.common import tasks
async def main():
    assert tasks.start_threads() == tasks.THREADS
    no_threads()
    print(await asyncio.gather(*(asyncio.to_thread(abs, -i) for i in range(20))))
    threads_again()
asyncio.run(main())
"""
    )
    assert (done.stdout, done.returncode) == (f"{list(range(20))}\n", 0), done.stderr


def test_a_name_that_no_thread_can_resolve_is_asked_for_again() -> None:
    done = run(
        """
import tenacity  # what is imported later would need address space too
from launcher.network import names
async def main():
    said = []
    no_threads()
    asyncio.get_running_loop().call_later(0.5, threads_again)
    print(await names.wait_for_address("127.0.0.1", None, said.append))
    assert "no thread could be started" in said[0], said
asyncio.run(main())
"""
    )
    assert (done.stdout, done.returncode) == ("('127.0.0.1',)\n", 0), done.stderr


def test_an_agent_that_cannot_be_started_is_tried_again() -> None:
    done = run(
        """
from launcher.guard import guard
def agent(fd):
    return 7
one = guard.Guard(agent)
again = no_descriptors()
threading.Timer(1.5, again).start()
os._exit(one.run())
"""
    )
    assert done.returncode == 7, done.stderr
    assert "no agent can be started, trying again: Too many open files" in done.stderr


def test_without_descriptors_connections_are_closed_and_later_ones_come_in() -> None:
    done = run(
        """
import socket
from launcher.common.acceptor import Acceptor
from launcher.network.listening import bind
from launcher.common.places import Places
async def main():
    sockets = bind("127.0.0.1", 0)
    where = sockets[0].getsockname()
    broken, spoke, refused = [], [], []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: broken.append(context))
    clients = [socket.socket() for _ in range(20)]
    for one in clients:
        one.setblocking(False)
    one = Acceptor(sockets, Places(1000, 1000), 60, spoke.append, lambda *a: refused.append(a), print)
    for client in clients[:5]:
        await asyncio.get_running_loop().sock_connect(client, where)
    while len(one) < 5:
        await asyncio.sleep(0.01)
    again = no_descriptors()
    for client in clients[5:]:
        await asyncio.get_running_loop().sock_connect(client, where)
    while len(refused) < 15:  # each of those that come takes the descriptor of the oldest
        await asyncio.sleep(0.01)
    assert len(one) in (4, 5) and not broken, (len(one), broken)  # EMFILE comes before "there is nobody"
    clients[-1].send(b"x")
    while not spoke:
        await asyncio.sleep(0.01)
    again()
    one.close()
asyncio.run(main())
"""
    )
    assert done.returncode == 0, done.stderr
