from __future__ import annotations

from pathlib import Path

import pytest

from support.sysfs_builder import MadeUpServer


@pytest.fixture
def server(tmp_path: Path) -> MadeUpServer:
    return MadeUpServer(tmp_path)
