"""The Dockerfile, as far as it can be tried without an engine: what it copies exists, what it runs is run here."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.builders import classifier, write_package
from tests.deploy.programs import require
from tests.live import eventually

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
IGNORE = ROOT / ".dockerignore"


def instructions() -> list[tuple[str, str]]:
    """Word and rest of each instruction, continued lines joined."""
    text = re.sub(r"\\\n", " ", DOCKERFILE.read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines]


def sources() -> list[str]:
    """What is copied from the checkout."""
    copies = [rest.split() for word, rest in instructions() if word == "COPY" and not rest.startswith("--from")]
    return [source for copy in copies for source in copy[:-1]]


def test_what_is_copied_is_there_and_is_not_ignored() -> None:
    kept = {line[1:].split("/")[0] for line in IGNORE.read_text().splitlines() if line.startswith("!")}
    assert all((ROOT / source).exists() for source in sources())
    assert set(sources()) == kept


def test_what_is_copied_is_enough_to_install(tmp_path: Path) -> None:
    context, installed = tmp_path / "src", tmp_path / "installed"
    context.mkdir()
    for source in sources():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, context / source, ignore=shutil.ignore_patterns("__pycache__", "peers"))
        else:
            shutil.copy(ROOT / source, context)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "install", "--no-deps", "--target", installed, context], check=True, timeout=120)
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    script = "import gateway.cli, sys; print(gateway.__file__); gateway.cli.main(['loadtest', '--help'])"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.startswith(str(installed)), done.stderr
    assert "--spawn-rate" in done.stdout
    assert (installed / "gateway" / "cli" / "benchmarks" / "locustfile.py").is_file()


def test_the_image_is_built_on_one_version_of_python_and_debian() -> None:
    told = dict(rest.split("=") for word, rest in instructions() if word == "ARG")
    bases = [rest.split()[0] for word, rest in instructions() if word == "FROM"]
    assert set(bases) == {"python:${PYTHON}"}
    assert re.fullmatch(r"3\.\d+\.\d+-slim-[a-z]+", told["PYTHON"])


def test_every_package_of_the_image_is_pinned() -> None:
    (install,) = (rest for word, rest in instructions() if word == "RUN" and "pip install" in rest)
    assert "--constraint constraints.txt" in install
    extras = re.search(r"\.\[([\w,]+)\]", install)
    assert extras is not None
    pinned = {
        canonicalize_name(line.partition("==")[0])
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    needed: set[str] = set()
    waiting = [("sluicegate", extra) for extra in ("", *extras[1].split(","))]
    while waiting:
        name, extra = waiting.pop()
        for text in importlib.metadata.requires(name) or []:
            wanted = Requirement(text)
            if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
                found = canonicalize_name(wanted.name)
                if found not in needed:
                    needed.add(found)
                    waiting += [(found, each) for each in ("", *wanted.extras)]
    assert {"onnxruntime", "scipy", "psycopg", "psycopg-binary", "anyio"} <= needed
    # What settings make serve ask for, and end without: flags.store and tracing.endpoint.
    told = (ROOT / "gateway" / "preflight.py").read_text()
    assert set(re.findall(r"sluicegate\[(\w+)\]", told)) <= set(extras[1].split(","))
    assert needed - pinned == set()


def healthcheck(port: int) -> int:
    """The exit code of the image's health check, asked of another port."""
    (check,) = (rest for word, rest in instructions() if word == "HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    assert command[0] == "python"
    told = dict(rest.split("=", 1) for word, rest in instructions() if word == "ENV" and rest.startswith("HEALTH_URL"))
    asked = {name: url.replace(":8080/", f":{port}/") for name, url in told.items()}
    return subprocess.run([sys.executable, *command[1:]], env={**os.environ, **asked}, capture_output=True).returncode


@pytest.fixture
def open_to_all() -> Iterator[Path]:
    """A directory that other users may enter, as those of pytest may not."""
    path = Path(tempfile.mkdtemp(prefix="sluicegate-image-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_it_serves_as_its_user_on_a_read_only_root_and_its_health_check_tells(open_to_all: Path) -> None:
    require("unshare", "util-linux")
    require("setpriv", "util-linux")
    if os.geteuid() != 0:
        pytest.skip("only root can make another user of itself")
    (user,) = (rest for word, rest in instructions() if word == "USER")
    uid, gid = user.split(":")
    (command,) = (json.loads(rest) for word, rest in instructions() if word == "CMD")
    state, models = open_to_all / "state", open_to_all / "models"
    write_package(models, classifier())
    subprocess.run(["chmod", "-R", "a+rX", models], check=True)
    state.mkdir(mode=0o700)
    os.chown(state, int(uid), int(gid))
    here = {"/srv/sluicegate/models": str(models), "/var/lib/sluicegate": str(state)}
    # Python, the packages and the checkout may be in places that only root may enter.
    source, packages, python = (open_to_all / name for name in ("source", "packages", "python"))
    mounts = {str(ROOT): source, sysconfig.get_path("purelib"): packages, sys.base_prefix: python, str(state): state}
    for target in mounts.values():
        target.mkdir(exist_ok=True)
    interpreter = python / "bin" / f"python3.{sys.version_info.minor}"
    serve = [str(interpreter), "-m", "gateway", *(here.get(part, part) for part in command)]
    serve += ["--host", "127.0.0.1", "--port", "0", "--control-port", "0", "--ready-file", str(state / "ready.json")]
    drop = f"setpriv --reuid={uid} --regid={gid} --clear-groups --bounding-set=-all --no-new-privs"
    script = "mount --make-rprivate /\n"
    script += "".join(f"mount --bind {path} {target}\n" for path, target in mounts.items())
    script += "mount -o remount,bind,ro /\ncd /\n"
    script += "touch /sluicegate-was-here 2>/dev/null && exit 1\n"
    script += f"exec {drop} {shlex.join(serve)}\n"
    log = open_to_all / "log"
    environment = {
        **os.environ,
        "PYTHONPATH": f"{source}:{packages}",
        "LD_LIBRARY_PATH": str(python / "lib"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "SLUICEGATE_METRICS__LISTEN": "127.0.0.1:0",
    }
    environment.pop("COVERAGE_PROCESS_START", None)  # its data would go to the read-only file system
    with log.open("wb") as stderr:
        process = subprocess.Popen(["unshare", "--mount", "sh", "-euc", script], stderr=stderr, env=environment)
    try:
        ready = state / "ready.json"

        def is_ready() -> bool:
            if process.poll() is not None or "cannot be started" in log.read_text():
                pytest.fail(log.read_text())
            return ready.exists()

        eventually(is_ready, "the gateway is ready", timeout_s=60)
        owners = {os.stat(f"/proc/{child['pid']}").st_uid for child in json.loads(ready.read_text())["children"]}
        assert owners == {int(uid)}
        port = json.loads(ready.read_text())["data"]["port"]
        metrics_port = json.loads(ready.read_text())["metrics"]["port"]
        assert (healthcheck(port), healthcheck(metrics_port)) == (0, 0)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            row = json.dumps({"rows": [dict.fromkeys(classifier().features, 0.5)]})
            head = f"POST /predict/iris HTTP/1.1\r\nhost: x\r\ncontent-length: {len(row)}\r\n\r\n"
            connection.sendall((head + row).encode())
            assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    finally:
        process.terminate()
        assert process.wait(40) == 0, log.read_text()
    assert (healthcheck(port), healthcheck(metrics_port)) == (1, 1)


def test_pods_run_as_the_user_of_the_image() -> None:
    (user,) = (rest for word, rest in instructions() if word == "USER")
    for name in ("serving", "control"):
        path = ROOT / "deploy" / "kubernetes" / "base" / f"{name}.yaml"
        (deployment,) = (each for each in yaml.safe_load_all(path.read_text()) if each["kind"] == "Deployment")
        security = deployment["spec"]["template"]["spec"]["securityContext"]
        assert f"{security['runAsUser']}:{security['runAsGroup']}" == user
