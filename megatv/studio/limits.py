"""Every bound of the studio, so that no page can make it grow without end.

Those on a picture's pixels and on its decoding are in `megatv.data.picture`.
"""

MAX_SECONDS = 64.0
"""Length of one video."""
MAX_STEPS = 200
"""Solver steps a chunk."""
MAX_TEXT = 4000
"""Characters of a prompt, or of the words of one chunk."""
MAX_TAKES = 8
"""Videos of one session, branches included."""
MAX_OPEN, MAX_OPEN_OF_ONE, MAX_OPEN_IN_ALL = 4, 6, 8
"""Videos that are being made or paused, in one session, in those of one network (`megatv.network`) and in
all: each holds a KV cache."""
MAX_SESSIONS, MAX_SESSIONS_OF_ONE = 8, 6
"""Sessions at once, in all and started from one network; one that nobody watches makes room for a new one."""
MAX_VIEWERS = 200
"""Tabs that watch one session."""
MAX_HELD_BYTES = 2 << 30
"""Frames of all takes together: those made, and those that takes in the making will hold at their end."""
KEEP_SECONDS = 120.0
"""How long a session outlives its last tab, so that a reload finds it. Its work stops at once."""

MAX_MESSAGE_BYTES = 16 << 10
"""One message of a page."""
MESSAGES_PER_SECOND, BURST = 40.0, 80
"""What one page may say; the game's keys need about 10 a second."""
MAX_WAITING, MAX_WAITING_OF_ONE = 64, 32
"""Commands that wait for the worker, in all and of one tab."""
MAX_PRIVATE = 64
"""Messages for one tab alone that it has not read yet."""
MAX_BATCH = 256
"""Messages that travel together to a viewer who catches up."""

MAX_PICTURE_BYTES = 10 << 20
"""A first picture as a file."""
MAX_UPLOAD_BYTES = 64 << 20
"""Pictures on their way or waiting to be decoded, over all connections."""
MAX_UPLOAD_BYTES_OF_ONE = 24 << 20
"""The part of it that one network may take, so that pictures which stall there hold up nobody elsewhere."""
UPLOAD_SECONDS = 20.0
"""How long one picture may be on its way."""
MAX_PICTURES_WAITING = 16
"""Pictures that wait to be decoded, one at a time."""

MAX_VIDEO_BYTES = 64 << 20
"""One take as an mp4 file."""
MAX_DOWNLOAD_BYTES, MAX_DOWNLOAD_BYTES_OF_ONE = 256 << 20, 192 << 20
"""Files that are being sent, and finished takes that are kept as files, in all and made for one network."""
MAX_VIDEOS_WAITING = 8
"""Takes that wait to be encoded, one at a time."""
PIECE_BYTES = 64 << 10
"""A file is sent in such pieces, as fast as it is read."""

MAX_CONNECTIONS = 512
"""Connections in all; `megatv.connections` says which makes room for a new one."""
REQUEST_SECONDS = 10.0
"""How long a connection may take for the head of its next request, and for its end after the last."""
BODY_SECONDS = 30.0
"""How long it may take for the body of a request; a picture is refused before, with a sentence."""
STALLED_SECONDS = 20.0
"""How long a reader may leave what was sent to it unread."""
PING_SECONDS, PONG_SECONDS = 10.0, 20.0
"""How often a tab is asked whether it is still there, and how long it may take to say so."""
MAX_UNREAD_BYTES = 8 << 20
"""What may wait in one connection to be read; a message of frames is smaller."""
MAX_PARTS = 64
"""Parts in which one WebSocket message may come."""
MAX_HEAD_BYTES = 16 << 10
"""The head of one request."""
