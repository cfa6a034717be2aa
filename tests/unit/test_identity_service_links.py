"""Service links: what Kubernetes injects for a Service called like one of our or an engine's settings."""

from __future__ import annotations

from launcher.identity.service_links import strip


def link(service: str, port: int = 9470) -> dict[str, str]:
    """What the kubelet puts into a pod for a Service (pkg/kubelet/envvars)."""
    s = service.upper().replace("-", "_")
    url = f"tcp://10.96.1.2:{port}"
    return {
        f"{s}_SERVICE_HOST": "10.96.1.2",
        f"{s}_SERVICE_PORT": str(port),
        f"{s}_SERVICE_PORT_HTTP": str(port),
        f"{s}_PORT": url,
        f"{s}_PORT_{port}_TCP": url,
        f"{s}_PORT_{port}_TCP_PROTO": "tcp",
        f"{s}_PORT_{port}_TCP_PORT": str(port),
        f"{s}_PORT_{port}_TCP_ADDR": "10.96.1.2",
    }


def test_nothing_to_do() -> None:
    env = {"LAUNCHER_PORT": "8000", "LAUNCHER_SERVICE": "peers", "LAUNCHER_GROUP_PORT": "9470", "PATH": "/bin"}
    assert strip(env) == (env, ())


def test_a_service_called_launcher() -> None:
    env, warnings = strip({**link("launcher"), "LAUNCHER_SIZE": "2", "LAUNCHER_SERVICE": "peers"})
    assert env == {"LAUNCHER_SIZE": "2", "LAUNCHER_SERVICE": "peers"}
    assert len(warnings) == 1
    assert "LAUNCHER_PORT=tcp://10.96.1.2:9470 comes from a Service called launcher" in warnings[0]
    assert "enableServiceLinks: false" in warnings[0]


def test_a_service_called_launcher_group_looks_like_the_group_port() -> None:
    env, warnings = strip(link("launcher-group"))
    assert env == {}
    assert "a Service called launcher-group" in warnings[0]


def test_engines_variables() -> None:
    env, warnings = strip({**link("vllm"), "MASTER_PORT": "udp://10.0.0.1:1", "VLLM_HOST_IP": "10.0.0.1"})
    assert "VLLM_PORT" not in env
    assert "MASTER_PORT" not in env
    assert env["VLLM_SERVICE_HOST"] == "10.96.1.2"
    assert env["VLLM_HOST_IP"] == "10.0.0.1"
    assert len(warnings) == 2
    assert strip({"VLLM_PORT": "8001"}) == ({"VLLM_PORT": "8001"}, ())
