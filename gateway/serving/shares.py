"""Who holds how much of what is asked of a model: the flood of one client leaves room for the others.

Nothing here exists where clients cannot be told apart.
"""

from __future__ import annotations

from gateway.serving.entry import Entry

# A client may have so many times the room in flight that is left. While that is much nobody notices; a client alone
# fills 8/9 of what it may, two that ask without end get 8/17 each, and whoever comes then with little finds room.
# Source: Choudhury and Hahne, Dynamic queue length thresholds for shared-memory packet switches, IEEE/ACM Transactions
# on Networking 6 (1998), 130-140: one comparison, and nothing to know of how many clients there are.
GREED = 8.0


class Share:
    """What one client has in flight for one model. rows: of its calls, at least one each."""

    __slots__ = ("key", "rows")

    def __init__(self, key: tuple[str, str]) -> None:
        self.key = key
        self.rows = 0


class Shares:
    """The shares that are not empty. Used on the event loop only."""

    def __init__(self) -> None:
        self._shares: dict[tuple[str, str], Share] = {}

    def __len__(self) -> int:
        return len(self._shares)

    def join(self, entry: Entry, client: str, model: str) -> None:
        """A call of *client* is in flight from now on."""
        key = (client, model)
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = Share(key)
        share.rows += 1
        entry.share, entry.share_rows = share, 1

    def grow(self, entry: Entry) -> None:
        """The call turned out to have more rows than one, or fewer than it was thought to have."""
        share = entry.share
        if share is not None:
            share.rows += entry.rows - entry.share_rows
            entry.share_rows = entry.rows

    def leave(self, entry: Entry) -> None:
        """The call is answered. Does nothing for one that never joined."""
        share = entry.share
        if share is not None:
            share.rows -= entry.share_rows
            if not share.rows:
                del self._shares[share.key]
            entry.share = None
