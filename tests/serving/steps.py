"""What clients, clocks and runs may do in any order, for tests that try whatever comes of it."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.puppet import POISON

VALUES = st.sampled_from([1.0, 2.0, 3.0, POISON])
ASK = st.fixed_dictionaries(
    {
        "values": st.lists(VALUES, min_size=1, max_size=1) | st.lists(VALUES, min_size=1, max_size=7),
        "codec": st.sampled_from(["oip", "oip", "native", "tfs", "mlflow", "torchserve"]),
        "pinned": st.sampled_from([None, None, None, "1", "2"]),
        "variant": st.sampled_from([None, None, "twin", "canary", "nonsense"]),
        "timeout_s": st.sampled_from([1.0, 5.0, 5.0]),
        "body": st.sampled_from([None] * 9 + [b"{", b""]),
    }
)
STEPS = st.lists(
    st.one_of(
        ASK.map(lambda ask: ("ask", ask)),
        ASK.map(lambda ask: ("ask", ask)),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.just("advance"), st.sampled_from([0.4, 1.0, 5.0])),
        st.tuples(st.sampled_from(["turn", "run", "cache off", "cache on"]), st.none()),
    ),
    max_size=30,
)
