"""Several processes that train one network together, as torchrun starts them."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import heptad
from conftest import write_first_digits
from heptad.cli import main
from heptad.datasets import picture_set
from heptad.distributed import Ranks, joined
from heptad.errors import DeviceError
from heptad.recipe import RunOptions
from heptad.stages import saving
from heptad.stages.data import ordered_batches
from heptad.stages.device import pick_device
from heptad.stages.evaluation import Tally, score_batches
from heptad.stores import list_stores, stores_folder
from killing import (
    FORKS,
    at_forward,
    checkpoints,
    codes_of,
    fork_ranks,
    hang,
    metrics_of,
    rank_variables,
    result_of,
    send,
    set_variable,
    small_words,
    train_words,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes and /proc as in Linux")

SLOW = pytest.mark.slow
KILL, TERMINATE = partial(send, signal.SIGKILL), partial(send, signal.SIGTERM)
# A hang must not look like a slow machine.
SOON_S = 60.0


def lines_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def losses_of(run: Path) -> np.ndarray:
    return np.array([line["loss"] for line in lines_of(run) if "step" in line])


@pytest.fixture
def logs(tmp_path) -> Path:
    return tmp_path / "logs"


def said(logs: Path, rank: int = 0) -> str:
    return (logs / str(rank)).read_text()


# --------------------------------------------------------------------------- the same training


@pytest.mark.parametrize(
    "world_size", [2, pytest.param(3, marks=SLOW), pytest.param(8, marks=SLOW)]
)
def test_several_ranks_train_as_one_process_does(digits, tmp_path, logs, world_size):
    # The last batch of an epoch has one image, so that all ranks but one have none of it.
    words = ["train", "lenet5", "--data", str(digits), "--epochs", "2", "--batch-size", "32"]
    words += ["--limit", "97", "--precision", "float64", "--threads", "1", "--no-report"]
    words += ["--label-smoothing", "0.1", "--class-weights", "balanced", "--gradient-clip", "1"]
    words += ["--averaging", "0.9"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    together = [*words, "--out", str(tmp_path / "all")]
    assert codes_of(fork_ranks(together, logs, world_size=world_size)) == [0] * world_size
    # float64 has 53 bits, the log 17 digits; Adam makes more of a difference in the last ones.
    np.testing.assert_allclose(
        losses_of(tmp_path / "all"), losses_of(tmp_path / "one"), rtol=1e-9, atol=0
    )
    one, several = (
        torch.load(tmp_path / name / "lenet5_digits.pth", weights_only=True)
        for name in ("one", "all")
    )
    for name, value in one.items():
        torch.testing.assert_close(several[name], value, rtol=1e-6, atol=1e-9)
    metrics = metrics_of(tmp_path / "all")
    assert metrics["execution"]["world_size"] == world_size
    # Of 97 images in batches of 32, 32, 32 and 1.
    shares = [len([k for k in range(97) if k % 32 % world_size == r]) for r in range(world_size)]
    assert metrics["execution"]["rank_images"] == shares


def test_a_batch_in_parts_is_put_together_as_it_was():
    for num_items in range(1, 9):
        whole = torch.arange(num_items)
        parts = [Ranks(rank, 3).share(whole) for rank in range(3)]
        assert sorted(torch.cat(parts).tolist()) == whole.tolist()
        assert Ranks(0, 3).share_sizes(num_items, 5) == [
            len(Ranks(rank, 3).share(whole[:5])) + len(Ranks(rank, 3).share(whole[5:]))
            for rank in range(3)
        ]


def _score(variables: dict[str, str], digits: str, cache: str, sizes: list[int], out: str) -> None:
    """Score the first so many test images, in a rank, and save the confusion matrices."""
    os.environ.update(variables, HEPTAD_HOME=cache)
    torch.set_num_threads(1)
    cycle = heptad.prepare(heptad.load_recipe("lenet5", data=digits))
    found = {}
    with joined(60) as ranks:
        for size in sizes:
            source = cycle.sources.test.at(torch.arange(size))
            tally = Tally()
            batches = ordered_batches(source, cycle.recipe.changed(batch_size=7), ranks)
            for answers in score_batches(cycle.model, batches, ranks):
                tally.add(answers)
            scores = tally.scores(nn.functional.cross_entropy)
            assert scores.ids.tolist() == list(range(size))
            assert scores.labels.tolist() == source.labels.tolist()
            found[str(size)] = scores.confusion.numpy()
    np.savez(f"{out}-{ranks.rank}", **found)


def confusions(digits, cache, tmp_path, world_size: int, sizes: list[int]) -> list[dict]:
    out = tmp_path / str(world_size)
    processes = [
        FORKS.Process(target=_score, args=(variables, str(digits), str(cache), sizes, str(out)))
        for variables in rank_variables(world_size)
    ]
    for process in processes:
        process.start()
    assert codes_of(processes) == [0] * world_size
    return [dict(np.load(f"{out}-{rank}.npz")) for rank in range(world_size)]


@pytest.mark.parametrize(
    ("data", "sizes"),
    [
        pytest.param("digits", [*range(1, 21)], id="1 to 20"),
        pytest.param("mnist", [10_000], id="all of MNIST", marks=SLOW),
    ],
)
def test_one_two_and_three_ranks_score_alike(digits, cache, mnist, tmp_path, data, sizes):
    data = digits if data == "digits" else data
    [expected] = confusions(data, cache, tmp_path, 1, sizes)
    assert [int(expected[str(size)].sum()) for size in sizes] == sizes
    for world_size in (2, 3):
        for found in confusions(data, cache, tmp_path, world_size, sizes):
            assert {k: v.tolist() for k, v in found.items()} == {
                k: v.tolist() for k, v in expected.items()
            }


# --------------------------------------------------------------------------- the trunk's pass


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    from torchvision.models import resnet50

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "made.safetensors"
    save_file(resnet50().state_dict(), path)
    return path


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def resnet_words(digits: Path, weights: Path, out: Path) -> list[str]:
    words = ["train", "resnet50", "--data", str(digits), "--weights", str(weights), "--limit", "41"]
    words += ["--image-size", "32", "--batch-size", "16", "--threads", "1", "--no-report"]
    return [*words, "--out", str(out)]


@SLOW
@pytest.mark.parametrize("engine", ["eager", "rewritten"])
def test_a_head_on_features_that_two_ranks_computed_trains_as_one_process_does(
    digits, weights, own_cache, tmp_path, logs, monkeypatch, engine
):
    words = [*resnet_words(digits, weights, tmp_path / "all"), "--engine", engine]
    assert codes_of(fork_ranks(words, logs)) == [0, 0]
    [store] = list_stores()
    rows = [len(np.load(path)) for path in (stores_folder() / store.key).glob("*.npy")]
    # Each computed its half of 41 training and 41 test images.
    assert sorted(rows) == [41, 41]
    execution = metrics_of(tmp_path / "all")["execution"]
    assert (execution["engine"], execution["computed_features"]) == (engine, 82)
    monkeypatch.setenv("HEPTAD_HOME", str(tmp_path / "another"))
    assert main([*resnet_words(digits, weights, tmp_path / "one"), "--engine", engine]) == 0
    np.testing.assert_allclose(
        losses_of(tmp_path / "all"), losses_of(tmp_path / "one"), rtol=1e-5, atol=0
    )
    # What one process finds is what the two kept: the keys are the same.
    monkeypatch.setenv("HEPTAD_HOME", str(own_cache))
    assert main([*resnet_words(digits, weights, tmp_path / "later"), "--engine", engine]) == 0
    assert metrics_of(tmp_path / "later")["execution"]["computed_features"] == 0


@SLOW
def test_statistics_that_one_rank_recalibrated_serve_all(
    digits, weights, own_cache, tmp_path, logs
):
    words = [*resnet_words(digits, weights, tmp_path / "all"), "--batchnorm", "recalibrated"]
    assert codes_of(fork_ranks(words, logs)) == [0, 0]
    words = [*resnet_words(digits, weights, tmp_path / "one"), "--batchnorm", "recalibrated"]
    assert main(words) == 0
    assert losses_of(tmp_path / "all") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-5)


@SLOW
def test_a_rank_with_a_cache_of_its_own_is_named_before_the_pass(
    digits, weights, own_cache, tmp_path, logs
):
    own = partial(set_variable, "HEPTAD_HOME", str(tmp_path / "elsewhere"))
    processes = fork_ranks(resnet_words(digits, weights, tmp_path / "run"), logs, on={1: (own,)})
    assert codes_of(processes) == [6, 6]
    assert f"rank 1 ({tmp_path / 'elsewhere'}" in said(logs)
    assert "does not see what rank 0 writes into" in said(logs)
    assert "HEPTAD_HOME" in said(logs)
    assert not list(own_cache.rglob("*.npy"))


@SLOW
def test_a_pass_that_one_rank_left_goes_on_where_it_stopped(
    digits, weights, own_cache, tmp_path, logs
):
    words = [*resnet_words(digits, weights, tmp_path / "run"), "--engine", "eager"]
    # At 32 pixels a batch of the pass has 128 images: there is one for each rank's half of each
    # part, and a signal that comes before the first report ends it at once.
    stop = partial(at_forward, 1, TERMINATE, training=False)
    assert codes_of(fork_ranks(words, logs, on={1: (stop,)}))[1] == 143
    kept = sum(len(np.load(path)) for path in own_cache.rglob("*.npy"))
    assert 0 < kept < 82
    assert codes_of(fork_ranks(words, logs)) == [0, 0]
    assert metrics_of(tmp_path / "run")["execution"]["computed_features"] == 82 - kept


@SLOW
def test_shards_that_are_damaged_are_set_aside_by_two_ranks_at_once(
    digits, weights, own_cache, tmp_path, logs
):
    words = [*resnet_words(digits, weights, tmp_path / "run"), "--engine", "eager"]
    assert codes_of(fork_ranks(words, logs)) == [0, 0]
    for path in own_cache.rglob("*.npy"):
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    words = [*resnet_words(digits, weights, tmp_path / "again"), "--engine", "eager"]
    assert codes_of(fork_ranks(words, logs)) == [0, 0]
    assert metrics_of(tmp_path / "again")["execution"]["computed_features"] == 82
    assert losses_of(tmp_path / "again").tolist() == losses_of(tmp_path / "run").tolist()


def test_pictures_are_decoded_by_one_rank_alone(pictures, own_cache, run, logs):
    words = ["train", "lenet5", "--data", str(pictures), "--epochs", "1", "--no-report"]
    words += ["--threads", "1", "--out", str(run)]
    assert codes_of(fork_ranks(words, logs, on={1: (decode_nothing,)})) == [0, 0], said(logs, 1)


def decode_nothing() -> None:
    def refuse(paths, *_, **__):
        assert not paths
        return iter(())

    picture_set.looking = refuse


# --------------------------------------------------------------------------- stops and restarts


@pytest.fixture(scope="module")
def undisturbed(digits, tmp_path_factory) -> Path:
    """The folder of a small run of two ranks that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    words = small_words(digits, folder / "run")
    assert codes_of(fork_ranks(words, folder / "logs")) == [0, 0]
    return folder / "run"


def test_a_signal_to_one_rank_stops_all_at_the_same_step(digits, run, logs, undisturbed):
    stop = partial(at_forward, 2, TERMINATE)
    assert codes_of(fork_ranks(small_words(digits, run), logs, on={1: (stop,)})) == [143, 143]
    assert "saved after step 2" in said(logs, 0)
    assert "saved after step 2" in said(logs, 1)
    words = ["resume", str(run), "--checkpoint-every", "1", "--no-report"]
    assert codes_of(fork_ranks(words, logs)) == [0, 0]
    assert metrics_of(run)["execution"]["resumed_from"] == [2]
    assert result_of(run) == result_of(undisturbed)


@pytest.mark.parametrize(
    ("world_size", "lost"), [(2, 1), pytest.param(2, 0, marks=SLOW), pytest.param(3, 1, marks=SLOW)]
)
def test_a_rank_that_is_killed_is_made_good_by_a_restart_to_the_bit(
    digits, run, logs, tmp_path, world_size, lost
):
    if world_size == 2:
        words, moment = small_words(digits, run), 3
    else:
        # Of three numbers the sum depends on the order, which must be that of a run never left.
        words, moment = train_words(digits, run), 20
    straight = [str(tmp_path / "straight") if word == str(run) else word for word in words]
    assert codes_of(fork_ranks(straight, logs, world_size=world_size)) == [0] * world_size
    killed = partial(at_forward, moment, KILL)
    started_at = time.monotonic()
    codes = codes_of(fork_ranks(words, logs, world_size=world_size, on={lost: (killed,)}))
    assert time.monotonic() - started_at < SOON_S
    assert codes == [-9 if rank == lost else 6 for rank in range(world_size)]
    other = next(rank for rank in range(world_size) if rank != lost)
    assert "another rank ended, or did not answer" in said(logs, other)
    assert codes_of(fork_ranks(words, logs, world_size=world_size)) == [0] * world_size
    assert metrics_of(run)["execution"]["resumed_from"]
    assert result_of(run) == result_of(tmp_path / "straight")


def test_a_restart_leaves_the_run_of_another_launch_alone(digits, run, logs, undisturbed):
    words = small_words(digits, undisturbed)
    before = result_of(undisturbed)
    again = fork_ranks(words, logs, TORCHELASTIC_RUN_ID="another", TORCHELASTIC_RESTART_COUNT="1")
    assert codes_of(again) == [2, 2]
    assert "holds a run already" in said(logs)
    assert result_of(undisturbed) == before


@SLOW
def test_a_run_goes_on_with_another_number_of_ranks_in_the_same_order(digits, run, logs, straight):
    words = train_words(digits, run)
    # Two ranks learn of a signal by the next step; one does at once.
    for world_size, moment in ((2, 9), (1, 9), (2, 0)):
        stop = (partial(at_forward, moment, TERMINATE),) if moment else ()
        processes = fork_ranks(
            [*words, "--resume"], logs, world_size=world_size, on={world_size - 1: stop}
        )
        assert codes_of(processes) == [143 if moment else 0] * world_size
        if world_size == 1:
            assert "world_size is 1, was 2" in said(logs)
    assert "world_size is 2, was 1" in said(logs)
    assert metrics_of(run)["execution"]["resumed_from"] == [10, 19]
    # Another order of images would change the losses in the first digits.
    np.testing.assert_allclose(losses_of(run), losses_of(straight), rtol=1e-3, atol=0)
    assert losses_of(run)[:10] == pytest.approx(losses_of(straight)[:10], rel=1e-5)


def test_what_one_rank_raises_is_said_and_ends_all(digits, run, logs):
    broken = partial(at_forward, 2, partial(_raise, "DefaultCPUAllocator: not enough memory"))
    assert codes_of(fork_ranks(small_words(digits, run), logs, on={1: (broken,)})) == [6, 6]
    assert "rank 1: error: there is not enough memory for this." in said(logs, 1)
    assert "its own message says why" in said(logs, 0)
    # Rank 0 had not taken that step yet.
    assert "step-00000001" in checkpoints(run)


@SLOW
def test_a_rank_that_hangs_is_not_waited_for_without_end(digits, run, logs):
    words = [*small_words(digits, run), "--rank-timeout", "3"]
    processes = fork_ranks(words, logs, on={1: (partial(at_forward, 2, hang),)})
    started_at = time.monotonic()
    assert codes_of(processes[:1]) == [6]
    assert time.monotonic() - started_at < SOON_S
    # As torchrun does with what is left.
    processes[1].kill()
    assert "another rank ended, or did not answer" in said(logs)
    assert "step-00000001" in checkpoints(run)


@SLOW
def test_a_megabyte_of_shared_memory_is_enough_for_two_ranks(digits, run):
    mounted = "mount -t tmpfs -o size=1m tmpfs /dev/shm && df -B1 --output=size /dev/shm && "
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c"]
    done = subprocess.run(
        [*words, mounted + shlex.join(torchrun(*long_words(digits, run)))],
        capture_output=True,
        text=True,
        check=False,
    )
    if "unshare" in done.stderr and "not permitted" in done.stderr:
        pytest.skip("mounts of one's own are refused")
    assert done.returncode == 0, done.stderr
    assert "1048576" in done.stdout
    assert metrics_of(run)["execution"]["world_size"] == 2


def _raise(message: str) -> None:
    raise RuntimeError(message)


@SLOW
def test_a_loss_that_is_not_finite_ends_all_ranks_at_the_same_step(digits, run, logs):
    words = [*small_words(digits, run), "--learning-rate", "1e30"]
    assert codes_of(fork_ranks(words, logs)) == [4, 4]
    for rank in range(2):
        assert "step 2, epoch 1" in said(logs, rank)


# --------------------------------------------------------------------------- what cannot be


def test_a_rank_that_never_comes_is_not_waited_for_without_end(digits, run, logs):
    [first, _] = rank_variables(2)
    words = [*small_words(digits, run), "--rank-timeout", "2"]
    started_at = time.monotonic()
    process = fork_ranks(words, logs, world_size=1, **first)
    assert codes_of(process) == [6]
    assert time.monotonic() - started_at < SOON_S
    assert "rank 0 waited 2 s at 127.0.0.1:" in said(logs)
    assert "not all 2 ranks came" in said(logs)
    assert not run.exists()


def test_a_port_in_use_is_named(digits, run, logs):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = [*small_words(digits, run), "--rank-timeout", "2"]
        [first, _] = rank_variables(2)
        processes = fork_ranks(words, logs, world_size=1, **(first | {"MASTER_PORT": str(port)}))
        assert codes_of(processes) == [6]
    assert f"127.0.0.1:{port}: the port is in use" in said(logs)


def test_ranks_with_other_settings_are_named(digits, run, logs):
    more = {1: ["--learning-rate", "0.01"]}
    assert codes_of(fork_ranks(small_words(digits, run), logs, more=more)) == [2, 2]
    assert "learning_rate is 0.01 on rank 1" in said(logs)
    assert "but 0.001 on rank 0" in said(logs)
    assert not run.exists()


def test_ranks_with_other_versions_are_named(digits, run, logs):
    assert codes_of(fork_ranks(small_words(digits, run), logs, on={1: (be_older,)})) == [2, 2]
    assert "torch is 2.9.0 on rank 1" in said(logs)
    # A setting that the older one does not know.
    assert "rank_timeout is None on rank 1" in said(logs)


def be_older() -> None:
    settings = RunOptions.model_dump

    def without(self, **more):
        return {k: v for k, v in settings(self, **more).items() if k != "rank_timeout"}

    RunOptions.model_dump = without
    saving.package_versions = lambda: {"torch": "2.9.0"}


@SLOW
def test_ranks_with_other_images_are_named(digits, run, logs, mnist, tmp_path):
    places = [tmp_path / "here", tmp_path / "there"]
    for count, folder in enumerate(places, 100):
        write_first_digits(folder / "digits", mnist, num_train=count, num_test=50)
    on = {rank: (partial(os.chdir, folder),) for rank, folder in enumerate(places)}
    words = ["train", "lenet5", "--data", "digits", "--out", str(run), "--no-report"]
    assert codes_of(fork_ranks(words, logs, on=on)) == [2, 2]
    assert "the data's SHA-256 is" in said(logs)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["train", "lenet5"], "no run folder is named"),
        (["train", "lenet5", "--out", "run", "--seeds", "2"], "the work of one process"),
        (["tune", "lenet5", "--trials", "2"], "`heptad tune` is the work of one process"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_what_ranks_cannot_do_together_is_refused(monkeypatch, workplace, capsys, words, expected):
    for name, value in rank_variables(2)[0].items():
        monkeypatch.setenv(name, value)
    assert main(words) == 2
    assert expected in capsys.readouterr().err
    assert not list(workplace.iterdir())


@SLOW
@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--limit", "10"], "there are 10 training images for 11 ranks"),
        (["resnet50"], "statistics of BatchNorm would move"),
    ],
)
def test_a_training_that_ranks_cannot_share_is_refused(digits, run, logs, more, expected):
    if "resnet50" in more:
        words = ["train", "resnet50", "--weights", "none", "--trainable", "all"]
        words += ["--data", str(digits), "--limit", "40", "--image-size", "32", "--out", str(run)]
        world_size = 2
    else:
        words, world_size = train_words(digits, run, *more), 11
    codes = codes_of(fork_ranks(words, logs, world_size=world_size))
    assert codes == [2] * world_size
    assert expected in said(logs)


@pytest.mark.parametrize("name", ["cuda:1", "mps", "auto"])
def test_no_device_is_named_for_several_ranks(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    if name == "auto":
        assert pick_device(name, local_rank=1) == torch.device("cuda:1")
        assert chosen == [torch.device("cuda:1")]
        with pytest.raises(DeviceError, match="PyTorch sees 2 CUDA devices"):
            pick_device(name, local_rank=2)
        return
    with pytest.raises(DeviceError, match="each on its own device"):
        pick_device(name, local_rank=1)


# --------------------------------------------------------------------------- torchrun itself


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(*words: str, options: tuple[str, ...] = ()) -> list[str]:
    return [*TORCHRUN, *options, "-m", "heptad", *words]


@SLOW
def test_torchrun_restarts_a_rank_that_was_killed_and_the_end_is_the_same(digits, run):
    straight = run.with_name("straight")
    subprocess.run(torchrun(*long_words(digits, straight)), check=True, capture_output=True)
    command = torchrun(*long_words(digits, run), options=("--max-restarts", "1"))
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not checkpoints(run) and process.poll() is None:
        time.sleep(0.005)
    os.kill(rank_pid(process.pid, 1), signal.SIGKILL)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert metrics_of(run)["execution"]["resumed_from"]
    assert result_of(run) == result_of(straight)


@SLOW
def test_a_rank_that_ends_leaves_no_thread_of_its_group_to_abort_it(digits, run, tmp_path):
    script = tmp_path / "ends.py"
    script.write_text(LISTING_ITS_THREADS)
    start = [*TORCHRUN, str(script), *train_words(digits, run)]
    printed = subprocess.run(start, check=True, capture_output=True, text=True).stdout
    threads = [line for line in printed.splitlines() if line.startswith("threads: ")]
    assert len(threads) == 2
    assert not any("gloo" in names for names in threads)


LISTING_ITS_THREADS = """
import atexit, sys
from pathlib import Path
from heptad.cli import main

def list_threads():
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    print("threads:", *names, flush=True)

atexit.register(list_threads)
sys.exit(main(sys.argv[1:]))
"""


@SLOW
def test_two_machines_restart_a_rank_and_another_launch_of_that_name_is_refused(
    digits, run, monkeypatch
):
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    machines = [subprocess.Popen(words, stderr=subprocess.PIPE) for words in two(digits, run)]
    while not checkpoints(run) and machines[0].poll() is None:
        time.sleep(0.005)
    # Either may be the one with rank 0.
    pids = [pid for machine in machines if (pid := rank_pid(machine.pid, 1))]
    os.kill(pids[0], signal.SIGKILL)
    for machine in machines:
        errors = machine.communicate()[1].decode()
        assert machine.returncode == 0, errors
    assert metrics_of(run)["execution"]["resumed_from"]
    before = result_of(run)
    machines = [subprocess.Popen(words, stderr=subprocess.PIPE) for words in two(digits, run)]
    said = b"".join(machine.communicate()[1] for machine in machines)
    assert b"holds a run already" in said
    assert all(machine.returncode for machine in machines)
    assert result_of(run) == before


def two(digits: Path, run: Path) -> list[list[str]]:
    """The command of each of two machines, which are this one."""
    port = rank_variables(1)[0]["MASTER_PORT"]
    meeting = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"]
    meeting += ["--rdzv-id", "named", "--rdzv-endpoint", f"127.0.0.1:{port}", "--max-restarts", "1"]
    launch = [sys.executable, "-m", "torch.distributed.run", *meeting, "-m", "heptad"]
    return [[*launch, *long_words(digits, run)]] * 2


@SLOW
def test_a_signal_to_torchrun_saves_and_ends_it(digits, run):
    words = long_words(digits, run, num_epochs=200)
    process = subprocess.Popen(torchrun(*words), stderr=subprocess.PIPE, text=True)
    log = run / "metrics.jsonl"
    while not (log.exists() and log.stat().st_size) and process.poll() is None:
        time.sleep(0.01)
    started_at = time.monotonic()
    process.terminate()
    _, errors = process.communicate()
    # torchrun itself takes its time to end; both ranks stopped after the step under way.
    assert time.monotonic() - started_at < SOON_S
    assert process.returncode != 0
    newest = max(checkpoints(run))
    assert f"saved after step {int(newest.split('-')[1])};" in errors


def long_words(digits: Path, out: Path, *, num_epochs: int = 6) -> list[str]:
    words = ["train", "lenet5", "--data", str(digits), "--epochs", str(num_epochs), "--no-report"]
    return [*words, "--batch-size", "32", "--checkpoint-every", "4", "--out", str(out)]


def rank_pid(launcher: int, rank: int) -> int | None:
    """Find the process of a rank among those that torchrun started, if it started it."""
    for children in Path(f"/proc/{launcher}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            if b"RANK=%d" % rank in variables:
                return child
    return None
