"""A changed firmware: another flash size or table, other contents."""
