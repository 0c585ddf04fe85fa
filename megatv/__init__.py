"""megatv: the open, megascale trainer for interleaved text-and-video models (TV2TV)."""

import os

from megatv.threads import sleep_while_waiting

__version__ = "0.1.0"

sleep_while_waiting(os.environ)
