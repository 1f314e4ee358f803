"""How other servers are started: what their folders say."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter

import pytest
from speed import peers
from speed.against import LEADS
from speed.asks import OIP, ROWS
from speed.models import STABLE, Model
from speed.peers import Peer

KNOWN = {"bin", "here", "port", "port2", "port3", "onnx", "model", "libdir", "scratch"}
ALL = peers.all_of(Path("nowhere"))


def test_every_peer_with_a_promise_has_a_folder_and_the_other_way_round() -> None:
    assert {peer.name for peer in ALL} == set(LEADS)
    assert {path.parent.name for path in peers.FOLDER.glob("*/peer.toml")} == set(LEADS)


@pytest.mark.parametrize("peer", ALL, ids=lambda peer: peer.name)
def test_a_peer_says_all_that_is_needed_to_start_it(peer: Peer) -> None:
    assert not peer.is_set_up
    for configuration in peer.configurations:
        assert configuration.settings
        assert configuration.command
        assert configuration.body in (OIP, ROWS)
        templates = [*configuration.command, *configuration.prepare, *configuration.environment.values()]
        wanted = {name for text in templates for _, name, _, _ in Formatter().parse(text) if name is not None}
        assert wanted <= KNOWN
        named = re.findall(r"\{here\}/(\S+)", " ".join(templates))
        assert all((peers.FOLDER / peer.name / file).is_file() for file in named)


@pytest.mark.parametrize("peer", ALL, ids=lambda peer: peer.name)
def test_all_that_a_peer_needs_is_pinned(peer: Peer) -> None:
    lines = (peers.FOLDER / peer.name / "requirements.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#") and not re.fullmatch(r"[\w.\[\]-]+==[\w.]+", line)] == []
    assert "onnxruntime 1." in peer.versions()


def test_requests_go_to_the_path_of_the_model() -> None:
    mlserver = next(peer for peer in ALL if peer.name == "mlserver")
    model = Model("iris", Path("models"), [[5.1, 3.5]], Path("rows"), {STABLE: []})
    ask = mlserver.configurations[0].ask(model)
    assert (ask.path, ask.keyed, ask.unique) == ("/v2/models/iris/infer", False, True)


def test_a_peer_is_set_up_once_its_environment_has_the_wanted_versions(tmp_path: Path) -> None:
    wanted = (peers.FOLDER / "mosec" / "requirements.txt").read_text()
    (tmp_path / "mosec").mkdir()
    (tmp_path / "mosec" / "requirements.txt").write_text(wanted)
    assert [peer.name for peer in peers.all_of(tmp_path) if peer.is_set_up] == ["mosec"]
    (tmp_path / "mosec" / "requirements.txt").write_text(wanted + "more==1\n")
    assert not any(peer.is_set_up for peer in peers.all_of(tmp_path))
