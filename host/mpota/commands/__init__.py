"""One file a verb: options in, one library call, a report out. Helpers begin with ``_``."""
