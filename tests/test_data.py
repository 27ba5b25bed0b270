"""Stage 2: pixels equal to torchvision's, orders that follow the seed, folders of IDX files."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

import heptad
from conftest import write_idx
from heptad.datasets.dataset import find_dataset
from heptad.distributed import Ranks
from heptad.errors import DataError, RecipeError
from heptad.records import Position
from heptad.stages.data import (
    epoch_order,
    open_sources,
    ordered_batches,
    stratified_sample,
    training_batches,
)
from heptad.transform import make_transform

CPU = torch.device("cpu")


def as_torchvision_sees(images, *, size, channels, mean, deviation):
    """The transforms of the plain scripts, on PIL images one by one."""
    steps = [transforms.Resize((size, size))]
    if channels == 3:
        steps.append(transforms.Grayscale(num_output_channels=3))
    steps += [transforms.ToTensor(), transforms.Normalize((mean,), (deviation,))]
    transform = transforms.Compose(steps)
    return torch.stack([transform(Image.fromarray(image)) for image in images])


@pytest.mark.parametrize("memory", [0, 10**9], ids=["batch by batch", "resized once"])
@pytest.mark.parametrize("name", ["lenet5", "resnet50", "vgg16"])
def test_inputs_are_those_of_torchvision_to_the_bit(name, memory, digits, mnist):
    recipe = heptad.load_recipe(name, data=str(digits), limit=100)
    source = open_sources(recipe, device=CPU, memory=memory).test
    expected = as_torchvision_sees(
        mnist["test"][0][source.ids.numpy()][:, 0],
        size=recipe.image_size,
        channels=recipe.channels,
        mean=recipe.mean,
        deviation=recipe.deviation,
    )
    assert torch.equal(source.take(torch.arange(100), None), expected)


PIXELS_WITHOUT_AVX = """
import sys, numpy as np, torch
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor, resize
from heptad.transform import Transform
assert torch.backends.cpu.get_cpu_capability() == "DEFAULT"
images = np.load(sys.argv[1])
for size in (32, 64, 224):
    ours = Transform(size, 1, (0.5,), (0.5,)).to_size(torch.from_numpy(images))
    for image, pixels in zip(images, ours):
        assert torch.equal(pil_to_tensor(resize(Image.fromarray(image[0]), [size, size])), pixels)
print("equal")
"""


@pytest.mark.slow
def test_pixels_are_those_of_pillow_without_vector_instructions_too(mnist, tmp_path):
    np.save(tmp_path / "images.npy", mnist["test"][0][:200])
    done = subprocess.run(
        [sys.executable, "-c", PIXELS_WITHOUT_AVX, str(tmp_path / "images.npy")],
        env={**os.environ, "ATEN_CPU_CAPABILITY": "default"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "equal\n", done.stderr


@pytest.mark.slow
def test_mean_and_deviation_of_the_catalog_are_those_of_the_training_pixels(mnist):
    pixels = mnist["train"][0] / 255
    entry = heptad.CATALOG["mnist"]
    assert (round(pixels.mean(), 4), round(pixels.std(), 4)) == (entry.mean, entry.deviation)


def test_normalize_data_measures_a_folder(digits, mnist):
    recipe = heptad.load_recipe("lenet5", data=str(digits), normalize="data")
    transform = make_transform(recipe, find_dataset(str(digits)))
    pixels = mnist["train"][0][:512] / 255
    assert transform.mean == pytest.approx((pixels.mean(),), rel=1e-12)
    assert transform.deviation == pytest.approx((pixels.std(),), rel=1e-12)


def test_normalize_weights_takes_the_preset_of_torchvision(digits, mnist):
    recipe = heptad.load_recipe("resnet50", data=str(digits), normalize="weights", limit=20)
    source = open_sources(recipe, device=CPU).test
    plain = transforms.Compose(
        [
            transforms.Resize((64, 64)),
            transforms.Grayscale(3),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )
    images = mnist["test"][0][source.ids.numpy()][:, 0]
    expected = torch.stack([plain(Image.fromarray(image)) for image in images])
    assert torch.equal(source.take(torch.arange(20), None), expected)


def test_normalize_weights_without_a_preset_is_refused(digits):
    recipe = heptad.load_recipe("lenet5", data=str(digits), normalize="weights")
    with pytest.raises(RecipeError, match="has no preset"):
        open_sources(recipe, device=CPU)


def test_packed_and_plain_files_give_the_same_images(digits, mnist, tmp_path):
    for part, count in (("train", 512), ("test", 200)):
        images, labels = mnist[part]
        write_idx(tmp_path / "packed", part, images[:count, 0], labels[:count], packed=True)
    recipe = heptad.load_recipe("lenet5")
    plain, packed = (
        open_sources(recipe.changed(data=str(folder)), device=CPU)
        for folder in (digits, tmp_path / "packed")
    )
    assert torch.equal(plain.train.images, packed.train.images)
    assert torch.equal(plain.test.labels, packed.test.labels)


def test_a_sample_has_every_class_by_its_share_and_depends_on_the_seed_alone():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    shuffled = np.random.default_rng(0).permutation(labels)
    chosen = stratified_sample(shuffled, 50, seed=1)
    assert np.bincount(shuffled[chosen]).tolist() == [30, 15, 5]
    assert chosen.tolist() == stratified_sample(shuffled, 50, seed=1).tolist()
    assert chosen.tolist() != stratified_sample(shuffled, 50, seed=2).tolist()
    assert len(set(chosen.tolist())) == 50


@pytest.mark.parametrize("count", [1, 2, 7, 999, 1000])
def test_a_sample_has_exactly_as_many_images_as_asked(count):
    labels = np.arange(1000) % 7
    assert len(stratified_sample(labels, count, seed=0)) == count


def test_an_epoch_has_every_image_once_in_an_order_of_its_own():
    first, second = (epoch_order(1000, seed=0, epoch=epoch) for epoch in (0, 1))
    assert sorted(first.tolist()) == list(range(1000))
    assert not torch.equal(first, second)
    assert torch.equal(first, epoch_order(1000, seed=0, epoch=0))
    assert not torch.equal(first, epoch_order(1000, seed=1, epoch=0))


def test_batches_go_on_from_a_position_as_if_never_stopped(digits):
    recipe = heptad.load_recipe("lenet5", data=str(digits), batch_size=100)
    source = open_sources(recipe, device=CPU).train
    whole = list(training_batches(source, recipe, Position(3)))
    rest = list(training_batches(source, recipe, Position(3, 200)))
    assert [len(batch.labels) for batch in whole] == [100, 100, 100, 100, 100, 12]
    for expected, batch in zip(whole[2:], rest, strict=True):
        assert torch.equal(expected.ids, batch.ids)
        assert torch.equal(expected.inputs, batch.inputs)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_share_each_batch_between_them(digits, world_size):
    recipe = heptad.load_recipe("lenet5", data=str(digits), batch_size=150)
    source = open_sources(recipe, device=CPU).train
    alone = list(training_batches(source, recipe))
    parts = [
        list(training_batches(source, recipe, ranks=Ranks(rank, world_size)))
        for rank in range(world_size)
    ]
    for whole, *shares in zip(alone, *parts, strict=True):
        ids = torch.cat([share.ids for share in shares])
        assert sorted(ids.tolist()) == sorted(whole.ids.tolist())
        assert {share.num_global for share in shares} == {len(whole.ids)}


def test_ordered_batches_keep_the_order_of_the_data_set(digits, mnist):
    recipe = heptad.load_recipe("lenet5", data=str(digits))
    batches = list(ordered_batches(open_sources(recipe, device=CPU).test, recipe))
    assert torch.cat([batch.ids for batch in batches]).tolist() == list(range(200))
    labels = torch.cat([batch.labels for batch in batches]).numpy()
    assert (labels == mnist["test"][1][:200]).all()


def test_two_sets_in_one_folder_are_refused(digits, tmp_path):
    images, labels = np.zeros((2, 28, 28)), np.zeros(2)
    for part in ("train", "test"):
        write_idx(tmp_path, part, images, labels)
    (tmp_path / "emnist-train-images-idx3-ubyte").write_bytes(b"")
    with pytest.raises(DataError, match="two sets"):
        find_dataset(str(tmp_path))
