"""The tests, and in `support` what they share. No test imports another."""

import pytest

pytest.register_assert_rewrite("tests.support")
