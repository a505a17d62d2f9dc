import math

import pytest
import torch
from torch import nn

from tests.training.helpers import runs, tinynet
from training.config.config import Optimizer, Schedule
from training.errors import ConfigInvalid
from training.learning import optim
from training.system.torch_compat import timm

CPU = torch.device("cpu")


def _timm_network(name: str = "test_efficientnet") -> nn.Module:
    network: nn.Module = timm().create_model(name, num_classes=3)
    return network


def _one_weight() -> nn.Linear:
    network = nn.Linear(1, 1)
    nn.init.ones_(network.weight)
    return network


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet", "test_vit", "test_convnext"])
def test_layer_groups_of_timm_have_each_parameter_once_and_the_classifier_last(name):
    network = _timm_network(name)

    groups = optim.layer_groups(network)

    head = {id(value) for value in network.get_classifier().parameters()}  # type: ignore[operator]
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted(name for name, _ in network.named_parameters())
    assert {id(network.get_parameter(name)) for name in groups[-1]} == head
    assert len(groups) > 3


def test_layer_groups_without_a_matcher_are_the_modules_with_parameters():
    assert optim.layer_groups(tinynet.TinyNet()) == (
        ("conv.weight", "conv.bias"),
        ("classifier.weight", "classifier.bias"),
    )


def test_freeze_trains_the_top_groups_only():
    network = _timm_network()

    optim.freeze(network, 2)

    learning = {name for name, value in network.named_parameters() if value.requires_grad}
    assert learning == {name for group in optim.layer_groups(network)[-2:] for name in group}


def test_freeze_stops_the_batch_norm_statistics_of_the_frozen_part_only():
    network = _timm_network()
    frozen_norms = optim.freeze(network, 3)
    before = {name: value.clone() for name, value in network.named_buffers()}

    optim.set_training(network, frozen_norms)
    network(torch.randn(2, 3, 32, 32))

    moved = {n for n, value in network.named_buffers() if not torch.equal(value, before[n])}
    owners = {name.rpartition(".")[0] for name in moved}
    assert owners
    for owner, module in network.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            learns = any(value.requires_grad for value in module.parameters())
            assert (owner in owners) == learns == module.training


def test_freeze_batch_norm_stops_the_statistics_but_not_the_weights():
    network = runs.SmallNet()
    frozen_norms = optim.freeze(network, None, freeze_batch_norm=True)

    optim.set_training(network, frozen_norms)

    assert not network.norm.training
    assert network.dropout.training
    assert all(value.requires_grad for value in network.parameters())


def test_freeze_with_more_groups_than_there_are_is_refused():
    with pytest.raises(ConfigInvalid, match="trained_groups = 3, but the network has 2"):
        optim.freeze(tinynet.TinyNet(), 3)


def test_freeze_of_a_network_without_trainable_parameters_is_refused():
    network = tinynet.TinyNet().requires_grad_(False)

    with pytest.raises(ConfigInvalid, match="left to train"):
        optim.freeze(network, None)


def test_optimizer_decays_matrices_but_not_biases_and_norms():
    network = runs.SmallNet()

    optimizer = optim.make_optimizer(network, Optimizer(learning_rate=0.1, weight_decay=0.2))

    decays = {
        id(value): group["weight_decay"]
        for group in optimizer.param_groups
        for value in group["params"]
    }
    for name, value in network.named_parameters():
        assert decays[id(value)] == (0.2 if value.ndim > 1 else 0.0), name


def test_optimizer_leaves_frozen_parameters_out():
    network = runs.SmallNet()
    optim.freeze(network, 1)

    optimizer = optim.make_optimizer(network, Optimizer(learning_rate=0.1))

    held = {id(value) for group in optimizer.param_groups for value in group["params"]}
    assert held == {id(value) for value in network.classifier.parameters()}


def test_optimizer_with_layer_decay_lowers_the_rate_of_lower_layers():
    network = _timm_network()

    optimizer = optim.make_optimizer(network, Optimizer(learning_rate=0.1, layer_decay=0.5))

    scales = {
        id(value): group["lr_scale"]
        for group in optimizer.param_groups
        for value in group["params"]
    }
    groups = optim.layer_groups(network)
    found = [scales[id(network.get_parameter(names[0]))] for names in groups]
    assert found == [0.5 ** (len(groups) - 1 - i) for i in range(len(groups))]


def test_optimizer_with_layer_decay_of_a_network_without_layers_is_refused():
    with pytest.raises(ConfigInvalid, match="layer_decay"):
        optim.make_optimizer(runs.SmallNet(), Optimizer(learning_rate=0.1, layer_decay=0.5))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("adamww", "no optimizer 'adamww'; did you mean adamw", id="typing-error"),
        pytest.param("§", "list_optimizers has all", id="nothing-near"),
        pytest.param("adahessian", "second derivatives", id="second-order"),
        pytest.param(
            "bnbadam",
            "cannot be created",
            id="package-missing",
            marks=pytest.mark.skipif(
                torch.cuda.is_available(), reason="the package may be installed"
            ),
        ),
    ],
)
def test_optimizer_that_cannot_be_used_is_refused(name, message):
    with pytest.raises(ConfigInvalid, match=message):
        optim.make_optimizer(runs.SmallNet(), Optimizer(name=name, learning_rate=0.1))


def _rates(schedule: Schedule, epoch_steps: int) -> list[float]:
    optimizer = torch.optim.SGD(_one_weight().parameters(), lr=0.8)
    made = optim.make_schedule(optimizer, schedule, epoch_steps)
    rates = []
    for step in range(schedule.epochs * epoch_steps):
        made.step_update(step)
        rates.append(optim.learning_rate(optimizer))
    return rates


def test_schedule_cosine_follows_its_formula_after_a_warm_up_that_starts_above_zero():
    rates = _rates(Schedule(epochs=4, warmup_epochs=1, final_fraction=0.25), 5)

    low = 0.25 * 0.8
    cosine = [low + (0.8 - low) * (1 + math.cos(math.pi * t / 20)) / 2 for t in range(5, 20)]
    assert rates[0] == pytest.approx(0.8 / 5)
    assert rates[:5] == sorted(rates[:5])
    assert rates[5:] == pytest.approx(cosine)


def test_schedule_constant_stays_at_the_peak_after_the_warm_up():
    rates = _rates(Schedule(name="constant", epochs=3, warmup_epochs=0.5), 4)

    assert rates[0] == pytest.approx(0.4)
    assert rates[2:] == [0.8] * 10


def test_schedule_of_a_single_step_uses_the_full_rate():
    assert _rates(Schedule(epochs=1), 1) == [0.8]


def test_schedule_is_a_pure_function_of_the_step():
    rates = _rates(Schedule(epochs=4, warmup_epochs=1), 5)
    optimizer = torch.optim.SGD(_one_weight().parameters(), lr=0.8)
    made = optim.make_schedule(optimizer, Schedule(epochs=4, warmup_epochs=1), 5)

    for step in (13, 2, 19):
        made.step_update(step)

        assert optim.learning_rate(optimizer) == rates[step]


def test_schedule_of_warm_up_only_is_refused():
    with pytest.raises(ConfigInvalid, match="warmup_epochs = 2 leaves nothing of 2 epochs"):
        _rates(Schedule(epochs=2, warmup_epochs=2), 5)


@pytest.mark.parametrize(
    ("found", "dtype"),
    [
        pytest.param({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16, id="avx512-bf16"),
        pytest.param({"amx_bf16": True}, torch.bfloat16, id="amx"),
        pytest.param({"avx2": True, "avx512_bf16": False}, None, id="avx2"),
        pytest.param({}, None, id="other-processor"),
    ],
)
def test_precision_auto_takes_bf16_if_the_cpu_supports_it(monkeypatch, found, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found, raising=False)

    assert optim.decide_precision("auto", CPU) == optim.Precision(dtype)


@pytest.mark.parametrize("supported", [True, False])
def test_precision_auto_takes_bf16_if_the_cuda_device_supports_it(monkeypatch, supported):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: supported)

    decided = optim.decide_precision("auto", torch.device("cuda"))

    assert decided.dtype == (torch.bfloat16 if supported else None)


def test_precision_fp16_scales_on_cuda_and_is_refused_on_a_cpu():
    assert optim.decide_precision("fp16", torch.device("cuda")) == optim.Precision(
        torch.float16, scaled=True
    )
    with pytest.raises(ConfigInvalid, match="CUDA"):
        optim.decide_precision("fp16", CPU)


def test_precision_bf16_computes_in_bfloat16():
    network = nn.Linear(2, 2)

    with optim.decide_precision("bf16", CPU).autocast(CPU):
        answer = network(torch.ones(1, 2))

    assert answer.dtype == torch.bfloat16


def test_average_follows_the_decay_with_its_warm_up():
    network = _one_weight()
    average = optim.make_average(network, 0.3)
    expected = 1.0

    for n in range(1, 6):  # min(0.3, (1 + n) / (10 + n)) counted from 0
        nn.init.constant_(network.weight, float(n))
        average.update(network, n + 1)
        decay = min(0.3, n / (9 + n))
        expected = decay * expected + (1 - decay) * n

        assert average.module.weight.item() == pytest.approx(expected)


def test_average_without_decay_is_none():
    assert optim.make_average(nn.Linear(1, 1), None) is None


def test_second_stage_of_a_config_for_the_head_alone_is_refused():
    config = runs.config().model_copy(update={"optimizer": None, "schedule": None})

    with pytest.raises(ConfigInvalid, match="head only"):
        optim.second_stage(config)
