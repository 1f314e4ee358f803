"""Rollouts under verbs, crashes, other editors, jumping clocks and workers that come and go: what always holds."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from gateway.control import rollout, steering
from gateway.control.changes import Desk
from gateway.control.rollouts import GOING_ON
from gateway.errors import ChangeRefused, RevisionConflict, VersionNotWarm
from gateway.flags.compile import Route, compile_route
from gateway.flags.document import FlagDocument
from gateway.flags.exposure import raised
from gateway.flags.store import verify_trail
from tests.control.books import MODEL, OPS, ROUTE, Books, Worker

ALL = frozenset({"1", "2", "3"})
REFUSED = (ChangeRefused, RevisionConflict)


class Releases(RuleBasedStateMachine):
    """One model, up to three workers, a controller that is restarted at will, and a second one beside it."""

    @initialize(
        workers=st.integers(1, 3),
        strategy=st.sampled_from(["canary", "canary", "bluegreen", "experiment"]),
        stages=st.integers(0, 6),
    )
    def begin(self, workers: int, strategy: str, stages: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="releases-"))
        self.books = Books(self.folder)
        self.pids = 100
        self.broken: set[str] = set()
        for slot in range(workers):
            self.books.workers.append(self.new_worker(slot))
        self.killed = False
        self.acknowledged: dict[str, Any] = {}  # metadata that an editor was told is written
        self.seen_revision = self.document.revision
        self.seen_route = self.compiled()
        self.marks = 0
        self.mine: str | None = None
        self.books.start(strategy=strategy)
        for _ in range(stages):
            self.all_goes_well_for_a_while()

    def teardown(self) -> None:
        if hasattr(self, "books"):
            self.every_rollout_comes_to_an_end()
            self.books.store.close()
            shutil.rmtree(self.folder)

    # -- the world ------------------------------------------------------------------------------

    def new_worker(self, slot: int) -> Worker:
        self.pids += 1
        worker = Worker(slot, self.pids)
        return worker

    @property
    def document(self) -> FlagDocument:
        document = self.books.store.load()
        assert document is not None
        return document

    def compiled(self) -> Route:
        return compile_route(MODEL, self.document.flags[ROUTE], self.document.bucketing)

    @rule(which=st.integers(0, 2))
    def a_worker_follows(self, which: int) -> None:
        if self.books.workers:
            worker = self.books.workers[which % len(self.books.workers)]
            worker.follow(self.books, loads=ALL - self.broken)

    @rule()
    def all_workers_follow(self) -> None:
        for worker in self.books.workers:
            worker.follow(self.books, loads=ALL - self.broken)

    @rule(which=st.integers(0, 2))
    def a_worker_is_replaced(self, which: int) -> None:
        if self.books.workers:
            place = which % len(self.books.workers)
            self.books.workers[place] = self.new_worker(place)

    @rule(which=st.integers(0, 2), variant=st.sampled_from(["canary", "stable", "candidate"]), n=st.integers(1, 5000))
    def a_worker_counts(self, which: int, variant: str, n: int) -> None:
        if self.books.workers:
            worker = self.books.workers[which % len(self.books.workers)]
            if worker.adopted is not None:
                worker.count(variant, eligible=n)

    @rule(version=st.sampled_from(["2", "3"]))
    def a_package_breaks_or_is_mended(self, version: str) -> None:
        self.broken ^= {version}

    # -- the controller -------------------------------------------------------------------------

    @rule(elapsed_s=st.sampled_from([0.25, 5.0, 61.0, 61.0, 400.0]))
    def time_passes(self, elapsed_s: float) -> None:
        self.books.tick(elapsed_s)

    @rule()
    def all_goes_well_for_a_while(self) -> None:
        self.all_workers_follow()
        self.books.tick(0.25)
        self.all_workers_follow()
        for worker in self.books.workers:
            if worker.adopted is not None:
                for variant in ("canary", "candidate"):
                    worker.count(variant, eligible=5000)
        self.books.tick(700.0)

    @rule(jump_s=st.sampled_from([-86_400.0, -5.0, 5.0, 86_400.0]))
    def the_clock_jumps(self, jump_s: float) -> None:
        self.books.wall_s += jump_s

    @rule()
    def control_crashes(self) -> None:
        self.books.restart()

    # -- operators ------------------------------------------------------------------------------

    @rule(
        strategy=st.sampled_from(["canary", "canary", "bluegreen", "experiment"]),
        version=st.sampled_from(["2", "3"]),
        promote=st.sampled_from(["auto", "manual"]),
    )
    def start(self, strategy: str, version: str, promote: str) -> None:
        current = self.books.route()
        if version == current["variants"][current["defaultVariant"]]:
            version = "1"
        with contextlib.suppress(*REFUSED):
            self.books.start(strategy=strategy, version=version, promote=promote)
            event(f"started {strategy}")

    @rule(verb=st.sampled_from(steering.VERBS))
    def steer(self, verb: str) -> None:
        newest = self.books.rollouts.all(MODEL)[:1]
        for found in newest:
            before = found.state.phase
            route = self.books.route()
            try:
                after = self.books.do(found.id, verb)
                event(f"{verb} in {before}")
            except VersionNotWarm:
                assert verb in ("promote", "promoteFull", "resume")
            except REFUSED:
                assert verb != "abort" or before in (*rollout.ENDED, rollout.ABORTING)
                assert self.books.route() == route
            else:
                if verb == "abort":
                    assert after.state.phase == rollout.ABORTING
                    assert {**found.base, "state": route["state"], "metadata": {}} == {
                        **self.books.route(),
                        "metadata": {},
                    }

    @rule(kill=st.booleans())
    def pull_or_release_the_kill_switch(self, kill: bool) -> None:
        with contextlib.suppress(*REFUSED):
            self.books.edit(state="DISABLED" if kill else "ENABLED")
            self.killed = kill

    @rule(verb=st.sampled_from(["", *steering.VERBS]))
    def the_kill_switch_is_pulled_between_look_and_write(self, verb: str) -> None:
        def pull() -> None:
            if not self.killed:
                self.books.edit(state="DISABLED")
                self.killed = True

        self.books.rollouts.meddle = pull
        for found in self.books.rollouts.all(MODEL)[:1] if verb else ():
            with contextlib.suppress(*REFUSED, VersionNotWarm):
                self.books.do(found.id, verb)
                event(f"{verb} beside a kill switch")
        if not verb:
            self.books.tick(61.0)
        self.books.rollouts.meddle = lambda: None

    @rule(weight=st.integers(1, 10_000), version=st.sampled_from(["2", "3"]))
    def edit_the_split(self, weight: int, version: str) -> None:
        stable = self.books.route()["defaultVariant"]
        split = {"fractional": [["mine", weight], [stable, 10_000]]} if weight > 5000 else None
        with contextlib.suppress(*REFUSED):
            self.books.edit(variants={**self.books.route()["variants"], "mine": version}, targeting=split)
            self.mine = version

    @rule()
    def a_stale_editor_is_refused_and_a_fresh_one_is_not_lost(self) -> None:
        self.marks += 1
        second = Desk(
            self.books.store,
            last_known_good=self.folder / "state" / "second.json",
            source=None,  # type: ignore[arg-type]  # only deleting a flag asks it
            workers=self.books.statuses,
        )
        second.recover()
        revision = self.document.flags[ROUTE].revision
        key = "iris.sampling"
        current = self.document.flags.get(key)

        def rate(based_on: int) -> None:
            plain = {"state": "ENABLED", "variants": {"set": 0.5}, "defaultVariant": "set"}
            marked = {**plain, "metadata": {"mark": self.marks}}
            second.change_flag(
                key, lambda _b: marked, expected_revision=based_on, author=OPS, verb="flag.put", reason="a test"
            )

        rate(0 if current is None else current.revision)
        self.acknowledged = {"mark": self.marks}
        try:
            rate(0 if current is None else current.revision)
        except RevisionConflict:
            pass
        else:
            raise AssertionError("a stale write went through")
        assert self.document.flags[ROUTE].revision == revision

    # -- what always holds ----------------------------------------------------------------------

    @invariant()
    def the_chain_verifies_and_ends_in_the_flags(self) -> None:
        if hasattr(self, "books"):
            verify_trail(self.books.store)

    @invariant()
    def no_acknowledged_edit_is_lost(self) -> None:
        if hasattr(self, "books"):
            found = self.document.flags.get("iris.sampling")
            assert dict(found.metadata if found else {}) == self.acknowledged
            route = self.document.flags[ROUTE]
            assert (route.state == "DISABLED") == self.killed
            assert route.variants.get("mine") == self.mine

    @invariant()
    def weights_add_up_and_are_whole(self) -> None:
        if hasattr(self, "books"):
            weights = self.books.weights()
            if weights and "mine" not in weights:
                assert sum(weights.values()) == 10_000
                assert all(weight >= 0 for weight in weights.values())

    @invariant()
    def nothing_gains_traffic_before_every_live_worker_has_it_warm(self) -> None:
        if not hasattr(self, "books"):
            return
        document = self.document
        if document.revision == self.seen_revision:
            return
        now = self.compiled()
        newest = self.books.store.history(ROUTE, newest_first=True, limit=1)[0].verb
        lowering = newest in ("rollout.abort", "rollout.rollback")
        for version in frozenset() if lowering else raised(self.seen_route, now):
            for worker in self.books.workers:
                assert worker.versions.get(version, {}).get("state") == "warm", (version, newest)
        self.seen_revision, self.seen_route = document.revision, now

    @invariant()
    def one_rollout_of_a_model_at_a_time(self) -> None:
        if hasattr(self, "books"):
            going = self.books.store.records(GOING_ON)
            assert len(going) <= 1
            for record in going:
                assert record.body["state"]["phase"] in rollout.PHASES

    def every_rollout_comes_to_an_end(self) -> None:
        """Left alone with workers that follow, nothing waits for ever."""
        for _ in range(12):
            self.all_workers_follow()
            self.books.tick(100_000.0)
        assert self.books.store.records(GOING_ON) == []


Releases.TestCase.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestReleases = Releases.TestCase
