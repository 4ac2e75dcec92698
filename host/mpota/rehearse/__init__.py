"""A release tried on a copy of a board: with power cuts and broken networks, and back again."""
