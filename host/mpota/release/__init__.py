"""Releases: built, signed, served and checked."""
