# The block device of the board's file system, as ports/esp32/modules/flashbdev.py finds it.

from esp32 import Partition

_found = Partition.find(Partition.TYPE_DATA, label="vfs") or Partition.find(
    Partition.TYPE_DATA, label="ffat", block_size=512
)
bdev = _found[0] if _found else None
