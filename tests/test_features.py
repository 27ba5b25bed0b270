"""A frozen trunk costs one pass: the training of the plain loop, and nothing computed twice."""

from __future__ import annotations

import copy
import dataclasses
import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torchvision.models import resnet50

import heptad
from conftest import write_idx
from heptad.cli import main
from heptad.cycle import preparing, refuse_moved
from heptad.errors import DamagedError, MissingError, RecipeError, SaveError
from heptad.image_source import ImageSource
from heptad.recipe import RunOptions
from heptad.records import PassReport, Position
from heptad.stores import clear_stores, list_stores, make_room

PLAIN = RunOptions(trunk="off")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Weights that were made up, once: a ResNet50 of random values in a file."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "made.pth"
    torch.save(resnet50().state_dict(), path)
    return path


@pytest.fixture
def resnet(digits, made):
    return heptad.load_recipe(
        "resnet50", data=str(digits), weights=str(made), image_size=32, limit=60, batch_size=16
    )


@pytest.fixture
def vgg(digits):
    return heptad.load_recipe(
        "vgg16", data=str(digits), weights="none", image_size=32, limit=40, batch_size=16
    )


def computed(recipe, options=RunOptions(), **given):  # noqa: B008 - frozen
    """How many images passed the trunk to prepare this recipe."""
    return heptad.prepare(recipe, options, **given).num_computed


def losses_and_answers(recipe, options, network=None):
    cycle = heptad.prepare(recipe, options, network=copy.deepcopy(network))
    reports = list(heptad.epochs(cycle))
    refuse_moved(cycle)
    losses = [loss for report in reports for loss in report.step_losses]
    return cycle, losses, cycle.scores.predicted.tolist()


@pytest.mark.parametrize(
    ("batchnorm", "engine"),
    [
        ("frozen", "rewritten"),
        pytest.param("recalibrated", "eager", marks=pytest.mark.slow),
    ],
)
def test_a_cached_resnet_trains_as_the_plain_loop_does(resnet, own_cache, batchnorm, engine):
    recipe = resnet.changed(batchnorm=batchnorm, epochs=3)
    plain, plain_losses, plain_answers = losses_and_answers(recipe, PLAIN)
    options = RunOptions(engine=engine)
    cached, cached_losses, cached_answers = losses_and_answers(recipe, options)
    assert (plain.num_computed, cached.num_computed) == (0, 120)
    assert cached_losses == pytest.approx(plain_losses, rel=1e-5)
    assert cached_answers == plain_answers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frozen_dropout", "split"),
    [
        ("on", "after classifier.1"),
        ("off", "before classifier.6"),
    ],
)
def test_a_cached_vgg_trains_as_the_plain_loop_does(vgg, own_cache, frozen_dropout, split):
    """With Dropout on, both draw the same: before each step the place in the run seeds the draw."""
    recipe = vgg.changed(frozen_dropout=frozen_dropout, epochs=2)
    _, plain_losses, plain_answers = losses_and_answers(recipe, PLAIN)
    options = RunOptions(engine="rewritten")
    cached, cached_losses, cached_answers = losses_and_answers(recipe, options)
    assert cached.trunk == f"trunk that ends {split}"
    assert cached_losses == pytest.approx(plain_losses, rel=1e-5)
    assert cached_answers == plain_answers


def test_one_nudged_trunk_weight_is_seen_and_misses_the_cache(resnet, own_cache):
    """The control of the two tests above."""
    first, losses, _ = losses_and_answers(resnet, RunOptions())
    network = copy.deepcopy(first.whole.network)
    fresh = heptad.prepare(resnet).whole.network
    network.load_state_dict(fresh.state_dict())
    with torch.no_grad():
        network.layer1[0].conv1.weight[0, 0, 0, 0] += 0.5
    nudged, other_losses, _ = losses_and_answers(resnet, RunOptions(), network)
    assert nudged.num_computed == 120
    assert other_losses != pytest.approx(losses, rel=1e-5)


def test_a_second_run_computes_nothing_and_gives_the_same_weights(resnet, own_cache):
    first, losses, _ = losses_and_answers(resnet, RunOptions())
    second, again, _ = losses_and_answers(resnet, RunOptions())
    assert (first.num_computed, second.num_computed) == (120, 0)
    assert again == losses
    assert torch.equal(first.whole.network.fc.weight, second.whole.network.fc.weight)


@pytest.mark.parametrize(
    "settings",
    [
        {"mean": 0.4},
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in (
                {"weights": "none"},
                {"image_size": 64},
                {"normalize": "data"},
                {"batchnorm": "recalibrated"},
                {"feature_dtype": "float16"},
                {"precision": "float64"},
                {"weights": "none", "seed": 1},
            )
        ),
    ],
    ids=str,
)
def test_whatever_decides_a_feature_is_in_its_key(resnet, own_cache, settings):
    computed(resnet)
    assert computed(resnet.changed(**settings)) >= 100
    assert computed(resnet) == 0


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.1},
        *(
            pytest.param(each, marks=pytest.mark.slow)
            for each in ({"epochs": 9}, {"batch_size": 7}, {"name": "other"})
        ),
    ],
    ids=str,
)
def test_what_does_not_decide_a_feature_is_not_in_its_key(resnet, own_cache, settings):
    computed(resnet)
    assert computed(resnet.changed(**settings)) == 0


@pytest.mark.slow
def test_the_split_is_in_the_key(vgg, own_cache):
    computed(vgg)
    assert computed(vgg.changed(frozen_dropout="off")) == 80


def test_twenty_added_images_cost_twenty_rows(resnet, own_cache, mnist, tmp_path):
    def folder(name, count):
        images, labels = mnist["train"]
        write_idx(tmp_path / name, "train", images[:count, 0], labels[:count])
        images, labels = mnist["test"]
        write_idx(tmp_path / name, "test", images[:30, 0], labels[:30])
        return str(tmp_path / name)

    recipe = resnet.changed(limit=None)
    assert computed(recipe.changed(data=folder("few", 50))) == 80
    assert computed(recipe.changed(data=folder("more", 70))) == 20
    # Fewer, in another order: nothing but other lists of rows.
    assert computed(recipe.changed(data=folder("more", 70), limit=25, seed=3)) == 0


def test_the_same_picture_twice_is_one_row(resnet, own_cache, mnist, tmp_path):
    images, labels = mnist["train"]
    twice = np.concatenate([images[:20, 0]] * 2)
    write_idx(tmp_path / "twice", "train", twice, np.concatenate([labels[:20]] * 2))
    write_idx(tmp_path / "twice", "test", images[:20, 0], labels[:20])
    assert computed(resnet.changed(data=str(tmp_path / "twice"), limit=None)) == 20


def shards(cache):
    return sorted((cache / "features").glob("*/*.npy"))


def test_a_damaged_shard_is_named_and_computed_again(resnet, own_cache, caplog):
    first, losses, _ = losses_and_answers(resnet, RunOptions())
    del first
    (shard,) = shards(own_cache)
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    with caplog.at_level(logging.WARNING, logger="heptad"):
        second, again, _ = losses_and_answers(resnet, RunOptions())
    assert str(shard) in caplog.text
    assert second.num_computed == 120
    assert again == losses


@pytest.mark.slow
def test_an_interrupted_pass_goes_on_where_it_stopped(digits, made, own_cache):
    recipe = heptad.load_recipe("resnet50", data=str(digits), weights=str(made), image_size=64)
    # In batches of 128 images, first the 512 for training, then the 200 for the test.
    making = preparing(recipe)
    done = next(making)
    assert isinstance(done, PassReport)
    # What Ctrl-C does to whoever was asking.
    making.close()
    assert 0 < done.num_done < done.num_images == 712
    assert computed(recipe) == 712 - done.num_done


@pytest.mark.slow
def test_a_pass_that_is_killed_leaves_only_whole_shards(digits, made, own_cache, tmp_path):
    words = ["train", "resnet50", "--data", str(digits), "--weights", str(made), "--epochs", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "heptad", *words, "--out", str(tmp_path / "run")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not list(own_cache.glob("features/*/store.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    recipe = heptad.load_recipe("resnet50", data=str(digits), weights=str(made), epochs=1)
    assert computed(recipe) + sum(len(np.load(path)) for path in shards(own_cache)) >= 712
    assert computed(recipe) == 0


@pytest.mark.slow
def test_two_runs_that_want_the_same_rows_do_the_work_once(digits, made, own_cache, tmp_path):
    words = [sys.executable, "-m", "heptad", "train", "resnet50", "--data", str(digits)]
    words += ["--weights", str(made), "--image-size", "32", "--epochs", "1", "--json"]
    both = [
        subprocess.Popen(
            [*words, "--out", str(tmp_path / f"run{k}")], stdout=subprocess.PIPE, text=True
        )
        for k in range(2)
    ]
    documents = [json.loads(process.communicate()[0]) for process in both]
    assert sum(d["execution"]["computed_features"] for d in documents) == 712
    assert documents[0]["test_loss"] == documents[1]["test_loss"]


@pytest.mark.slow
def test_a_shared_cache_that_is_read_only_serves(resnet, own_cache, tmp_path):
    computed(resnet)
    for path in [*own_cache.rglob("*"), own_cache]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    drop = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps"]
    drop += ["-dac_override,-dac_read_search"]
    (tmp_path / "recipe.json").write_text(resnet.model_dump_json())
    done = subprocess.run(
        [
            *(drop if os.geteuid() == 0 else []),
            *(sys.executable, "-m", "heptad", "train", str(tmp_path / "recipe.json")),
            *("--epochs", "1", "--out", str(tmp_path / "run"), "--json"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    for path in [own_cache, *own_cache.rglob("*")]:
        path.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["execution"]["computed_features"] == 0


def test_a_full_disk_is_found_before_the_pass_with_the_bytes_needed(resnet, own_cache, monkeypatch):
    usage = type("Usage", (), {"free": 100_500_000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(SaveError, match=r"pass needs 986,880 bytes .* 100,500,000 are free"):
        heptad.prepare(resnet)
    assert not shards(own_cache)


@pytest.mark.slow
def test_half_precision_features_take_half_the_room_and_train_nearly_the_same(resnet, own_cache):
    _, losses, _ = losses_and_answers(resnet, RunOptions())
    (whole,) = shards(own_cache)
    _, half_losses, _ = losses_and_answers(resnet.changed(feature_dtype="float16"), RunOptions())
    (half,) = set(shards(own_cache)) - {whole}
    assert half.stat().st_size < 0.52 * whole.stat().st_size
    assert half_losses == pytest.approx(losses, rel=0.02)
    assert half_losses != losses


@pytest.mark.slow
def test_recalibrated_statistics_are_kept(resnet, own_cache, caplog):
    recipe = resnet.changed(batchnorm="recalibrated")
    with caplog.at_level(logging.INFO, logger="heptad"):
        first = heptad.prepare(recipe)
        assert "recalibrating" in caplog.text
        caplog.clear()
        second = heptad.prepare(recipe)
        assert "recalibrating" not in caplog.text
    assert second.num_computed == 0
    assert first.frozen == second.frozen
    # Other training images, other statistics, other features.
    assert computed(recipe.changed(seed=5)) > 0


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("lenet5", {}, "no trunk: every layer is trained"),
        (
            "resnet50",
            {"weights": "none", "image_size": 32, "limit": 20, "batchnorm": "drifting"},
            "no trunk: BatchNorm moves in it",
        ),
        (
            "resnet50",
            {"weights": "none", "image_size": 32, "limit": 20, "trainable": "all"},
            "no trunk: it would hold trained parameters",
        ),
    ],
    ids=["lenet5", "drifting", "all"],
)
def test_without_a_trunk_nothing_is_kept_and_the_reason_is_said(
    digits, own_cache, name, settings, said
):
    cycle = heptad.prepare(heptad.load_recipe(name, data=str(digits), **settings))
    assert (cycle.trunk, cycle.num_computed, cycle.trunk_seconds) == (said, 0, 0.0)
    assert isinstance(cycle.sources.train, ImageSource)
    assert not list_stores()


@pytest.mark.slow
def test_features_that_are_given_are_used(resnet, own_cache):
    first = heptad.prepare(resnet)
    second = heptad.prepare(resnet.changed(learning_rate=0.01), sources=first.sources)
    assert second.sources is first.sources
    assert len(list(heptad.steps(second, Position(1)))) == 4
    for other, message in (
        ({"trainable": "all"}, "the features given end before fc"),
        ({"weights": "none"}, "another network or transform"),
        ({"batchnorm": "recalibrated"}, "needs images, not features"),
    ):
        with pytest.raises(RecipeError, match=message):
            heptad.prepare(resnet.changed(**other), sources=first.sources)


@pytest.mark.slow
def test_the_stores_used_longest_ago_go_first_but_none_in_use(resnet, own_cache):
    for size in (32, 33, 34):
        heptad.prepare(resnet.changed(image_size=size))
        time.sleep(0.02)
    oldest = list_stores()[-1].key
    in_use = heptad.prepare(resnet.changed(image_size=32))
    assert list_stores()[0].key == oldest
    one = RunOptions(cache_size=1_200_000)
    assert computed(resnet.changed(image_size=35), one) == 120
    left = {store.description["transform"]["image_size"] for store in list_stores()}
    # 33 and 34 went; 32 is held by a live run, 35 by this one.
    assert left == {32, 35}
    assert len(in_use.sources.train.take(torch.arange(5), None)) == 5


def test_cache_list_and_clear(resnet, own_cache, capsys):
    cycle = heptad.prepare(resnet)
    assert main(["cache", "list", "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert listed["description"]["split"] == "before fc"
    assert listed["num_bytes"] > 120 * 2048 * 4
    assert main(["cache", "clear", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"removed": [], "in_use": [listed["key"]]}
    del cycle
    assert main(["cache", "clear", listed["key"][:8], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == [listed["key"]]
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().out.startswith("0 stores of features")
    assert main(["cache", "clear", "nothing"]) == 2


@pytest.mark.parametrize("batchnorm", ["frozen", "recalibrated", "drifting"])
@pytest.mark.slow
def test_the_trained_part_alone_gives_the_whole_network_back(
    resnet, own_cache, tmp_path, batchnorm
):
    recipe = resnet.changed(batchnorm=batchnorm, epochs=1)
    whole = heptad.train(recipe, RunOptions(out=str(tmp_path / "whole")))
    part = heptad.train(recipe, RunOptions(out=str(tmp_path / "part"), save="trained-part"))
    assert not list(part.folder.glob("*.pth"))
    small, large = (
        next(folder.glob(pattern)).stat().st_size
        for folder, pattern in ((part.folder, "*.trained.safetensors"), (whole.folder, "*.pth"))
    )
    assert small < (600_000 if batchnorm != "frozen" else 90_000) < large
    answers = [heptad.load_run(run.folder).evaluate() for run in (whole, part)]
    assert torch.equal(answers[0].logits, answers[1].logits)
    assert answers[0].predicted.tolist() == whole.scores.predicted.tolist()


@pytest.mark.slow
def test_a_trained_part_on_other_start_weights_is_refused(digits, made, own_cache, tmp_path):
    own = tmp_path / "own.pth"
    own.write_bytes(made.read_bytes())
    recipe = heptad.load_recipe(
        "resnet50", data=str(digits), weights=str(own), image_size=32, limit=20, epochs=1
    )
    run = heptad.train(recipe, RunOptions(out=str(tmp_path / "run"), save="trained-part"))
    torch.save(resnet50().state_dict(), own)
    with pytest.raises(DamagedError, match="was trained on other start weights"):
        heptad.load_run(run.folder)


@pytest.mark.slow
def test_a_run_says_what_its_trunk_was(resnet, own_cache, tmp_path):
    run = heptad.train(resnet.changed(epochs=1), RunOptions(out=str(tmp_path / "run")))
    assert run.metrics["trunk"] == "trunk that ends before fc"
    assert run.metrics["execution"]["computed_features"] == 120
    assert run.metrics["trunk_seconds"] > 0


@pytest.mark.slow
def test_a_head_on_the_gathered_rows_of_many_shards_sees_the_right_images(resnet, own_cache):
    """One image at a time, each in a shard of its own, against the trunk itself."""
    for count in range(1, 6):
        heptad.prepare(resnet.changed(limit=count))
    cycle = heptad.prepare(resnet.changed(limit=5))
    assert len(shards(own_cache)) == 5
    plain = heptad.prepare(resnet.changed(limit=5), PLAIN)
    order = torch.tensor([4, 0, 3, 3, 1])
    with torch.no_grad():
        expected = plain.model.eval()(plain.sources.train.take(order, None))
        answers = cycle.model.eval()(cycle.sources.train.take(order, None))
    assert torch.allclose(answers, expected, rtol=1e-4, atol=1e-4)
    assert dataclasses.is_dataclass(cycle.sources.train)


# Fills small stores anew for three seconds, and says how often.
FILLING = """
import sys, time
import numpy as np
from heptad.stores import Computation, filling, row_keys

until, num_filled = time.monotonic() + 3, 0
while time.monotonic() < until:
    images = np.full((4, 1, 8, 8), num_filled % 251, np.uint8)
    rows = lambda lacking: iter([(lacking.places, np.zeros((len(lacking.places), 9), np.float32))])
    compute = lambda lacking: Computation("made", rows(lacking))
    for _ in filling({"store": num_filled % 3}, row_keys(images), compute=compute, what="a test"):
        pass
    num_filled += 1
print(num_filled)
"""


def test_a_store_that_others_make_room_by_is_never_removed_while_it_is_filled(own_cache):
    filler = subprocess.Popen([sys.executable, "-c", FILLING], stdout=subprocess.PIPE, text=True)
    num_seen = 0
    while filler.poll() is None:
        num_seen += bool(list_stores())
        make_room(0)
    assert filler.returncode == 0
    assert int(filler.communicate()[0]) > 20
    assert num_seen > 20


@pytest.mark.parametrize("clear", [lambda: make_room(10**9), clear_stores])
def test_what_a_removal_that_was_killed_has_left_goes_with_the_next_one(resnet, own_cache, clear):
    computed(resnet)
    (store,) = (own_cache / "features").iterdir()
    # As a removal renames it before it begins.
    store.rename(store.with_name(f".{store.name}.0123abcd.part"))
    assert list_stores() == []
    clear()
    assert not list((own_cache / "features").iterdir())


def test_a_store_that_was_made_anew_is_not_removed_by_a_lock_on_the_one_before(
    resnet, own_cache, monkeypatch
):
    computed(resnet)
    (store,) = (own_cache / "features").iterdir()
    lock = fcntl.flock

    def flock(descriptor, operation):
        # Between its opening and its locking another process removes the store, and one fills it.
        if operation & fcntl.LOCK_EX:
            monkeypatch.undo()
            monkeypatch.setenv("HEPTAD_HOME", str(own_cache))
            shutil.move(store, own_cache / "before")
            shutil.copytree(own_cache / "before", store)
        lock(descriptor, operation)

    monkeypatch.setattr("fcntl.flock", flock)
    make_room(0)
    assert computed(resnet) == 0


def lockless(*_args):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))


def test_a_cache_that_knows_no_locks_serves_and_says_that_it_cannot_be_filled(
    resnet, own_cache, monkeypatch
):
    computed(resnet)
    monkeypatch.setattr("fcntl.flock", lockless)
    assert computed(resnet) == 0
    with pytest.raises(MissingError, match="cannot be written: No locks available"):
        heptad.prepare(resnet.changed(limit=61))
