"""Start weights: known files verified and fetched, files of one's own, and what is refused.

No ImageNet weights can be had everywhere, so the tests make state dicts of the right names and
shapes with random values, and take them through the real path: files, and a server.
"""

from __future__ import annotations

import dataclasses
import logging
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import ResNet50_Weights, VGG16_Weights, resnet50, vgg16

import heptad
from conftest import SpoilingHandler, serving
from heptad.architectures import ARCHITECTURES
from heptad.architectures.pretrained import WeightsFile, ensure_weights
from heptad.errors import MissingError, WeightsError
from heptad.files import sha256_of
from heptad.stages.model import build_model

CPU = torch.device("cpu")
RESNET = heptad.load_recipe("resnet50")


@pytest.fixture(scope="module")
def made():
    """A state dict like the one torchvision publishes, but random: 1000 classes."""
    torch.manual_seed(0)
    return resnet50().state_dict()


@pytest.fixture(scope="module")
def published(made, tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    torch.save(made, folder / "made-resnet50.pth")
    return folder


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def weights_file(published, address, **changes):
    path = published / "made-resnet50.pth"
    known = WeightsFile(
        name=path.name,
        url=address + path.name,
        num_bytes=path.stat().st_size,
        sha256=sha256_of(path),
        mean=(0.5,),
        deviation=(0.5,),
    )
    return dataclasses.replace(known, **changes)


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def build(recipe, num_classes=10):
    return build_model(recipe, num_classes=num_classes, device=CPU)


def same_but(network, state, prefix):
    ours = network.state_dict()
    return all(torch.equal(ours[k], v) for k, v in state.items() if not k.startswith(prefix))


def test_the_table_of_files_agrees_with_torchvision():
    """The enum's own address and preset, and the eight digits in its file's name."""
    for name, enum in (("vgg16", VGG16_Weights), ("resnet50", ResNet50_Weights)):
        known = ARCHITECTURES[name].weights
        assert next(iter(known)) == enum.DEFAULT.name
        for key, file in known.items():
            assert file.url == enum[key].url
            assert file.name == f"{name}-{file.sha256[:8]}.pth"
            preset = enum[key].transforms()
            assert (file.mean, file.deviation) == (tuple(preset.mean), tuple(preset.std))


def test_known_weights_are_fetched_verified_and_loaded_under_a_new_last_layer(
    published, made, own_cache, monkeypatch
):
    with serving(published) as address:
        known = weights_file(published, address)
        entry = dataclasses.replace(ARCHITECTURES["resnet50"], weights={"MADE": known})
        monkeypatch.setitem(ARCHITECTURES, "resnet50", entry)
        model = build(RESNET)
    assert same_but(model.network, made, "fc.")
    assert model.network.fc.out_features == 10
    assert model.start == {"name": "MADE", "sha256": known.sha256, "last_layer": "new"}
    # A second time without a server: the cache has it.
    assert same_but(build(RESNET).network, made, "fc.")


def test_weights_in_the_cache_of_torchvision_are_found(published, own_cache):
    known = weights_file(published, "http://127.0.0.1:9/")
    place = own_cache / "torch" / "hub" / "checkpoints" / known.name
    place.parent.mkdir(parents=True)
    place.write_bytes((published / known.name).read_bytes())
    assert ensure_weights(known) == (place, known.sha256)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        lambda content: content + b"\0",
    ],
    ids=["cut short", "a bit flipped", "too long"],
)
def test_a_bad_download_is_never_used_and_leaves_nothing_behind(
    published, own_cache, monkeypatch, spoil
):
    monkeypatch.setattr(SpoilingHandler, "spoil", staticmethod(spoil))
    with serving(published, SpoilingHandler) as address:
        known = weights_file(published, address)
        with pytest.raises(MissingError, match="could not be fetched") as raised:
            ensure_weights(known)
    assert files_in(own_cache) == [".lock"]
    assert known.sha256 in raised.value.hint
    assert str(own_cache / "home" / "weights") in raised.value.hint


def test_a_damaged_file_of_the_cache_is_set_aside_and_fetched_again(published, own_cache, caplog):
    place = own_cache / "home" / "weights" / "made-resnet50.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"damaged")
    with serving(published) as address, caplog.at_level(logging.WARNING, logger="heptad"):
        known = weights_file(published, address)
        assert ensure_weights(known) == (place, known.sha256)
    assert place.with_name(place.name + ".damaged").read_bytes() == b"damaged"
    assert str(place) in caplog.text


def test_an_unconfirmed_hash_binds_by_eight_digits_and_size_and_says_so(
    published, own_cache, caplog
):
    with serving(published) as address, caplog.at_level(logging.WARNING, logger="heptad"):
        true = weights_file(published, address)
        noted = true.sha256[:8] + "0" * 56
        with pytest.raises(MissingError):
            ensure_weights(dataclasses.replace(true, sha256=noted))
        unconfirmed = dataclasses.replace(true, sha256=noted, is_confirmed=False)
        assert ensure_weights(unconfirmed)[1] == true.sha256
    assert noted in caplog.text
    assert true.sha256 in caplog.text


def test_without_network_known_weights_are_missing_and_none_is_not_taken_instead(own_cache):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("https_proxy", "http://127.0.0.1:9")
        with pytest.raises(MissingError, match=r"resnet50-11ad3fa6\.pth") as raised:
            build(RESNET)
    assert "102,540,417 bytes" in raised.value.hint


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_ones_own_is_loaded(made, tmp_path, suffix):
    path = tmp_path / f"mine{suffix}"
    if suffix == ".pth":
        torch.save(made, path)
    else:
        save_file(made, path)
    model = build(RESNET.changed(weights=str(path)))
    assert same_but(model.network, made, "fc.")
    assert model.start == {"name": path.name, "sha256": sha256_of(path), "last_layer": "new"}


def test_the_last_layer_of_a_file_is_kept_where_it_fits(made, tmp_path):
    state = made | {"fc.weight": torch.randn(10, 2048), "fc.bias": torch.randn(10)}
    torch.save(state, tmp_path / "ten.pth")
    model = build(RESNET.changed(weights=str(tmp_path / "ten.pth")))
    assert same_but(model.network, state, "nothing is left out")
    assert model.start["last_layer"] == "kept"


def test_half_precision_files_are_read_as_float32(made, tmp_path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in made.items()}
    torch.save(half, tmp_path / "half.pth")
    network = build(RESNET.changed(weights=str(tmp_path / "half.pth"))).network
    assert network.conv1.weight.dtype == torch.float32
    assert torch.equal(network.conv1.weight, made["conv1.weight"].half().float())


@pytest.mark.slow
def test_a_new_last_layer_depends_on_the_seed_alone(made, tmp_path):
    torch.save(made, tmp_path / "made.pth")
    recipe = RESNET.changed(weights=str(tmp_path / "made.pth"))
    first = build(recipe)
    torch.rand(5)
    again, other = build(recipe), build(recipe.changed(seed=1))
    assert torch.equal(first.network.fc.weight, again.network.fc.weight)
    assert not torch.equal(first.network.fc.weight, other.network.fc.weight)


def test_random_weights_are_said_to_be_random():
    assert build(RESNET.changed(weights="none")).start["name"] == "none"


def test_files_without_batch_counters_load_as_torchvision_loads_them(made, tmp_path):
    old = {k: v for k, v in made.items() if not k.endswith("num_batches_tracked")}
    torch.save(old, tmp_path / "old.pth")
    network = build(RESNET.changed(weights=str(tmp_path / "old.pth"))).network
    assert network.bn1.num_batches_tracked == 0


def test_the_weights_of_another_network_are_refused_with_a_table(tmp_path):
    torch.save(vgg16(init_weights=False, num_classes=10).features.state_dict(), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="another network than resnet50") as raised:
        build(RESNET.changed(weights=str(tmp_path / "x.pth")))
    assert "0.bias: in the file (64,), in the network none such" in raised.value.hint
    assert "more" in raised.value.hint


def test_one_wrong_shape_is_named(made, tmp_path):
    torch.save(made | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, tmp_path / "gray.pth")
    with pytest.raises(WeightsError, match="1 names or shapes differ") as raised:
        build(RESNET.changed(weights=str(tmp_path / "gray.pth")))
    assert "conv1.weight: in the file (64, 1, 7, 7), in the network (64, 3, 7, 7)" in (
        raised.value.hint
    )


def test_values_that_are_not_finite_are_refused(made, tmp_path):
    spoiled = made | {"layer1.0.conv1.weight": made["layer1.0.conv1.weight"] * float("nan")}
    torch.save(spoiled, tmp_path / "nan.pth")
    with pytest.raises(WeightsError, match=r"layer1\.0\.conv1\.weight holds values that are not"):
        build(RESNET.changed(weights=str(tmp_path / "nan.pth")))


class Touching:
    """A pickle that makes a file when it is loaded carelessly."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_a_hostile_pickle_is_refused_and_nothing_in_it_runs(tmp_path, suffix, monkeypatch):
    # Set by some to make old files load; it must not reach our calls.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "marker"
    path = tmp_path / f"hostile{suffix}"
    if suffix == ".pt":
        path.write_bytes(pickle.dumps({"conv1.weight": Touching(marker)}))
    else:
        torch.save({"conv1.weight": Touching(marker)}, path)
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        build(RESNET.changed(weights=str(path)))
    assert not marker.exists()


def test_the_hostile_pickle_would_run_if_it_were_loaded_carelessly(tmp_path):
    """A control for the test above."""
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(Touching(marker))).close()
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as weights"),
        (b"not a pickle at all", "cannot be read as weights"),
        ({"epoch": 3, "state_dict": {}}, "no plain state dict: it holds epoch, state_dict"),
        ([1, 2], "no plain state dict"),
    ],
    ids=["empty", "text", "a checkpoint", "a list"],
)
def test_a_file_that_is_no_state_dict_is_refused(tmp_path, content, message):
    path = tmp_path / "bad.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(WeightsError, match=message):
        build(RESNET.changed(weights=str(path)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("IMAGENET1K_V3", "Did you mean 'IMAGENET1K_V2'"),
        ("defualt", "Did you mean 'default'"),
        ("nowhere.pth", "there is no weights file 'nowhere.pth'"),
    ],
)
def test_unknown_weights_are_named(name, message):
    with pytest.raises(WeightsError) as raised:
        build(RESNET.changed(weights=name))
    assert message in raised.value.message


def test_a_network_without_pretrained_weights_says_what_it_takes():
    with pytest.raises(WeightsError, match="lenet5 has no weights 'default'"):
        build(heptad.load_recipe("lenet5", weights="default"))
