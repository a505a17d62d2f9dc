"""`convserve-train fit`: from a folder of pictures to a published, proven version.

Data check -> network -> head on cached features -> fine-tuning -> the gates of `release` -> report.
Under torchrun every process trains and the first one does the rest.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from torch import nn

from contract.manifest import Preprocessing
from training.config.config import RunConfig
from training.data.checks.check import load_data
from training.data.checks.findings import Findings, render
from training.data.samples import DataSet
from training.learning import loop
from training.learning.features import FittedHead, install_head
from training.learning.folder import CONFIG, HEAD, REPORT, Request, RunFolder
from training.learning.head import first_stage, read_head, write_head
from training.learning.history import EpochRecord
from training.learning.run import Run
from training.networks.architectures import preprocessing_of
from training.networks.build import build
from training.networks.folding import fold_batch_norms
from training.networks.weights import Weights
from training.release.publish import Destination, check_free, next_version, publish
from training.release.trained import Finished, prove
from training.report.measure import Course, write_fit_report
from training.system.distributed import World, joined
from training.system.memory import reuse_freed_memory
from training.system.randomness import seed_of, torch_seeded

log = logging.getLogger(__name__)

_FROM_SCRATCH: Final = "trained from scratch"


@dataclass(frozen=True, slots=True)
class Plan:
    """One run.

    Attributes:
        request: what was asked.
        config: how to train.
        folder: where it is written; None under torchrun in all processes but the first.
        resume: go on with a run that was stopped.
        device: "auto", "cpu" or "cuda".
        cache_dir: for sets that are downloaded.
    """

    request: Request
    config: RunConfig
    folder: RunFolder
    resume: bool
    device: str
    cache_dir: Path


def fit(plan: Plan) -> Path | None:
    """Trains, proves, publishes and reports.

    Args:
        plan: what, on what, and where to.

    Returns:
        The published version's folder; None where nothing was to be published, it was published
        before, or this is not the first process.

    Raises:
        InputRefused: the data, the config or the folder cannot be used.
        GateFailed: the model is not good enough; nothing is published.
        Interrupted: a signal stopped the run; it can be resumed.
    """
    if plan.folder.published:
        log.info("this run was published as %s", plan.folder.published)
        return None
    reuse_freed_memory()
    with joined(plan.device) as world:
        return _Fit(plan, world).run()


class _Fit:
    """A run while it goes."""

    def __init__(self, plan: Plan, world: World) -> None:
        self.plan, self.world = plan, world
        self.durations_s: dict[str, float] = {}

    def run(self) -> Path | None:
        request, folder = self.plan.request, self.plan.folder
        if request.version is not None:
            check_free(Path(request.models_dir), request.name, request.version, replace=False)
        with self._timed("data"):
            data, findings = self.world.first(self._load_data)
        network, weights, spec = self._network(data)
        history, kept_epoch = self._train(network, spec, data)
        if not self.world.is_first:
            return None
        with self._timed("export and gates"):
            finished = Finished(
                network.cpu().float(),
                spec,
                data,
                self.plan.config,
                weights.source if weights else _FROM_SCRATCH,
            )
            to = _destination(request)
            proven = prove(finished, to)
        # Before the version is published: a run that is killed here is resumed and lacks nothing.
        text = (folder.path / CONFIG).read_text(encoding="utf-8")
        course = Course(render(findings), text, history, kept_epoch, self.durations_s)
        measured = write_fit_report(folder.path / REPORT, proven, course)
        folder.write_json(f"{REPORT}/metrics.json", measured)
        if not request.publish:
            return None
        published = publish(to.models_dir, proven.manifest, proven.files)
        folder.note_published(f"{to.name}/{to.version}")
        return published

    def _load_data(self) -> tuple[DataSet, Findings]:
        plan = self.plan
        data, findings = load_data(
            plan.request.source,
            plan.config.data,
            cache_dir=plan.cache_dir,
            input_size_px=plan.config.network.input_size_px,
        )
        log.info("%s", render(findings))
        plan.folder.write_data(data, findings)
        return data, findings

    def _network(self, data: DataSet) -> tuple[nn.Module, Weights | None, Preprocessing]:
        config = self.plan.config
        with torch_seeded(seed_of("weights", config.seed)):
            network, weights = build(config.network, data.n_classes)
        spec = preprocessing_of(network)
        if config.network.fold_batch_norm:
            folded = fold_batch_norms(network, spec.crop_size_px)
            log.info("network: %d batch norms are part of their convolutions now", folded)
        parameters = sum(p.numel() for p in network.parameters())
        log.info(
            "network: %s, %.2f M parameters, %d px, %s",
            config.network.architecture,
            parameters / 1e6,
            spec.crop_size_px,
            weights.source if weights else _FROM_SCRATCH,
        )
        return network, weights, spec

    def _fit_head(self, network: nn.Module, spec: Preprocessing, data: DataSet) -> None:
        """Puts a classifier into the network that was fitted on its frozen features."""
        kept = self.plan.folder.path / HEAD
        network.to(self.world.device)

        def fitted() -> FittedHead:
            if self.plan.resume and kept.is_file():
                return read_head(kept)
            head = first_stage(network, spec, data, self.plan.config)
            write_head(kept, head)
            return head

        head = self.world.first(fitted)
        install_head(network, head)
        log.info(
            "head: validation top-1 %.2f %%, NLL %.4f, epoch %d is kept",
            100 * head.top1,
            head.nll,
            head.epoch + 1,
        )

    def _train(
        self, network: nn.Module, spec: Preprocessing, data: DataSet
    ) -> tuple[tuple[EpochRecord, ...], int | None]:
        """Trains the network in place; returns the epochs and the one that was kept."""
        config = self.plan.config
        if config.head is not None:
            with self._timed("head on cached features"):
                self._fit_head(network, spec, data)
        if config.optimizer is None:
            return (), None
        with self._timed("training"):
            run = Run(network, spec, data, config, self.plan.folder.path, self.world)
            trained = loop.train(run, resume=self.plan.resume)
        log.info(
            "training: epoch %d is kept, validation top-1 %.2f %%",
            trained.best.epoch,
            100 * trained.best.validation_top1,
        )
        return trained.history, trained.best.epoch

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        began_s = time.monotonic()
        yield
        self.durations_s[name] = time.monotonic() - began_s


def _destination(request: Request) -> Destination:
    """Takes the version number now rather than at the start, which may be hours ago."""
    models_dir = Path(request.models_dir)
    return Destination(
        models_dir=models_dir,
        name=request.name,
        version=request.version or next_version(models_dir, request.name),
        license=request.license,
        command=request.command,
    )
