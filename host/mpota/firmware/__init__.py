"""A firmware as a value: what is in it, another layout for it, and the way there."""
