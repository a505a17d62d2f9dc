import sys

from training.system.environment import command_line, installed_versions


def test_installed_versions_list_the_packages_that_affect_a_graph():
    versions = installed_versions()

    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "timm", "onnx", "onnxruntime", "pillow"} <= versions.keys()


def test_installed_versions_leave_out_missing_packages(monkeypatch):
    monkeypatch.setattr("training.system.environment.PACKAGES", ("no-such-package",))

    assert installed_versions().keys() == {"python"}


def test_command_line_shows_no_folders():
    line = command_line(
        [
            "/x/training/__main__.py",
            "import",
            "../b/net.onnx",
            "--labels=/c/l.txt",
            "--dataset",
            "a / b",
        ]
    )

    assert line == "convserve-train import net.onnx --labels=l.txt --dataset 'a / b'"
