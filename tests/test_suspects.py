"""Who is guilty of the deaths of workers, and who only stood by."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.marks import IN_THREAD, LOADING, ON_LOOP, InFlight
from gateway.suspects import WINDOW_S, Suspects, Verdict


def running(model: str, version: str = "2", *, default: bool = False, doing: int = ON_LOOP) -> InFlight:
    return InFlight(model, version, f"digest of {model}/{version}", doing, default)


STABLE = running("iris", "1", default=True)
CANARY = running("iris", "2")
OTHER = running("wine", "2", doing=IN_THREAD)


def guilty(verdicts: list[Verdict]) -> list[str]:
    return ["/".join(verdict.key[:2]) for verdict in verdicts if not verdict.is_spared]


def spared(verdicts: list[Verdict]) -> list[str]:
    return ["/".join(verdict.key[:2]) for verdict in verdicts if verdict.is_spared]


def test_the_second_death_within_the_window_decides() -> None:
    suspects = Suspects()
    assert suspects.note([CANARY], 100.0) == []
    assert suspects.note([CANARY], 100.0 + WINDOW_S) == [
        Verdict((CANARY.model, CANARY.version, CANARY.digest), 2, False)
    ]


def test_deaths_further_apart_do_not() -> None:
    suspects = Suspects()
    for turn in range(5):
        assert suspects.note([CANARY], turn * (WINDOW_S + 0.001)) == []


def test_the_time_that_a_worker_hung_does_not_count() -> None:
    suspects = Suspects()
    suspects.note([CANARY], 100.0, silent_s=60.0)
    assert guilty(suspects.note([CANARY], 210.0, silent_s=60.0)) == ["iris/2"]


def test_another_package_of_the_same_name_is_another_suspect() -> None:
    suspects = Suspects()
    suspects.note([CANARY], 1.0)
    changed = InFlight(CANARY.model, CANARY.version, "another digest", ON_LOOP, False)
    assert suspects.note([changed], 2.0) == []


def test_a_default_version_beside_the_canary_is_spared_and_the_canary_is_not() -> None:
    suspects = Suspects()
    suspects.note([STABLE, CANARY], 1.0)
    verdicts = suspects.note([STABLE, CANARY], 2.0)
    assert (guilty(verdicts), spared(verdicts)) == (["iris/2"], ["iris/1"])


def test_a_default_version_that_kills_is_spared_and_does_not_take_a_bystander_with_it() -> None:
    suspects = Suspects()
    suspects.note([STABLE], 1.0)
    suspects.note([STABLE, OTHER], 2.0)
    verdicts = suspects.note([STABLE, OTHER], 3.0)
    assert (guilty(verdicts), spared(verdicts)) == ([], ["iris/1"])


def test_who_was_once_alone_explains_the_deaths_of_who_never_was() -> None:
    suspects = Suspects()
    suspects.note([CANARY, OTHER], 1.0)
    suspects.note([CANARY], 2.0)
    assert guilty(suspects.note([CANARY, OTHER], 3.0)) == ["iris/2"]


def test_two_that_were_always_together_both_go() -> None:
    suspects = Suspects()
    suspects.note([CANARY, OTHER], 1.0)
    assert guilty(suspects.note([CANARY, OTHER], 2.0)) == ["iris/2", "wine/2"]


def test_a_default_version_that_crashes_while_it_is_loaded_alone_goes_unless_the_worker_was_killed() -> None:
    loading = running("new", "1", default=True, doing=LOADING)
    suspects = Suspects()
    suspects.note([STABLE, loading], 1.0)
    assert spared(suspects.note([loading], 2.0, was_killed=True)) == ["new/1"]
    assert spared(suspects.note([STABLE, loading], 3.0)) == ["new/1"]
    assert guilty(suspects.note([loading], 4.0)) == ["new/1"]


def test_after_a_lift_it_starts_anew() -> None:
    suspects = Suspects()
    suspects.note([CANARY], 1.0)
    (verdict,) = suspects.note([CANARY], 2.0)
    suspects.forget(verdict.key)
    assert suspects.note([CANARY], 3.0) == []


def test_all_of_the_last_minute_are_loaded_with_care() -> None:
    suspects = Suspects()
    suspects.note([STABLE, CANARY], 1.0)
    suspects.note([OTHER], 50.0)
    assert suspects.names(55.0) == {("iris", "1"), ("iris", "2"), ("wine", "2")}
    assert suspects.names(1.0 + WINDOW_S + 0.1) == {("wine", "2")}


VERSIONS = [running(model, version, default=version == "1") for model in "ab" for version in "123"]
DEATHS = st.lists(st.tuples(st.sets(st.sampled_from(VERSIONS)), st.floats(0.0, 90.0)), max_size=30)


@given(DEATHS)
def test_nobody_goes_without_two_deaths_in_the_window_and_no_default_ever(
    deaths: list[tuple[set[InFlight], float]],
) -> None:
    suspects = Suspects()
    now_s = 0.0
    seen: list[tuple[float, set[InFlight]]] = []
    for found, pause_s in deaths:
        now_s += pause_s
        seen.append((now_s, found))
        for verdict in suspects.note(found, now_s):
            (one,) = (each for each in VERSIONS if (each.model, each.version) == verdict.key[:2])
            times = [at_s for at_s, others in seen if one in others and now_s - at_s <= WINDOW_S]
            assert verdict.deaths == len(times) >= 2
            assert one in found
            assert verdict.is_spared == one.is_default
