"""An agent wipes on the controller's word alone."""

from __future__ import annotations

import pytest

from kubeflash.agent.wishes import is_released, volume_wishes
from support.objects import volume


@pytest.mark.parametrize(
    ("deleting", "release", "wiped"),
    [(False, None, False), (True, None, False), (True, False, False), (False, True, False), (True, True, True)],
)
def test_deletion_alone_wipes_nothing(deleting, release, wiped):
    status = {"nodeName": "gpu-a", "ssd": "S-1"}
    item = volume("v", 1, deleting=deleting, status=status if release is None else {**status, "release": release})
    assert is_released(item) is wiped
    assert [wish.released for wish in volume_wishes([item], {})] == [wiped]
