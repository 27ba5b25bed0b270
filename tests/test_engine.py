"""The rewritten trunk gives what the trunk gives, whatever it is made of; and which one is used."""

from __future__ import annotations

import copy
import json
import logging
import platform
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d
from torchvision.models import mobilenet_v3_small, resnet18, resnet50, vgg11_bn, vgg16

import heptad
from heptad.cycle import preparing
from heptad.errors import RecipeError
from heptad.features.engine import filled, quickened, rewritten
from heptad.features.trunk import engine_of
from heptad.features.winograd import as_products, num_tiles_at_a_time, winograd
from heptad.recipe import RunOptions
from heptad.records import PassReport


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def with_real_statistics(network: nn.Module, size: int) -> nn.Module:
    """Give BatchNorm statistics of some images; those of a new network are zeros and ones."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(drawn(8, 3, size, size, seed=3))
    return network.eval()


def by_winograd(images, weight, bias=None, *, batch_size=3, rectifies=False):
    """Convolve images [N, C, H, W], which need not be as many as the batch that is planned for."""
    convolution = nn.Conv2d(*weight.shape[1::-1], 3, padding=1, bias=bias is not None)
    convolution.weight = nn.Parameter(weight)
    if bias is not None:
        convolution.bias = nn.Parameter(bias)
    products = as_products(convolution)
    num_tiles = num_tiles_at_a_time(batch_size, *images.shape[2:])

    def checked(tiles):
        assert tiles.shape == (1, 36 * images.shape[1], num_tiles, 1)
        return products(tiles)

    laid = images.permute(0, 2, 3, 1).contiguous()
    with torch.inference_mode():
        found = winograd(
            laid, checked, num_outputs=len(weight), batch_size=batch_size, rectifies=rectifies
        )
    return found.permute(0, 3, 1, 2)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize(
    "size", [(1, 1), (2, 3), (4, 4), (5, 9), (8, 8), (13, 6), (57, 58), (3, 1100)], ids=str
)
def test_winograds_convolution_is_the_direct_one(size, batch_size):
    images, weight, bias = drawn(3, 7, *size), drawn(5, 7, 3, 3, seed=1), drawn(5, seed=2)
    images, weight, bias = images.double(), weight.double(), bias.double()
    expected = conv2d(images, weight, bias, padding=1)
    found = by_winograd(images, weight, bias, batch_size=batch_size)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    found = by_winograd(images, weight, bias, batch_size=batch_size, rectifies=True)
    torch.testing.assert_close(found, expected.relu(), rtol=0, atol=1e-11)


@pytest.mark.parametrize("num_channels", [257, 258, 1024])
def test_winograds_sums_over_many_channels_are_whole(num_channels):
    images, weight = drawn(2, num_channels, 5, 6), drawn(4, num_channels, 3, 3, seed=1)
    images, weight, bias = images.double(), weight.double(), drawn(4, seed=2).double()
    found = by_winograd(images, weight, bias)
    expected = conv2d(images, weight, bias, padding=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_winograds_rounding_is_within_24_units_of_float32():
    """With the customary points 0, 1, -1, 2, -2 it is about 33."""
    images, weight = drawn(4, 128, 16, 16).relu(), drawn(128, 128, 3, 3, seed=1)
    exact = conv2d(images.double(), weight.double(), padding=1)
    error = (by_winograd(images, weight) - exact).square().mean().sqrt()
    assert error / exact.square().mean().sqrt() < 24 * 2**-24


class Odd(nn.Module):
    """What torchvision lacks: shared layers, odd paddings, a layer read twice, one of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 128, 3, padding="same")
        self.shared = nn.Conv2d(128, 128, 3, padding=1)
        self.norm_1, self.norm_2 = nn.BatchNorm2d(128), nn.BatchNorm2d(128, affine=False)
        self.uneven = nn.Conv2d(128, 128, (3, 1), padding=(1, 0), groups=2)
        self.wide = nn.Conv2d(128, 128, 3, padding=2, dilation=2, padding_mode="reflect")
        self.last = nn.Conv2d(128, 128, 5, stride=3, padding=1, bias=False)
        self.everywhere = nn.Linear(128, 128, bias=False)

    def forward(self, images):
        found = self.norm_1(self.shared(self.first(images)))
        found = found + self.norm_2(self.shared(found))
        uneven = self.uneven(found)
        both = uneven + self.norm_1(uneven)
        pixels = self.last(self.wide(both)).relu().permute(0, 2, 3, 1)
        return self.everywhere(pixels).flatten(1)


class Sums(nn.Module):
    """Sums that a convolution cannot take in, or not where they stand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.skip = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.body, self.last = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.mark, self.pool = nn.Conv2d(16, 16, 1), nn.AdaptiveAvgPool2d(1)
        self.relu, self.drop = nn.ReLU(inplace=True), nn.Dropout()
        self.template = nn.Parameter(drawn(1, 16, 12, 12))

    def forward(self, images):
        before = self.stem(images)
        skipped = self.skip(before)
        # Overwrites what `skip` has seen.
        found = self.body(self.relu(before)) + skipped
        # Adds a number, what has one row for all images, and what is smaller.
        found = self.last(found) + found.size(1)
        found = self.mark(self.template) + found
        # Dropout gives what it was given, which is still needed.
        raised = self.drop(found) + 1.0
        return (self.pool(found) + found + raised).flatten(1)


class FewPixels(nn.Module):
    """Convolutions that make few pixels of an image, of all that they see or of parts of it."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.Conv2d(3, 16, (3, 2), stride=(2, 3), padding=(0, 1))  # 9 x 8 -> 4 x 3
        self.skip = nn.Conv2d(16, 24, 1, stride=2)  # -> 2 x 2
        self.body = nn.Conv2d(16, 24, 3, stride=(1, 2), padding=(0, 1), bias=False)  # -> 2 x 2
        self.norm, self.relu = nn.BatchNorm2d(24), nn.ReLU(inplace=True)
        self.all_seen = nn.Conv2d(24, 24, 3, padding=1)
        self.uneven = nn.Conv2d(24, 40, (2, 3), stride=(3, 1), padding=(1, 2))  # -> 1 x 4
        self.last = nn.Conv2d(40, 9, (1, 4))

    def forward(self, images):
        found = self.parts(images[..., :8]).relu()
        found = self.relu(self.norm(self.body(found)) + self.skip(found))
        found = self.relu(self.all_seen(found) + found)
        return self.last(self.relu(self.uneven(found))).flatten(1)


# What builds each, the side of its images in pixels, and how many it is to see at a time.
NETWORKS = {
    "resnet50, a few images": (resnet50, 64, 2),
    "resnet50, many": (resnet50, 64, 64),
    "resnet18, 97 px": (resnet18, 97, 16),
    "vgg16": (lambda: vgg16().features, 48, 64),
    "vgg11_bn": (lambda: vgg11_bn().features, 64, 2),
    "mobilenet": (lambda: mobilenet_v3_small().features, 64, 16),
    "odd": (Odd, 12, 2),
    "sums": (Sums, 12, 2),
    "few pixels": (FewPixels, 9, 2),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name.startswith("vgg") else name
        for name in NETWORKS
    ],
)
def test_a_rewritten_network_errs_about_as_the_network_itself_does(name):
    torch.manual_seed(0)
    build, size, batch_size = NETWORKS[name]
    network = with_real_statistics(build(), size)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    images = drawn(3, 3, size, size)
    with torch.inference_mode():
        exact = copy.deepcopy(network).double()(images.double())
        error = (network(images) - exact).abs().max()
        found = rewritten(network, images, batch_size=batch_size)(images)
    assert (found - exact).abs().max() < 5 * error
    # A control: what it would be taken for is not as near.
    assert (exact[0] - exact[1]).abs().max() > 1000 * error
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])
        assert value.stride() == before[key].stride()


def test_all_the_ways_are_taken_and_every_batchnorm_and_sum_is_gone():
    network = with_real_statistics(resnet50(), 64)
    module = rewritten(network, drawn(1, 3, 64, 64), batch_size=64)
    kinds = [type(each).__name__ for each in module.modules()]
    # Of the second stage's 3 x 3 kernels three keep the size, 8 x 8 pixels of 128 channels, of the
    # third stage's five, 4 x 4 of 256; of the last stage's 2 x 2 a tile would be mostly beyond.
    assert kinds.count("WinogradConvolution") == 8
    # All others that give 4 x 4 or 2 x 2 pixels: 19 - 1 - 5 of the third stage, and 10.
    assert kinds.count("ProductConvolution") == 13 + 10
    # The rest, and what multiplies in those.
    assert kinds.count("LaidConvolution") == 53 - 8 - 23 + 23
    assert not {"BatchNorm2d", "Conv2d"} & {*kinds}
    called = [str(node.target) for node in module.graph.nodes if node.op == "call_module"]
    assert not any(".relu" in name for name in called)
    assert not [
        node for node in module.graph.nodes if node.op == "call_function" and "add" in str(node)
    ]


def test_without_onednn_convolutions_stay_pytorchs_own(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    network = with_real_statistics(resnet18(), 64)
    images = drawn(3, 3, 64, 64)
    with torch.inference_mode():
        module = rewritten(network, images, batch_size=64)
        expected = network(images)
        assert (module(images) - expected).abs().max() < 1e-5 * expected.abs().max()
    kinds = {type(each).__name__ for each in module.modules()}
    assert "Conv2d" in kinds
    assert not {"LaidConvolution", "BatchNorm2d"} & kinds


def linear_kinds(head: nn.Module) -> list[str]:
    names = [type(each).__name__ for each in head.modules()]
    return [name for name in names if name.endswith("Linear")]


def test_frozen_linear_layers_of_a_head_are_onednns_up_to_the_first_that_is_trained():
    frozen, trained, after = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
    for layer in (frozen, after):
        layer.requires_grad_(False)
    head = nn.Sequential(nn.Dropout(), frozen, nn.ReLU(), nn.Dropout(), trained, after)
    quick = quickened(head)
    assert linear_kinds(quick) == ["OneDnnLinear", "Linear", "Linear"]
    rows, gradients = drawn(5, 8), []
    for each in (head, quick):
        torch.manual_seed(0)
        head.zero_grad()
        answers = each.train()(rows)
        answers.square().sum().backward()
        gradients.append(torch.cat([answers.detach().flatten(), trained.weight.grad.flatten()]))
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-6)
    assert gradients[0].abs().max() > 0.1
    assert linear_kinds(head) == ["Linear"] * 3


def test_a_quickened_head_keeps_no_second_copy_of_its_weights():
    layer = nn.Linear(8, 8).requires_grad_(False)
    quick = quickened(nn.Sequential(layer, nn.Linear(8, 2)))
    rows = drawn(5, 8)
    before = quick(rows)
    layer.weight.zero_()
    assert not torch.equal(quick(rows), before)


class Doubling(nn.Sequential):
    def forward(self, rows):
        return 2 * super().forward(rows)


def frozen_and_trained(kind: type[nn.Sequential] = nn.Sequential) -> nn.Sequential:
    head = kind(nn.Linear(8, 8), nn.Linear(8, 2))
    head[0].requires_grad_(False)
    return head


@pytest.mark.parametrize(
    "head",
    [
        frozen_and_trained().double(),
        frozen_and_trained().to("meta"),
        frozen_and_trained(Doubling),
        nn.Sequential(nn.Linear(8, 2)),
        nn.Linear(8, 2),
    ],
    ids=["float64", "elsewhere", "a class of its own", "all trained", "no sequence"],
)
def test_a_head_that_onednn_cannot_serve_stays_as_it_is(head):
    assert quickened(head) is head


def test_without_onednn_a_head_stays_as_it_is(monkeypatch):
    head = frozen_and_trained()
    assert quickened(head) is not head
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert quickened(head) is head


@pytest.mark.parametrize("answer", [lambda rows: rows + 1, lambda rows: rows.no_such_operator()])
def test_a_head_whose_onednn_layer_errs_stays_as_it_is_and_that_is_said(
    answer, monkeypatch, caplog
):
    monkeypatch.setattr("heptad.features.engine.OneDnnLinear", lambda _: answer)
    head = frozen_and_trained()
    assert quickened(head) is head
    assert "the head runs as it is; oneDNN" in caplog.text


def test_the_head_of_vgg16_is_trained_with_its_frozen_layer_by_onednn(digits):
    words = {"weights": "none", "image_size": 32, "limit": 40, "data": str(digits)}

    def kinds(engine="auto", **more):
        recipe = heptad.load_recipe("vgg16", **words, **more)
        return linear_kinds(heptad.prepare(recipe, RunOptions(engine=engine)).model)

    assert kinds(precision="bfloat16") == kinds("eager") == ["Linear", "Linear"]
    # A resumed run has features too, and need not be told again what computed them.
    assert kinds() == ["Linear", "Linear"]
    assert kinds("rewritten", seed=1) == ["OneDnnLinear", "Linear"]
    assert kinds(seed=1) == ["OneDnnLinear", "Linear"]


def test_what_lacks_of_a_batch_is_filled_with_its_last_image():
    images = drawn(3, 3, 2, 2)
    assert torch.equal(filled(images, 5), images[[0, 1, 2, 2, 2]])
    assert torch.equal(filled(images, 3), images)
    assert torch.equal(filled(images, 2), images)


def test_images_are_one_product_where_a_convolution_gives_few_pixels_of_each():
    network = nn.Sequential(nn.Conv2d(64, 64, 1, stride=2))
    kinds = {
        side: {type(each).__name__ for each in rewritten(network, images, batch_size=32).modules()}
        for side, images in ((side, drawn(1, 64, side, side)) for side in (1, 4, 8, 16))
    }
    assert {side for side in kinds if "ProductConvolution" in kinds[side]} == {1, 4, 8}


def test_winograds_way_is_not_taken_where_tiles_are_mostly_beyond_the_edge():
    network = nn.Sequential(nn.Conv2d(512, 512, 3, padding=1))
    kinds = {
        side: {type(each).__name__ for each in rewritten(network, images, batch_size=100).modules()}
        for side, images in ((side, drawn(1, 512, side, side)) for side in (2, 5, 7, 8))
    }
    assert {side for side in kinds if "WinogradConvolution" in kinds[side]} == {7, 8}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what else frees memory is unknown")
def test_a_pass_does_not_have_the_kernel_clear_the_same_memory_for_every_batch():
    # In a process of its own: what others have freed would serve here.
    command = [sys.executable, "-c", KEEPING_100_MB]
    figures = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    cleared_before, cleared_within, kept, kept_after = figures
    assert cleared_before == pytest.approx(100, rel=0.1)
    # The first ones may not fit where others were, if something small lies behind these.
    assert cleared_within < 4000 / 2
    assert 90 < kept < 4000 / 2
    assert kept_after < 10


# Megabytes that the kernel cleared for a tensor, before, and for forty within, one after the other;
# and that the process has more than before, within and after.
KEEPING_100_MB = """
import json, resource
from pathlib import Path
import torch
from heptad.features.memory import freed_memory_kept

def cleared():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(100 << 18)
    num_pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return num_pages * resource.getpagesize() / 2**20

def own():
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) / 2**10

figures = [cleared()]
before = own()
with freed_memory_kept():
    figures += [sum(cleared() for _ in range(40)), own() - before]
figures.append(own() - before)
print(json.dumps(figures))
"""


@pytest.fixture
def recipe(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return heptad.load_recipe(
        "resnet50", data=str(digits), weights="none", image_size=32, limit=20, epochs=1
    )


def features(recipe, engine):
    cycle = heptad.prepare(recipe, RunOptions(engine=engine))
    train = cycle.sources.train
    return engine_of(cycle.sources), train.take(torch.arange(len(train.labels)), None)


@pytest.mark.slow
def test_a_run_notes_the_engine_and_both_give_the_same_features(recipe, tmp_path, monkeypatch):
    used, expected = features(recipe, "eager")
    assert used == "eager"
    # What is kept serves, whatever computed it.
    assert features(recipe, "rewritten")[0] == "eager"
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "other"))
    used, found = features(recipe, "rewritten")
    assert used == "rewritten"
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    assert not torch.equal(found, expected)
    run = heptad.train(recipe, RunOptions(out="run"))
    assert json.loads((run.folder / "metrics.json").read_text())["execution"]["engine"] == used


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["eager", "rewritten"])
def test_batches_that_run_on_from_part_to_part_give_each_image_its_own_features(recipe, engine):
    # 20 images to train on and 12 to test with are one batch of 32, the other 8 the next.
    recipe = recipe.changed(image_size=128)
    plain = heptad.prepare(recipe, RunOptions(trunk="off"))
    cached = heptad.prepare(recipe, RunOptions(engine=engine))
    network = plain.whole.network.eval()
    network.fc = nn.Identity()
    for images, kept in zip(plain.sources.parts, cached.sources.parts, strict=True):
        every = torch.arange(20)
        with torch.no_grad():
            expected = network(images.take(every, None))
        found = kept.take(every, None)
        largest = expected.abs().max()
        assert (found - expected).abs().max() < 1e-5 * largest
        # A control: another image's would be told apart.
        assert (found.roll(1, 0) - expected).abs().max() > 1e-3 * largest


@pytest.mark.slow
def test_a_small_pass_is_not_worth_rewriting_unless_it_goes_on(recipe, tmp_path, monkeypatch):
    assert features(recipe, "auto")[0] == "eager"
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "other"))
    assert features(recipe, "rewritten")[0] == "rewritten"
    # 40 more images of the same store go on with what the first were computed by.
    assert features(recipe.changed(limit=40), "auto")[0] == "rewritten"


@pytest.mark.slow
def test_a_large_pass_is_rewritten_and_so_it_stays_when_it_is_interrupted(recipe):
    # 712 images of 64 px, after 40 that were too few to rewrite the network for.
    large = recipe.changed(limit=None, image_size=64)
    assert features(recipe.changed(image_size=64), "auto")[0] == "eager"
    making = preparing(large)
    reports = [next(making) for _ in range(6)]
    assert all(isinstance(report, PassReport) for report in reports)
    making.close()
    assert features(large, "auto")[0] == "eager, rewritten"


class Branching(nn.Sequential):
    """A layer that cannot be traced: it looks at its values."""

    def forward(self, images):
        return super().forward(images) if images.sum() > -1e30 else images


class Leaving(nn.Sequential):
    """A layer that rewriting gets wrong: it answers otherwise every time."""

    def forward(self, images):
        return super().forward(images) * torch.rand(())


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (Branching, r"fails \(TraceError"),
        pytest.param(Leaving, "differ by .* more than 1e-04", marks=pytest.mark.slow),
    ],
)
def test_a_network_that_cannot_be_rewritten_runs_as_it_is_and_that_is_said(
    recipe, layer, said, caplog
):
    network = heptad.prepare(recipe, RunOptions(trunk="off")).whole.network
    network.layer1 = layer(*network.layer1)
    # 2,100 images of 32 px would pay for a rewriting; so do few that are asked for by name.
    with pytest.raises(RecipeError, match=f"engine is rewritten, which cannot serve: it.*{said}"):
        heptad.prepare(recipe, RunOptions(engine="rewritten"), network=network)
    many = recipe.changed(limit=None, image_size=64)
    making = preparing(many, network=network)
    with caplog.at_level(logging.WARNING, logger="heptad"):
        assert isinstance(next(making), PassReport)
    making.close()
    assert "the trunk's pass runs the network as it is" in caplog.text
