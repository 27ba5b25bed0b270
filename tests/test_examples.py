"""The three example scripts: run as a user runs them, from a folder that is not the repository."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import resnet50, vgg16

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_example(name, folder, *settings):
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *settings],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_lenet_script_leaves_its_two_files(mnist, tmp_path):
    said = run_example("LeNet5.py", tmp_path, "epochs=1", "limit=500")
    assert said.startswith("epoch 1: loss ")
    assert {path.name for path in tmp_path.iterdir()} == {"lenet5_mnist.pth", "lenet5_mnist.png"}


@pytest.mark.slow
def test_the_lenet_script_trains_what_the_command_trains(mnist, tmp_path):
    """Same recipe, same seed: the parts put together by hand give the same weights."""
    run_example("LeNet5.py", tmp_path, "epochs=1", "limit=500")
    words = ["train", "lenet5", "--epochs", "1", "--limit", "500", "--out", "run"]
    subprocess.run(
        [sys.executable, "-m", "heptad", *words], cwd=tmp_path, check=True, capture_output=True
    )
    by_hand, by_command = (
        torch.load(path, weights_only=True)
        for path in (tmp_path / "lenet5_mnist.pth", tmp_path / "run" / "lenet5_mnist.pth")
    )
    assert all(torch.equal(by_hand[name], by_command[name]) for name in by_command)


@pytest.mark.slow
def test_the_vgg_script_leaves_its_three_files_at_full_size(mnist, tmp_path):
    torch.manual_seed(0)
    torch.save(vgg16().state_dict(), tmp_path / "made.pth")
    settings = ["epochs=2", "limit=32", "batch_size=16", "weights=made.pth"]
    run_example("vgg.py", tmp_path, *settings)
    assert {path.name for path in tmp_path.iterdir()} == {
        "made.pth",
        "vgg16_mnist.pth",
        "vgg16_training_stats.json",
        "vgg16_mnist.png",
    }
    stats = json.loads((tmp_path / "vgg16_training_stats.json").read_text())
    assert len(stats["step_losses"]) == 4
    plain = vgg16(init_weights=False)
    plain.classifier[6] = nn.Linear(4096, 10)
    trained = torch.load(tmp_path / "vgg16_mnist.pth", weights_only=True)
    plain.load_state_dict(trained, strict=True)
    made = torch.load(tmp_path / "made.pth", weights_only=True)
    changed = {name for name in made if not torch.equal(made[name], trained[name])}
    assert changed == {"classifier.6.weight", "classifier.6.bias"}


@pytest.mark.slow
def test_the_resnet_script_leaves_its_three_files_at_full_size(mnist, tmp_path):
    torch.manual_seed(0)
    torch.save(resnet50().state_dict(), tmp_path / "made.pth")
    run_example("ResNet50.py", tmp_path, "epochs=2", "limit=200", "weights=made.pth")
    assert {path.name for path in tmp_path.iterdir()} == {
        "made.pth",
        "resnet50_mnist.pth",
        "metrics.pkl",
        "resnet50_mnist.png",
    }
    stats = pickle.loads((tmp_path / "metrics.pkl").read_bytes())
    assert len(stats["test_accuracies"]) == 2
    plain = resnet50()
    plain.fc = nn.Linear(2048, 10)
    trained = torch.load(tmp_path / "resnet50_mnist.pth", weights_only=True)
    plain.load_state_dict(trained, strict=True)
