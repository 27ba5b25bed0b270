"""Recipes: the shipped values, where they are read from, and what is said of bad ones."""

from __future__ import annotations

import json
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import heptad
from heptad.errors import RecipeError
from heptad.recipe import Recipe, RunOptions, to_toml

# The table of the seed text and of the design: what the three scripts did.
TABLE = {
    "lenet5": {
        "image_size": 32,
        "channels": 1,
        "mean": 0.1307,
        "deviation": 0.3081,
        "weights": "none",
        "trainable": "all",
        "epochs": 10,
        "training_stats": None,
    },
    "vgg16": {
        "image_size": 224,
        "channels": 3,
        "mean": 0.5,
        "deviation": 0.5,
        "weights": "default",
        "trainable": "last-layer",
        "epochs": 5,
        "training_stats": "vgg16_training_stats.json",
    },
    "resnet50": {
        "image_size": 64,
        "channels": 3,
        "mean": 0.5,
        "deviation": 0.5,
        "weights": "default",
        "trainable": "last-layer",
        "epochs": 5,
        "training_stats": "metrics.pkl",
    },
}
SHARED = {"data": "mnist", "learning_rate": 0.001, "batch_size": 64, "normalize": "recipe"}


@pytest.mark.parametrize("name", TABLE)
def test_the_shipped_recipes_have_the_values_of_the_table(name):
    values = heptad.load_recipe(name).model_dump()
    expected = TABLE[name] | SHARED | {"batchnorm": "frozen", "frozen_dropout": "on"}
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("suffix", "write"), [(".toml", to_toml), (".json", Recipe.model_dump_json)]
)
def test_a_recipe_that_windows_has_saved_is_read_or_said_to_be_no_utf_8(suffix, write, tmp_path):
    recipe = heptad.load_recipe("lenet5", epochs=3)
    path = tmp_path / f"mine{suffix}"
    path.write_bytes(write(recipe).replace("\n", "\r\n").encode("utf-8-sig"))
    assert heptad.load_recipe(path) == recipe
    path.write_bytes(write(recipe).encode("utf-16"))
    with pytest.raises(RecipeError, match="is no text in UTF-8") as raised:
        heptad.load_recipe(path)
    assert raised.value.hint == "save it again as UTF-8"


def test_a_folder_may_be_given_as_a_path(digits):
    assert heptad.load_recipe("lenet5", data=digits) == heptad.load_recipe(
        "lenet5", data=str(digits)
    )


def test_a_recipe_printed_as_toml_reads_back_equal(tmp_path):
    recipe = heptad.load_recipe("vgg16", limit=100, weights='a\\b "c".pth')
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    assert heptad.load_recipe(path) == recipe


def test_a_recipe_is_read_from_json_and_from_a_run_folder(tmp_path):
    recipe = heptad.load_recipe("lenet5", epochs=3)
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json())
    assert heptad.load_recipe(tmp_path / "recipe.json") == recipe
    assert heptad.load_recipe(tmp_path) == recipe


def test_text_is_read_as_the_number_that_it_shows():
    recipe = heptad.load_recipe("lenet5", epochs="3", learning_rate="1e-2", channels="3")
    assert (recipe.epochs, recipe.learning_rate, recipe.channels) == (3, 0.01, 3)
    assert RunOptions(**{"memory": "2GB"}).memory == 2_000_000_000


def test_a_limit_is_taken_back_by_none():
    assert heptad.load_recipe("lenet5", limit=5).changed(limit="none").limit is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs is 0; allowed: a whole number, at least 1, at most 1000000."),
        ({"epochs": 2.5}, "epochs is 2.5;"),
        ({"epochs": True}, "epochs is true; allowed: a whole number"),
        (
            {"learning_rate": float("nan")},
            "learning_rate is nan; allowed: a finite number, above 0",
        ),
        ({"learning_rate": float("inf")}, "learning_rate is inf;"),
        ({"learning_rate": -1}, "learning_rate is -1;"),
        ({"batch_size": -3}, "batch_size is -3;"),
        ({"limit": 0}, "limit is 0; allowed: a whole number, at least 1, or none."),
        ({"seed": 2**70}, f"seed is {2**70}; allowed: a whole number, at least 0, at most "),
        ({"batchnorm": "frozn"}, "Did you mean 'frozen'?"),
        ({"learningrate": 1}, "there is no setting 'learningrate'. Did you mean 'learning_rate'?"),
        (
            {"training_stats": "../x.json"},
            "training_stats is ../x.json; allowed: a plain file name",
        ),
        ({"training_stats": "x.exe"}, "training_stats is x.exe; allowed: a plain file name"),
        ({"name": "../up"}, "name is ../up; allowed: letters, digits"),
    ],
)
def test_a_bad_setting_is_named_with_its_value_and_what_is_allowed(settings, message):
    with pytest.raises(RecipeError) as raised:
        heptad.load_recipe("lenet5", **settings)
    assert message in raised.value.message


def test_every_bad_setting_is_said_at_once():
    with pytest.raises(RecipeError) as raised:
        heptad.load_recipe("lenet5", epochs=0, batch_size=0)
    assert len(raised.value.message.splitlines()) == 2


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
names = st.sampled_from(list(Recipe.model_fields)) | st.text(max_size=10)


@pytest.mark.slow
@settings(deadline=None)
@given(st.dictionaries(names, anything, max_size=5))
def test_no_settings_at_all_break_the_reading_of_a_recipe(values):
    try:
        recipe = Recipe(**{**heptad.load_recipe("lenet5").model_dump(), **values})
    # The one error that may come; any other fails the test.
    except RecipeError:
        return
    # What was accepted can be written down and read again.
    assert Recipe(**tomllib.loads(to_toml(recipe))) == recipe
    assert Recipe(**json.loads(recipe.model_dump_json())) == recipe
