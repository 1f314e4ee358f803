"""Attacks on a running gateway, with innocents beside them: what broke, as small as it could be made."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
import time
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import hypothesis
from hypothesis import HealthCheck, Phase, given
from hypothesis import strategies as st

from fuzzing import answers
from fuzzing.answers import Wrong
from fuzzing.attacks import Attack, Facts, attacks
from fuzzing.innocents import Innocents
from fuzzing.targets import Target
from tests.live import LiveGateway

# Whatever is asked must be answered, and a connection that says no more be ended, within this. The gateway's clocks
# are set to a second by SERVER.
PATIENCE_S = 10.0
SERVER: Mapping[str, str | int | float] = {"request_timeout_s": 1, "write_timeout_s": 1, "keep_alive_s": 1}
# What a client that sends no more waits for an answer before it shuts its side.
_QUIET_S = 0.02
# How long a failure may be made smaller.
_SHRINK_S = 20.0
_AT_ONCE = 6
_COMPLAINTS = re.compile(
    r"Traceback|Fatal error|RecursionError|never awaited|never retrieved|\"level\": ?\"(?:error|critical)\""
)


@dataclass(slots=True)
class Finding:
    """A promise that was broken. attack: the smallest group of attacks that broke it."""

    target: Target
    problem: str
    attack: list[Attack]

    def __str__(self) -> str:
        return f"{self.target}: {self.problem}\n" + "\n".join(f"    {each!r}" for each in self.attack)


@dataclass(slots=True)
class Siege:
    """A context manager. live: the gateway, started with SERVER. key: an API key, if its data port asks for one."""

    live: LiveGateway
    name: str
    key: str | None = None
    attacked: Counter[Target] = field(default_factory=Counter)
    statuses: Counter[tuple[Target, int]] = field(default_factory=Counter)
    innocent_answers: int = 0
    findings: list[Finding] = field(default_factory=list)
    _runner: asyncio.Runner = field(default_factory=asyncio.Runner)
    _innocents: Innocents = field(init=False)
    _pids: dict[tuple[str, int], int] = field(init=False)
    _log_seen: int = 0

    def __enter__(self) -> Self:
        self._innocents = Innocents(self.live, self.key, random.Random(self.name))
        self._runner.run(self._innocents.open())
        self._pids = self._children()
        self._log_seen = len(self.live.log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.run(self._innocents.close())
        self._runner.close()

    def lay(self, target: Target, facts: Facts, *, seed: int, examples: int, until_s: float) -> None:
        """Send *examples* groups of attacks to one target; what breaks is kept in the findings.

        until_s: on the monotonic clock; then no further group is sent.
        """
        worst: list[tuple[int, str, list[Attack]]] = []
        gives_up_s = [until_s]

        @hypothesis.seed(zlib.crc32(f"{seed}:{self.name}:{target}".encode()))
        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        )
        @given(st.lists(attacks(target, facts), min_size=1, max_size=_AT_ONCE))
        def attack(group: list[Attack]) -> None:
            if time.monotonic() > gives_up_s[0]:
                return
            try:
                self._runner.run(self._at_once(group))
            except AssertionError as wrong:
                if not worst:
                    gives_up_s[0] = time.monotonic() + _SHRINK_S
                worst.append((sum(len(piece) for each in group for piece in each.pieces), str(wrong), group))
                raise

        with contextlib.suppress(AssertionError, hypothesis.errors.Flaky, BaseExceptionGroup):
            attack()
        if worst:
            _, problem, group = min(worst, key=lambda found: found[0])
            self.findings.append(Finding(target, problem, group))
            self._pids = self._children()  # what died was told of
            self._log_seen = len(self.live.log)

    async def _at_once(self, group: list[Attack]) -> None:
        """The attacks of a group on as many connections, and the innocents beside them. Raises Wrong."""
        results = await asyncio.gather(
            self._innocents.ask(), *(self._send(each) for each in group), return_exceptions=True
        )
        self.innocent_answers += 4
        for result in results:
            if isinstance(result, BaseException):
                raise result
        self._look()

    async def _send(self, attack: Attack) -> None:
        self.attacked[attack.target] += 1
        url = urlsplit(self.live.data_url if attack.target.port == "data" else self.live.control_url)
        try:
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await asyncio.open_connection(url.hostname, url.port)
        except TimeoutError:
            raise Wrong(f"no connection within {PATIENCE_S:g} s") from None
        try:
            with contextlib.suppress(ConnectionError):  # ended by the gateway while we still send
                for piece in attack.pieces:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0)
            if attack.ending == "leave":
                _reset_when_closed(writer)
                return
            read = await self._read(reader, writer, attack)
        finally:
            writer.close()
        self._check(attack, read)

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, attack: Attack) -> bytes:
        """All that comes until the connection ends, or until there is the one answer that is waited for."""
        read = b""
        until_s = time.monotonic() + PATIENCE_S
        is_shut = False
        while True:
            wait_s = until_s - time.monotonic()
            if attack.ending == "shut" and not is_shut:
                wait_s = min(wait_s, _QUIET_S)
            try:
                async with asyncio.timeout(max(0.0, wait_s)):
                    block = await reader.read(256 * 1024)
            except ConnectionError:
                return read
            except TimeoutError:
                if attack.ending == "shut" and not is_shut:
                    is_shut = True
                    with contextlib.suppress(OSError):
                        writer.write_eof()
                    continue
                what = "answered" if attack.ending == "answer" else "ended"
                raise Wrong(f"not {what} within {PATIENCE_S:g} s; came: {read[:200]!r}") from None
            if not block:
                return read
            read += block
            if attack.ending == "answer" and answers.read(read, no_bodies=attack.method == "HEAD")[0]:
                return read

    def _check(self, attack: Attack, read: bytes) -> None:
        target = attack.target
        found, left = answers.read(read, no_bodies=attack.method == "HEAD")
        if attack.is_http and (len(found) != 1 or left):
            raise Wrong(f"{len(found)} answers to one request, and {left[:100]!r}")
        for response in found:
            self.statuses[target, response.status] += 1
            answers.check(response, target.port, target.path if attack.is_http else None, attack.method)

    def _look(self) -> None:
        """Raises Wrong if a process was replaced or the log complains."""
        if (now := self._children()) != self._pids:
            raise Wrong(f"a process died: {self._pids} became {now}")
        log = self.live.log
        if found := _COMPLAINTS.search(log, self._log_seen):
            line = log[log.rfind("\n", 0, found.start()) + 1 :].partition("\n")[0]
            raise Wrong(f"the log complains: {line[:200]} ... {line[-700:]}")
        self._log_seen = len(log)

    def _children(self) -> dict[tuple[str, int], int]:
        return {(child["role"], child["slot"]): child["pid"] for child in self.live.ready["children"]}


def facts_of(live: LiveGateway, flags: Mapping[str, Any], key: str | None) -> Facts:
    """Facts with a token, a key, a webhook, a rollout and a change that were made just now, to be ended or not."""
    control = live.control
    why = {"x-change-reason": "fuzz", "if-match": "*"}

    def made(path: str, body: Mapping[str, Any]) -> str:
        return str(control.post(path, json=body, headers=why).json().get("id", "nobody"))

    token = made("/admin/v1/tokens", {"name": "victim", "scope": "viewer"})
    api_key = made("/admin/v1/keys", {"name": "victim"})
    webhook = made("/admin/v1/webhooks", {"url": "http://127.0.0.1:1/", "events": ["alarm.*"]})
    for rollout in control.get("/admin/v1/models/maple/rollouts").json()["rollouts"][:1]:
        control.post(f"/admin/v1/rollouts/{rollout['id']}:abort", headers=why)
    plan = {"strategy": "canary", "version": "1", "steps": [{"weight_percent": 5}]}
    rollout_id = made("/admin/v1/models/maple/rollouts", plan)
    raised = {"variants": {"canary": "1"}, "targeting": {"fractional": [["canary", 50], ["stable", 50]]}}
    change = made_change(live, raised)
    ids = {
        "/admin/v1/tokens/{id}": token,
        **{f"/admin/v1/keys/{{id}}{verb}": api_key for verb in ("", ":rotate")},
        **{f"/admin/v1/webhooks/{{id}}{verb}": webhook for verb in ("", ":test")},
        **{f"/admin/v1/rollouts/{{id}}{rest}": rollout_id for rest in ("", ":{verb}", "/report")},
        **{f"/admin/v1/changes/{{id}}{rest}": change for rest in ("", ":{verb}")},
    }
    return Facts(live.admin_token, key, flags, ids)


def made_change(live: LiveGateway, patch: Mapping[str, Any]) -> str:
    """The id of a change of oak's route that waits for approval; "nobody" if it needs none."""
    why = {"x-change-reason": "fuzz", "if-match": "*"}
    reply = live.control.patch("/admin/v1/flags/oak.route", json=patch, headers=why)
    return str(reply.json().get("id", "nobody")) if reply.status_code == 202 else "nobody"


def tidy(live: LiveGateway, flags: Mapping[str, Any]) -> None:
    """Put the flags back, and end what was made meanwhile: what piles up by right must not look like a leak."""
    control, why = live.control, {"x-change-reason": "fuzz", "if-match": "*"}
    control.put("/admin/v1/flags", json=flags, headers=why)
    for kind in ("tokens", "keys", "webhooks"):
        for each in control.get(f"/admin/v1/{kind}").json()[kind]:
            if each.get("name") not in ("admin", "fuzz"):
                control.delete(f"/admin/v1/{kind}/{each['id']}")


def _reset_when_closed(writer: asyncio.StreamWriter) -> None:
    found: socket.socket = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):  # the gateway was faster
        found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
