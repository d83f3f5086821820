import pytest

from moc.ops.triton.attention import INTERPRETED
from tests.support.triton_interpreter import look_up_builtins_once


@pytest.fixture(autouse=True)
def quick_interpreter(monkeypatch):
    if INTERPRETED:
        look_up_builtins_once(monkeypatch)
