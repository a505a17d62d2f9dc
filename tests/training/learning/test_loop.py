import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as in torch's documentation
from torch.optim import optimizer as torch_optimizer

from contract.images import decode
from contract.preprocessing import resize_and_crop
from tests.training.helpers import runs, tinynet
from training.data.batches import Batch
from training.errors import CheckpointRefused, ConfigInvalid, DataRefused, LossNotFinite
from training.learning import checkpoint, history, learner, loop, optim
from training.learning.loop import train
from training.learning.validation import ValidationScore
from training.networks.architectures import normalise


def _learner(network=None, **changes):
    plain = {"augment__flip": 0.0, "augment__erasing": 0.0, "optimizer__name": "sgd"}
    network = network or runs.SmallNet(norm=False, dropout=0.0)
    return learner.Learner(runs.run(Path(), network, **{**plain, **changes}), epoch_steps=5)


def _batch(*numbers: int) -> Batch:
    """Returns pictures of the training split as a batch."""
    samples = [runs.data_set().train[number] for number in numbers]
    pixels = [resize_and_crop(decode(sample.read()), runs.spec()) for sample in samples]
    side = runs.SIDE_PX
    return Batch(
        torch.from_numpy(np.array(pixels, dtype=np.uint8).reshape(-1, side, side, 3)).movedim(3, 1),
        torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        torch.tensor(numbers, dtype=torch.int64),
        len(numbers),
    )


def _gradients(network):
    return torch.cat([value.grad.flatten() for value in network.parameters()])


def _step(made, *batches, step=0):
    return made.step(batches, step * len(batches), step, lambda: (0, 0))


def _steps(made, n):
    for step in range(1, n + 1):
        _step(made, _batch(0, 1, 2), step=step)


def _script_validation(monkeypatch, *results):
    """Makes validation return the given (NLL, hits of 9 pictures) of each epoch."""
    scores = iter(ValidationScore(hits / 9, nll, nll, 1.0) for nll, hits in results)
    monkeypatch.setattr(loop, "score_validation", lambda *_: next(scores))


@pytest.mark.parametrize("clip_norm", [None, 1e9], ids=["unclipped", "clipped-by-nothing"])
def test_step_gradient_equals_that_of_plain_torch(clip_norm):
    made = _learner(loop__label_smoothing=0.1, optimizer__clip_norm=clip_norm)
    reference = runs.SmallNet(norm=False, dropout=0.0)
    batch = _batch(0, 1, 2, 3, 4)

    outcome = _step(made, batch)

    logits = reference(normalise(batch.images, runs.spec()))
    loss = F.cross_entropy(logits, batch.indexes, label_smoothing=0.1)
    loss.backward()
    torch.testing.assert_close(_gradients(made.network), _gradients(reference))
    assert outcome.loss_sum / 5 == pytest.approx(loss.item(), rel=1e-5)
    assert outcome.hits == (logits.argmax(1) == batch.indexes).sum()
    assert outcome.gradient_norm == pytest.approx(float(_gradients(reference).norm()), rel=1e-5)


def test_step_accumulated_gradient_equals_that_of_the_joined_batch():
    parts, joined = _learner(), _learner()

    accumulated = _step(parts, _batch(0, 1, 2, 3), _batch(4, 5, 6, 7), _batch(8))
    whole = _step(joined, _batch(*range(9)))

    torch.testing.assert_close(_gradients(parts.network), _gradients(joined.network))
    assert accumulated.loss_sum == pytest.approx(whole.loss_sum)
    assert (accumulated.n_images, accumulated.hits) == (9, whole.hits)


def test_step_weights_classes_by_their_inverse_frequency():
    made = _learner(loop__class_weights=True)
    reference = runs.SmallNet(norm=False, dropout=0.0)
    batch = _batch(0, 1, 2, 3)
    weights = learner.class_weights(runs.data_set())  # 8, 7 and 7 pictures of 22

    _step(made, batch)

    logits = reference(normalise(batch.images, runs.spec()))
    losses = F.cross_entropy(logits, batch.indexes, reduction="none")
    (losses * weights[batch.indexes]).mean().backward()
    torch.testing.assert_close(_gradients(made.network), _gradients(reference))


def test_class_weights_have_a_mean_of_one_over_the_pictures_and_skip_absent_classes():
    data = runs.data_set()
    without_blue = tuple(sample for sample in data.train if sample.index != 2)

    weights = learner.class_weights(dataclasses.replace(data, train=without_blue))

    assert weights[2] == 0
    assert sum(weights[s.index] for s in without_blue) / len(without_blue) == pytest.approx(1)
    assert 8 * weights[0] == pytest.approx(7 * float(weights[1]))


def test_step_clips_the_gradient_and_reports_its_norm_before():
    made = _learner(optimizer__clip_norm=0.01)

    outcome = _step(made, _batch(0, 1, 2))

    assert outcome.gradient_norm > 0.1
    assert float(_gradients(made.network).norm()) == pytest.approx(0.01, rel=1e-3)


def test_step_updates_the_unfrozen_part_only():
    network = runs.SmallNet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    made = _learner(network, loop__trained_groups=1)

    _step(made, _batch(0, 1, 2, 3))

    moved = {n for n, value in network.state_dict().items() if not torch.equal(value, before[n])}
    assert moved == {"classifier.weight", "classifier.bias"}


def test_step_moving_average_starts_near_the_weights_and_is_kept():
    made = _learner(loop__ema_decay=0.5)
    start = made.network.classifier.weight.detach().clone()

    _step(made, _batch(0, 1, 2))

    now = made.network.classifier.weight
    torch.testing.assert_close(made.kept.classifier.weight, 0.1 * start + 0.9 * now)
    assert made.kept is not made.network


def test_step_without_readable_pictures_changes_nothing():
    network = runs.SmallNet()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    made = _learner(network, optimizer__weight_decay=0.0)

    outcome = made.step([_batch()], 0, 0, lambda: (0, 0))

    assert (outcome.loss_sum, outcome.n_images) == (0.0, 0)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert network.norm.training


def test_step_counts_an_unreadable_picture_as_a_zero_gradient():
    made, reference = _learner(), _learner()
    batch = dataclasses.replace(_batch(0, 1, 2), global_size=4)

    _step(made, batch)
    _step(reference, _batch(0, 1, 2))

    torch.testing.assert_close(_gradients(made.network), _gradients(reference.network) * 3 / 4)


def test_step_gradient_in_bf16_is_close_to_fp32():
    half, full = _learner(loop__precision="bf16"), _learner()

    _step(half, _batch(0, 1, 2, 3))
    _step(full, _batch(0, 1, 2, 3))

    difference = (_gradients(half.network) - _gradients(full.network)).norm()
    assert 0 < difference < 0.05 * _gradients(full.network).norm()


def _scale_losses(monkeypatch):
    """Makes learners scale the loss as for float16 but compute in float32, as a CPU must."""
    precision = optim.Precision(None, scaled=True)
    monkeypatch.setattr(optim, "decide_precision", lambda *_: precision)


def test_step_with_a_scaled_loss_has_the_gradient_of_the_plain_one(monkeypatch):
    plain = _learner()
    _scale_losses(monkeypatch)
    scaled = _learner()

    outcomes = [_step(made, _batch(0, 1, 2), _batch(3, 4)) for made in (plain, scaled)]

    torch.testing.assert_close(_gradients(scaled.network), _gradients(plain.network))
    assert outcomes[0].gradient_norm == pytest.approx(outcomes[1].gradient_norm)


def test_step_whose_scaled_gradient_overflows_is_skipped_until_the_scale_is_too_small(monkeypatch):
    _scale_losses(monkeypatch)
    made = _learner()
    weight = made.network.get_parameter("classifier.weight")
    before = weight.detach().clone()
    weight.register_hook(lambda gradient: gradient * float("inf"))

    outcome = _step(made, _batch(0, 1, 2))
    skipped = weight.detach().clone()
    with pytest.raises(LossNotFinite, match="the gradient is"):
        _steps(made, 40)

    assert not np.isfinite(outcome.gradient_norm)
    assert torch.equal(skipped, before)
    assert torch.equal(weight, before)


def test_step_whose_gradient_is_not_finite_does_not_change_the_weights():
    made = _learner()
    weight = made.network.get_parameter("classifier.weight")
    before = weight.detach().clone()
    weight.register_hook(lambda gradient: gradient * float("nan"))

    with pytest.raises(LossNotFinite, match="the gradient is nan"):
        _step(made, _batch(0, 1, 2))

    assert torch.equal(weight, before)


def test_train_makes_one_optimizer_step_for_each_group_of_batches(tmp_path):
    steps: list[object] = []
    hook = torch_optimizer.register_optimizer_step_post_hook(lambda *_: steps.append(1))
    try:
        trained = train(runs.run(tmp_path, schedule__epochs=1, loop__accumulate=3))
    finally:
        hook.remove()

    # 22 pictures in 4 batches: one step of three and one of the last.
    assert len(steps) == trained.best.step == 2


def test_train_learns_the_colours_and_logs_every_step_once(tmp_path):
    run = runs.run(tmp_path, schedule__epochs=4, optimizer__learning_rate=0.05)

    trained = train(run)

    assert trained.best.validation_top1 == 1.0
    assert not trained.network.training
    assert trained.network is run.network
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [e["step"] for e in entries if e["event"] == "step"] == list(range(1, 17))
    logged = [e for e in entries if e["event"] == "epoch"]
    assert [e["validation_nll"] for e in logged] == [e.validation_nll for e in trained.history]
    first = [e for e in entries if e["event"] == "step"][:4]
    mean = sum(e["loss"] * e["n_images"] for e in first) / 22
    assert trained.history[0].train_loss == pytest.approx(mean)


def test_train_validates_on_the_pixels_that_are_served(tmp_path):
    trained = train(runs.run(tmp_path, tinynet.TinyNet(), schedule__epochs=1))

    served = tinynet.wrapped(trained.network)
    nll, hits = 0.0, 0
    for sample in runs.data_set().validation:
        pixels = resize_and_crop(decode(sample.read()), runs.spec())
        with torch.inference_mode():
            probabilities = served(torch.from_numpy(pixels.copy())[None])[0][0]
        nll -= float(torch.log(probabilities[sample.index]))
        hits += int(probabilities.argmax() == sample.index)
    assert trained.best.validation_nll == pytest.approx(nll / 9, rel=1e-5)
    assert trained.best.validation_top1 == hits / 9
    assert trained.best.validation_nll_calibrated <= trained.best.validation_nll


def test_train_returns_and_writes_the_weights_of_the_best_epoch(tmp_path, monkeypatch):
    _script_validation(monkeypatch, (0.9, 8), (0.4, 5), (0.5, 7))
    written_epochs = []
    real = checkpoint.Checkpoints.write_best

    def write_best(self, state):
        written_epochs.append(state["epoch"]["epoch"])
        real(self, state)

    monkeypatch.setattr(checkpoint.Checkpoints, "write_best", write_best)

    trained = train(runs.run(tmp_path, schedule__epochs=3))

    best = torch.load(tmp_path / "checkpoints" / "best.pt", weights_only=True)
    last = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert (written_epochs, trained.best.epoch, best["epoch"]["epoch"]) == ([1, 2], 2, 2)
    weight = trained.network.state_dict()["conv.weight"]
    assert torch.equal(weight, best["network"]["conv.weight"])
    assert not torch.equal(weight, last["network"]["conv.weight"])


def test_train_stops_early_when_the_patience_runs_out(tmp_path, monkeypatch):
    _script_validation(monkeypatch, (0.5, 5), (0.9, 8), (0.6, 7), (0.3, 9))

    trained = train(runs.run(tmp_path, schedule__epochs=4, loop__patience_epochs=2))

    assert len(trained.history) == 3
    assert trained.best.epoch == 1


def test_train_keeps_the_moving_average_if_enabled(tmp_path):
    trained = train(runs.run(tmp_path, schedule__epochs=1, loop__ema_decay=0.9))

    last = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    weight = trained.network.state_dict()["conv.weight"]
    assert torch.equal(weight, last["average"]["conv.weight"])
    assert not torch.equal(weight, last["network"]["conv.weight"])


def test_train_with_a_non_finite_loss_names_the_step_and_leaves_the_checkpoint(
    tmp_path, monkeypatch
):
    real = learner.Learner.step

    def step(self, batches, first_batch, step, signals):
        if step == 5:
            self.network.classifier.weight.data[0, 0] = float("nan")
        return real(self, batches, first_batch, step, signals)

    monkeypatch.setattr(learner.Learner, "step", step)

    with pytest.raises(LossNotFinite, match=r"loss is nan in epoch 2, step 6; .*learning_rate"):
        train(runs.run(tmp_path, loop__checkpoint_s=0.0))

    last = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert last["sums"]["steps"] == 1
    assert bool(torch.isfinite(last["network"]["classifier.weight"]).all())


def test_train_does_not_write_non_finite_weights(tmp_path, monkeypatch):
    real = learner.Learner.step

    def step(self, batches, first_batch, step, signals):
        outcome = real(self, batches, first_batch, step, signals)
        if step == 2:
            self.network.norm.running_mean[0] = float("inf")
        return outcome

    monkeypatch.setattr(learner.Learner, "step", step)

    with pytest.raises(LossNotFinite, match=r"norm\.running_mean .* in epoch 1, after step 3"):
        train(runs.run(tmp_path, loop__checkpoint_s=0.0))

    last = torch.load(tmp_path / "checkpoints" / "last.pt", weights_only=True)
    assert last["sums"]["steps"] == 2


def test_train_stops_if_the_learning_rate_makes_the_loss_explode(tmp_path):
    with pytest.raises(LossNotFinite, match=r"epoch 1, step \d+; nothing was saved.*now .*e\+29"):
        train(
            runs.run(
                tmp_path,
                optimizer__name="sgd",
                optimizer__learning_rate=1e30,
                optimizer__clip_norm=None,
                schedule__warmup_epochs=0.0,
                loop__ema_decay=0.9,
            )
        )


def test_train_stops_if_the_validation_loss_is_not_finite(tmp_path, monkeypatch):
    _script_validation(monkeypatch, (float("nan"), 3))

    with pytest.raises(LossNotFinite, match="validation NLL is nan in epoch 1, after step 4"):
        train(runs.run(tmp_path))

    assert not (tmp_path / "checkpoints").exists()


def test_train_in_a_folder_with_a_run_is_refused_without_resume(tmp_path):
    train(runs.run(tmp_path, schedule__epochs=1))

    with pytest.raises(CheckpointRefused, match="resume it or use another folder"):
        train(runs.run(tmp_path, schedule__epochs=1))


@pytest.mark.parametrize("split", ["train", "validation"])
def test_train_without_pictures_is_refused(tmp_path, split):
    run = runs.run(tmp_path)
    splits: dict[str, Any] = {split: ()}
    data = dataclasses.replace(run.data, **splits)

    with pytest.raises(DataRefused, match=f"{split} split has no pictures"):
        train(dataclasses.replace(run, data=data))


def test_train_without_a_readable_validation_picture_is_refused(tmp_path, caplog):
    run = runs.run(tmp_path, schedule__epochs=1)
    broken = tuple(dataclasses.replace(s, data=b"broken") for s in run.data.validation)
    data = dataclasses.replace(run.data, validation=broken)

    with pytest.raises(DataRefused, match="validation pictures can be read"):
        train(dataclasses.replace(run, data=data))

    assert sum("is left out" in line for line in caplog.messages) == 9


def test_train_with_an_unreadable_training_picture_continues(tmp_path, caplog):
    run = runs.run(tmp_path, schedule__epochs=1)
    first, *others = run.data.train
    data = dataclasses.replace(run.data, train=(dataclasses.replace(first, data=b""), *others))

    trained = train(dataclasses.replace(run, data=data))

    assert any(line.startswith("train/0.png is left out") for line in caplog.messages)
    assert len(trained.history) == 1


def test_train_with_a_config_for_the_head_only_is_refused(tmp_path):
    run = runs.run(tmp_path)
    config = run.config.model_copy(update={"optimizer": None, "schedule": None})

    with pytest.raises(ConfigInvalid, match="head only"):
        train(dataclasses.replace(run, config=config))


def test_record_fields_are_finite_numbers(tmp_path):
    trained = train(runs.run(tmp_path, schedule__epochs=1))

    record = trained.history[0]
    assert isinstance(record, history.EpochRecord)
    assert np.isfinite([float(value) for value in dataclasses.astuple(record)]).all()
    assert record.seconds > 0
