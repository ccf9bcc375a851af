"""How many captions are under way at once in slots.py, and how many prompts run at once."""

import logging
import os
from copy import deepcopy
from dataclasses import dataclass

from capmix.engine.batches import BatchLimit

log = logging.getLogger(__name__)

GPU_SHARE, CPU_SHARE = 0.6, 0.2  # of the free memory of a GPU, of all memory: the most for slots


@dataclass(frozen=True)
class SlotsPlan:
    """Wanted numbers of slots and of prompts in a group."""

    slots: int
    group: int


class SlotSizes:
    """The numbers for images with up to `captions` captions: those of the plan, while memory lasts.

    Both grow again some time after memory ran out (BatchLimit).
    """

    def __init__(self, plan: SlotsPlan, captions: int):
        self._plan, self._captions = plan, captions
        self._fitting = plan.slots
        self._slots, self._group = BatchLimit(), BatchLimit()
        self._group_before = self._group

    @property
    def slots(self) -> int:
        limits = self._plan.slots, self._fitting, self._slots.current or self._plan.slots
        return max(self._captions, min(limits))

    @property
    def group(self) -> int:
        """Images whose prompts run at once; their captions always fit into the slots."""
        limits = self._plan.group, self.slots // self._captions
        return max(1, min(*limits, self._group.current or self._plan.group))

    def fit(self, size: int, device: str) -> None:
        """Limit the slots, of `size` bytes each, to what the memory of the device holds."""
        if device.startswith("cuda"):
            import torch

            torch.cuda.empty_cache()  # of earlier slots
            room = int(GPU_SHARE * torch.cuda.mem_get_info()[0])
        elif hasattr(os, "sysconf"):
            room = int(CPU_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        else:  # Windows
            return
        self._fitting = room // size

    def shrink_slots(self) -> bool:
        """Halve the slots after memory ran out. Return whether that was possible."""
        slots = self.slots
        if slots // 2 < self._captions:
            return False
        self._slots.shrink(slots)
        log.warning("out of memory with %d slots; continuing with %d", slots, self.slots)
        return True

    def shrink_group(self) -> bool:
        """Halve the groups after memory ran out. Return whether that was possible."""
        group = self.group
        if group == 1:
            self._group = self._group_before  # one image explains it, and not the size
            return False
        if not self._group.failed or self._group.current is None:
            self._group_before = deepcopy(self._group)
        self._group.shrink(group)
        log.warning("out of memory with %d prompts; continuing with %d", group, self.group)
        return True

    def group_succeeded(self, size: int) -> None:
        self._group.succeeded(size)
        self._group_before = deepcopy(self._group)

    def shard_succeeded(self) -> None:
        """Count a shard without lack of memory for the slots."""
        self._slots.succeeded(self.slots)
