"""The steps of `convserve-train fit`: load, train, run the gates, report, publish.

Under torchrun all processes train, and the first one does everything else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from torch import nn

from contract.manifest import Preprocessing
from contract.repository.numbers import next_number
from training.config.config import RunConfig
from training.data.checks.check import load_data
from training.data.checks.findings import Findings, render
from training.data.prepared import PreparedPictures
from training.data.samples import DataSet
from training.errors import VersionWorse
from training.learning import loop
from training.learning.folder import CONFIG, HEAD, REPORT, RunFolder, RunRequest
from training.learning.head import FittedHead, install_head, read_head, train_head, write_head
from training.learning.run import TrainingResult, TrainingRun
from training.networks.architectures import preprocessing_of
from training.networks.build import build
from training.networks.folding import fold_batch_norms
from training.release.publish import Destination, check_free, publish
from training.release.replacement import check_labels
from training.release.trained import CandidateVersion, TrainedNetwork, gate_network
from training.report.measure import RunHistory, write_fit_report
from training.system.distributed import joined
from training.system.memory import memory_bytes, reuse_freed_memory
from training.system.randomness import seed_of, torch_seeded

log = logging.getLogger(__name__)

_FROM_SCRATCH: Final = "trained from scratch"
# Prepared pictures take an eighth of the memory: 2 GiB of 16 GiB hold 14,000 pictures of 224 px.
_MEMORY_SHARE: Final = 8


def fit(
    folder: RunFolder,
    request: RunRequest,
    config: RunConfig,
    *,
    resume: bool,
    device: str,
    cache_dir: Path,
) -> Path | None:
    """Runs `fit` from the data to the published version.

    Returns:
        The version's folder. None if publishing is off, if the run was published before, or if this
        is not the first process.

    Raises:
        InputRefused: the data, the config or the folder cannot be used.
        GateFailed: the model is not good enough; nothing is published.
        Interrupted: a signal stopped the run, which can be resumed.
    """
    if folder.published:
        log.info("this run is already published as %s", folder.published)
        return None
    if request.version is not None:  # fail now rather than after hours of training
        check_free(
            Path(request.models_dir),
            request.name,
            request.version,
            replace=False,
            can_replace=False,
        )

    reuse_freed_memory()
    durations_s: dict[str, float] = {}

    with joined(device) as world:
        prepared = PreparedPictures(memory_bytes() // (_MEMORY_SHARE * world.size))
        with _timed(durations_s, "data"):
            data, findings = world.first(
                lambda: _find_and_check(request, config, folder, cache_dir)
            )
        network, spec, source = _build(config, data)
        run = TrainingRun(network, spec, data, config, folder.path, world, prepared)
        if not resume:
            log.info("run: %s", folder.path)

        head = None
        if config.head is not None:
            with _timed(durations_s, "head on cached features"):
                head = _train_head(run, resume)
        trained = None
        if config.optimizer is not None:
            with _timed(durations_s, "training"):
                trained = loop.train(run, resume=resume)
            why = trained.score.reason(config.loop.best_by)
            log.info("training: epoch %d is kept: %s", trained.best.epoch, why)
        if not world.is_first:
            return None

        with _timed(durations_s, "export and gates"):
            to = _destination(request)
            network = network.cpu().float()
            finished = TrainedNetwork(network, spec, data, config, source, prepared)
            try:
                candidate = gate_network(finished, to)
            except VersionWorse:
                log.info(
                    "to publish it without training again: convserve-train fit --resume %s --allow-worse",
                    folder.path,
                )
                raise
        # Report first, publish last: a run that is killed in between can be resumed without loss.
        _report(folder, candidate, findings, head, trained, durations_s)
        if not request.publish:
            return None

        published = publish(to.models_dir, candidate.manifest, candidate.files)
        folder.note_published(f"{to.name}/{to.version}")
        return published


def _find_and_check(
    request: RunRequest, config: RunConfig, folder: RunFolder, cache_dir: Path
) -> tuple[DataSet, Findings]:
    size_px = config.network.input_size_px
    data, findings = load_data(
        request.source, config.data, cache_dir=cache_dir, input_size_px=size_px
    )
    log.info("%s", render(findings))
    folder.write_data(data, findings)
    check_labels(data.labels, _destination(request))  # now rather than after hours of training
    return data, findings


def _build(config: RunConfig, data: DataSet) -> tuple[nn.Module, Preprocessing, str]:
    # Returns the network, its preprocessing and the source of its weights.
    with torch_seeded(seed_of("weights", config.seed)):
        network, weights = build(config.network, data.n_classes)
    spec = preprocessing_of(network)
    if config.network.fold_batch_norm:
        folded = fold_batch_norms(network, spec.crop_size_px)
        log.info("network: folded %d batch norms into their convolutions", folded)

    source = weights.source if weights else _FROM_SCRATCH
    size = f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters"
    name = config.network.architecture
    log.info("network: %s, %s, %d px, %s", name, size, spec.crop_size_px, source)
    return network, spec, source


def _train_head(run: TrainingRun, resume: bool) -> FittedHead:
    saved = run.folder / HEAD
    run.network.to(run.world.device)

    def fitted() -> FittedHead:
        if resume and saved.is_file():
            return read_head(saved)
        head = train_head(run.network, run.spec, run.data, run.config, run.prepared)
        write_head(saved, head)
        return head

    head = run.world.first(fitted)
    install_head(run.network, head)
    why = head.score.reason(run.config.loop.best_by)
    log.info("head: epoch %d is kept: %s", head.epoch + 1, why)
    return head


def _destination(request: RunRequest) -> Destination:
    # The number is chosen now, not at the start: another run may have published in the meantime.
    models_dir = Path(request.models_dir)
    return Destination(
        models_dir=models_dir,
        name=request.name,
        version=request.version or next_number(models_dir, request.name),
        license=request.license,
        command=request.command,
        layers=request.layers,
        allow_worse=request.allow_worse,
        allow_label_changes=request.allow_label_changes,
    )


def _report(
    folder: RunFolder,
    candidate: CandidateVersion,
    findings: Findings,
    head: FittedHead | None,
    trained: TrainingResult | None,
    durations_s: dict[str, float],
) -> None:
    history = RunHistory(
        render(findings),
        (folder.path / CONFIG).read_text(encoding="utf-8"),
        trained.history if trained else (),
        trained.best.epoch if trained else None,
        head,
        durations_s,
    )
    measured = write_fit_report(folder.path / REPORT, candidate, history)
    folder.write_json(f"{REPORT}/metrics.json", measured)


@contextmanager
def _timed(durations_s: dict[str, float], name: str) -> Iterator[None]:
    start_s = time.monotonic()
    yield
    durations_s[name] = time.monotonic() - start_s
