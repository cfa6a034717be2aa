"""The secret's proofs, and what a pod answers to a GET: pure functions, no socket."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from websockets.datastructures import Headers
from websockets.http11 import Response

from launcher.agent import redaction
from launcher.api import access
from launcher.api.server import ROUTES, Pages, Route, respond
from launcher.common.last_lines import LINE_LENGTH
from launcher.errors import ConfigError
from launcher.group import member as me
from launcher.group import messages as m
from launcher.group import proof
from launcher.model import Cause, CauseKind, Epoch

SECRET, OTHER = b"0123456789abcdef", b"fedcba9876543210"
STATUS: dict[str, Any] = {
    "phase": "running",
    "rank": 0,
    "size": 2,
    "epoch": 3,
    "group": "ns/g",
    "restarts": 1,
    "members_present": 2,
    "waiting_for": "engine.args.api-key differs: --api-key",
    "first_failure": {"rank": 1, "cause": "exited", "process": "python", "text": "--api-key x", "tail": ["a prompt"]},
    "failures": [{"rank": 1, "tail": ["a prompt"]}],
    "members": [
        {
            "rank": 0,
            "state": "running",
            "address": "10.0.0.1",
            "incarnation": "inc4rn4tion",
            "engine_pids": [4711],
            "facts": {"gpus": "8"},
        }
    ],
    "findings": [{"check": "model", "what": "--api-key"}],
    "timeline": [{"phase": "running", "at": "now", "seconds": 1.0}],
}


def test_proofs_hold_for_one_secret_group_direction_and_pair_of_nonces() -> None:
    own = proof.member_mac(SECRET, "g", "n1", "n2")
    others = {
        proof.leader_mac(SECRET, "g", "n1", "n2"),
        proof.member_mac(OTHER, "g", "n1", "n2"),
        proof.member_mac(SECRET, "h", "n1", "n2"),
        proof.member_mac(SECRET, "g", "n2", "n1"),
        proof.member_mac(SECRET, "g", "n1n", "2"),
    }
    assert own not in others and len(others) == 5
    assert proof.same(own, proof.member_mac(SECRET, "g", "n1", "n2"))


def test_rays_token_differs_by_epoch_and_leader() -> None:
    tokens = {proof.epoch_token(SECRET, "g", Epoch(n, leader)) for n in (1, 2) for leader in ("a", "b")}
    assert len(tokens) == 4


def test_a_secret_must_be_there_and_long_enough(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--token-file .*cannot be read"):
        proof.read_secret(str(tmp_path / "absent"), f"--token-file {tmp_path}/absent")
    (tmp_path / "short").write_text("abc\n")
    with pytest.raises(ConfigError, match="3 bytes"):
        proof.read_secret(str(tmp_path / "short"), "--token-file short")
    (tmp_path / "good").write_text("x" * 32 + "\n")
    assert proof.read_secret(str(tmp_path / "good"), "--token-file good") == b"x" * 32


def _pages(secret: bytes = b"", ready: bool = False, details: str = "loopback", host_network: bool = False) -> Pages:
    return Pages(
        lambda: (ready, "why"),
        lambda: "launcher_ready 0\n",
        lambda: {**STATUS, "ready": ready},
        secrets=lambda: (secret,) if secret else (),
        details=details,
        host_network=lambda: host_network,
    )


def _get(pages: Pages, path: str, peer: str = "10.0.0.9", **headers: str) -> tuple[int, Any]:
    reply = respond(pages, path, {name.replace("_", "-"): value for name, value in headers.items()}, peer)
    text = reply.body.decode()
    return reply.status_code, json.loads(text) if path.startswith("/status") else text


def test_livez_is_always_200_and_readyz_follows_the_group() -> None:
    assert _get(_pages(), "/livez")[0] == 200
    assert _get(_pages(), "/readyz") == (503, "why\n")
    assert _get(_pages(ready=True), "/readyz?x=1")[0] == 200
    assert _get(_pages(), "/metrics")[1].startswith("launcher_ready")
    assert _get(_pages(), "/nothing")[0] == 404


def _details(pages: Pages, peer: str = "10.0.0.9", **headers: str) -> bool:
    """Whether the answer has the engine's last lines; if not, it has what is open and no more."""
    code, status = _get(pages, "/status", peer, **headers)
    assert code == 200
    shown = "tail" in status["first_failure"]
    if not shown:
        assert set(status) - {"note", "token_opens"} <= set(access.OPEN) and status["note"]
        assert status["token_opens"] is bool(pages.secrets())
        text = json.dumps(status)
        assert not any(word in text for word in ("prompt", "--api-key", "4711", "inc4rn4tion"))
        assert ("facts" in status["members"][0]) is not bool(pages.secrets())
        assert status["first_failure"]["cause"] == "exited" and status["members"][0]["state"] == "running"
        assert (status["phase"], status["rank"], status["epoch"], status["ready"]) == ("running", 0, 3, False)
    return shown


def test_without_a_token_details_are_for_loopback() -> None:
    assert not _details(_pages())
    assert not _details(_pages(), peer="fd00::7")
    for peer in ("127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"):
        assert _details(_pages(), peer), peer
    assert _details(_pages(details="all"))
    assert not _details(_pages(details="none"), "127.0.0.1")


@pytest.mark.parametrize(
    "host", ["localhost", "localhost:9471", "LOCALHOST:1", "127.0.0.1:8080", "127.0.0.2", "[::1]:9471", "[::1]"]
)
def test_names_of_loopback(host: str) -> None:
    assert _details(_pages(), "127.0.0.1", Host=host)


@pytest.mark.parametrize("host", ["evil.example:9471", "10.0.0.1", "localhost.evil.example", "127.0.0.1.evil.example"])
def test_other_names_are_not_believed_from_loopback(host: str) -> None:
    """A page whose name was pointed at loopback, or a sidecar that passes on what another pod asked."""
    assert not _details(_pages(), "127.0.0.1", Host=host)


@pytest.mark.parametrize(
    "header",
    [
        *("X-Forwarded-For", "x-forwarded-proto", "Forwarded", "Via", "X-Envoy-Attempt-Count", "x-envoy-peer-metadata"),
        *("X-Real-IP", "x-request-id", "X-Original-Forwarded-For"),
    ],
)
def test_what_was_forwarded_is_not_local(header: str) -> None:
    headers = {"Host": "localhost", header: "127.0.0.1"}
    assert "tail" not in json.loads(respond(_pages(), "/status", headers, "127.0.0.1").body)["first_failure"]


def test_sidecars_and_other_sites_are_not_local() -> None:
    assert not _details(_pages(), "127.0.0.6", Host="localhost")
    assert not _details(_pages(), "127.0.0.1", Host="localhost", Sec_Fetch_Site="cross-site")
    assert not _details(_pages(), "127.0.0.1", Host="localhost", Origin="https://evil.example")
    assert _details(_pages(), "127.0.0.1", Host="localhost:9471", Origin="http://localhost:9471")
    twice = Headers([("Host", "localhost"), ("Host", "evil.example")])
    assert "tail" in json.loads(respond(_pages(), "/status", Headers(), "127.0.0.1").body)["first_failure"]
    assert "tail" not in json.loads(respond(_pages(), "/status", twice, "127.0.0.1").body)["first_failure"]


def test_bearers_present_the_derived_token_and_never_the_secret() -> None:
    token = proof.status_token(SECRET)
    assert _details(_pages(SECRET), Authorization=f"Bearer {token}")
    assert _details(_pages(SECRET, details="none"), Authorization=f"bearer  {token} ", X_Forwarded_For="1.2.3.4")
    for other in ("wrong", proof.status_token(OTHER), token[:-1], token.upper(), ""):
        assert not _details(_pages(SECRET), Authorization=f"Bearer {other}"), other
    assert not _details(_pages(SECRET), Authorization=f"Basic {token}")
    assert not _details(_pages(), Authorization=f"Bearer {token}"), "no secret: no token is right"
    assert _details(_pages(SECRET), "127.0.0.1"), "kubectl exec and port-forward go on working"
    for peer in ("10.0.0.9", "127.0.0.1"):
        code, answer = _get(_pages(SECRET), "/status", peer, Authorization=f"Bearer {SECRET.decode()}")
        assert code == 401 and "must never be sent" in answer["error"] and "status-token" in answer["error"]
        assert "phase" not in answer


def test_the_status_token_is_no_other_token() -> None:
    ray = proof.epoch_token(SECRET, "status token", Epoch(1, ""))
    assert proof.status_token(SECRET) not in (ray, proof.member_mac(SECRET, "", "", ""), SECRET.decode(), SECRET.hex())


# ----------------------------------------------------------------------------------- the gate of what acts

DONE: list[str] = []


def _restart(pages: Pages, asker: access.Asker) -> Response:
    DONE.append(asker.peer)
    return Response(200, "OK", Headers(), b"done\n")


def _act(pages: Pages, peer: str = "127.0.0.1", method: str = "POST", **headers: str) -> int:
    """The status of a route that acts; it acts if, and only if, that is 200."""
    DONE.clear()
    routes = {**ROUTES, "/restart": Route(_restart, acts=True)}
    sent = {name.replace("_", "-"): value for name, value in headers.items() if value}
    code = respond(pages, "/restart", sent, peer, method, routes).status_code
    assert [peer] * (code == 200) == DONE
    return code


def mine(path: str) -> int:
    """What a GET from the pod itself is answered with by pages that know little."""
    return {"/readyz": 503, "/logs": 400, "/autopsy": 404}.get(path, 200)


def test_only_restart_acts_and_get_never_does() -> None:
    assert [path for path, route in ROUTES.items() if route.acts] == ["/restart"]
    good = {"Host": "localhost:9471", "X_Launcher_Action": "restart"}
    assert _act(_pages(), **good) == 200
    for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "post"):
        assert _act(_pages(), method=method, **good) == 405
    for path, route in ROUTES.items():
        assert respond(_pages(), path, {}, "127.0.0.1", "POST").status_code == (403 if route.acts else 405)
        assert respond(_pages(), path, {}, "127.0.0.1", "GET").status_code == (405 if route.acts else mine(path))


def test_what_acts_needs_its_header_a_host_and_a_local_asker() -> None:
    good = {"Host": "localhost:9471", "X_Launcher_Action": "restart"}
    for change in (
        {"X_Launcher_Action": ""},
        {"X_Launcher_Action": "other"},
        {"Host": "evil.example"},
        {"Origin": "https://evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
        {"X_Forwarded_For": "127.0.0.1"},
        {"Via": "1.1 proxy"},
        {"x_envoy_internal": "true"},
    ):
        assert _act(_pages(SECRET), **{**good, **change}) == 403, change
    assert _act(_pages(SECRET), **{**good, "Host": ""}) == 400
    for peer in ("10.0.0.9", "127.0.0.6"):
        assert _act(_pages(SECRET), peer, **good) == 403
    assert _act(_pages(details="none"), **good) == 403
    assert _act(_pages(details="all"), "10.0.0.9", **good) == 403, "details for all are no right to act"
    assert _act(_pages(host_network=True), **good) == 403


def test_with_the_token_it_acts_from_anywhere_but_another_site() -> None:
    token = {"Authorization": f"Bearer {proof.status_token(SECRET)}"}
    good = {"Host": "10.0.0.1:9471", "X_Launcher_Action": "restart"}
    assert _act(_pages(SECRET, host_network=True), **good, **token) == 200
    assert _act(_pages(SECRET), "10.0.0.9", **good, **token, X_Forwarded_For="10.1.1.1") == 200
    assert _act(_pages(SECRET), "10.0.0.9", **good, **token, Origin="https://evil.example") == 403
    assert _act(_pages(SECRET), "10.0.0.9", **good, Authorization=f"Bearer {SECRET.decode()}") == 401
    assert _act(_pages(SECRET), **{**good, "Host": "localhost"}, Authorization="Bearer wrong") == 403


def test_host_network_is_told_by_the_kubelet_or_by_interfaces(tmp_path: Path) -> None:
    pod, node = tmp_path / "pod/class/net", tmp_path / "node/class/net"
    for folder, names in ((pod, ("lo", "eth0", "net1", "ib0", "tunl0")), (node, ("lo", "eth0", "veth0a1b", "cni0"))):
        for name in names:
            (folder / name).mkdir(parents=True)
    assert not access.shares_host_network("127.0.0.1 localhost\n", str(tmp_path / "pod"))
    assert access.shares_host_network("", str(tmp_path / "node"))
    kubelets = "# Kubernetes-managed hosts file"
    assert access.shares_host_network(f"{kubelets} (host network).\n127.0.0.1 localhost\n", str(tmp_path / "pod"))
    assert not access.shares_host_network(f"{kubelets}.\n127.0.0.1 localhost\n", str(tmp_path / "node"))


# --------------------------------------------------------------------------------------------- how the file is kept


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        *((0o644, "every user"), (0o604, "every user"), (0o640, "its whole group"), (0o660, "changed")),
        *((0o666, "changed"), (0o600, ""), (0o400, ""), (0o440, "")),
    ],
)
def test_loose_permissions_are_warned_of(tmp_path: Path, mode: int, words: str) -> None:
    path = tmp_path / "token"
    path.write_text("x" * 32)
    path.chmod(mode)
    said = proof.exposure(str(path), f"--token-file {path}")
    if not words:
        assert said == ""
        return
    assert words in said and f"mode {mode:04o}" in said and f"--token-file {path}" in said
    assert "defaultMode: 0400" in said and "x" * 32 not in said


def test_secrets_that_are_known_leave_a_failures_words() -> None:
    args = (
        "--api-key",
        "sk-first-1",
        "sk-other-2",
        "--served-name",
        "public-name",
        "--hf-token=hf_abcdef",
        "--key",
        "ab",
    )
    environ = {
        "HF_TOKEN": "hf_zyxwvu",
        "LAUNCHER_TOKEN_FILE": "/etc/launcher/token",
        "TOKENIZERS_PARALLELISM": "falsefalse",
    }
    secrets = redaction.known(args, environ, "the-group-secret")
    assert set(secrets) == {"sk-first-1", "sk-other-2", "hf_abcdef", "hf_zyxwvu", "the-group-secret"}
    cause = Cause(
        CauseKind.EXITED,
        1,
        "python ended: bad key sk-first-1",
        "serve --api-key sk-other-2",
        1,
        ("non-default args: {'api_key': ['sk-first-1']}", "HF_TOKEN=hf_zyxwvu public-name /etc/launcher/token"),
    )
    shown = redaction.cause(cause, secrets)
    assert not any(secret in str((shown.text, shown.process, shown.tail)) for secret in secrets)
    assert shown.tail == ("non-default args: {'api_key': ['***']}", "HF_TOKEN=*** public-name /etc/launcher/token")


def test_every_word_of_an_event_for_the_leader_is_masked() -> None:
    """The last lines of a report become those of a pod that is lost."""
    epoch, secrets = Epoch(1, "L"), ("sk-first-1",)
    cause = Cause(CauseKind.EXITED, 1, "bad key sk-first-1", "serve", 1, ("key sk-first-1",))
    report = m.Report(epoch, (7,), "ok", 3, ("api_key=sk-first-1", "ready"))
    events = (
        *(me.Broke(epoch, cause, told=told) for told in (False, True)),
        me.NotAble(epoch, cause),
        me.Activity(report),
    )
    for one in events:
        assert "sk-first-1" in str(one) and "sk-first-1" not in str(redaction.event(one, secrets))
    assert redaction.event(me.Activity(report), secrets).report.tail == ("api_key=***", "ready")
    assert redaction.event(me.Gone(), secrets) == me.Gone()


def test_a_line_that_is_cut_within_a_secret_shows_nothing_of_it() -> None:
    line = ("x" * (LINE_LENGTH - 8) + "sk-first-1")[:LINE_LENGTH]
    assert redaction.text(line, ("sk-first-1",)) == "x" * (LINE_LENGTH - 8) + "***"
    assert redaction.text("ends with sk-firs", ("sk-first-1",)) == "ends with sk-firs"
