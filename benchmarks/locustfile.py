"""Users that ask a gateway for predictions and check every answer, for Locust; README.md beside this file says how.

Models, features and tensors are asked of the gateway itself. Every answer is checked (answers.py); one that is wrong
is a failure of that request.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import gevent
import tally
from answers import Answer, Checker, WrongAnswer, native_answers, oip_answers
from locust import FastHttpUser, LoadTestShape, constant, constant_throughput, events
from locust.exception import StopUser
from served import Served, Unusable, classes_of, discover
from shapes import SHAPES

ROWS_PER_REQUEST = (1, 1, 1, 1, 2, 8)  # drawn from: mostly single rows, as applications send them
TARGETING_KEYS = 1000
HOT_ROWS = 200
ZIPF_EXPONENT = 1.1
LENGTH_HEADER = "inference-header-content-length"
CONFLICT = 412  # somebody else changed the flag in between
# What the operator does with the first two variants, step by step: percent of the second, or a flip of the default.
OPERATOR_STEPS: tuple[int | str, ...] = (10, 50, "second", "first")


def add_options(parser: Any) -> None:
    """Our own options; they are typed after Locust's."""
    add = parser.add_argument
    add("--models", default="", help="models to ask, separated by commas; all that are served if left out")
    add("--rows", action="append", default=[], help="FILE or MODEL=FILE: rows to send (csv, parquet or json)")
    add("--shape", choices=list(SHAPES), default="steady", help="how the number of users changes over the run time")
    add("--rate-per-user", type=float, default=0.0, help="requests per second of one user; 0: as fast as answers come")
    add("--control-url", env_var="SLUICEGATE_URL", default="", help="control plane, for the operator")
    add("--token", env_var="SLUICEGATE_TOKEN", default="", help="its token", include_in_web_ui=False)
    add("--flip-every", type=float, default=2.0, help="seconds between two flag changes of the operator")
    add("--report", default="", help="file for the figures, rewritten while the test runs")


class Trial:
    """All that the users of one test share: what is served, the checks, the counts."""

    def __init__(self, base_url: str, options: argparse.Namespace) -> None:
        self.options = options
        wanted = [name for name in options.models.split(",") if name]
        row_files = {}
        for text in options.rows:
            model, equals, path = text.partition("=")
            row_files[model if equals else ""] = Path(path if equals else text)
        self.served = discover(base_url, wanted, row_files)
        self.named = [model for model in self.served if model.rows]
        self.checker = Checker(lambda model, version: classes_of(base_url, model, version))
        self.counts = tally.Counts()
        self.pace: Callable[[Any], float] = (
            constant_throughput(options.rate_per_user) if options.rate_per_user else constant(0)
        )


def begin(environment: Any, **_: Any) -> None:
    """Find out what is served before anything starts, and count from then on."""
    options = environment.parsed_options
    try:
        trial = Trial((environment.host or "").rstrip("/"), options)
    except Unusable as error:
        raise SystemExit(str(error)) from error
    environment.trial = trial
    environment.events.request.add_listener(trial.counts.on_request)
    if options.report:
        report = Path(options.report)

        def write(finished: bool = False) -> None:
            users = environment.runner.user_count if environment.runner is not None else 0
            tally.write(report, trial.counts, trial.checker.variants, users=users, finished=finished)

        environment.events.test_start.add_listener(lambda **_: gevent.spawn(_write_on, write))
        environment.events.quitting.add_listener(lambda **_: write(finished=True))


def _write_on(write: Callable[[], None]) -> None:
    while True:
        write()
        gevent.sleep(tally.WRITE_EVERY_S)


# -- users -----------------------------------------------------------------------------------------------


class GatewayUser(FastHttpUser):  # type: ignore[misc]  # locust's types are not followed
    """What all users share: their pace, one connection, and the checks."""

    abstract = True
    kind = ""  # names its requests in the figures

    @property
    def trial(self) -> Trial:
        found: Trial = self.environment.trial
        return found

    def wait_time(self) -> float:
        return self.trial.pace(self)

    def give_up(self, name: str, why: str) -> None:
        """Count a failure and end this user."""
        events.request.fire(
            request_type="", name=name, response_time=0, response_length=0, exception=WrongAnswer(why), context={}
        )
        raise StopUser

    def ask_named(self, model: Served, picked: Sequence[int], key: str | None) -> None:
        """POST rows of named features."""
        body = json.dumps({"rows": [model.rows[row] for row in picked]})
        headers = {"content-type": "application/json"}
        self._ask(model, f"/predict/{quote(model.name)}", body, headers, picked, key, _read_native)

    def ask_binary(self, model: Served, picked: Sequence[int], key: str | None) -> None:
        """POST binary tensors."""
        body, headers = model.binary(picked)
        self._ask(model, f"/v2/models/{quote(model.name)}/infer", body, headers, picked, key, _read_oip)

    def _ask(
        self,
        model: Served,
        path: str,
        body: str | bytes,
        headers: dict[str, str],
        picked: Sequence[int],
        key: str | None,
        read: Callable[[bytes, Mapping[str, str]], list[Answer]],
    ) -> None:
        if key is not None:
            headers["x-targeting-key"] = key
        name = f"{self.kind} {model.name}"
        with self.client.request("POST", path, name, data=body, headers=headers, catch_response=True) as reply:
            if reply.status_code == 0:
                return  # no answer at all: Locust has the reason and counts it
            try:
                if reply.status_code != 200:
                    raise WrongAnswer(f"status {reply.status_code}", (reply.text or "")[:300])
                told = {name.lower(): value for name, value in reply.headers.items()}
                self.trial.checker.check(model.name, picked, key, told, _read(read, reply.content, told))
            except WrongAnswer as wrong:
                self.trial.counts.note(str(wrong), wrong.seen)
                reply.failure(str(wrong))


def _read(read: Callable[..., list[Answer]], content: bytes, headers: Mapping[str, str]) -> list[Answer]:
    try:
        return read(content, headers)
    except (ValueError, KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise WrongAnswer("an answer that cannot be read", repr(error)) from error


def _read_native(content: bytes, _headers: Mapping[str, str]) -> list[Answer]:
    return native_answers(content)


def _read_oip(content: bytes, headers: Mapping[str, str]) -> list[Answer]:
    return oip_answers(content, int(headers[LENGTH_HEADER]))


def _some_key() -> str | None:
    """A targeting key of the many; one request in ten has none."""
    return f"key-{random.randrange(TARGETING_KEYS)}" if random.random() < 0.9 else None


def _some_rows(model: Served) -> list[int]:
    return random.choices(range(model.row_count), k=random.choice(ROWS_PER_REQUEST))


def _some_named(user: GatewayUser) -> Served:
    """A model that can be asked by the names of its features."""
    if not user.trial.named:
        user.give_up(user.kind, "no model has named features")
    return random.choice(user.trial.named)


def _named(user: GatewayUser) -> None:
    model = _some_named(user)
    user.ask_named(model, _some_rows(model), _some_key())


def _binary(user: GatewayUser) -> None:
    model = random.choice(user.trial.served)
    user.ask_binary(model, _some_rows(model), _some_key())


def _hot(user: GatewayUser) -> None:
    model = _some_named(user)
    weights = _zipf(min(HOT_ROWS, model.row_count))
    (row,) = random.choices(range(len(weights)), cum_weights=weights)
    user.ask_named(model, [row], f"hot-{row}")


@functools.cache
def _zipf(ranks: int) -> list[float]:
    """Cumulative weights of the ranks 1, 2, ..."""
    return list(itertools.accumulate(rank**-ZIPF_EXPONENT for rank in range(1, ranks + 1)))


class NamedRowsUser(GatewayUser):
    """Sends rows of named features, as an application does."""

    kind = "named"
    tasks = (_named,)


class BinaryUser(GatewayUser):
    """Sends binary tensors of the Open Inference Protocol."""

    kind = "binary"
    tasks = (_binary,)


class HotKeysUser(GatewayUser):
    """Asks about few rows again and again, by a Zipf distribution, each row with a targeting key of its own."""

    kind = "hot"
    tasks = (_hot,)


class TwoModelsUser(GatewayUser):
    """Asks two models in turn."""

    kind = "two"

    def _in_turn(self) -> None:
        model = next(self._models)
        if model.rows:
            self.ask_named(model, _some_rows(model), _some_key())
        else:
            self.ask_binary(model, _some_rows(model), _some_key())

    def on_start(self) -> None:
        self._models = itertools.cycle(self.trial.served[:2])

    tasks = (_in_turn,)


class OperatorUser(GatewayUser):
    """One operator who changes canary shares and flips the default variant while others ask; puts all back at the end.

    Its requests are no predictions in the figures. Models whose route has fewer than two variants are left alone.
    """

    fixed_count = 1

    def wait_time(self) -> float:
        return float(self.trial.options.flip_every)

    def on_start(self) -> None:
        options = self.trial.options
        self._url = f"{options.control_url.rstrip('/')}/admin/v1/flags"
        self._steps = itertools.cycle(OPERATOR_STEPS)
        self._before: dict[str, Any] = {}
        if not (options.control_url and options.token):
            return  # started by hand among all others, and nothing to do
        for model in self.trial.served:
            flag, _etag = self._get(model.name)
            if flag is not None and len(flag["variants"]) > 1:
                self._before[model.name] = flag

    def _step(self) -> None:
        if not self._before and self.trial.options.control_url:
            self.give_up(tally.READ_FLAG, "no model has a route of two variants")
        step = next(self._steps)
        for model, flag in self._before.items():
            first = flag["defaultVariant"]
            second = next(name for name in flag["variants"] if name != first)
            if isinstance(step, int):
                rule = {"fractional": [[second, step], [first, 100 - step]]}
                self._put(model, {**flag, "targeting": rule}, f"load test: {step} % {second}")
            else:
                default = second if step == "second" else first
                self._put(model, {**flag, "defaultVariant": default, "targeting": None}, f"load test: all {default}")

    def on_stop(self) -> None:
        for model, flag in self._before.items():
            self._put(model, flag, "load test: as before")

    tasks = (_step,)

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.trial.options.token}"}

    def _get(self, model: str) -> tuple[dict[str, Any] | None, str]:
        """A model's route flag and its ETag."""
        url = f"{self._url}/{quote(model)}.route"
        with self.client.request("GET", url, tally.READ_FLAG, headers=self._headers(), catch_response=True) as reply:
            if reply.status_code != 200:
                self._fail(reply)
                return None, ""
            flag: dict[str, Any] = reply.json()
            return flag, reply.headers.get("etag", "")

    def _put(self, model: str, flag: Mapping[str, Any], reason: str) -> None:
        """Replace a model's route; that somebody else was faster is no failure."""
        _flag, etag = self._get(model)
        headers = {
            **self._headers(),
            "content-type": "application/json",
            "if-match": etag,
            "x-change-reason": reason,
        }
        url = f"{self._url}/{quote(model)}.route"
        with self.client.request(
            "PUT", url, tally.CHANGE_FLAG, data=json.dumps(flag), headers=headers, catch_response=True
        ) as reply:
            if reply.status_code == CONFLICT:
                reply.success()
            elif reply.status_code != 200:
                self._fail(reply)

    def _fail(self, reply: Any) -> None:
        if reply.status_code:
            self.trial.counts.note(f"status {reply.status_code}", (reply.text or "")[:300])
            reply.failure(f"status {reply.status_code}")


class ChosenShape(LoadTestShape):  # type: ignore[misc]  # locust's types are not followed
    """The shape that --shape names, within Locust's own --users, --spawn-rate and --run-time."""

    use_common_options = True

    def tick(self) -> tuple[int, float] | None:
        """Users wanted now and how many may start per second; None ends the test."""
        options = self.runner.environment.parsed_options
        elapsed_s, run_time_s = self.get_run_time(), options.run_time
        if run_time_s and elapsed_s >= run_time_s:
            return None
        share = elapsed_s / run_time_s if run_time_s else 1.0
        users = SHAPES[options.shape](share, options.num_users or 1)
        return users, max(options.spawn_rate or 1.0, 0.01)


events.init_command_line_parser.add_listener(add_options)
events.init.add_listener(begin)
