"""Checks of a config as a whole, before anything is built."""

from __future__ import annotations

import os

from mmengine.config import Config

from .blame import short
from .errors import ConfigError

# What sections of a config have to be, by key or by the end of the key.
_SECTIONS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(('model', 'dataloader', 'preprocessor'), (dict,)),
    **dict.fromkeys(('train_cfg', 'val_cfg', 'test_cfg', 'env_cfg'), (dict,)),
    **dict.fromkeys(('optim_wrapper', 'default_hooks', 'custom_imports'), (dict,)),
    **dict.fromkeys(('auto_scale_lr', 'visualizer', 'randomness'), (dict,)),
    **dict.fromkeys(('evaluator', 'param_scheduler'), (dict, list)),
    **dict.fromkeys(('work_dir', 'load_from', 'data_root'), (str,)),
    **dict.fromkeys(('default_scope', 'experiment_name', 'runner_type'), (str,)),
    'custom_hooks': (list,),
    'resume': (bool,),
}
_IN_WORDS = {dict: 'a dict', list: 'a list', str: 'a text', bool: 'True or False'}

_LAUNCHED = {
    'pytorch': ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
    'slurm': ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
    'mpi': ('OMPI_COMM_WORLD_LOCAL_RANK', 'MASTER_ADDR'),
}
_STARTERS = {'pytorch': 'torchrun', 'slurm': 'srun', 'mpi': 'mpirun'}


def check_sections(cfg: Config) -> None:
    """Makes sure that a config's sections are what the frameworks take them for.

    Raises:
        ConfigError: naming the first that is not.
    """
    for key, value in cfg.items():
        kinds = _SECTIONS.get(key) or _SECTIONS.get(key.rsplit('_', 1)[-1])
        if kinds is None or isinstance(value, kinds):
            continue
        if value is None and key != 'model':
            continue
        wanted = ' or '.join(_IN_WORDS[kind] for kind in kinds)
        raise ConfigError(f'{key}={short(repr(value))} of the config must be {wanted}.')


def check_launcher(launcher: str) -> None:
    """Makes sure that a process was started by what ``--launcher`` names.

    Raises:
        ConfigError: if its variables are not in the environment.
    """
    missing = [name for name in _LAUNCHED.get(launcher, ()) if name not in os.environ]
    if missing:
        raise ConfigError(
            f'--launcher {launcher} needs {missing[0]} in the environment: start the '
            f'tool by {_STARTERS[launcher]}, or leave --launcher out.'
        )
