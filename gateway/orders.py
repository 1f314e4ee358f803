"""What the supervisor tells a worker by signals, beside SIGTERM: drain, and end."""

from __future__ import annotations

import signal

# The gateway stops: be no longer ready, let every answer be the last one of its connection, and go on until SIGTERM.
ANNOUNCE = signal.SIGUSR1
# End now: who still waits is told to ask elsewhere.
HURRY = signal.SIGUSR2
