"""Every path of both ports under Hypothesis, with innocents beside, and what broke: `make fuzz`.

Prints a table in Markdown. Exit code 1: a promise was broken, and the lines under the table say which, with the bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # for the gateways of tests/

from fuzzing.by_document import Held, hold
from fuzzing.siege import SERVER, Siege, facts_of, tidy
from fuzzing.targets import Target, targets
from growth import Bounds, Watch, processes, table
from speed import machine

from tests.builders import IRIS_FEATURES, classifier, write_package
from tests.live import LiveGateway, SettingsTable, eventually

# Groups of attacks on one target before the next one has its turn.
EXAMPLES = 12
# Name -> settings of [server]. The admin port is the same in all of them, so it is attacked in the first one only.
GATEWAYS: Mapping[str, Mapping[str, str]] = {
    "fast": {"door": "fast"},
    "asgi": {"door": "asgi"},
    "fast, with keys": {"door": "fast", "api_keys": "required"},
}
# Of the model that is watched: its reference, and a window of the drift monitor.
REFERENCE_ROWS, WINDOW_ROWS = 500, 100
# Rows that are drawn per operation from the OpenAPI document, right and wrong ones each.
DRAWN = 3
# A fifth of a minute is no hour: what is allocated and kept for the next time rises for a while.
BOUNDS = Bounds(memory_bytes=16 * 1024 * 1024)
_SHOWN = 4000


@dataclass(slots=True)
class Attacked:
    """One gateway, what is sent to it, and how it fares."""

    siege: Siege
    targets: list[Target]
    flags: dict[str, object]
    watch: Watch


def write_models(root: Path) -> None:
    """iris, which the innocents ask; maple with two versions, to be played with; oak, whose changes need approval."""
    for model, version in (("iris", "1"), ("maple", "1"), ("maple", "2"), ("oak", "1"), ("oak", "2")):
        card = {"stakes": "high"} if model == "oak" else {}
        rows = REFERENCE_ROWS if model == "iris" else 0
        write_package(root, classifier(model, version), golden=True, card=card, reference_rows=rows)


@contextlib.contextmanager
def attacked(root: Path, name: str, found: list[Target]) -> Iterator[Attacked]:
    """A gateway under siege. root: has the packages in root/models."""
    settings: SettingsTable = {
        "server": {**SERVER, **GATEWAYS[name]},
        "sampling": {"rate": 1, "segment_max_age_s": 1, "max_log_bytes": 4_000_000},
        "cache": {"max_bytes": 1_000_000},
        "monitor": {"compact_after_s": 1, "poll_s": 0.5, "window_rows": WINDOW_ROWS, "min_window_rows": WINDOW_ROWS},
        "webhooks": {"allow_networks": "127.0.0.0/8"},
        "log": {"level": "info"},
    }
    with LiveGateway(root / "models", root / name.replace(", ", "-").replace(" ", "-"), settings=settings) as live:
        key = None
        if "api_keys" in GATEWAYS[name]:
            key = live.control.post("/admin/v1/keys", json={"name": "fuzz"}).json()["key"]
            eventually(lambda: live.data.get("/v2/models", headers={"x-api-key": key}).status_code == 200, "a key")
        for model in ("maple", "oak"):
            declare(live, model)
        flags = live.control.get("/admin/v1/flags").json()
        mine = found if name == next(iter(GATEWAYS)) else [each for each in found if each.port == "data"]
        fill_window(live, key)
        with Siege(live, name, key) as siege:
            yield Attacked(siege, mine, flags, Watch())


def declare(live: LiveGateway, model: str) -> None:
    """Both versions of a model in its route, all traffic to the one that was seeded, the higher one."""
    flag = {"state": "ENABLED", "variants": {"stable": "2", "canary": "1"}, "defaultVariant": "stable"}
    why = {"if-match": "*", "x-change-reason": "fuzz"}
    eventually(
        lambda: live.control.put(f"/admin/v1/flags/{model}.route", json=flag, headers=why).status_code == 200,
        f"{model} has a route of two versions",
    )


def fill_window(live: LiveGateway, key: str | None) -> None:
    """Have the drift monitor judge a window: what it imports for its first one would look like growth."""
    rows = [[0.01 * number] * len(IRIS_FEATURES) for number in range(WINDOW_ROWS)]
    body = {"columns": list(IRIS_FEATURES), "rows": rows}
    answer = live.data.post("/predict/iris", json=body, headers={} if key is None else {"x-api-key": key})
    assert answer.is_success, answer.text
    eventually((live.state / "drift" / "iris.json").exists, "the monitor has judged a window")


def round_of(each: Attacked, turn: int, *, seed: int, examples: int, until_s: float) -> None:
    """All targets of one gateway once, in an order of its own, or as many as there is time for."""
    order = random.Random(f"{seed}:{turn}").sample(each.targets, len(each.targets))
    live = each.siege.live
    facts = facts_of(live, each.flags, each.siege.key)
    for place, target in enumerate(order):
        if time.monotonic() > until_s:
            break
        if target.port == "control" and "{id}" in target.path and place:
            facts = facts_of(live, each.flags, each.siege.key)  # an earlier one may have ended what this one names
        each.siege.lay(target, facts, seed=seed + 1000 * turn, examples=examples, until_s=until_s)
        each.watch.look(processes(live))
    tidy(live, each.flags)


def summary(everyone: list[Attacked]) -> str:
    """What was sent, and what was said, by target, in Markdown."""
    sent: Counter[Target] = Counter()
    classes: Counter[tuple[Target, int]] = Counter()
    for each in everyone:
        sent.update(each.siege.attacked)
        for (target, status), count in each.siege.statuses.items():
            classes[target, status // 100] += count
    lines = ["| target | attacks | 2xx | 3xx | 4xx | 5xx |", "| --- | --- | --- | --- | --- | --- |"]
    for target in sorted(sent):
        cells = (str(target), *(f"{count:,}" for count in (sent[target], *(classes[target, n] for n in (2, 3, 4, 5)))))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=300.0, help="of attacks (default: 300)")
    parser.add_argument("--seed", type=int, default=1, help="what all attacks are drawn from (default: 1)")
    parser.add_argument(
        "--document-seconds",
        type=int,
        default=120,
        metavar="S",
        help="of requests drawn from the OpenAPI document, after that and per gateway (default: 120; 0: none)",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="targets with this in their name")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(1))  # and the gateways are ended on the way out
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-", ignore_cleanup_errors=True) as folder,
        contextlib.ExitStack() as stack,
    ):
        root = Path(folder)
        found = [each for each in targets(root) if options.only in str(each)]
        if not found:
            parser.error(f"no target has {options.only!r} in its name")
        write_models(root / "models")
        everyone = [stack.enter_context(attacked(root, name, found)) for name in GATEWAYS]
        until_s, turn = time.monotonic() + options.seconds, 0
        while time.monotonic() < until_s:
            for each in everyone:
                round_of(each, turn, seed=options.seed, examples=EXAMPLES, until_s=until_s)
            turn += 1
            left = max(0.0, until_s - time.monotonic())
            print(f"round {turn}, {left:.0f} s left, {sum(len(each.siege.findings) for each in everyone)} findings",
                  file=sys.stderr, flush=True)  # fmt: skip
        held = by_document(everyone, options.seed, options.document_seconds)
        return _tell(everyone, held, options.seconds, options.seed, turn)


def by_document(everyone: list[Attacked], seed: int, seconds: int) -> dict[str, Held]:
    """What came of the requests that schemathesis draws from the document of each gateway, by the gateway's name."""
    held = {}
    for each in everyone if seconds else ():
        held[each.siege.name] = hold(
            each.siege.live.data_url, seed=seed, examples=DRAWN, seconds=seconds, key=each.siege.key
        )
    return held


def _tell(everyone: list[Attacked], held: Mapping[str, Held], seconds: float, seed: int, rounds: int) -> int:
    told = machine.describe()
    attacks = sum(sum(each.siege.attacked.values()) for each in everyone)
    innocent = sum(each.siege.innocent_answers for each in everyone)
    where = f"{told['cpu']}, {told['cores']} cores, {told['day']}, revision {told['revision']}"
    print(
        f"{where}, seed {seed}: {seconds:g} s, {rounds} rounds, {attacks:,} attacks, {innocent:,} innocent requests.\n"
    )
    print(summary(everyone))
    growing = []
    for each in everyone:
        verdicts = each.watch.verdicts(bounds=BOUNDS)
        print(f"\n{each.siege.name}:\n\n{table(verdicts)}")
        growing += [f"{each.siege.name}: {' '.join(verdict.row())}" for verdict in verdicts if not verdict.is_flat]
    findings = [str(finding)[:_SHOWN] for each in everyone for finding in each.siege.findings]
    unlike = [f"{name}, by the document: {' '.join(what)}: {text}" for name, one in held.items()
              for what, text in one.broken.items()]  # fmt: skip
    for name, one in held.items():
        print(f"\n{name}, {one}.")
    broken = [*growing, *findings, *unlike]
    print("\nNothing broke." if not broken else "\nBROKEN:\n" + "\n".join(f"- {line}" for line in broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
