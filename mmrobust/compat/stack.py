"""Which distributions bring the stack, and what of it is installed."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

#: The parts of a stack by the extra that brings it, as distributions are called.
STACKS = {
    'openmmlab': ('mmdet', 'mmengine', 'mmcv', 'mmcv-lite', 'mmpretrain'),
    'onedl': ('onedl-mmdetection', 'onedl-mmengine', 'onedl-mmcv', 'onedl-mmpretrain'),
}

# Some parts come from either of two distributions.
_PACKAGES = (
    *(('mmrobust',), ('mmdet', 'onedl-mmdetection'), ('mmengine', 'onedl-mmengine')),
    *(('mmcv', 'mmcv-lite', 'onedl-mmcv'), ('mmpretrain', 'onedl-mmpretrain')),
    *(('torch',), ('torchvision',), ('numpy',), ('timm',), ('pyautoattack',)),
    ('imagecorruptions-imaug',),
)


def package_versions() -> dict[str, str]:
    """Returns the versions of the stack, whichever distribution brings it."""
    found = {}
    for names in _PACKAGES:
        for name in names:
            if text := version_of(name):
                found[name] = text
                break
    return found


def version_of(name: str) -> str | None:
    """Returns the version of an installed distribution, None if there is none."""
    with suppress(PackageNotFoundError):
        return version(name)
    return None
