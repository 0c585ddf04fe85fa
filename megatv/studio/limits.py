"""Every bound of the studio, so that no page can make it grow without end."""

MAX_SECONDS = 64.0
"""Length of one video."""
MAX_STEPS = 200
"""Solver steps a chunk."""
MAX_TEXT = 4000
"""Characters of a prompt, or of the words of one chunk."""
MAX_TAKES = 8
"""Videos of one session, branches included."""
MAX_SESSIONS = 8
"""Sessions at once; one that nobody watches makes room for a new one."""
MAX_VIEWERS = 16
"""Tabs that watch one session."""
MAX_HELD_BYTES = 2 << 30
"""Frames that all sessions hold together."""
KEEP_SECONDS = 120.0
"""How long a session outlives its last tab, so that a reload finds it. Its work stops at once."""

MAX_MESSAGE_BYTES = 16 << 10
"""One message of a page."""
MESSAGES_PER_SECOND, BURST = 40.0, 80
"""What one page may say; the game's keys need about 10 a second."""
MAX_WAITING = 64
"""Commands that wait for the worker."""
MAX_BATCH = 256
"""Messages that travel together to a viewer who catches up."""

MAX_PICTURE_BYTES = 10 << 20
MAX_PICTURE_PIXELS = 50_000_000
"""A first picture as a file, and as pixels: a small file may unpack to a very large picture."""
