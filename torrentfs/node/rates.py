"""This module bounds how many bytes a second come from mirrors; for peers libtorrent does that."""

import trio


class Rate:
    """A bound that several transfers share; *bytes_per_s* 0: none."""

    def __init__(self, bytes_per_s: int) -> None:
        self._bytes_per_s = bytes_per_s
        self._free_at = float("-inf")

    async def take(self, length: int) -> None:
        """Wait until *length* bytes that have come do not exceed the rate."""
        if not self._bytes_per_s:
            return
        self._free_at = max(self._free_at, trio.current_time()) + length / self._bytes_per_s
        await trio.sleep_until(self._free_at)
