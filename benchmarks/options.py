"""What the options of speed bring: images per second, and what an attack loses.

Each option is measured against the same passes without it. The images that an attack
finds are judged in full precision, whatever it was computed in.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from mmrobust.attacks import PGD
from mmrobust.batch import float_images
from mmrobust.errors import ConfigError
from mmrobust.objective import Objective, loss_mode
from mmrobust.objective.classifier import make_oracle
from mmrobust.training import Adversary, FreeAdversary, PGDAdversary
from mmrobust.utils.acceleration import Acceleration
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.passes import loss
from benchmarks.subject import Subject

PLAIN = 'none'
# By name what a loop's ``speed`` takes, and mmengine's own env_cfg.cudnn_benchmark.
OPTIONS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    'cudnn_benchmark': {'cudnn_benchmark': True},
    'channels_last': {'channels_last': True},
    'autocast': {'autocast': 'bfloat16'},
    'compile': {'compile': True},
    'autocast, channels_last': {'autocast': 'bfloat16', 'channels_last': True},
    'all three': {'autocast': 'bfloat16', 'channels_last': True, 'compile': True},
}

Row = dict[str, Any]


def attack_rows(
    subject: Subject,
    batch: dict,
    steps: int = 20,
    repeats: int = 3,
    options: Mapping[str, Mapping[str, Any]] = OPTIONS,
    late: Callable[[], bool] = lambda: False,
) -> Iterator[Row]:
    """PGD on a batch with each option: of one image as evaluations attack it.

    Args:
        subject: has the detector.
        batch: what is attacked, of the subject's; several images share one loss.
        steps: of PGD (eps 8, random start, best iterate kept).
        repeats: measurements after the first call, which compiles and is not counted.
        options: what is measured; the first is what the others are compared with.
        late: whether to stop before another option.

    Yields:
        For every option ``images_per_second``, ``speed_up``, ``first_seconds`` (of the
        first call), ``tflops`` per second, and ``reached``: how far the attack raises
        the loss, as a share of what the first option reaches; ``failed`` with the
        reason instead where it does not work.
    """
    model, device = subject.model, subject.device
    samples = subject.samples(batch)
    clean, together = float_images(batch, device), len(samples) > 1
    attack = PGD(eps=8, num_steps=steps)

    def oracle() -> Any:
        return make_oracle(model, batch, samples, Objective(), not together)

    def run() -> list[Tensor]:
        return attack.perturb(oracle(), clean, torch.Generator().manual_seed(0))

    def reached(images: list[Tensor]) -> float:
        torch.manual_seed(0)
        with loss_mode(model):
            return float(oracle().value(images).sum())

    work = _work(subject, clean, samples, attack)
    before, gain, base = reached(clean), 0.0, None
    for place, (name, option) in enumerate(options.items()):
        if late():
            return
        with loss_mode(model):
            row, found = _measure(subject, option, run, repeats)
        if 'failed' not in row:
            raised = reached(found) - before
            gain = raised if place == 0 else gain
            row['reached'] = raised / gain if gain else None
            base = _finish(row, len(clean), work, base, place == 0)
        yield {'what': f'PGD-{steps}', 'batch': len(clean), 'option': name, **row}


def update_rows(
    subject: Subject,
    repeats: int = 3,
    options: Mapping[str, Mapping[str, Any]] = OPTIONS,
    late: Callable[[], bool] = lambda: False,
) -> Iterator[Row]:
    """Updates of FreeAT and PGD-AT with each option; see :func:`attack_rows`."""
    model, batch = subject.model, subject.batch
    methods: dict[str, Adversary] = {
        'FreeAT update': FreeAdversary(eps=4, carry='run'),
        'PGD-AT update, 3 steps': PGDAdversary(eps=4, num_steps=3),
    }
    for method, adversary in methods.items():
        base = None
        for place, (name, option) in enumerate(options.items()):
            if late():
                return

            def run(adversary: Adversary = adversary) -> Any:
                return adversary.train_step(model, subject.wrapper, batch, 1)

            row, _ = _measure(subject, option, run, repeats)
            if 'failed' not in row:
                base = _finish(row, len(batch['inputs']), None, base, place == 0)
            what = {'what': method, 'batch': len(batch['inputs']), 'option': name}
            yield {**what, **row}


def matrix_peaks(
    device: torch.device, size: int, repeats: int = 10
) -> dict[str, float]:
    """Operations per second (10**12) of one large matrix product, by its format.

    Args:
        device: where it is computed.
        size: rows and columns of the matrices.
        repeats: products per measurement, of which the best of three counts.
    """
    formats = {'float32': (torch.float32, False), 'bfloat16': (torch.bfloat16, False)}
    if device.type == 'cuda':
        formats['tf32'] = (torch.float32, True)
    before, peaks = torch.backends.cuda.matmul.allow_tf32, {}
    try:
        for name, (dtype, tf32) in formats.items():
            torch.backends.cuda.matmul.allow_tf32 = tf32
            # Random numbers: zeros make a GPU draw less power and go faster.
            one, other = (
                torch.randn(size, size, device=device).to(dtype) for _ in range(2)
            )
            seconds = []
            for _ in range(4):
                started = _now(device)
                for _ in range(repeats):
                    one @ other
                seconds.append(_now(device) - started)
            peaks[name] = 2 * size**3 * repeats / min(seconds[1:]) / 1e12
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    return peaks


def peak_format(option: Mapping[str, Any], device: torch.device) -> str:
    """The format whose peak the convolutions of an option can reach at most."""
    if option.get('autocast'):
        return 'bfloat16'
    tf32 = device.type == 'cuda' and torch.backends.cudnn.allow_tf32
    return 'tf32' if tf32 else 'float32'


def _work(
    subject: Subject, images: list[Tensor], samples: list[Any], attack: PGD
) -> int:
    """Operations of an attack's convolutions and matrix products.

    Multiplications and additions count one each, as in the peak.
    """
    leaves = [image.detach().requires_grad_() for image in images]
    with loss_mode(subject.model):
        with FlopCounterMode(display=False) as forward:
            value = loss(subject, leaves, samples)
        with FlopCounterMode(display=False) as backward:
            value.backward()  # type: ignore[no-untyped-call]
    there, back = (int(c.get_total_flops()) for c in (forward, backward))
    # The clean image and the last iterate are asked for without a gradient.
    return (attack.num_steps + 2) * there + attack.num_steps * back


def _measure(
    subject: Subject, option: Mapping[str, Any], run: Callable[[], Any], repeats: int
) -> tuple[Row, Any]:
    """Times of a run with an option, and its last result; what fails says why."""
    device, settings = subject.device, dict(option)
    row: Row = {}
    found, seconds = None, []
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = settings.pop('cudnn_benchmark', False)
    # Otherwise the graphs of other models and options would count against its limit.
    torch._dynamo.reset()
    torch.manual_seed(0)
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
    try:
        speed = Acceleration.read(settings)
        with speed.prepared(subject.model), speed.on(subject.model):
            for _ in range(repeats + 1):
                started = _now(device)
                found = run()
                seconds.append(_now(device) - started)
        row['first_seconds'] = seconds[0]
        row['seconds'] = statistics.median(seconds[1:])
    except (ConfigError, torch.cuda.OutOfMemoryError) as error:
        row['failed'] = str(error).split('\n')[0]
    finally:
        torch.backends.cudnn.benchmark = before
    if device.type == 'cuda':
        row['peak_mebibytes'] = torch.cuda.max_memory_allocated(device) / 2**20
    return row, found


def _finish(
    row: Row, images: int, work: int | None, base: float | None, first: bool
) -> float | None:
    """Adds what follows from the time; returns that of the first option.

    Where that one failed, nothing is said relative to it.
    """
    seconds: float = row['seconds']
    base = seconds if first else base
    row['images_per_second'] = images / seconds
    if base is not None:
        row['speed_up'] = base / seconds
    if work is not None:
        row['tflops'] = work / seconds / 1e12
    return base


def _now(device: torch.device) -> float:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()
