"""Names of files and folders that attack what prints, stores or opens them: used, or refused.

Nothing in a name reaches a terminal as anything but text, and JSON stays JSON.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

import heptad
from conftest import NAMES as IDX_NAMES
from heptad.cli import main
from heptad.recipe import to_toml
from heptad.stages.saving import sealed
from killing import command, metrics_of

NAMES = {
    "bytes that are no Unicode": os.fsdecode(b"a\xffb"),
    "a line break": "new\nerror: all is well",
    "255 bytes": "n" * 255,
    "255 bytes in 127 letters": "é" * 127 + "n",
    "right to left": "\u202egnp.exe",
    "a title": "\x1b]0;owned\x07",
    "red": "\x1b[31mred",
    "over the line": "good\r\x9b2Kbad",
    "HTML": "<img src=x onerror=alert(1)>",
    "a formula": "=cmd|' !A0",
    "an emoji": "\U0001f600",
    "an emoji by name": ":skull:",
    "markup": "[red]%s{0}\\[",
    "a shell": "$(touch owned);`touch owned`",
    "a flag": "--json",
}
ODD = "".join(NAMES[what] for what in ("a title", "right to left", "a line break", "an emoji"))
NAMES |= {"several at once": f"{ODD}:skull:[red]<b>$(touch owned)"}
NO_UNICODE = NAMES["bytes that are no Unicode"]
TRAIN = ["train", "lenet5", "--epochs", "1", "--limit", "20", "--threads", "1"]


@pytest.fixture(
    params=[
        *("several at once", "bytes that are no Unicode"),
        *(pytest.param(what, marks=pytest.mark.slow) for what in list(NAMES)[1:-1]),
    ]
)
def name(request):
    return NAMES[request.param]


def fitting(name: str, suffix: str) -> str:
    """Give the name with a suffix, within the 255 bytes that a name may have."""
    while len(os.fsencode(name + suffix)) > 255:
        name = name[:-1]
    return name + suffix


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    assert main([*TRAIN, "--data", str(digits), "--out", str(folder), "--json"]) == 0
    return folder


@pytest.fixture(scope="module")
def other(digits, tmp_path_factory):
    """A second run on the same images."""
    folder = tmp_path_factory.mktemp("other") / "other"
    words = [*TRAIN, "--learning-rate", "0.01", "--data", str(digits)]
    assert main([*words, "--out", str(folder), "--json"]) == 0
    return folder


def said(*words: object) -> tuple[int, str, str]:
    """Carry out a command: its code and what it said, which must be text and nothing else."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        code = main([str(word) for word in words])
    for stream in streams:
        stream.flush()
    out, err = (stream.buffer.getvalue().decode() for stream in streams)
    assert no_text_in(out + err) == []
    assert "Traceback" not in err
    return code, out, err


def no_text_in(text: str) -> list[str]:
    """List what a terminal would act on, and lines that a name has forged."""
    found = [character for character in text if not character.isprintable() and character != "\n"]
    return found + [line for line in text.splitlines() if line == "error: all is well"]


def document(*words: object) -> dict | list:
    """Carry out a command with --json, to a good end; give the one document that it printed."""
    code, out, err = said(*words, "--json")
    assert (code, err) == (0, ""), out
    return json.loads(out)


def refuses(code: int, err: str) -> bool:
    """Tell whether a name that is no Unicode was refused, and said to be that."""
    return code == 2 and "a\\udcffb" in err and "no valid Unicode" in err


def test_what_the_names_would_do_is_seen():
    """A control: printed as they are, these would be more than text."""
    seen = {what for what, name in NAMES.items() if no_text_in(name)}
    assert seen == {
        *("bytes that are no Unicode", "a line break", "right to left"),
        *("a title", "red", "over the line", "several at once"),
    }


def test_a_run_folder_may_have_any_name(name, digits, workplace):
    code, _, err = said(*TRAIN, "--data", digits, "--out", f"runs/{name}")
    if name == NO_UNICODE:
        assert refuses(code, err)
        assert not (workplace / "runs").exists()
        return
    assert code == 0, err
    assert document("resume", f"runs/{name}")["run"] == f"runs/{name}"
    again = document("train", f"runs/{name}", "--out", f"again/{name}")
    assert again["run"] == f"again/{name}"
    assert not (workplace / "owned").exists()


def test_a_stopped_run_may_have_any_name(name, trained, workplace):
    run = shutil.copytree(trained, f"runs/{name}")
    (Path(run) / "metrics.json").unlink()
    code, _, err = said("evaluate", run)
    assert (code, "a run that was not finished" in err) == (2, True)
    code, out, err = said("resume", run)
    if name == NO_UNICODE:
        assert refuses(code, err)
        return
    assert (code, "Going on after step" in out) == (0, True), err


def test_a_finished_run_is_used_under_any_name(name, trained, other, workplace):
    run = shutil.copytree(trained, f"runs/{name}")
    Image.new("L", (28, 28)).save("picture.png")
    for words in (["evaluate", run], ["verify", run], ["predict", run, "picture.png"]):
        assert said(*words)[0] == 0
        assert document(*words)
    assert document("verify", run)["run"] == run
    files = ["--csv", "a.csv", "--latex", "a.tex", "--png", "a.png"]
    assert said("compare", run, other, *files)[0] == 0
    assert [one["run"] for one in document("compare", run, other)["runs"]] == [run, str(other)]
    assert no_text_in(Path("a.csv").read_text() + Path("a.tex").read_text()) == []


def test_a_data_folder_may_have_any_name(name, digits, trained, workplace):
    """Its name becomes a part of the names of files, too."""
    data = shutil.copytree(digits, f"data/{name}")
    code, _, err = said(*TRAIN, "--data", data, "--out", "run")
    if name == NO_UNICODE:
        assert refuses(code, err)
        assert refuses(*said("evaluate", trained, "--data", data)[::2])
        return
    assert code == 0, err
    assert metrics_of(Path("run"))["recipe"]["data"] == data
    assert all(Path("run", file).is_file() for file in metrics_of(Path("run"))["files"])
    assert document("evaluate", "run")["test_images"] == 20
    assert document("evaluate", trained, "--data", data)["test_images"] == 200


def test_what_is_wrong_in_a_data_folder_is_said_under_any_name(name, digits, workplace):
    data = shutil.copytree(digits, f"data/{name}")
    (Path(data) / IDX_NAMES["train"][0]).write_bytes(b"")
    code, out, err = said(*TRAIN, "--data", data)
    assert (code, out) == (2, "")
    assert "is no IDX file of images" in err or refuses(code, err)


def test_weights_may_have_any_name(name, digits, trained, workplace):
    weights = f"weights/{fitting(name, '.pth')}"
    Path("weights").mkdir()
    shutil.copy(trained / "lenet5_digits.pth", weights)
    words = [*TRAIN, "--data", digits, "--weights", weights]
    code, _, err = said(*words, "--out", "run")
    if name == NO_UNICODE:
        assert refuses(code, err)
        return
    assert code == 0, err
    assert document(*words, "--out", "other")["weights"]["name"] == Path(weights).name
    Path(weights).write_bytes(b"")
    code, _, err = said(*words, "--out", "third")
    assert (code, "cannot be read as weights" in err) == (2, True)


def test_pictures_may_have_any_name(name, trained, workplace):
    folder = Path("pictures") / name
    folder.mkdir(parents=True)
    picture = folder / fitting(name, ".png")
    Image.new("L", (28, 28)).save(picture)
    code, out, _ = said("predict", trained, folder, picture)
    # A line of titles, and one for each.
    assert (code, len(out.splitlines())) == (0, 3)
    assert [answer["image"] for answer in document("predict", trained, folder)] == [str(picture)]
    picture.write_bytes(b"")
    code, out, err = said("predict", trained, picture)
    assert (code, out, "is no picture that can be read" in err) == (2, "", True)


def test_an_error_names_what_is_meant(trained, workplace):
    """Not the picture that Rich would put for a word between colons."""
    Path(":skull:.png").write_bytes(b"")
    assert ":skull:.png is no picture" in said("predict", trained, ":skull:.png")[2]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".toml", ".json"])
def test_recipe_files_may_have_any_name(name, suffix, digits, workplace):
    recipe = heptad.load_recipe("lenet5", epochs=1, limit=20)
    path = Path("recipes") / fitting(name, suffix)
    path.parent.mkdir()
    write = {".json": recipe.model_dump_json, ".toml": lambda: to_toml(recipe)}
    path.write_text(write[suffix]())
    assert document("recipes", path) == recipe.model_dump()
    assert said("recipes", path)[0] == 0
    assert document("train", path, "--data", digits)["recipe"]["epochs"] == 1
    path.write_text("")
    code, out, err = said("train", path)
    assert (code, out) == (2, "")
    assert "cannot be read" in err or "name is not given" in err


def test_a_recipe_that_names_odd_things_is_printed_as_text_that_reads_back(name, workplace):
    if name == NO_UNICODE:
        return
    recipe = heptad.load_recipe("lenet5", data=name, weights=f"{name}.pth")
    Path("recipe.json").write_text(recipe.model_dump_json())
    code, out, _ = said("recipes", "recipe.json")
    Path("printed.toml").write_text(out)
    assert (code, heptad.load_recipe("printed.toml")) == (0, recipe)


@pytest.mark.parametrize(
    "words",
    [
        ["{}"],
        ["train", "{}"],
        ["train", "{}.toml"],
        ["train", "lenet5", "--{}", "1"],
        ["train", "lenet5", "--data", "{}"],
        ["train", "lenet5", "--device", "{}"],
        ["train", "lenet5", "--memory", "{}"],
        ["train", "lenet5", "--architecture", "{}"],
        ["train", "lenet5", "--weights", "{}"],
        ["train", "lenet5", "--training-stats", "{}"],
        ["train", "lenet5", "{}"],
        ["resume", "{}"],
        ["evaluate", "{}"],
        ["compare", "{}", "{}2"],
        ["compare", "{}", "{}2", "--png", "{}"],
        ["verify", "{}"],
        ["predict", "{}", "{}"],
        ["predict", "{}", "picture.png", "--top", "{}"],
        ["verify", "--resume-proof", "lenet5", "--kills", "{}"],
        ["recipes", "{}"],
        ["fetch", "{}"],
        ["cache", "clear", "{}"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("odd", [ODD, NO_UNICODE, "9" * 5000], ids=["odd", "no Unicode", "long"])
def test_what_is_not_there_is_named_as_text(words, odd, workplace):
    words = [word.format(odd) for word in words]
    code, out, err = said(*words)
    assert (code, out, err.startswith("error: ")) == (2, "", True)
    code, out, _ = said(*words, "--json")
    assert (code, json.loads(out)["error"]["code"]) == (2, 2)


def test_class_names_of_a_run_that_one_was_given_are_text(trained, workplace):
    run = Path(shutil.copytree(trained, "run"))
    classes = [*NAMES.values()][:10]
    metrics = metrics_of(run) | {"classes": classes}
    (run / "metrics.json").write_text(json.dumps(sealed(metrics)))
    Image.new("L", (28, 28)).save("picture.png")
    code, out, _ = said("predict", run, "picture.png", "--top", "10")
    assert (code, len(out.splitlines())) == (0, 2)
    (answer,) = document("predict", run, "picture.png", "--top", "10")
    assert {found["name"] for found in answer["classes"]} == set(classes)
    code, _, err = said("evaluate", run)
    assert (code, "was trained on" in err.replace("\n", " ")) == (2, True)


@pytest.mark.parametrize("odd", [ODD, NO_UNICODE], ids=["odd", "no Unicode"])
def test_the_cache_may_lie_in_any_folder(odd, workplace, monkeypatch):
    monkeypatch.setenv("HEPTAD_HOME", str(workplace / odd))
    for words in (["doctor"], ["cache", "list"], ["cache", "clear"]):
        assert said(*words)[0] == 0
        document(*words)


@pytest.mark.slow
@pytest.mark.parametrize("odd", [ODD, NO_UNICODE], ids=["odd", "no Unicode"])
def test_data_may_be_copied_into_any_folder(odd, mnist, workplace):
    assert said("fetch", "mnist", "--to", odd)[0] == 0
    assert len(document("fetch", "mnist", "--to", odd)[0]["files"]) == 4
    assert {path.name for path in Path(odd, "mnist").iterdir()} == {*sum(IDX_NAMES.values(), ())}
    shutil.rmtree(odd)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoding", "flags"),
    [("utf-8", []), ("ascii", []), ("latin-1", []), ("utf-8", ["--json"])],
    ids=["utf-8", "ascii", "latin-1", "json"],
)
def test_a_real_process_prints_text_whatever_its_encoding(encoding, flags, trained, workplace):
    picture = Path(fitting(NO_UNICODE + ODD + "é", ".png"))
    Image.new("L", (28, 28)).save(picture)
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(
        command("predict", str(trained), str(picture), *flags),
        capture_output=True,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    out = done.stdout.decode(encoding)
    assert no_text_in(out) == []
    if flags:
        assert [answer["image"] for answer in json.loads(out)] == [str(picture)]
    else:
        assert len(out.splitlines()) == 2
