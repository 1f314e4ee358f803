"""Who proposes and approves changes, and how long a proposal lasts."""

from __future__ import annotations

from gateway.flags.audit import Author

ADA = Author("ada", token_id="a1")
BOB = Author("bob", token_id="b1")
CY = Author("cy", token_id="c1")
DAY_S = 86_400.0
