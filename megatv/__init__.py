"""megatv: the open, megascale trainer for interleaved text-and-video models (TV2TV)."""

import os

from megatv.threads import spin_briefly

__version__ = "0.1.0"

spin_briefly(os.environ)
