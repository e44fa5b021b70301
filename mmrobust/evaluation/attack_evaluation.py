"""One benign pass, then one pass per attack: what both evaluation loops share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_distributed, is_main_process
from mmengine.evaluator import Evaluator
from mmengine.logging import print_log
from mmengine.runner import BaseLoop, Runner
from torch.utils.data import DataLoader

from ..attacks import Attack, Ensemble
from ..batch import image_id
from ..checks import (
    check_classes,
    check_has_boxes,
    check_metrics,
    comparison_verdicts,
)
from ..distributed import same_buffers, whole
from ..errors import ConfigError
from ..objective import is_classifier
from ..report import (
    RobustnessReport,
    device_name,
    figure_of,
    has_own_figure,
    package_versions,
    summaries,
)
from ..utils.acceleration import Acceleration
from ..utils.models import bare_model, state_digest
from ..utils.store import Store
from ..utils.validation import positive_int, whole_number
from ..weights import classes_of, read_checkpoint
from .attack_pass import AttackPass
from .attacker import Attacker, Outcome
from .benign_pass import BenignPass, Scores, enter_benign
from .box_analysis import BoxAnalysis, measured_types
from .corrupted_images import CorruptedImages
from .ensemble import EnsemblePass, check_readable
from .images import (
    EvaluatedImages,
    Progress,
    annotations_digest,
    choose_images,
    enough_for_groups,
    restrict_metrics,
)
from .load import is_wanted
from .panoptic_analysis import PanopticAnalysis
from .pass_tables import BENIGN, PassTables
from .picture_pipeline import PicturePipeline
from .preparation import (
    build_attacks,
    check_ground_truth,
    check_objectives,
    check_patches,
    doubts_of,
    form_groups,
    refuse_for_classifiers,
    try_out,
    weigh_classes,
)
from .shift import ShiftedData, read_shifts
from .visualization import Gallery
from .voc_figures import VOCFigures

_ANALYSES: dict[str, type[BoxAnalysis]] = {
    'bbox': BoxAnalysis,
    'segm': BoxAnalysis,
    'panoptic': PanopticAnalysis,
}


class AttackEvaluation(BaseLoop):
    """Evaluates without and with attacks, for validation and test.

    The two loops differ in the names of their hooks and in ``val_step``/``test_step``,
    which do the same in mmengine; and only the test loop writes a report, for which it
    keeps results on disk, draws pictures and tries the evaluation out. Benign metrics
    keep their names, so that ``save_best`` works as before; attacked ones are prefixed,
    like ``pgd/coco/bbox_mAP``.

    Args:
        runner: the runner.
        dataloader: the data loader or its config; its pipeline has to load boxes.
        evaluator: the evaluator or its config.
        attacks: name to attack config, for instance
            ``dict(pgd=dict(type='mmrobust.PGD', eps=4, num_steps=10))``.
        curves: name of an attack to what the points of its curve have in common, for
            instance ``{'pgd-eps2': 'pgd', 'pgd-eps4': 'pgd'}``. Attacks that differ in
            eps or in their steps alone are put on a curve anyway; those named here
            also if settings that derive from these differ.
        seed: seed of every random draw; each image's draws depend on it and on the
            image's id alone.
        gt_frame: ``'auto'`` measures the frame of every image's boxes;
            ``'original'`` or ``'input'`` set it.
        num_images: evaluate on this many images, a fixed choice by ``seed``.
        save_adv: folder for the adversarial images, without loss; none by default.
        space: ``'input'`` attacks the network's input, as papers do; ``'original'``
            attacks the picture on disk, before the pipeline resizes it.
        quantize: also round every attacked image to 8 bits, write it as a picture,
            read it back and score it through the unchanged pipeline.
        fp16: predict under autocast, which attacks do not follow.
        speed: options of :class:`.Acceleration`, for attacks alone, for
            instance ``dict(autocast='bfloat16')``.
        judged_by: by what passes are compared and what ensembles lower: ``'bbox'``,
            COCO's mAP of boxes, ``'segm'``, that of masks, ``'panoptic'``, the panoptic
            quality, or ``'auto'``: the first of them that the evaluator measures, and
            boxes if it does not tell; and passes are compared by the evaluator's own
            figure where that is another one, like VOC's mAP. The report has all that
            the evaluator measures.
        attack_batch_size: how many images of a detector share the network's passes in
            an attack, where their inputs are of one shape and the model allows it.
            Losses stay those of single images; what is found is the same up to
            rounding, which depends on the other images. 1 for bit by bit the same
            whatever the batches.
        shifts: other datasets of the same classes, on which the benign pass is made as
            well: name to ``'ANN_FILE,PREFIX'``, see :mod:`.shift`.

    Raises:
        ConfigError: for settings or data that cannot give a valid attack.
    """

    evaluator: Evaluator
    fp16: bool
    stage: str
    report: str | None = None  # path; without one nothing is kept on disk
    resume = False
    check_images = 0
    gallery_images = 0

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict,
        evaluator: Evaluator | dict | list,
        attacks: dict[str, Any] | None = None,
        curves: Mapping[str, str] | None = None,
        seed: int = 0,
        gt_frame: str = 'auto',
        num_images: int | None = None,
        save_adv: str | None = None,
        space: str = 'input',
        quantize: bool = False,
        fp16: bool = False,
        speed: Mapping[str, Any] | None = None,
        attack_batch_size: int = 1,
        judged_by: str = 'auto',
        shifts: Mapping[str, str] | Sequence[str] = (),
    ) -> None:
        attack_batch_size = positive_int(attack_batch_size, 'attack_batch_size')
        loader = choose_images(dataloader, num_images, seed)
        if attacks and attack_batch_size > 1:
            loader = enough_for_groups(loader, attack_batch_size)
        # Of the loop of mmengine that the class is mixed with.
        super().__init__(runner, loader, evaluator, fp16=fp16)  # type: ignore[call-arg]
        self.speed = Acceleration.read(speed)
        self.attack_batch_size = attack_batch_size
        self.attacks = build_attacks(attacks or {})
        # Not all of an attack's settings need be in its description.
        self._configs = {
            k: v for k, v in (attacks or {}).items() if isinstance(v, dict)
        }
        self.curves = curves or {}
        self.seed = whole_number(seed, 'seed')
        self.save_adv = save_adv
        self.space, self.quantize = space, quantize
        self.gt_frame, self.judged_by = gt_frame, judged_by
        self.pixels: PicturePipeline | None = None
        self._adversary: dict[str, Any] = {}  # that the model was trained with
        self._num_images = num_images
        self._given_shifts = read_shifts(shifts or (), self.attacks)
        self._shifts: list[ShiftedData] = []
        if num_images is not None:
            restrict_metrics(self.evaluator, self.dataloader.dataset)
        if gt_frame not in ('auto', 'original', 'input'):
            raise ConfigError(
                f"gt_frame={gt_frame!r} is unknown: choose 'auto', 'original', 'input'."
            )
        if judged_by not in ('auto', *_ANALYSES):
            raise ConfigError(
                f"judged_by={judged_by!r} is unknown: choose 'auto', 'bbox' for boxes, "
                "'segm' for masks or 'panoptic' for panoptic quality."
            )
        if space not in ('input', 'original'):
            raise ConfigError(
                f"space={space!r} is unknown: choose 'input' to attack the network's "
                "input, or 'original' to attack the picture before it is resized."
            )
        if self.attacks:
            self._read_data()

    def _read_data(self) -> None:
        """Checks the data that is attacked, and finds out how it is loaded."""
        dataset: Any = self.dataloader.dataset
        if is_distributed() and not getattr(self.dataloader.sampler, 'round_up', True):
            raise ConfigError(
                'results are put together from equal shares of the processes: set '
                'sampler.round_up=True in the test dataloader.'
            )
        check_has_boxes(dataset, 'attack')
        self._notes = check_metrics(self.evaluator, dataset)
        model = bare_model(self.runner.model)
        classifier = is_classifier(model)
        if classifier:
            given = self.attacks.values()
            if self._given_shifts:
                raise ConfigError('shifts are for detectors: leave them out.')
            refuse_for_classifiers(
                given, self.space, self.quantize, self.attack_batch_size
            )
        else:
            checkpoint = self._checkpoint()
            known = classes_of(checkpoint)
            self._adversary = self._trained_against(checkpoint)
            metrics = self.evaluator.metrics
            self._notes += check_classes(model, dataset, metrics, known)
            self._shifts = [
                ShiftedData(shift, self.runner, self._num_images, self.seed, known)
                for shift in self._given_shifts
            ]
            if self.space == 'original' or self.quantize:
                self.pixels = PicturePipeline(dataset)
        self.images = EvaluatedImages(self.dataloader, whole_batches=classifier)
        self._corrupted = CorruptedImages(self.dataloader, classifier, self.seed)
        self._corrupted.check(self.attacks.values())
        if not classifier:
            check_ground_truth(self.images, self.gt_frame, self.evaluator.metrics)
        if self.save_adv and self.images.equal_ids:
            raise ConfigError(
                f'save_adv names files by img_id, and {self.images.equal_ids} images '
                'of the dataset have the id of another one: give every image its own.'
            )

    def _checkpoint(self) -> dict[str, Any]:
        """Reads what a tested model was loaded from; empty in and after a training."""
        path = getattr(self.runner, '_load_from', None)
        # Of a validation, or a test after training, it is what training began with.
        trained = isinstance(self.runner._train_loop, BaseLoop)
        return (
            {} if self.stage == 'val' or trained or not path else read_checkpoint(path)
        )

    def _trained_against(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """Returns the settings of the adversary that a model was trained with."""
        own: Any = getattr(self.runner._train_loop, 'adversary', None)
        if hasattr(own, 'describe'):
            return dict(own.describe())
        meta = checkpoint.get('meta')
        found = meta.get('adversary') if isinstance(meta, dict) else None
        return found if isinstance(found, dict) else {}

    def run(self) -> dict[str, float]:
        """Runs all passes.

        Returns:
            Benign metrics under their own names, and those of each attack behind the
            attack's name, like ``pgd/coco/bbox_mAP``.
        """
        runner, stage = self.runner, self.stage
        runner.call_hook(f'before_{stage}')
        runner.call_hook(f'before_{stage}_epoch')
        model = bare_model(runner.model)
        # After the hook, which may have put averaged weights and buffers in place.
        with whole(runner.model), same_buffers(model), self.speed.prepared(model):
            metrics, report = self._run()
        runner.call_hook(f'after_{stage}_epoch', metrics=metrics)
        runner.call_hook(f'after_{stage}')
        if self.attacks:
            print_log('\n' + report.table(), logger='current')
        return metrics

    def _run(self) -> tuple[dict[str, float], RobustnessReport]:
        report = self._prepare()
        metrics = self._run_benign(report)
        for shift in self._shifts:
            found = shift.run(self.attacker, self.records, self.scores)
            report.shifts.append(found)
            report.checks += [f'{found["name"]}: {text}' for text in shift.notes]
            name = found['name']
            metrics.update({f'{name}/{k}': v for k, v in found['metrics'].items()})
        names, logger = list(self.attacks), self.runner.logger
        progress = Progress(names, len(self.dataloader), logger)
        for name, attack in self.attacks.items():
            self._save(report, complete=False)
            result = self._pass_of(name, attack).run(progress)
            report.attacks.append(result)
            metrics.update({f'{name}/{key}': v for key, v in result.metrics.items()})
        self._compare(report)
        judging = self._judging(report)
        means = (judging.mean_intervals,) if judging else ()
        report.corruptions = summaries(
            report.headline(), report.benign, report.attacks, *means
        )
        if self.analyses:
            # The search may take minutes, and nothing is to be lost meanwhile.
            self._save(report, complete=False)
        for name, analysis in self.analyses.items():
            analysis.gather_problems()
            # An ensemble alone has found it already, but not by what it does not read.
            if len(self.attacks) > 1 or name != report.judged_by:
                report.enter_worst_case(name, analysis.worst_case())
            report.checks += analysis.problems
        if self.scores.voc:
            report.enter_worst_case('evaluator', self.scores.voc.worst_case())
            report.checks += self.scores.voc.problems
        if self.analyses and self.report:
            judging = judging or next(iter(self.analyses.values()))
            judging.write(Path(self.report).with_suffix('.npz'))
        self._save(report, complete=True)
        self.records.remove()
        return metrics, report

    def _judging(self, report: RobustnessReport) -> PassTables | None:
        """Returns the matches by which passes are compared, if there are any."""
        if report.judged_by == 'evaluator':
            return self.scores.voc
        return self.analyses.get(report.judged_by)

    def _save(self, report: RobustnessReport, complete: bool) -> None:
        if self.report:
            pictures = self.gallery.pictures() if self.gallery else []
            report.write(self.report, complete, pictures)

    # ------------------------------------------------------------------------ passes

    def _prepare(self) -> RobustnessReport:
        """Checks everything before the passes, and starts what they need."""
        runner, dataset = self.runner, self.dataloader.dataset
        runner.model.eval()
        self.attacker = Attacker(
            runner.model,
            seed=self.seed,
            gt_frame=self.gt_frame,
            fp16=self.fp16,
            pixels=self.pixels,
            space=self.space,
            quantize=self.quantize,
            speed=self.speed,
            group_size=self.attack_batch_size,
            measures_load=bool(self.report) and is_wanted(self.attacks.values()),
        )
        notes: list[str] = []
        if self.attacks:
            check_patches(self.attacks, self.attacker, self.images)
            train_loader = runner.cfg.get('train_dataloader')
            notes = [
                *self._notes,
                *weigh_classes(self.attacks, self.attacker, train_loader, dataset),
                *check_objectives(self.attacks, self.attacker, self.images),
                *form_groups(self.attacker, self.images),
                *self.images.notes(),
                *self.speed.notes(),
                *doubts_of(self.attacks, dataset),
            ]
        report = RobustnessReport.start(runner, dataset, self.seed, notes)
        report.dataset['annotations_sha256'] = annotations_digest(
            dataset, folders=False
        )
        report.space, report.adversary = self.space, self._adversary
        report.environment['speed'] = self.speed.describe()
        report.environment['attack_batch_size'] = self.attacker.group_size
        self.analyses = self._start_analyses()
        report.judged_by = next(iter(self.analyses), 'boxes')
        voc = None
        if self.analyses and self.judged_by == 'auto':
            voc = VOCFigures.maybe(self.evaluator, dataset, self.seed)
        self.scores = Scores(self.evaluator, self.analyses, len(dataset), voc)
        self.records = self._open_records()
        self.gallery = None
        if self.attacks and self.gallery_images:
            args = (runner.visualizer, self.gallery_images, self.gt_frame)
            self.gallery = Gallery(*args)
        doubts: list[str] = []
        if self.analyses and self.check_images and is_main_process():
            doubts = try_out(
                self.attacks,
                self.attacker,
                self.images,
                self.analyses[report.judged_by],
                self.records.part,
                self.check_images,
            )
            report.checks += doubts
        ensembles = [a for a in self.attacks.values() if isinstance(a, Ensemble)]
        if ensembles and not self.records.part('doubts', []).shared(bool(doubts)):
            for ensemble in ensembles:
                ensemble.trust_gradients()
        return report

    def _start_analyses(self) -> dict[str, BoxAnalysis]:
        """Reads boxes, masks and segments, for the report and for ensembles.

        Returns:
            Analyses by name, first the one by which passes are compared.
        """
        dataset = self.dataloader.dataset
        types = measured_types(self.evaluator.metrics)
        chosen = self.judged_by if self.judged_by != 'auto' else types[0]
        others = [each for each in types if each != chosen]
        ensemble = any(attack.members for attack in self.attacks.values())
        if ensemble:
            ids = self.images.unique_ids
            if image_id(dataset[0]['data_samples']) is None or not ids:
                raise ConfigError(
                    'the ensemble needs images with ids of their own: is img_id among '
                    'the meta_keys of PackDetInputs, and no image twice in the dataset?'
                )
        elif not self.report or not self.attacks or self.attacker.classifier:
            return {}
        needed = ensemble or self.judged_by != 'auto'
        kind = _ANALYSES[chosen]
        first = (kind if needed else kind.maybe)(dataset, self.seed, chosen)
        more = [_ANALYSES[each].maybe(dataset, self.seed, each) for each in others]
        return {each.name: each for each in (first, *more) if each}

    def _open_records(self) -> Store:
        """Opens the records of images, without a report in memory."""
        if not self.report or not self.resume or not self.attacks:
            return Store(None, {})
        cfg, dataset = self.runner.cfg, self.dataloader.dataset
        loader = cfg.get('test_dataloader') or {}
        run = {
            'weights_sha256': state_digest(self.attacker.model),
            'model': cfg.get('model'),
            # The runner merges it into the model, where no weight tells of it.
            'data_preprocessor': cfg.get('data_preprocessor'),
            'dataset': loader.get('dataset') if isinstance(loader, dict) else None,
            'annotations_sha256': annotations_digest(dataset),
            'num_images': len(dataset),
            'seed': self.seed,
            'gt_frame': self.gt_frame,
            'fp16': self.fp16,
            'speed': self.speed.describe(),
            'space': self.space,
            'quantize': self.quantize,
            'attack_batch_size': self.attack_batch_size,
            **({'load': True} if self.attacker.measures_load else {}),
            'versions': package_versions(),
            'device': device_name(self.attacker.device),
        }
        return Store(Path(self.report).with_suffix('.records'), run)

    def _run_benign(self, report: RobustnessReport) -> dict[str, float]:
        """Evaluates without attack, and returns the metrics."""
        if self.attacks:
            records = self.records.part(BENIGN, {})
            args = (self.images, self.attacker, records, self.scores, self.gallery)
            self.benign = BenignPass(*args)
        for index, data_batch in enumerate(self.dataloader):
            self.run_iter(index, data_batch)
        if self.attacks:
            if any(attack.members for attack in self.attacks.values()):
                judged_by = next(iter(self.analyses))
                check_readable(self.benign.found, judged_by)  # not hours later
            self.benign.finish(report)
        metrics = enter_benign(report, self.scores)
        own = self.judged_by == 'auto' and report.judged_by != 'panoptic'
        if self.analyses and own and has_own_figure(metrics):
            report.judged_by = 'evaluator'
        self._compared_by = report.judged_by
        return metrics

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Predicts as mmengine does, with attacks by :class:`BenignPass`."""
        if not self.attacks:
            super().run_iter(idx, data_batch)  # type: ignore[misc]
            return
        call, stage = self.runner.call_hook, self.stage
        call(f'before_{stage}_iter', batch_idx=idx, data_batch=data_batch)
        outputs = self.benign.predict(idx, data_batch)
        call(
            f'after_{stage}_iter', batch_idx=idx, data_batch=data_batch, outputs=outputs
        )

    def _pass_of(self, name: str, attack: Attack) -> AttackPass:
        ensemble = None
        if attack.members:
            ensemble = EnsemblePass(name, attack.members, self.analyses, self.benign)
        members = attack.members or {name: attack}
        settings = [[key, _settings(member)] for key, member in members.items()]
        depends = [settings, self._configs.get(name), self.save_adv]
        if attack.members:
            # Which tells when an image is broken, and later members do not run.
            depends += list(self.analyses)[:1]
        images, attacker, gallery = self.images, self.attacker, self.gallery
        if attack.corruption:
            images, attacker = self._corrupted.put_into(attacker, attack.corruption)
            if name not in self._corrupted.drawn(self.attacks):
                gallery = None
        return AttackPass(
            name,
            attack,
            images=images,
            attacker=attacker,
            records=self.records.part(name, depends),
            scores=self.scores,
            ensemble=ensemble,
            gallery=gallery,
            save_adv=self.save_adv,
            base=self.curves.get(name),
            judged_by=self._compared_by,
            show=self._call_hooks,
        )

    def _call_hooks(
        self, name: str, index: int, data_batch: dict, outcomes: list[Outcome]
    ) -> None:
        """Hands freshly attacked images to the hooks."""
        images = [image for outcome in outcomes for image in outcome.inputs or ()]
        outputs = [output for outcome in outcomes for output in outcome.outputs]
        if len(images) < len(outputs):
            return  # from records, which hold no images
        # Not after_test_iter: hooks there read the clean picture from disk and would
        # draw the attacked boxes on it, over the benign results.
        self.runner.call_hook(
            'after_attack_iter',
            batch_idx=index,
            data_batch=data_batch,
            adversarial=images,
            outputs=outputs,
            attack=name,
            gt_frame=self.gt_frame,
        )

    def _compare(self, report: RobustnessReport) -> None:
        """Judges the passes by each other."""
        benign = figure_of(report.benign, report.judged)
        found = comparison_verdicts(benign, report.attacks)
        for result in report.attacks:
            result.checks += found.get(result.name, [])


def _settings(attack: Attack) -> dict[str, Any]:
    """Returns the settings that tell an attack from others."""
    # Figures of an objective that is weighted by classes depend on the weights.
    weights = attack.objective.class_weights
    return {
        'type': type(attack).__name__,
        **attack.describe(),
        'class_weights': None if weights is None else weights.tolist(),
    }
