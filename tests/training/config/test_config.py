import tomllib

import pytest

from training.config.config import FOLDER, RunConfig, read_config, shipped
from training.errors import ConfigInvalid

MINIMAL = """
[network]
architecture = "convnet"

[optimizer]
learning_rate = 0.1

[schedule]
epochs = 2
"""


@pytest.fixture
def config_file(tmp_path):
    def write(text=MINIMAL):
        path = tmp_path / "mine.toml"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("name", shipped())
def test_shipped_configs_are_valid_and_have_complete_notes(name):
    config = read_config(name)

    note = config.note
    assert all((note.command, note.hardware, note.duration, note.expected)), "an empty note"
    assert f"--config {name}" in note.command or name == "digits"


@pytest.mark.parametrize("name", shipped())
def test_shipped_configs_have_no_empty_sections(name):
    # Every section in the file changes a default, so that a reader sees at once what is special.
    values = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))

    assert all(values.values())


def test_config_without_changes_takes_the_defaults(config_file):
    config = read_config(config_file())

    assert config.seed == 0
    assert config.loop.batch_size == 32
    assert config.head is None


def test_changes_on_the_command_line_override_the_config(config_file):
    changes = [
        "seed=7",
        "loop.batch_size=8",
        "augment.crop_scale=[0.5, 1.0]",
        "data.sampling=balanced",
        'network.weights="package:x"',
        "network.options.grey=true",
    ]

    config = read_config(config_file(), changes)

    assert (config.seed, config.loop.batch_size) == (7, 8)
    assert config.augment.crop_scale == (0.5, 1.0)
    assert config.data.sampling == "balanced"
    assert config.network.weights == "package:x"
    assert config.network.options == {"grey": True}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("loop.batch_siz=8", r"loop\.batch_siz: unknown key; did you mean batch_size\?"),
        ("lop.batch_size=8", r"lop: unknown key; did you mean loop\?"),
        ("epochs=8", r"^--set epochs: unknown key; did you mean head.epochs or schedule.epochs\?"),
        ("loop.epochs=8", r"loop.epochs: unknown key; did you mean head.epochs or schedule.epochs"),
        ("foo.bar=1", "^--set foo.bar: foo: unknown key; the keys are note, seed, network, data, "),
        ("data.x=1", "^--set data.x: unknown key; the keys are validation_fraction, "),
        ("seed=x", "^--set seed: Input should be a valid integer.*, got 'x'"),
        ("loop.batch_size=0", "^--set loop.batch_size: .*greater than or equal to 1, got 0"),
        ("loop.batch_size=many", r"loop\.batch_size"),
        ("loop.batch_size", "needs section.key=value"),
        ("seed.x=1", "seed is a value, not a section"),
        ("augment.crop_scale=[0.9, 0.1]", "low <= high"),
        ("augment.crop_scale=[0.9, 1.1]", "must be at most 1"),
        ("optimizer.learning_rate=nan", "finite"),
        ("schedule.epochs=0", "greater than or equal to 1"),
        ("head.epochs=3", r"^mine.toml with --set head.epochs: \[head\] needs network.weights"),
    ],
)
def test_invalid_config_is_refused_with_the_key(config_file, change, message):
    path = config_file(MINIMAL + "\n" if change != "seed.x=1" else "seed = 1\n" + MINIMAL)

    with pytest.raises(ConfigInvalid, match=message):
        read_config(path, [change])


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("[optimizer]\nlearning_rate = 0.1\n\n[schedule]\nepochs = 2\n", "nothing to train"),
        ("[schedule]\nepochs = 2\n", "belong together"),
        ('[network]\narchitecture = "convnet"\n', "network"),
    ],
    ids=["stages", "schedule", "network"],
)
def test_config_without_a_required_section_is_refused(config_file, removed, message):
    with pytest.raises(ConfigInvalid, match=message):
        read_config(config_file(MINIMAL.replace(removed, "")))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "choose digits, finetune, head"),
        ("missing.toml", "No such file"),
        ("broken", "no config 'broken'"),
    ],
)
def test_missing_config_is_refused(name, message):
    with pytest.raises(ConfigInvalid, match=message):
        read_config(name)


def test_config_that_is_not_toml_is_refused(config_file):
    with pytest.raises(ConfigInvalid, match=r"mine\.toml"):
        read_config(config_file("network = {"))


def test_config_digest_depends_on_values_but_not_on_notes(config_file):
    plain = read_config(config_file())

    noted = read_config(config_file(MINIMAL + '[note]\nexpected = "98%"\n'))
    spelt_out = read_config(config_file("seed = 0\n" + MINIMAL + "[loop]\nbatch_size = 32\n"))
    other = read_config(config_file(), ["seed=1"])

    assert noted.sha256 == plain.sha256 == spelt_out.sha256
    assert other.sha256 != plain.sha256
    assert read_config(config_file(), ["publish.max_kl=0.1"]).sha256 != plain.sha256


def test_config_round_trips_through_json():
    config = read_config(shipped()[0])

    assert RunConfig.model_validate_json(config.model_dump_json()) == config
