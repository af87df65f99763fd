"""What holds for every tier."""

from __future__ import annotations

from hypothesis import settings

# An example that takes long on a busy machine is no failure: times are for bench/.
settings.register_profile("kubeflash", deadline=None)
settings.load_profile("kubeflash")
