"""One clock out of a stream whose own clock jumps, as that of joined transport streams does.

Files joined by `cat`, breaks for advertisements and encoders that reconnect leave steps of any size, forward
and back, in the times of a file, without a picture missing. The pictures then follow each other as in a
player: what comes after a step is moved to where the packet before it ends.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

from av.format import Flags
from av.packet import Packet
from av.video.stream import VideoStream

MAX_STEP_SECONDS = 1.0
"""Seconds between two pictures beyond which the clock has jumped, unless sound goes on meanwhile. Transport
streams tell the time at least every 0.7 s (ISO/IEC 13818-1, 2.7.4)."""
MAX_BACK_SECONDS = 0.1
"""Seconds that the times of decoding may run back without a jump, as in FFmpeg's own command."""
JOIN_PACKETS = 2
"""Where two recordings meet, their counters of packets do not fit each other, and FFmpeg calls one of so many
packets before the key frame damaged that the second begins with. The decoder still checks its picture."""
MAX_HEARD = 1 << 16
"""Packets of sound ahead of the pictures that are remembered: ten minutes of a hundred a second."""


@dataclass(frozen=True)
class Clock:
    """What to do with the packets of a stream, which are numbered as they are read.

    shifts  (number, ticks): from this packet on so many are added to the times; in order, from number 0 on
    joined  numbers of packets that are marked as damaged only because two recordings meet there
    keys    (number, ticks): the key packets and when they are on screen, moved already
    """

    shifts: tuple[tuple[int, int], ...] = ((0, 0),)
    joined: frozenset[int] = frozenset()
    keys: tuple[tuple[int, int], ...] = ()

    def apply(self, packets: Iterable[Packet]) -> Iterator[Packet]:
        """The stream's packets from its beginning on, on the one clock."""
        shifts = dict(self.shifts)
        shift = 0
        for number, packet in enumerate(packets):
            shift = shifts.get(number, shift)
            packet = _unmarked(packet) if number in self.joined else packet
            if packet.pts is not None:
                packet.pts += shift
            if packet.dts is not None:
                packet.dts += shift
            yield packet

    def key_before(self, ticks: int) -> int:
        """Number of the last key packet on screen at `ticks` or earlier; 0 where there is none."""
        return max((number for number, shown in self.keys if shown <= ticks), default=0)


def may_jump(flags: int) -> bool:
    """Whether the clock of a container with these flags of FFmpeg may jump: MPEG-TS, MPEG-PS and Ogg."""
    return bool(flags & cast("int", Flags.ts_discont.value))


def read_clock(packets: Iterable[Packet], stream: VideoStream) -> Clock:
    """The clock of a stream, from all packets of its container (of every stream, in order)."""
    assert stream.time_base is not None
    number, shift, step = -1, 0, 0
    last: int | None = None  # time of decoding of the packet before, as it was read
    heard: list[int] = []  # when there is sound later than that, ascending
    shifts: list[tuple[int, int]] = [(0, 0)]
    keys: list[tuple[int, int]] = []
    marked: list[int] = []
    begins: set[int] = set()
    for packet in packets:
        if packet.stream.type == "audio" and packet.dts is not None and packet.time_base is not None:
            insort(heard, int(packet.dts * packet.time_base / stream.time_base))
            del heard[MAX_HEARD:]
        if packet.stream is not stream:
            continue
        number += 1
        dts = packet.dts
        if dts is not None and last is not None:
            if _is_jump(last, dts, heard, float(stream.time_base)):
                shift += last + step - dts
                shifts.append((number, shift))
                heard = []
            elif 0 < dts - last <= MAX_STEP_SECONDS / stream.time_base:
                step = dts - last
        if dts is not None:
            last = dts
            del heard[: bisect_right(heard, dts)]
            step = packet.duration or step
        if packet.is_keyframe:
            begins.add(number)
            if packet.pts is not None:
                keys.append((number, packet.pts + shift))
        if packet.is_corrupt:
            marked.append(number)
    joined = frozenset(n for n in marked if begins & {n + k for k in range(1, JOIN_PACKETS + 1)})
    return Clock(tuple(shifts), joined, tuple(keys))


def _is_jump(last: int, dts: int, heard: list[int], tick: float) -> bool:
    """Whether the clock jumps between two packets. It does not in a hole in which sound is heard.

    heard  times of sound, ascending
    """
    seconds, third = (dts - last) * tick, (dts - last) / 3
    place = bisect_left(heard, last + third)
    goes_on = place < len(heard) and heard[place] <= dts - third
    return seconds < -MAX_BACK_SECONDS or (seconds > MAX_STEP_SECONDS and not goes_on)


def _unmarked(packet: Packet) -> Packet:
    """The same packet without its mark of damage, which PyAV does not let one change."""
    copy = Packet(bytes(packet))
    copy.stream = packet.stream
    copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
    copy.time_base, copy.is_keyframe = packet.time_base, packet.is_keyframe
    return copy
