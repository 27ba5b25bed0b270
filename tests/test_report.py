"""The report of a run: what it says is what the run's files hold, and names in it stay text."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import precision_recall_fscore_support
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import mobilenet_v3_small, resnet18

import heptad
from heptad.architectures.lenet import LeNet5
from heptad.architectures.lenet1998 import LeNet5Of1998
from heptad.cli import main
from heptad.cli.display import show_summary
from heptad.datasets.label_errors import LABEL_ERRORS
from heptad.finished import read_run
from heptad.recipe import Recipe
from heptad.reports import charts, looks, words
from heptad.stages.saving import sealed
from killing import metrics_of

TRAIN = ["train", "lenet5", "--epochs", "2", "--threads", "1"]
PRETRAINED = {"architecture": "resnet50", "channels": 3, "weights": "IMAGENET1K_V2"}
VOID = {"meta", "img", "br", "link", "input", "hr"}
ODD_NAMES = [
    "<script>alert(1)</script>",
    "\"'><img src=x onerror=alert(2)>",
    "\u202egnp.exe",
    "new\nline",
    "{{ 7*7 }}{% x %}",
    "n" * 255,
    "&lt;b&gt;",
    "a\udcff\x1b]0;owned\x07",
    "[a](javascript:alert(3))",
    "| `*_# |",
]


class Page(HTMLParser):
    """Elements by tag, and the cells of tables by the table's id, of a page that is well nested."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.texts: dict[str, str] = {}
        self.text = ""
        self._open: list[tuple[str, str | None]] = []
        self._table: list[list[str]] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self._open.append((tag, found.get("id")))
        if tag == "table":
            self._table = self.tables.setdefault(found.get("id") or f"{len(self.tags)}", [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        within = [tag for tag, _ in self._open]
        if "style" in within or "svg" in within:
            return
        data = data.replace("\xa0", " ")
        self.text += f"{data} "
        if "td" in within or "th" in within:
            self._table[-1][-1] += data
        for _, name in self._open:
            if name:
                self.texts[name] = self.texts.get(name, "") + f"{data} "

    def cells(self, name: str) -> list[list[str]]:
        return [[cell.strip() for cell in row] for row in self.tables[name]]

    def says(self, text: str) -> bool:
        return " ".join(text.split()) in " ".join(self.text.split())

    def figure(self, name: str) -> str:
        return self.texts[name].strip()


@pytest.fixture(scope="module")
def run(digits, tmp_path_factory) -> Path:
    """A run with a chosen epoch, whose report `heptad train` wrote."""
    out = tmp_path_factory.mktemp("report") / "run"
    words = [*TRAIN, "--data", str(digits), "--validation", "0.2", "--out", str(out), "--json"]
    assert main(words) == 0
    return out


@pytest.fixture(scope="module")
def page(run) -> Page:
    return Page((run / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def answers(run):
    """The labels, probabilities and losses of predictions.npz, in float64."""
    with np.load(run / "predictions.npz") as stored:
        logits, labels = stored["logits"].astype(np.float64), stored["labels"]
    values = np.exp(logits - logits.max(1, keepdims=True))
    values /= values.sum(1, keepdims=True)
    return labels, values, -np.log(values[np.arange(len(labels)), labels])


def percent(value: float, digits: int = 2) -> str:
    return f"{100 * value:.{digits}f} %"


def test_the_headline_is_what_metrics_json_holds(run, page):
    metrics = metrics_of(run)
    assert page.figure("test-accuracy") == percent(metrics["test_accuracy"])
    assert page.figure("test-loss") == f"{metrics['test_loss']:.4f}"
    low, high = metrics["test_accuracy_interval"]
    assert page.says(f"95 % interval {100 * low:.2f} to {100 * high:.2f}")
    assert page.says(f"{metrics['test_correct']} of {metrics['test_images']} test images rightly")


def test_the_epochs_are_those_of_metrics_json(run, page):
    metrics = metrics_of(run)
    _, *rows = page.cells("epochs")
    assert len(rows) == 2
    for row, epoch in zip(rows, metrics["epochs"], strict=True):
        losses = [f"{epoch[key]:.4f}" for key in ("train_loss", "validation_loss")]
        expected = [str(epoch["epoch"]), *losses, percent(epoch["validation_accuracy"])]
        assert row[:4] == expected


def test_the_confusions_are_those_of_predictions_npz(page, answers):
    labels, probabilities, _ = answers
    expected = np.zeros((10, 10), int)
    np.add.at(expected, (labels, probabilities.argmax(1)), 1)
    _, *rows = page.cells("confusion-matrix")
    found = [[int(cell.replace("·", "0")) for cell in row[1:]] for row in rows]
    assert found == expected.tolist()


def test_the_classes_are_measured_as_scikit_learn_does(page, answers):
    labels, probabilities, _ = answers
    measured = precision_recall_fscore_support(
        labels, probabilities.argmax(1), labels=range(10), zero_division=0
    )
    _, *rows, mean = page.cells("class-table")
    for row, precision, recall, f1, count in zip(rows, *measured, strict=True):
        assert row[1] == str(count)
        assert row[3] in (percent(precision), "none")
        assert (row[4], row[6]) == (percent(recall), f"{f1:.4f}")
    assert [mean[3], mean[4]] == [percent(values.mean()) for values in measured[:2]]
    assert page.figure("macro-f1") == mean[6] == f"{measured[2].mean():.4f}"


def test_the_calibration_is_that_of_predictions_npz(page, answers):
    labels, probabilities, _ = answers
    confidence, is_right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.clip(np.ceil(confidence * 15).astype(int) - 1, 0, 14)
    _, *rows = page.cells("bins")
    error = 0.0
    for row, number in zip(rows, np.unique(place), strict=True):
        inside = place == number
        gap = abs(confidence[inside].mean() - is_right[inside].mean())
        error += inside.mean() * gap
        assert row[1] == str(inside.sum())
        assert row[2:] == [
            percent(confidence[inside].mean(), 1),
            percent(is_right[inside].mean(), 1),
        ]
    assert page.figure("ece") == percent(error)


def test_the_worst_images_are_those_with_the_highest_loss(page, answers):
    _, probabilities, losses = answers
    text = page.texts["worst"]
    found = [(int(n), loss) for n, loss in re.findall(r"image (\d+), loss (\d+\.\d\d)", text)]
    expected = np.argsort(-losses, kind="stable")[:15]
    assert found == [(place, f"{losses[place]:.2f}") for place in expected]
    (first,) = [t for name, t in page.tables.items() if t[0][0] and name == _first_card(page)]
    ranked = np.argsort(-probabilities[expected[0]], kind="stable")[:3]
    assert [[row[0], row[2].strip()] for row in first] == [
        [str(k), percent(probabilities[expected[0]][k], 1)] for k in ranked
    ]


def _first_card(page: Page) -> str:
    return next(name for name in page.tables if name.isdecimal())


def test_no_other_figure_stands_in_the_report(run, page, answers):
    """Whatever looks like a measured figure is in metrics.json, or follows from the answers."""
    labels, probabilities, losses = answers
    metrics = metrics_of(run)
    worst = np.argsort(-losses, kind="stable")[:15]
    known = [losses[worst], np.sort(probabilities[worst])[:, -3:]]
    known += [[value] for value in _numbers_in(metrics)]
    # Beside the worst images, the first right one of each class is covered here and there.
    is_right = probabilities.argmax(1) == labels
    known += [probabilities[is_right & (labels == k)][:1].max(1) for k in range(10)]
    values = np.concatenate([np.ravel(each) for each in known])
    # The tables, the headline and the files are compared above, cell by cell.
    checked = " ".join(
        cell
        for name in ("epochs", "confusion-matrix", "class-table", "bins")
        for row in page.tables[name]
        for cell in row
    )
    text = page.text
    for name in ("test-accuracy", "macro-f1", "ece", "in-top", "repeat", "calibration"):
        text = text.replace(page.texts[name], "")
    figures = set(re.findall(r"(?<![\d.:])\d+\.\d+(?![\d.])", text)) - set(
        re.findall(r"\d+\.\d+", checked)
    )
    figures -= {"2.30", "1706.04599", "1311.2901", "2103.14749"}  # ln 10, and papers
    assert len(figures) >= 15
    for figure in figures:
        digits = len(figure.split(".")[1])
        is_known = np.isclose(values, float(figure), atol=0.51 * 10**-digits).any()
        is_known |= np.isclose(100 * values, float(figure), atol=0.51 * 10**-digits).any()
        assert is_known, text[text.index(figure) - 80 :][:100]


def _numbers_in(document):
    if isinstance(document, dict):
        document = list(document.values())
    if isinstance(document, list):
        return [number for value in document for number in _numbers_in(value)]
    return [float(document)] if isinstance(document, (int, float)) else []


def test_the_page_asks_nobody_for_anything(run, page):
    """No script, no link, no address but those of pictures within it; little enough to be sent."""
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "a", "iframe", "object")]
    addresses = [
        value
        for _, found in page.tags
        for key, value in found.items()
        if key in ("src", "href", "srcset", "data", "action")
    ]
    assert len(addresses) >= 20
    assert all(address.startswith("data:image/") for address in addresses)
    assert not [key for _, found in page.tags for key in found if key.startswith("on")]
    (policy,) = [f["content"] for tag, f in page.tags if tag == "meta" and "http-equiv" in f]
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    style = (run / "report.html").read_text().split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert (run / "report.html").stat().st_size < 300_000


def test_every_drawing_says_what_it_shows(page):
    drawings = [found for tag, found in page.tags if tag == "svg"]
    shown = [found for found in drawings if found.get("aria-hidden") != "true"]
    assert len(shown) == 3 + 6
    assert all(found["role"] == "img" and found["aria-label"] for found in shown)
    assert all("alt" in found for tag, found in page.tags if tag == "img")


def test_equal_runs_have_equal_reports_but_for_times(run, tmp_path, capsys):
    again = shutil.copytree(run, tmp_path / "run")
    before = (run / "report.html").read_bytes()
    (again / "report.html").unlink()
    assert main(["report", str(again), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"] == []
    assert (again / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "every layer began at random"),
        ({}, "No second seed"),
        ({}, "Nothing was chosen by the test images: epoch"),
        ({"validation": 0.0}, "No epoch was chosen"),
        ({"limit": 100}, "Not all of the data: a sample of at most 100 training"),
        ({"trainable": "last-layer"}, "all that is frozen is random"),
        ({"shift": 0.1}, None),
        ({"on_bad_image": "skip"}, "Pictures that could not be used were passed over"),
        ({"epochs": 9, "patience": 1}, "Not all 9 epochs: it stopped after 2"),
        (PRETRAINED, "Not the normalisation of the pretrained weights"),
        (PRETRAINED | {"normalize": "weights"}, None),
        # How one's own were trained is not known.
        ({"weights": "mine.pth"}, None),
    ],
)
def test_what_was_not_done_is_said(run, settings, sentence):
    finished = read_run(run)
    recipe = finished.recipe.changed(**settings)
    metrics = {
        **finished.metrics,
        "weights": {"name": recipe.weights},
        "selected_epoch": 2 if recipe.validation else None,
    }
    changed = type(finished)(recipe, run, finished.epochs, finished.scores, metrics)
    said = " ".join(words.not_done(changed))
    if sentence is not None:
        assert sentence in said
    assert ("No augmentation" in said) == (not recipe.augments)
    is_known = recipe.weights == PRETRAINED["weights"]
    assert ("normalisation" in said) == (is_known and recipe.normalize == "recipe")


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"epochs": 3, "seed": 7, "limit": 50, "learning_rate": 1e-05, "mean": -1.5},
        {"data": "my digits/of 'now'"},
        {"data": "--json"},
        {"data": "new\nline\u202e\\'"},
        {"name": "mine", "training_stats": "stats.json"},
        {"name": "resnet50", "architecture": "resnet50", "channels": 3, "weights": "none"},
    ],
)
def test_the_command_repeats_the_recipe(run, settings):
    finished = read_run(run)
    recipe = Recipe(**{**finished.recipe.model_dump(), **settings})
    changed = type(finished)(recipe, run, finished.epochs, finished.scores, finished.metrics)
    line = " ".join(words.command_words(changed))
    assert line.isprintable()
    done = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, text=True, check=True
    )
    _, _, base, *flags = done.stdout.split("\0")[:-1]
    given = {}
    while flags:
        flag, found, value = flags.pop(0).partition("=")
        given[flag[2:].replace("-", "_")] = value if found else flags.pop(0)
    assert (given.pop("device"), given.pop("threads")) == ("cpu", "1")
    assert heptad.load_recipe(base, **given) == recipe


def hostile(run: Path, names: list[str]) -> None:
    """Give the classes of a run other names, as they would be after folders with these names."""
    metrics = metrics_of(run) | {"classes": names}
    (run / "metrics.json").write_text(json.dumps(sealed(metrics)))


def test_class_names_that_attack_are_text(run, tmp_path, capsys):
    pages = []
    for names in (list("abcdefghij"), ODD_NAMES):
        folder = shutil.copytree(run, tmp_path / f"<b>{names[0][0]}")
        hostile(folder, names)
        assert main(["report", str(folder)]) == 0
        text = (folder / "report.html").read_text(encoding="utf-8")
        pages.append(Page(text))
    plain, page = pages
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    for name in ODD_NAMES:
        shown = name.encode("unicode_escape").decode() if not name.isprintable() else name
        assert page.says(shown), name
    assert not re.search(r"[\u202e\x1b\x07]", text)
    assert not [key for _, found in page.tags for key in found if key.startswith("on")]


def test_the_model_card_holds_facts_that_markdown_leaves_alone(run, tmp_path, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    hostile(folder, ODD_NAMES)
    assert main(["report", str(folder)]) == 0
    _, front, card = (folder / "MODEL_CARD.md").read_text().split("---\n", 2)
    facts = {
        key: json.loads(value)
        for key, value in (line.split(": ", 1) for line in front.splitlines())
    }
    (result,) = facts["model-index"][0]["results"]
    values = {each["type"]: each["value"] for each in result["metrics"]}
    assert values["accuracy"] == metrics_of(run)["test_accuracy"]
    assert not re.search(r"[<\x1b\u202e]|\]\(", card)
    for line in card.splitlines():
        assert not re.match(r"\|", line) or line.count("|") == 3


def test_a_report_without_the_data_says_so_and_has_all_the_rest(run, tmp_path, digits, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    metrics = metrics_of(folder)
    metrics["recipe"]["data"] = str(tmp_path / "gone")
    (folder / "metrics.json").write_text(json.dumps(sealed(metrics)))
    assert main(["report", str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("The test images are not shown: there is no data set")
    page = Page((folder / "report.html").read_text())
    assert page.says("The test images are not shown: there is no data set")
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert len(page.cells("confusion-matrix")) == 11


def test_other_images_under_the_same_name_are_not_shown_for_those_of_then(
    run, tmp_path, digits, capsys
):
    other = shutil.copytree(digits, tmp_path / "digits")
    path = other / "t10k-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    content[16:] = bytes(len(content) - 16)
    path.write_bytes(content)
    folder = shutil.copytree(run, tmp_path / "run")
    metrics = metrics_of(folder)
    metrics["recipe"]["data"] = str(other)
    (folder / "metrics.json").write_text(json.dumps(sealed(metrics)))
    assert main(["report", str(folder)]) == 0
    assert "does not hold the images of then any more" in capsys.readouterr().out


@pytest.mark.parametrize(
    "name", ["predictions.npz", "metrics.jsonl", "environment.json", "lenet5_digits.pth"]
)
def test_a_damaged_run_gets_no_report(run, tmp_path, name, capsys):
    folder = shutil.copytree(run, tmp_path / "run")
    before = (folder / "report.html").read_bytes()
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    assert main(["report", str(folder)]) == 5
    assert f"{name} is not what was saved" in capsys.readouterr().err
    assert (folder / "report.html").read_bytes() == before


def test_a_report_that_fails_costs_a_warning_and_not_the_training(
    digits, workplace, capsys, caplog
):
    Path("run").mkdir()
    # Where the report should go is a folder already.
    Path("run/report.html").mkdir()
    words = [*TRAIN, "--data", str(digits), "--limit", "50", "--out", "run"]
    assert main(words) == 0
    assert "the report could not be written" in caplog.text
    assert "`heptad report run` tries again" in caplog.text
    assert main(["verify", "run"]) == 0


def test_a_bad_picture_is_named_once_and_the_report_says_that_some_were_passed_over(
    pictures, tmp_path, workplace, caplog
):
    data = shutil.copytree(pictures, tmp_path / "set")
    (data / "3" / "bad.png").write_text("no picture")
    words = ["train", "lenet5", "--epochs", "1", "--data", str(data), "--on-bad-image", "skip"]
    assert main([*words, "--out", "run"]) == 0
    assert caplog.text.count("bad.png") == 1
    page = Page(Path("run/report.html").read_text())
    assert page.says("Pictures that could not be used were passed over")
    # Pictures from files are shown with their paths.
    assert re.search(r"\b\d/\d+\.png", page.texts["worst"])


def test_a_training_can_do_without_a_report(digits, workplace, capsys):
    words = [*TRAIN, "--data", str(digits), "--limit", "50", "--out", "run", "--no-report"]
    assert main(words) == 0
    assert not list(Path("run").glob("*.html"))
    said = capsys.readouterr().out
    assert "browser" not in said
    assert "heptad report run" in said
    # A finished run that is resumed is given as it is.
    assert main(["resume", "run"]) == 0
    assert not list(Path("run").glob("*.html"))


def test_several_runs_stand_side_by_side(run, digits, tmp_path, capsys):
    other = tmp_path / "other"
    words = [*TRAIN, "--data", str(digits), "--seed", "5", "--validation", "0.2", "--no-report"]
    assert main([*words, "--out", str(other), "--json"]) == 0
    assert main(["report", str(run), str(other), "--out", str(tmp_path / "both.html")]) == 0
    page = Page((tmp_path / "both.html").read_text())
    _, *rows = page.cells("score-table")
    for row, folder in zip(rows, (run, other), strict=True):
        metrics = metrics_of(folder)
        low, high = metrics["test_accuracy_interval"]
        assert row[:3] == [
            str(folder),
            percent(metrics["test_accuracy"]),
            f"{100 * low:.2f} to {100 * high:.2f}",
        ]
    assert page.cells("difference-table")[1:] == [["seed", "0", "5"]]
    assert not page.says("not tested on the same images")


@pytest.mark.parametrize("width", [40, 100])
def test_the_summary_fits_a_terminal_and_its_commands_stay_whole(run, width, monkeypatch):
    monkeypatch.chdir(run.parent)
    shown = io.StringIO()
    console = Console(width=width, file=shown, force_terminal=True, color_system=None)
    show_summary(console, read_run(Path("run")))
    lines = shown.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    *_, predict, evaluate, compare = lines
    commands = [line.split("   ")[0].strip() for line in (predict, evaluate, compare)]
    assert [command.split("  ")[0] for command in commands] == [
        "heptad predict run IMAGE",
        "heptad evaluate run",
        "heptad compare run RUN",
    ]
    assert ("what it says of a picture" in predict) == (width == 100)


@pytest.mark.parametrize("num_epochs", [1, 2, 10, 1000])
def test_a_chart_of_any_length_names_whole_epochs(num_epochs):
    losses = tuple(2.0 / (k + 1) for k in range(num_epochs))
    accuracies = tuple(1 - loss / 3 for loss in losses)
    curves = charts.Curves(
        step_losses=tuple((loss,) * 5 for loss in losses),
        train=losses,
        scored=losses,
        accuracies=accuracies,
        intervals=tuple((accuracy - 0.01, accuracy + 0.01) for accuracy in accuracies),
    )
    loss, accuracy = (
        charts.loss_chart(curves, "test"),
        charts.accuracy_chart(curves, "test", chosen=num_epochs),
    )
    for drawing in (loss, accuracy):
        below = re.findall(r'text-anchor="middle">([^<]*)<', drawing)
        assert below
        assert all(tick.isdecimal() and 1 <= int(tick) <= num_epochs for tick in below)
        # A drawing of a thousand epochs is still a drawing.
        assert len(drawing) < 100_000


@pytest.mark.parametrize("bounds", [(0, 1), (0.97, 0.991), (3, 3), (0, 9380), (1e-7, 2e-7)])
def test_round_values_are_few_round_and_within(bounds):
    low, high = bounds
    values = charts.round_values(low, high)
    assert 1 <= len(values) <= 6
    assert all(low - 1e-12 <= value <= high + 1e-12 for value in values)


def test_covering_what_decides_lowers_the_probability_and_nothing_else_does():
    """A network that answers by the upper left quarter alone: only patches there count."""

    class Corner(nn.Module):
        def forward(self, images):
            light = images[:, 0, :8, :8].mean((1, 2))
            return torch.stack([light, torch.zeros_like(light)], 1)

    image = torch.zeros(1, 32, 32)
    image[:, :8, :8] = 9.0
    found = looks.occlusion(Corner(), image, num_places=8)
    assert found.shape == (8, 8)
    unmoved = torch.tensor([9.0, 0.0], dtype=torch.float64).softmax(0)[0]
    # Patches are a quarter of the side: centred at 22 and more they leave the corner alone.
    assert torch.allclose(found[4:], unmoved)
    assert torch.allclose(found[:, 4:], unmoved)
    assert found[0, 0] < unmoved


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (LeNet5, (1, 1, 32, 32)),
        (LeNet5Of1998, (1, 1, 32, 32)),
        (resnet18, (1, 3, 64, 64)),
        (mobilenet_v3_small, (2, 3, 64, 64)),
    ],
)
def test_multiplications_are_counted_as_pytorch_counts_them(build, shape):
    network, inputs = build().eval(), torch.zeros(shape)
    with FlopCounterMode(display=False) as counter:
        network(inputs)
    assert 2 * looks.count_products(network, inputs) == counter.get_total_flops()


def test_the_label_errors_of_mnist_are_at_the_labels_that_were_published(mnist):
    labels = mnist["test"][1]
    known = LABEL_ERRORS["mnist"]
    assert len(known) == 15
    assert all(str(labels[place]) == error.label for place, error in known.items())
    assert (known[6651].label, known[6651].in_words) == ("0", "most people saw 6")


def test_label_errors_are_marked_where_mnist_is_scored(mnist, workplace, capsys):
    """Of a sample only those in it; of other data none, as the other tests' reports show."""
    words = ["train", "lenet5", "--epochs", "1", "--limit", "5000", "--batch-size", "500"]
    assert main([*words, "--out", "run", "--json"]) == 0
    with np.load("run/predictions.npz") as stored:
        ids, labels, logits = stored["ids"], stored["labels"], stored["logits"]
    places = [k for k, number in enumerate(ids) if number in LABEL_ERRORS["mnist"]]
    as_labelled = sum(logits[k].argmax() == labels[k] for k in places)
    said = Page(Path("run/report.html").read_text()).texts["known-errors"]
    assert f"scored here, {len(places)} have a label" in said
    assert f"answers {as_labelled} of them as they are labelled" in said
