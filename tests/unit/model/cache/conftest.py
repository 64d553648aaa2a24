"""Kinds of caches of the battery: all registered ones, and those of `tests.kit.caches`."""

import pytest

from miniformer import registry
from tests.kit import caches

KINDS = [*registry.builtin_names("cache"), *caches.KINDS]


@pytest.fixture(autouse=True, scope="package")
def toy_kinds():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry._registered, "cache", caches.KINDS)
        yield


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param
