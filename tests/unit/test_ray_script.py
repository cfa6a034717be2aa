"""`run.sh leader|worker`: addresses that could never be joined are refused at once, with what to give instead."""

from __future__ import annotations

import pytest

from launcher.compat.ray_script import parse
from launcher.errors import UsageError


@pytest.mark.parametrize(
    ("address", "fix"),
    [
        ("http://10.9.8.7:6379", "--ray_address=10.9.8.7 --ray_port=6379"),
        ("ray://head.ns.svc:10001/x", "--ray_address=head.ns.svc --ray_port=10001"),
        ("10.9.8.7:6380", "--ray_address=10.9.8.7 --ray_port=6380"),
        ("head:6379", "--ray_address=head --ray_port=6379"),
        ("[fd00::7]", "--ray_address=fd00::7 --ray_port=6379"),
        ("[fd00::7]:6400", "--ray_address=fd00::7 --ray_port=6400"),
        ("http://[fd00::7]:6400/", "--ray_address=fd00::7 --ray_port=6400"),
        ("$RAY_HEAD", "$(NAME)"),
        ("${LWS_LEADER_ADDRESS}", "$(NAME)"),
        ("$(LWS_LEADER_ADDRESS)", "$(NAME)"),
        ("a,b", "--ray_address=HOST"),
        ("a b", "--ray_address=HOST"),
        ("http://", "--ray_address=HOST"),
    ],
)
def test_an_address_that_is_more_than_a_host(address: str, fix: str) -> None:
    with pytest.raises(UsageError) as error:
        parse(["worker", f"--ray_address={address}"])
    assert address in error.value.message
    assert fix in error.value.fix
    if fix.startswith("--ray_address=") and "HOST" not in fix:
        wanted = parse(["worker", *fix.split()])
        assert f"--ray_address={wanted.address} --ray_port={wanted.port}" == fix


@pytest.mark.parametrize("address", ["10.9.8.7", "fd00::7", "fe80::1%eth0", "head", "head.ns.svc.cluster.local"])
def test_a_host(address: str) -> None:
    assert parse(["worker", "--ray_address", address]).address == address
