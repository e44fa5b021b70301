"""Common corruptions of pictures, put into the pipeline of a dataset.

Those of Hendrycks and Dietterich (arXiv 1903.12261) as Michaelis et al. (1907.07484)
use them for detectors, by the package imagecorruptions-imaug: the published functions
for pictures of any size, kept up with the libraries that they need. COCO-C was made by
its predecessor, imagecorruptions, which current numpy, scipy and scikit-image break.
"""

from __future__ import annotations

import inspect
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .errors import ConfigError
from .utils.seeding import derive_seed, seeded
from .utils.validation import did_you_mean

#: The 15 corruptions of the benchmark in its four groups, and four more, which are for
#: choosing settings.
GROUPS = {
    'noise': ('gaussian_noise', 'shot_noise', 'impulse_noise'),
    'blur': ('defocus_blur', 'glass_blur', 'motion_blur', 'zoom_blur'),
    'weather': ('snow', 'frost', 'fog', 'brightness'),
    'digital': ('contrast', 'elastic_transform', 'pixelate', 'jpeg_compression'),
    'extra': ('speckle_noise', 'gaussian_blur', 'spatter', 'saturate'),
}
NAMES = tuple(name for names in GROUPS.values() for name in names)
BENCHMARK = tuple(name for name in NAMES if name not in GROUPS['extra'])
SEVERITIES = (1, 2, 3, 4, 5)
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names}

_SMALLEST = 32  # pixels of a side, the least that the package takes
# They draw from no generator that can be seeded from outside.
_SEEDED_BY_ARGUMENT = ('impulse_noise', 'glass_blur')


@dataclass(frozen=True)
class Corruption:
    """A corruption of one severity.

    Args:
        name: one of ``NAMES``.
        severity: 1 (weak) to 5 (strong).

    Raises:
        ConfigError: for an unknown name or severity, or without the package.
    """

    name: str
    severity: int

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise ConfigError(
                f'corruption {self.name!r} is unknown{did_you_mean(self.name, NAMES)}: '
                f'choose from {", ".join(NAMES)}.'
            )
        if self.severity not in SEVERITIES or isinstance(self.severity, bool):
            raise ConfigError(
                f'severity={self.severity!r} is unknown: choose from 1 (weak) to 5.'
            )
        _package()

    def __call__(self, picture: np.ndarray, seed: int) -> np.ndarray:
        """Corrupts a picture.

        Args:
            picture: uint8 (H, W, 3), BGR as mmcv loads it; sides of 32 pixels or more.
            seed: of all draws. Severities of one seed draw alike.

        Returns:
            uint8 of the same shape, BGR. As published, fractions are cut off.

        Raises:
            ConfigError: for a picture of another form.
        """
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ConfigError(
                'corruptions are for colour pictures of 8 bits, and this one is '
                f'{picture.dtype} of shape {picture.shape}.'
            )
        if min(picture.shape[:2]) < _SMALLEST:
            raise ConfigError(_too_small(picture.shape[1], picture.shape[0]))
        rgb = np.ascontiguousarray(picture[..., ::-1])
        by_argument = self.name in _SEEDED_BY_ARGUMENT
        more = {'seed': seed % 2**32} if by_argument else {}
        with seeded(seed, torch.device('cpu')):
            corrupted = _package().corrupt(
                rgb, severity=self.severity, corruption_name=self.name, **more
            )
        return np.ascontiguousarray(corrupted[..., ::-1])


class CorruptPicture:
    """A step of a pipeline, right after the one that loads the picture.

    Args:
        corruption: what is done to the picture.
        seed: of all draws, together with the image's id.
    """

    def __init__(self, corruption: Corruption, seed: int) -> None:
        self.corruption, self.seed = corruption, seed

    def __call__(self, results: dict) -> dict:
        """Corrupts the picture; one of float32 (``to_float32``) stays float32."""
        picture = results['img']
        img_id = results.get('img_id', results.get('sample_idx'))
        seed = derive_seed(self.seed, img_id, 'corruption')
        whole = picture.astype(np.uint8) if picture.dtype == np.float32 else picture
        results['img'] = self.corruption(whole, seed).astype(picture.dtype)
        return results

    def __repr__(self) -> str:
        return f'{self.corruption.name}, severity {self.corruption.severity}'


def corrupted_dataset(dataset: Any, corruption: Corruption, seed: int) -> Any:
    """Returns the twin of a dataset whose pictures are corrupted when they are loaded.

    The rest of the pipeline is the dataset's own and comes afterwards, so that any
    pipeline will do that loads its picture by a step of its own.

    Args:
        dataset: an mmengine dataset with a pipeline, or a wrapper of such. It stays as
            it is; the twin shares its annotations.
        corruption: what is done to the pictures.
        seed: of all draws, together with the image's id.

    Raises:
        ConfigError: if no step of a pipeline loads a picture, or one is too small.
    """
    # Compiles what numba compiles, once before worker processes are started.
    corruption(np.zeros((_SMALLEST, _SMALLEST, 3), np.uint8), 0)
    return _twin(dataset, CorruptPicture(corruption, seed))


def _twin(dataset: Any, step: CorruptPicture) -> Any:
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    twin = copy(dataset)
    own = vars(twin)
    if 'dataset' in own:
        own['dataset'] = _twin(own['dataset'], step)
    elif 'datasets' in own:
        own['datasets'] = [_twin(each, step) for each in own['datasets']]
    elif own.get('pipeline') is None:
        raise ConfigError(
            f'{type(dataset).__name__} has no pipeline, in which its pictures could be '
            'corrupted.'
        )
    else:
        _check_sizes(dataset)
        own['pipeline'] = copy(own['pipeline'])
        own['pipeline'].transforms = _with_step(own['pipeline'].transforms, step)
    return twin


def _with_step(transforms: list[Any], step: CorruptPicture) -> list[Any]:
    for place, transform in enumerate(transforms):
        name = type(transform).__name__
        if name.startswith('Load') and 'Image' in name:
            return [*transforms[: place + 1], step, *transforms[place + 1 :]]
    raise ConfigError(
        'corruptions come after the step of the test pipeline that loads the picture, '
        'and it has none: add LoadImageFromFile.'
    )


def _check_sizes(dataset: Any) -> None:
    """Refuses pictures that are too small, where annotations tell."""
    if not hasattr(dataset, 'get_data_info'):
        return
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        width, height = info.get('width'), info.get('height')
        if width and height and min(width, height) < _SMALLEST:
            raise ConfigError(_too_small(width, height))


def _too_small(width: int, height: int) -> str:
    return (
        f'corruptions are for pictures of at least {_SMALLEST} x {_SMALLEST} pixels, '
        f'and one has {width} x {height}.'
    )


def _package() -> Any:
    how = "install it with pip install 'imagecorruptions-imaug>=1.1.5'."
    try:
        import imagecorruptions
    except Exception as error:  # also of numba, and of the old package on numpy 2
        reason = ' '.join(str(error).split())
        raise ConfigError(
            f'corruptions need the package imagecorruptions-imaug ({reason}): {how}'
        ) from error
    functions = imagecorruptions.corruption_dict
    if 'seed' not in inspect.signature(functions['glass_blur']).parameters:
        raise ConfigError(
            'corruptions need the package imagecorruptions-imaug, and what is there is '
            f'another one of the same name: uninstall imagecorruptions, and {how}'
        )
    return imagecorruptions
