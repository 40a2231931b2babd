"""Collections of cycles stop for what makes many objects, and go on after it."""

import gc

import pytest

from distill_tune.collector import without_collections


def test_collections_stop_inside_alone_and_after_an_error_too():
    assert gc.isenabled()
    with pytest.raises(ValueError), without_collections():
        assert not gc.isenabled()
        raise ValueError
    assert gc.isenabled()


def test_who_has_turned_them_off_keeps_them_off():
    gc.disable()
    try:
        with without_collections():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
