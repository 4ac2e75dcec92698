"""A hawkBit server from an operator's side: its Management API over HTTP."""
