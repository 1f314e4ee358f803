"""The proxies that we ship configurations for, with other addresses than the shipped ones."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from pathlib import Path

from tests.deploy.prometheus import replaced

SHIPPED = Path(__file__).parents[2] / "deploy" / "proxy"


def free_port(host: str = "127.0.0.1") -> int:
    """A port that was free a moment ago."""
    with socket.create_server((host, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def write_nginx(root: Path, port: int, gateways: Sequence[str]) -> list[str]:
    """Write its configuration, in a server of its own; returns the command. gateways: host:port of each."""
    shipped = _in_front_of(gateways, (SHIPPED / "nginx.conf").read_text())
    (root / "sluicegate.conf").write_text(replaced(shipped, {"listen 80;": f"listen 127.0.0.1:{port};"}))
    paths = "".join(f"{name}_temp_path {root / name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (root / "nginx.conf").write_text(
        f"daemon off; pid {root / 'pid'}; error_log {root / 'errors.log'} info; events {{}}\n"
        f"http {{ access_log off; {paths} include {root / 'sluicegate.conf'}; }}\n"
    )
    return ["nginx", "-p", str(root), "-c", str(root / "nginx.conf"), "-e", str(root / "errors.log")]


def write_haproxy(root: Path, port: int, gateways: Sequence[str]) -> list[str]:
    """Write its configuration; returns the command. gateways: host:port of each."""
    shipped = _in_front_of(gateways, (SHIPPED / "haproxy.cfg").read_text())
    (root / "haproxy.cfg").write_text(replaced(shipped, {"bind :80": f"bind 127.0.0.1:{port}"}))
    return ["haproxy", "-db", "-f", str(root / "haproxy.cfg")]


# By name: Debian's package, and what writes the configuration.
PROXIES = {"nginx": ("nginx-light", write_nginx), "haproxy": ("haproxy", write_haproxy)}


def _in_front_of(gateways: Sequence[str], text: str) -> str:
    """The shipped text with a line for each gateway, made from those of the two that it names."""
    lines = re.findall(r"^ *server .*10\.0\.0\.\d+:8080.*\n", text, re.MULTILINE)
    assert len(lines) == 2
    names = [line.split()[1] for line in lines]
    made = ""
    for number, gateway in enumerate(gateways):
        line = re.sub(r"10\.0\.0\.\d+:8080", gateway, lines[0])
        made += line if names[0].startswith("10.") else line.replace(names[0], f"gateway{number}", 1)
    return text.replace("".join(lines), made)
