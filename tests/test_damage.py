"""Damaged checkpoints and run folders: refused, set aside or repaired, and each time it is said."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from contextlib import closing
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torchvision.models import resnet50

import heptad
from conftest import write_idx
from heptad.cli import main
from heptad.files import digest_of
from heptad.recipe import RunOptions
from heptad.records import StepReport
from heptad.stages.saving import sealed
from killing import checkpoints, metrics_of, result_of, train_words

OLDER, NEWER = "step-00000019", "step-00000020"
TENSORS, MANIFEST = "state.safetensors", "manifest.json"
NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture(scope="module")
def stopped_run(digits, tmp_path_factory) -> Path:
    """The run of `straight`, stopped in the middle of its second epoch."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    recipe = heptad.load_recipe("lenet5", data=str(digits), epochs=2, batch_size=32)
    options = RunOptions(out=str(out), checkpoint_every="1", threads=1)
    with closing(heptad.run(recipe, options)) as events:
        for event in events:
            if isinstance(event, StepReport) and event.step == 20:
                break
    assert checkpoints(out) == {OLDER, NEWER}
    return out


@pytest.fixture
def stopped(stopped_run, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return shutil.copytree(stopped_run, tmp_path / "run")


@pytest.fixture
def finished(straight, tmp_path) -> Path:
    """A copy of the run that nothing disturbed, to be damaged."""
    return shutil.copytree(straight, tmp_path / "run")


@pytest.fixture
def said(capsys):
    """Carry out a command; give its exit code, and all that it said."""

    def carry_out(*words) -> tuple[int, str]:
        capsys.readouterr()
        code = main(list(map(str, words)))
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return carry_out


def content_of(folder: Path) -> dict[str, bytes]:
    """Give all files of a folder, but the lock, which names whoever had it."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".heptad-lock"
    }


def newest(run: Path) -> Path:
    return run / "checkpoints" / NEWER


def cut(path: Path, num_bytes: int) -> None:
    path.write_bytes(path.read_bytes()[:num_bytes])


def halve(path: Path) -> None:
    cut(path, path.stat().st_size // 2)


def flip_a_bit(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def forge(checkpoint: Path, tensors=None, **facts) -> None:
    """Change a checkpoint as someone would who knows how its hashes are made."""
    if tensors is not None:
        (checkpoint / TENSORS).write_bytes(safetensors.torch.save(tensors))
    content = (checkpoint / TENSORS).read_bytes()
    files = {TENSORS: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}}
    manifest = json.loads((checkpoint / MANIFEST).read_text()) | {"files": files} | facts
    del manifest["digest"]
    manifest["digest"] = digest_of(manifest)
    (checkpoint / MANIFEST).write_text(json.dumps(manifest))


def tensors_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load((checkpoint / TENSORS).read_bytes())


def facts_of(checkpoint: Path) -> dict:
    return json.loads((checkpoint / MANIFEST).read_text())


def refused_unchanged(said, run: Path, code: int, *messages: str) -> None:
    """Both ways to resume refuse, each time again, and nothing in the folder changes."""
    before = content_of(run)
    again = ["train", run, "--out", run, "--resume"]
    for words in (["resume", run], ["resume", run], again):
        answer, text = said(*words)
        assert answer == code, text
        assert "Traceback" not in text
        assert "epoch 1" not in text
        assert [message for message in messages if message not in text] == [], text
    assert content_of(run) == before


# Cut short


CUTS = {"nothing": 0, "10 bytes": 10, "half": 0.5, "all but a byte": -1}
LEFT = [pytest.param(TENSORS, "half"), pytest.param(MANIFEST, "all but a byte")]
LEFT += [
    pytest.param(file, left, marks=pytest.mark.slow)
    for file in (TENSORS, MANIFEST)
    for left in CUTS
    if (file, left) not in [case.values for case in LEFT]
]


@pytest.mark.parametrize(("file", "left"), LEFT)
def test_a_newest_checkpoint_that_was_cut_is_set_aside_and_the_older_one_used(
    stopped, straight, said, file, left
):
    path = newest(stopped) / file
    num_bytes = CUTS[left]
    cut(path, len(path.read_bytes()) // 2 if num_bytes == 0.5 else num_bytes)
    code, text = said("resume", stopped)
    assert code == 0
    assert f"it is now {NEWER}.corrupt, and {OLDER} is used instead" in text
    assert f"{newest(stopped)} has" in text or f"{newest(stopped)} cannot be read" in text
    assert "Going on after step 19." in text
    assert result_of(stopped) == result_of(straight)
    # The damaged one is kept, for whoever wants to look at it.
    assert (stopped / "checkpoints" / f"{NEWER}.corrupt" / file).is_file()


def test_an_undamaged_newest_checkpoint_is_used(stopped, straight, said):
    """The control of all tests here: without damage the run goes on from the newest."""
    code, text = said("resume", stopped)
    assert code == 0
    assert "Going on after step 20." in text
    assert "corrupt" not in text
    assert result_of(stopped) == result_of(straight)


# Flipped bits


@pytest.mark.parametrize("file", [TENSORS, MANIFEST])
def test_one_flipped_bit_is_refused(stopped, straight, said, file):
    flip_a_bit(newest(stopped) / file)
    code, text = said("resume", stopped)
    assert code == 0
    assert f"it is now {NEWER}.corrupt, and {OLDER} is used instead" in text
    assert result_of(stopped) == result_of(straight)


def test_safetensors_alone_would_load_the_flipped_bit(stopped):
    """The control: nothing in the file itself tells."""
    before = tensors_of(newest(stopped))
    flip_a_bit(newest(stopped) / TENSORS)
    after = tensors_of(newest(stopped))
    assert sum(not torch.equal(before[name], after[name]) for name in before) == 1


@pytest.mark.slow
def test_wherever_a_bit_flips_the_checkpoint_is_not_whole(stopped_run, tmp_path, said):
    draws = random.Random(0)
    print("seed 0")
    for number in range(40):
        run = shutil.copytree(stopped_run, tmp_path / f"run{number}")
        place = draws.random()
        flip_a_bit(newest(run) / draws.choice([TENSORS, MANIFEST]), place)
        code, text = said("verify", run)
        assert code == 5, (place, text)


@pytest.mark.slow
def test_a_bit_flipped_at_the_end_of_the_log_costs_the_checkpoint_that_knew_it(
    stopped, straight, said
):
    flip_a_bit(stopped / "metrics.jsonl", 0.99)
    code, text = said("resume", stopped)
    assert code == 0
    assert f"{NEWER} knows another metrics.jsonl than the one beside it; it is now" in text
    assert "Going on after step 19." in text
    assert result_of(stopped) == result_of(straight)


def test_a_log_that_no_checkpoint_knew_is_refused(stopped, said):
    flip_a_bit(stopped / "metrics.jsonl", 0.1)
    refused_unchanged(said, stopped, 5, "no checkpoint in", "knows another metrics.jsonl")


# The manifest


@pytest.mark.slow
def test_without_a_manifest_a_checkpoint_is_incomplete(stopped, straight, said):
    (newest(stopped) / MANIFEST).unlink()
    code, text = said("resume", stopped)
    assert code == 0
    assert f"lacks {MANIFEST}; it is now {NEWER}.corrupt, and {OLDER} is used" in text
    assert result_of(stopped) == result_of(straight)


@pytest.mark.slow
def test_a_manifest_with_an_entry_that_was_not_saved_is_refused(stopped, said):
    path = newest(stopped) / MANIFEST
    path.write_text(json.dumps(facts_of(newest(stopped)) | {"note": "mine"}))
    code, text = said("resume", stopped)
    assert code == 0
    assert f"has a damaged {MANIFEST}; it is now {NEWER}.corrupt" in text


def test_what_else_lies_in_a_checkpoint_is_named_and_ignored(stopped, straight, said):
    (newest(stopped) / "optimizer.pt").write_bytes(b"not ours")
    forge(newest(stopped), note="mine")
    code, text = said("resume", stopped)
    assert code == 0
    assert f"{newest(stopped)} holds optimizer.pt besides, which is ignored" in text
    assert "Going on after step 20." in text
    assert result_of(stopped) == result_of(straight)


def test_a_checkpoint_of_a_newer_version_is_never_passed_over_for_an_older_one(stopped, said):
    forge(newest(stopped), schema=2)
    refused_unchanged(said, stopped, 2, f"{NEWER} was made by a newer version of Heptad")


# None is whole


def _cut_all(run: Path) -> None:
    for path in run.glob("checkpoints/step-*/*.safetensors"):
        cut(path, -1)


def _without_manifests(run: Path) -> None:
    for path in run.glob("checkpoints/step-*/manifest.json"):
        path.unlink()


def _one_set_aside_the_other_flipped(run: Path) -> None:
    newest(run).rename(newest(run).with_name(f"{NEWER}.corrupt"))
    flip_a_bit(run / "checkpoints" / OLDER / TENSORS)


def _all_set_aside(run: Path) -> None:
    for path in list(run.glob("checkpoints/step-*")):
        path.rename(path.with_name(f"{path.name}.corrupt"))


@pytest.mark.parametrize(
    "damage", [_cut_all, _without_manifests, _one_set_aside_the_other_flipped, _all_set_aside]
)
def test_if_no_checkpoint_is_whole_nothing_changes_and_nothing_begins_again(stopped, said, damage):
    damage(stopped)
    refused_unchanged(said, stopped, 5, "nothing was changed", NEWER, OLDER, "another --out")


@pytest.mark.slow
def test_a_run_that_lost_its_checkpoints_says_that_it_begins_again(stopped, straight, said):
    shutil.rmtree(stopped / "checkpoints")
    code, text = said("resume", stopped)
    assert code == 0
    assert "no checkpoint was found" in text
    assert "begins again" in text
    assert result_of(stopped) == result_of(straight)


# Right hashes, wrong content

WIDER = {"weight": (26, 84), "bias": (26,)}


def _other_shape(tensors):
    return tensors | {
        "network/fc3.weight": torch.zeros(26, 84),
        "network/fc3.bias": torch.zeros(26),
    }


def _other_network(tensors):
    other = {k: v for k, v in tensors.items() if not k.startswith("network/")}
    return other | {"network/conv.weight": torch.zeros(8, 1, 3, 3)}


def _other_moments(tensors):
    return tensors | {"optimizer/conv1.weight/exp_avg": torch.zeros(6, 1, 3, 3)}


def _without_a_moment(tensors):
    return {k: v for k, v in tensors.items() if k != "optimizer/fc1.bias/exp_avg_sq"}


def _without_moments(tensors):
    return {k: v for k, v in tensors.items() if not k.startswith("optimizer/")}


def _moments_of_others(tensors):
    return tensors | {"optimizer/fc4.bias/exp_avg": torch.zeros(3)}


def _other_answers(tensors):
    return tensors | {"answers/logits": torch.zeros(5, 26)}


def _too_many_answers(tensors):
    return tensors | {"answers/logits": torch.zeros(201, 10)}


@pytest.mark.parametrize(
    ("change", "rows"),
    [
        (_other_shape, ["fc3.weight: in the file (26, 84), in the network (10, 84)", "fc3.bias"]),
        (_other_network, ["conv.weight: in the file (8, 1, 3, 3), in the network none such"]),
        (_other_moments, ["conv1.weight/exp_avg: in the file (6, 1, 3, 3)"]),
        (_without_a_moment, ["fc1.bias/exp_avg_sq: in the file missing"]),
        (_without_moments, ["conv1.bias/exp_avg: in the file missing", "and 22 more"]),
        (_moments_of_others, ["fc4.bias/exp_avg: in the file (3,), in the network none such"]),
        (_other_answers, ["answers/logits: in the file (5, 26), in the network (5, 10)"]),
        (_too_many_answers, ["answers/logits: in the file (201, 10), in the network (200, 10)"]),
    ],
)
def test_tensors_of_another_training_are_refused_with_a_table(stopped, said, change, rows):
    forge(newest(stopped), change(tensors_of(newest(stopped))))
    refused_unchanged(said, stopped, 2, str(newest(stopped)), "names or shapes differ", *rows)


def test_after_a_refusal_the_cycle_is_as_it_was(stopped, digits):
    """The last tensor in the file that does not fit keeps the first from being loaded."""
    from heptad.checkpoints.snapshot import put_back
    from heptad.checkpoints.store import find_checkpoint

    tensors = tensors_of(newest(stopped))
    forge(newest(stopped), tensors | {"optimizer/fc3.weight/step": torch.zeros(2)})
    recipe = heptad.load_recipe("lenet5", data=str(digits), epochs=2, batch_size=32)
    cycle, fresh = heptad.prepare(recipe), heptad.prepare(recipe)
    with pytest.raises(heptad.HeptadError, match="differ"):
        put_back(cycle, find_checkpoint(stopped / "checkpoints"))
    assert (cycle.at, cycle.num_scored) == (fresh.at, fresh.num_scored)
    assert not cycle.objective.optimizer.state
    expected = fresh.whole.network.state_dict()
    for name, value in cycle.whole.network.state_dict().items():
        assert torch.equal(value, expected[name])


CHANGES = {
    "classes": (lambda _: {"classes": list("abcdefghij")}, 2, "the classes are not those"),
    "data": (lambda _: {"data": "0" * 64}, 2, "the images or labels are not those"),
    "frozen": (lambda _: {"frozen": "0" * 64}, 2, "the start weights, or other values"),
    "architecture": (
        lambda facts: {"recipe": facts["recipe"] | {"architecture": "vgg16"}},
        2,
        "architecture is lenet5, but the run in",
    ),
    "seed": (lambda facts: {"recipe": facts["recipe"] | {"seed": 1}}, 2, "seed is 0, but"),
    "recipe": (lambda _: {"recipe": {}}, 5, "is damaged"),
    "epochs": (
        lambda facts: {"recipe": facts["recipe"] | {"epochs": "two"}},
        5,
        "is damaged: epochs is two; allowed",
    ),
    "epoch": (lambda facts: {"position": facts["position"] | {"epoch": 0}}, 5, "is damaged"),
    "position": (lambda _: {"position": {}}, 5, "is damaged: it lacks 'step'"),
    "seconds": (lambda _: {"seconds": None}, 5, "is damaged"),
    "circumstances": (lambda _: {"circumstances": []}, 5, "is damaged"),
}


@pytest.mark.parametrize(("change", "code", "message"), CHANGES.values(), ids=CHANGES)
def test_a_checkpoint_of_another_training_is_refused(stopped, said, change, code, message):
    forge(newest(stopped), **change(facts_of(newest(stopped))))
    refused_unchanged(said, stopped, code, message)


@pytest.mark.slow
def test_a_forged_checkpoint_that_is_right_is_used(stopped, straight, said):
    """The control of the forgeries: it is their content that is refused."""
    forge(newest(stopped), tensors_of(newest(stopped)))
    code, text = said("resume", stopped)
    assert code == 0
    assert "Going on after step 20." in text
    assert result_of(stopped) == result_of(straight)


@pytest.mark.slow
def test_other_start_weights_under_the_same_name_are_refused(digits, tmp_path, said):
    weights, run = tmp_path / "own.pth", tmp_path / "run"
    torch.manual_seed(0)
    torch.save(resnet50(num_classes=10).state_dict(), weights)
    words = ["train", "resnet50", "--data", digits, "--weights", weights, "--out", run]
    code, _ = said(*words, "--image-size", 32, "--limit", 20, "--epochs", 1)
    assert code == 0
    (run / "metrics.json").unlink()
    torch.save(resnet50(num_classes=10).state_dict(), weights)
    refused_unchanged(said, run, 2, "the start weights")


@pytest.mark.slow
def test_the_weights_that_a_whole_training_started_from_may_not_change_either(
    digits, straight, tmp_path, said
):
    """Nothing of them is left, but metrics.json says which they were."""
    weights, run = tmp_path / "own.pth", tmp_path / "run"
    state = torch.load(straight / "lenet5_digits.pth", weights_only=True)
    torch.save(state, weights)
    assert said(*train_words(digits, run, "--weights", str(weights)))[0] == 0
    (run / "metrics.json").unlink()
    torch.save(state | {"fc3.bias": state["fc3.bias"] + 1}, weights)
    refused_unchanged(said, run, 2, "the start weights")


@pytest.mark.slow
def test_other_images_or_labels_are_refused(mnist, tmp_path, said):
    data, run = tmp_path / "digits", tmp_path / "run"
    images, labels = mnist["train"]
    write_idx(data, "train", images[:40, 0], labels[:40])
    write_idx(data, "test", images[40:60, 0], labels[40:60])
    assert said("train", "lenet5", "--data", data, "--epochs", 1, "--out", run)[0] == 0
    (run / "metrics.json").unlink()
    write_idx(data, "train", images[:40, 0], labels[:40][::-1])
    refused_unchanged(said, run, 2, "the images or labels are not those")


# Values that are no numbers


@pytest.mark.parametrize("value", [NAN, INFINITE, -INFINITE], ids=str)
@pytest.mark.parametrize("name", ["network/fc3.bias", "optimizer/fc3.bias/exp_avg"])
def test_values_in_a_checkpoint_that_are_not_finite_are_refused(stopped, said, name, value):
    tensors = tensors_of(newest(stopped))
    tensors[name][0] = value
    forge(newest(stopped), tensors)
    # A control: they load without a word.
    assert not tensors_of(newest(stopped))[name].isfinite().all()
    refused_unchanged(said, stopped, 2, f"{name} holds values that are not finite")


EXPLODING = ["--epochs", "1", "--batch-size", "64", "--checkpoint-every", "1"]


def last_line(run: Path) -> dict:
    return json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])


def test_a_training_that_explodes_stops_and_keeps_its_last_good_checkpoint(digits, tmp_path, said):
    run = tmp_path / "run"
    words = ["train", "lenet5", "--data", digits, *EXPLODING, "--learning-rate", "1e30"]
    code, text = said(*words, "--out", run)
    assert code == 4
    assert "error: step 2, epoch 1: the loss is nan" in text
    assert "images to blame, 64 of the batch's 64: " in text
    assert last_line(run) == {"error": "step 2, epoch 1: the loss is nan."}
    assert "Saved in" not in text
    assert checkpoints(run) == {"step-00000001"}
    assert all(v.isfinite().all() for v in tensors_of(run / "checkpoints/step-00000001").values())
    # Going on gives the same, and loses nothing.
    before = content_of(run)
    code, text = said("resume", run)
    assert code == 4
    assert "step 2, epoch 1: the loss is nan" in text
    assert content_of(run) == before


def test_a_step_that_leaves_no_numbers_is_never_saved(digits, tmp_path, said):
    """The loss before the step was a number: only looking at the weights tells."""
    run = tmp_path / "run"
    words = ["train", "lenet5", "--data", digits, *EXPLODING, "--learning-rate", "1e39"]
    code, text = said(*words, "--out", run)
    assert code == 4
    assert "is not finite after step 1" in text
    assert "is not finite after step 1" in last_line(run)["error"]
    assert not (run / "checkpoints").exists()


def test_answers_that_are_no_numbers_end_the_run_with_the_step_and_the_image(
    digits, tmp_path, said
):
    """The one step of the epoch had a loss; what it left gives no answers."""
    run = tmp_path / "run"
    words = ["train", "lenet5", "--data", digits, "--limit", 50, "--epochs", 1]
    code, text = said(*words, "--learning-rate", "1e30", "--out", run)
    assert code == 4
    assert "error: step 1, epoch 1: the network's answer to image " in text
    assert last_line(run)["error"].startswith("step 1, epoch 1: the network's answer to image ")
    assert not (run / "metrics.json").exists()


def test_inputs_that_are_no_numbers_are_blamed_before_any_step(digits, tmp_path, said):
    words = ["train", "lenet5", "--data", digits, "--epochs", 1, "--deviation", "1e-300"]
    code, text = said(*words, "--out", tmp_path / "run")
    assert code == 4
    assert "step 1, epoch 1: the loss is nan" in text
    assert "before any step: look at the pixels, mean, deviation and start weights" in text


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory) -> Path:
    """Weights of a ResNet50, every one finite, whose features are not."""
    torch.manual_seed(0)
    state = resnet50(num_classes=10).state_dict()
    for name in ("conv1.weight", "bn1.weight", "layer1.0.conv1.weight"):
        state[name] = state[name] * 1e20
    path = tmp_path_factory.mktemp("weights") / "overflowing.pth"
    torch.save(state, path)
    return path


@pytest.mark.slow
def test_features_that_are_no_numbers_are_refused_with_an_image(
    digits, overflowing, tmp_path, monkeypatch, said
):
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "home"))
    words = ["train", "resnet50", "--data", digits, "--weights", overflowing, "--limit", 20]
    code, text = said(*words, "--image-size", 32, "--out", tmp_path / "run")
    assert code == 4
    assert "a feature of image " in text
    assert "the weights may be damaged" in text
    assert not list((tmp_path / "home").rglob("*.npy"))
    assert not (tmp_path / "run").exists()


def test_start_weights_that_are_no_numbers_are_refused_before_any_step(
    digits, straight, tmp_path, said
):
    state = torch.load(straight / "lenet5_digits.pth", weights_only=True)
    state["conv1.weight"][0, 0, 0, 0] = NAN
    torch.save(state, tmp_path / "nan.pth")
    words = ["train", "lenet5", "--data", digits, "--weights", tmp_path / "nan.pth"]
    code, text = said(*words, "--out", tmp_path / "run")
    assert code == 2
    assert "conv1.weight holds values that are not finite" in text
    assert not (tmp_path / "run").exists()


# The other files of a run


def test_a_recipe_that_was_cut_is_refused_and_the_command_that_began_the_run_mends_it(
    stopped, straight, digits, said
):
    cut(stopped / "recipe.json", 40)
    code, text = said("resume", stopped)
    assert code == 2
    assert f"{stopped / 'recipe.json'}" in text
    assert "cannot be read" in text
    assert said(*train_words(digits, stopped, "--resume"))[0] == 0
    assert result_of(stopped) == result_of(straight)
    assert (stopped / "recipe.json").read_bytes() == (straight / "recipe.json").read_bytes()


def test_a_recipe_that_was_changed_is_refused(stopped, said):
    recipe = json.loads((stopped / "recipe.json").read_text())
    (stopped / "recipe.json").write_text(json.dumps(recipe | {"learning_rate": 0.1}))
    refused_unchanged(said, stopped, 2, "learning_rate is 0.1, but the run in", "has 0.001")


@pytest.mark.slow
def test_a_damaged_environment_of_a_stopped_run_is_written_anew(stopped, straight, said):
    cut(stopped / "environment.json", 10)
    assert said("resume", stopped)[0] == 0
    assert result_of(stopped) == result_of(straight)
    assert json.loads((stopped / "environment.json").read_text())["python"]


def test_a_log_that_is_gone_is_refused(stopped, said):
    (stopped / "metrics.jsonl").unlink()
    refused_unchanged(said, stopped, 5, "knows another metrics.jsonl")


RESULTS = ["metrics.json", "predictions.npz", "environment.json", "lenet5_digits.pth"]


@pytest.mark.parametrize(
    "file", ["metrics.json", *(pytest.param(f, marks=pytest.mark.slow) for f in RESULTS[1:])]
)
def test_a_damaged_result_of_a_finished_run_is_named_and_made_again_by_a_resume(
    finished, straight, said, file
):
    halve(finished / file)
    code, text = said("resume", finished)
    assert code == 0
    assert f"{finished / file} is" in text
    assert "The run is written again from its last checkpoint." in text
    assert result_of(finished) == result_of(straight)
    assert said("verify", finished)[0] == 0


@pytest.mark.parametrize("file", ["metrics.jsonl", *RESULTS])
def test_a_damaged_result_is_refused_where_nothing_is_left_to_make_it_from(finished, said, file):
    shutil.rmtree(finished / "checkpoints")
    halve(finished / file)
    refused_unchanged(said, finished, 5, str(finished / file))


def test_a_damaged_log_of_a_finished_run_is_refused(finished, said):
    flip_a_bit(finished / "metrics.jsonl")
    refused_unchanged(said, finished, 5, str(finished / "metrics.jsonl"), "is not what was saved")


def test_a_damaged_recipe_of_a_finished_run_is_refused_by_a_resume_alone(finished, said):
    cut(finished / "recipe.json", 40)
    assert said("resume", finished)[0] == 2
    assert said("evaluate", finished)[0] == 0


@pytest.mark.parametrize(
    ("file", "code"),
    [("metrics.json", 5), ("lenet5_digits.pth", 5), ("predictions.npz", 0), ("recipe.json", 0)],
)
def test_evaluate_refuses_what_it_needs_and_is_damaged(finished, said, file, code):
    halve(finished / file)
    answer, text = said("evaluate", finished)
    assert answer == code
    assert (str(finished / file) in text) == (code == 5)


def test_metrics_that_were_forged_without_a_recipe_are_refused(finished, said):
    metrics = metrics_of(finished)
    del metrics["recipe"]["epochs"]
    document = sealed(metrics)
    (finished / "metrics.json").write_text(json.dumps(document))
    shutil.rmtree(finished / "checkpoints")
    refused_unchanged(said, finished, 5, "metrics.json is damaged")


def test_a_run_that_is_whole_is_given_as_it_is(finished, said):
    """The control of the repairs: nothing is written, nothing is said to be damaged."""
    before = content_of(finished)
    code, text = said("resume", finished)
    assert code == 0
    assert "written again" not in text
    assert "Saved in" in text
    assert content_of(finished) == before
