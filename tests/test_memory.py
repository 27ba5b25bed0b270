"""Anonymous memory of whole runs, watched from outside while they work."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet50, vgg16

from conftest import write_first_digits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="read from Linux's /proc"),
]


def peak_anonymous_gb(words, folder) -> float:
    """Run Python with `words`; give the most anonymous memory that it was seen to hold, in GB."""
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    peak_kb = 0
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        found = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
        peak_kb = max(peak_kb, *found, 0)
        time.sleep(0.01)
    assert process.returncode == 0, process.stderr.read()
    process.stderr.close()
    print(f"peak anonymous memory of {words[-4:]}: {peak_kb / 1e6:.2f} GB")
    return peak_kb / 1e6


def test_lenet5_on_all_of_mnist_stays_under_1_2_gb_first_run_included(tmp_path, monkeypatch):
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "empty"))
    assert peak_anonymous_gb(["-m", "heptad", "train", "lenet5", "--epochs", "1"], tmp_path) < 1.2


TAKE_BATCHES = """
import sys, torch, heptad
from torch.nn.functional import cross_entropy
from heptad.stages.data import open_sources, ordered_batches, training_batches
from heptad.stages.evaluation import evaluate
recipe = heptad.load_recipe("vgg16")
sources = open_sources(recipe, device=torch.device("cpu"), memory=int(sys.argv[1]))
for batch, _ in zip(training_batches(sources.train, recipe), range(20)):
    assert batch.inputs.shape == (64, 3, 224, 224)
network = torch.nn.Sequential(torch.nn.AvgPool2d(56), torch.nn.Flatten())
scores = evaluate(network, ordered_batches(sources.test, recipe), cross_entropy)
assert scores.num_images == 10_000
"""


@pytest.mark.timeout(600)
def test_memory_does_not_grow_with_the_size_that_images_are_resized_to(mnist, tmp_path):
    """All of MNIST at 224 pixels would take 3.5 GB; the control lets it.

    Once, each batch of an evaluation cost 13 MB: its logits were cut out of freed inputs.
    """
    by_default, all_kept = (
        peak_anonymous_gb(["-c", TAKE_BATCHES, memory], tmp_path)
        for memory in ("512000000", "8000000000")
    )
    assert by_default < 1.2
    assert all_kept > 3.5


def test_a_frozen_resnet50_stays_under_1_5_gb_its_pass_included(mnist, tmp_path):
    torch.manual_seed(0)
    torch.save(resnet50().state_dict(), tmp_path / "made.pth")
    words = ["-m", "heptad", "train", "resnet50", "--weights", "made.pth"]
    assert peak_anonymous_gb([*words, "--limit", "1000"], tmp_path) < 1.5


# The pass takes minutes.
@pytest.mark.timeout(1500)
def test_vgg16_on_a_thousand_images_stays_under_3_gb(mnist, tmp_path):
    torch.manual_seed(0)
    torch.save(vgg16(init_weights=False).state_dict(), tmp_path / "made.pth")
    # Two threads take no more memory, and beside another test far longer: they wait for each other.
    words = ["-m", "heptad", "train", "vgg16", "--weights", "made.pth", "--threads", "1"]
    digits = write_first_digits(tmp_path / "digits", mnist, num_train=1000, num_test=100)
    words += ["--data", str(digits), "--epochs", "1"]
    assert peak_anonymous_gb(words, tmp_path) < 3.0
