"""What goes wrong, and what is said: the rows of docs/errors.md, each tried by a test.

A row is: what is wrong, the command, its exit code, the first line of the message. The commands
run in a folder that `make_bad_things` filled, so every name in a message is a relative one.
"""

from __future__ import annotations

import gzip
import json
import os
import shutil
import struct
from contextlib import closing
from pathlib import Path
from tarfile import SYMTYPE
from typing import NamedTuple

import numpy as np
import onnx
import safetensors.torch
import torch
from PIL import Image

import archives
import heptad
from conftest import NAMES
from heptad.files import digest_of
from heptad.recipe import RunOptions
from heptad.stages.saving import sealed
from picture_files import png, tiff


class Row(NamedTuple):
    """One mistake and its answer."""

    wrong: str
    command: str
    code: int
    message: str


TRAIN = "train lenet5 --data digits --epochs 1 --limit 20"
ROWS = [
    # The command line
    Row(
        "unknown command",
        "trian lenet5",
        2,
        'Unknown command "trian". Did you mean "train"? Available commands:'
        " recipes, train, resume, tune, evaluate, compare, report, predict, ...",
    ),
    Row(
        "unknown flag",
        "train lenet5 --epoch 3",
        2,
        "Unknown option: --epoch. Did you mean --epochs?",
    ),
    Row(
        "flag without a value",
        "train lenet5 --epochs",
        2,
        'Command "train" parameter --epochs requires an argument.',
    ),
    Row("no recipe", "train", 2, 'Command "train" parameter RECIPE requires an argument.'),
    Row("a word too many", "train lenet5 vgg16", 2, "Unused Tokens: ['vgg16']."),
    Row(
        "a flag given twice",
        "train lenet5 --seed 1 --seed 2",
        2,
        "Parameter --seed specified multiple times.",
    ),
    # Recipes
    Row(
        "unknown recipe",
        "train lenet6",
        2,
        "there is no recipe 'lenet6'. Did you mean 'lenet5'? Allowed: lenet5, lenet5-fast,"
        " lenet5-best, lenet5-1998, vgg16, resnet50, resnet50-finetune, vgg16-finetune,"
        " resnet50-recalibrated, resnet50-v1, vgg16-imagenet-norm, a .toml or .json file, or"
        " the folder of a run.",
    ),
    Row(
        "a folder that is no run, as recipe",
        "train empty",
        2,
        "the folder 'empty' is no run: it has no recipe.json.",
    ),
    Row(
        "unknown setting in a file",
        "train unknown-key.toml",
        2,
        "there is no setting 'learning-rate'. Did you mean 'learning_rate'? Allowed: "
        + ", ".join(heptad.Recipe.model_fields)
        + ".",
    ),
    Row(
        "a file that is no TOML",
        "train broken.toml",
        2,
        "the recipe 'broken.toml' cannot be read: Expected '=' after a key in a key/value pair"
        " (at line 1, column 6).",
    ),
    Row(
        "a file that holds a list",
        "train list.json",
        2,
        "the recipe 'list.json' holds list; allowed: named settings.",
    ),
    Row(
        "no epochs",
        "train lenet5 --epochs 0",
        2,
        "epochs is 0; allowed: a whole number, at least 1, at most 1000000.",
    ),
    Row(
        "negative batch size",
        "train lenet5 --batch-size=-1",
        2,
        "batch_size is -1; allowed: a whole number, at least 1, at most 1000000.",
    ),
    Row(
        "learning rate not finite",
        "train lenet5 --learning-rate nan",
        2,
        "learning_rate is nan; allowed: a finite number, above 0.",
    ),
    Row(
        "limit of nothing",
        "train lenet5 --limit 0",
        2,
        "limit is 0; allowed: a whole number, at least 1, or none.",
    ),
    Row(
        "negative limit",
        "train lenet5 --limit=-5",
        2,
        "limit is -5; allowed: a whole number, at least 1, or none.",
    ),
    Row(
        "a seed beyond 63 bits",
        "train lenet5 --seed 9223372036854775808",
        2,
        "seed is 9223372036854775808; allowed: a whole number, at least 0, at most"
        " 9223372036854775807.",
    ),
    Row(
        "a single image in a batch of moving BatchNorm",
        "train resnet50 --data digits --weights none --batchnorm drifting --limit 17"
        " --batch-size 16",
        2,
        "batch_size is 16, which leaves one of 17 images alone in a batch, and BatchNorm that"
        " moves needs two; change batch_size or limit.",
    ),
    Row(
        "a value mistyped",
        "train resnet50 --batchnorm frosen",
        2,
        "batchnorm is frosen; allowed: frozen, recalibrated, drifting, held. Did you mean"
        " 'frozen'?",
    ),
    Row(
        "unknown architecture",
        "train lenet5 --architecture resnet",
        2,
        "there is no architecture 'resnet'. Did you mean 'resnet50'?"
        " Allowed: lenet5, lenet5-1998, vgg16, resnet50.",
    ),
    Row(
        "image size that a network does not take",
        "train lenet5 --image-size 64",
        2,
        "image_size is 64 px, but lenet5 takes 32 px alone.",
    ),
    Row(
        "channels that a network does not take",
        "train vgg16 --channels 1",
        2,
        "channels is 1, but vgg16 takes 3.",
    ),
    Row(
        "a last layer without parameters trained alone",
        "train lenet5-1998 --trainable last-layer",
        2,
        "trainable is last-layer, but the last layer of lenet5-1998 has no parameters; leave it at"
        " all.",
    ),
    Row(
        "a setting without effect",
        TRAIN + " --batchnorm drifting",
        2,
        "batchnorm is drifting, but lenet5 with trainable = all has no such frozen layer;"
        " leave it at frozen.",
    ),
    Row(
        "normalisation by weights that have none",
        TRAIN + " --normalize weights",
        2,
        "normalize is weights, but weights = none has no preset; lenet5 has no weights with one.",
    ),
    # Options
    Row(
        "unknown device",
        TRAIN + " --device gpu",
        2,
        "there is no device 'gpu'. Did you mean 'cpu'? Allowed: auto, cpu, cuda, mps, cuda:N.",
    ),
    Row(
        "a device that is not here",
        TRAIN + " --device cuda:99",
        2,
        "device is 'cuda:99', but PyTorch sees 0 CUDA devices here.",
    ),
    Row(
        "memory in no known unit",
        TRAIN + " --memory 5kg",
        2,
        "memory is 5kg; allowed: a size such as 512MB or 4GB.",
    ),
    Row(
        "output under a file",
        TRAIN + " --out note.txt/run",
        2,
        "no run folder can be made at note.txt/run: note.txt is a file.",
    ),
    Row(
        "output where a run is",
        TRAIN + " --out run",
        2,
        "the folder run holds a run already.",
    ),
    Row(
        "output where a run was not finished",
        TRAIN + " --out unfinished",
        2,
        "the folder unfinished holds a run that was not finished: recipe.json is there.",
    ),
    Row(
        "events for TensorBoard without its package",
        TRAIN + " --tensorboard",
        6,
        "tensorboard is asked for, but the package of that name is not installed.",
    ),
    Row(
        "a further file under a name that is taken",
        TRAIN + " --training-stats metrics.json",
        2,
        "training_stats is metrics.json, which is the name of another file; taken: recipe.json,"
        " environment.json, metrics.jsonl, epochs.csv, metrics.json, predictions.npz,"
        " pictures.json, seeds.json, search.json, trials.journal, trials.csv, trials.png,"
        " best.toml.",
    ),
    Row(
        "a further file under the name of a group's",
        TRAIN + " --training-stats seeds.json",
        2,
        "training_stats is seeds.json, which is the name of another file; taken: recipe.json,"
        " environment.json, metrics.jsonl, epochs.csv, metrics.json, predictions.npz,"
        " pictures.json, seeds.json, search.json, trials.journal, trials.csv, trials.png,"
        " best.toml.",
    ),
    # Data
    Row(
        "unknown data set",
        "train lenet5 --data fashion_mnist",
        2,
        "there is no data set 'fashion_mnist'. Did you mean 'fashion-mnist'?"
        " Allowed: mnist, fashion-mnist, kmnist, qmnist, cifar10, or a folder of IDX files or of"
        " class folders.",
    ),
    Row(
        "a folder without IDX files",
        "train lenet5 --data empty",
        2,
        "empty holds no IDX files of train images, test images, train labels, test labels.",
    ),
    Row(
        "counts that differ",
        "train lenet5 --data differ",
        2,
        "differ/train-images-idx3-ubyte holds 20 images, but differ/train-labels-idx1-ubyte"
        " 19 labels; each image needs one.",
    ),
    Row(
        "wrong magic number",
        "train lenet5 --data magic",
        2,
        "magic/train-images-idx3-ubyte is no IDX file of images: it begins with 0x00000801,"
        " not with 0x00000803.",
    ),
    Row(
        "an empty file",
        "train lenet5 --data hollow",
        2,
        "hollow/train-images-idx3-ubyte is no IDX file of images: it begins with 0x(nothing),"
        " not with 0x00000803.",
    ),
    Row(
        "cut short",
        "train lenet5 --data short",
        2,
        "short/train-images-idx3-ubyte is cut short: it holds 15,000 values where its header"
        " says 15,680.",
    ),
    Row(
        "cut within the header",
        "train lenet5 --data header",
        2,
        "header/train-images-idx3-ubyte is cut short: it ends within its header.",
    ),
    Row(
        "too long",
        "train lenet5 --data long",
        2,
        "long/train-images-idx3-ubyte is too long: more follows the 15,680 values of its header.",
    ),
    Row(
        "no image at all",
        "train lenet5 --data none",
        2,
        "none/train-images-idx3-ubyte claims 0 x 28 x 28 values;"
        " allowed: at least one, at most 8,589,934,592.",
    ),
    Row(
        "a header that claims too much",
        "train lenet5 --data claims",
        2,
        "claims/train-images-idx3-ubyte claims 4294967295 x 28 x 28 values;"
        " allowed: at least one, at most 8,589,934,592.",
    ),
    Row(
        "a label over 9",
        "train lenet5 --data label",
        2,
        "label 7 of label/train-labels-idx1-ubyte is 10; allowed: 0 to 9.",
    ),
    Row(
        "a damaged .gz",
        "train lenet5 --data packed",
        2,
        "packed/train-images-idx3-ubyte.gz cannot be read:"
        " Compressed file ended before the end-of-stream marker was reached.",
    ),
    Row(
        "labels of an unknown kind",
        "train lenet5 --data label-kind",
        2,
        "label-kind/train-labels-idx1-ubyte is no IDX file of labels: it begins with 0x00000803,"
        " not with 0x00000801 or 0x00000c02.",
    ),
    # CIFAR-10's archive
    Row(
        "an archive that is none",
        "train lenet5 --data no-archive",
        2,
        "no-archive/cifar-10-binary.tar.gz cannot be read: Not a gzipped file (b'no').",
    ),
    Row(
        "an archive with a link in it",
        "train lenet5 --data linking",
        2,
        "linking/cifar-10-binary.tar.gz holds 'cifar-10-batches-bin/data_batch_1.bin', which is no"
        " plain file in cifar-10-batches-bin.",
    ),
    Row(
        "an archive that lacks a file",
        "train lenet5 --data lacking-batch",
        2,
        "lacking-batch/cifar-10-binary.tar.gz lacks cifar-10-batches-bin/data_batch_2.bin.",
    ),
    Row(
        "an archive with a file twice",
        "train lenet5 --data twice",
        2,
        "twice/cifar-10-binary.tar.gz holds cifar-10-batches-bin/data_batch_1.bin more than once.",
    ),
    Row(
        "an archive with a part of an image",
        "train lenet5 --data half-row",
        2,
        "half-row/cifar-10-binary.tar.gz holds cifar-10-batches-bin/data_batch_1.bin with 100"
        " bytes; allowed: rows of 3,073 bytes, at least one.",
    ),
    Row(
        "an archive with a huge file",
        "train lenet5 --data huge-file",
        2,
        "huge-file/cifar-10-binary.tar.gz holds 'cifar-10-batches-bin/data_batch_1.bin' with"
        " 1,099,511,627,776 bytes; allowed: at most 30,730,000.",
    ),
    Row(
        "an archive that unpacks to too much",
        "train lenet5 --data huge-name",
        2,
        "huge-name/cifar-10-binary.tar.gz unpacks to more than 185,428,576 bytes.",
    ),
    # Folders of pictures
    Row("no folder to scan", "scan nowhere", 2, "there is no folder 'nowhere'."),
    Row("a folder without class folders", "scan empty", 2, "empty holds no class folders."),
    Row(
        "one class alone",
        "train lenet5 --data one-class",
        2,
        "one-class holds one class, 'a'; there is nothing to tell apart.",
    ),
    Row(
        "a class without pictures",
        "train lenet5 --data hollow-class",
        2,
        "hollow-class has no picture in b.",
    ),
    Row(
        "a test folder without a train folder",
        "train lenet5 --data test-alone",
        2,
        "test-alone has test, but no train folder beside it.",
    ),
    Row(
        "a class in the test folder alone",
        "train lenet5 --data stranger",
        2,
        "stranger/test has the classes c, which stranger/train has not; allowed: a, b.",
    ),
    Row(
        "a class in the val folder alone",
        "train lenet5 --data stranger-val",
        2,
        "stranger-val/val has the classes c, which stranger-val/train has not; allowed: a, b.",
    ),
    Row(
        "a class of which all pictures are copies of test pictures",
        "train lenet5 --data all-leaks --drop-leaks",
        2,
        "drop_leaks leaves no training image of b; all are copies of images to score.",
    ),
    Row(
        "one picture of each class",
        "train lenet5 --data single",
        2,
        "single has no picture to test on.",
    ),
    Row(
        "a picture of a set that cannot be used",
        "train lenet5 --data spoilt",
        2,
        "spoilt holds 1 picture that cannot be used.",
    ),
    Row(
        "pictures gone that a run was tested on",
        "evaluate picture-run",
        2,
        "photos lacks 1 of the 2 pictures that the run was tested on.",
    ),
    Row(
        "classes that a run does not know",
        "evaluate run --data spared",
        2,
        "spared has the classes a, b, but the run was trained on 0, 1, 2, 3, 4, 5, 6, 7 and 2"
        " more.",
    ),
    Row(
        "no picture to score",
        "evaluate picture-run --data no-pictures",
        2,
        "no-pictures has no picture of the test part that can be used.",
    ),
    Row(
        "an unknown way with bad pictures",
        "train lenet5 --data photos --on-bad-image ignore",
        2,
        "on_bad_image is ignore; allowed: error, skip.",
    ),
    # Validation, class weights, augmentation
    Row(
        "validation that is no number",
        TRAIN + " --validation half",
        2,
        "validation is half; allowed: 0 for none, a fraction below 1, a number of images, or folder"
        " for the set's own val.",
    ),
    Row(
        "validation with everything",
        TRAIN + " --validation 1",
        2,
        "validation is 1; allowed: 0 for none, a fraction below 1, a number of images, or folder"
        " for the set's own val.",
    ),
    Row(
        "validation with a part of an image",
        TRAIN + " --validation 2.5",
        2,
        "validation is 2.5; allowed: 0 for none, a fraction below 1, a number of images, or folder"
        " for the set's own val.",
    ),
    Row(
        "validation with as many images as there are",
        TRAIN + " --validation 20",
        2,
        "validation is 20, of 20 training images; some must be left to train on.",
    ),
    Row(
        "too few images to set some apart",
        TRAIN.replace("20", "5") + " --validation 0.2",
        2,
        "validation is 0.2, which leaves 5 images to train on and 0 to validate with.",
    ),
    Row(
        "a set without a val folder",
        TRAIN + " --validation folder",
        2,
        "validation is folder, but digits has no val folder with pictures.",
    ),
    Row(
        "a val folder without pictures",
        "train lenet5 --data hollow-val --validation folder",
        2,
        "validation is folder, but hollow-val has no val folder with pictures.",
    ),
    Row(
        "patience without validation",
        TRAIN + " --patience 3",
        2,
        "patience is 3, but there is no validation to judge epochs by; the test images are never"
        " selected on. Set validation, such as 0.1.",
    ),
    Row(
        "no patience at all",
        TRAIN + " --validation 0.2 --patience 0",
        2,
        "patience is 0; allowed: a whole number, at least 1, or none.",
    ),
    Row(
        "unknown class weights",
        TRAIN + " --class-weights even",
        2,
        "class_weights is even; allowed: none, balanced.",
    ),
    Row(
        "a shift out of the image",
        TRAIN + " --shift 0.6",
        2,
        "shift is 0.6; allowed: a finite number, at least 0, at most 0.5.",
    ),
    Row(
        "a probability above 1",
        TRAIN + " --flip 2",
        2,
        "flip is 2; allowed: a finite number, at least 0, at most 1.",
    ),
    Row(
        "weight decay with an optimizer that distorts it",
        TRAIN + " --weight-decay 0.01",
        2,
        "weight_decay is 0.01, which adam divides by each gradient's size. Use adamw or sgd.",
    ),
    Row(
        "a schedule that there is not",
        TRAIN + " --schedule onecycle",
        2,
        "schedule is onecycle; allowed: constant, cosine, one-cycle, step."
        " Did you mean 'one-cycle'?",
    ),
    Row(
        "views without augmentation",
        TRAIN + " --views 3",
        2,
        "views is 3, but no augmentation is set.",
    ),
    Row(
        "views without a trunk",
        TRAIN + " --shift 0.1 --views 3",
        2,
        "views is 3, but there is no trunk: every layer is trained.",
    ),
    Row(
        "another engine than can serve",
        "train resnet50 --weights none --data digits --epochs 1 --limit 20 --precision float64"
        " --engine rewritten",
        2,
        "engine is rewritten, which cannot serve: it is for float32 on the CPU, and this run is"
        " float64 on cpu.",
    ),
    Row(
        "no views at all",
        TRAIN + " --shift 0.1 --views 0",
        2,
        "views is 0; allowed: a whole number, 1 to 1000, or none.",
    ),
    # Searching
    Row(
        "a search of nothing",
        "tune lenet5 --data digits",
        2,
        "nothing is to be searched: no field has a range.",
    ),
    Row(
        "a range beyond what its field takes",
        "tune lenet5 --data digits --weight-decay 0..1",
        2,
        "weight_decay is 1; allowed: a finite number, at least 0, below 1.",
    ),
    Row(
        "a range from high to low",
        "tune lenet5 --data digits --learning-rate 1e-1..1e-4",
        2,
        "learning_rate is 1e-1..1e-4, whose first number is not the smaller one; allowed as a"
        " range: LOW..HIGH.",
    ),
    Row(
        "an unknown choice among others",
        "tune lenet5 --data digits --schedule cosine,linear",
        2,
        "schedule is linear; allowed: constant, cosine, one-cycle, step.",
    ),
    Row(
        "a search over seeds",
        "tune lenet5 --data digits --seed 0..9",
        2,
        "seed is 0..9, but it decides which images the trials are judged by, and cannot be"
        " searched.",
    ),
    Row(
        "no trials",
        "tune lenet5 --data digits --learning-rate 1e-4..1e-1 --trials 0",
        2,
        "trials is 0; allowed: a whole number, at least 1.",
    ),
    Row(
        "a range as a setting of a training",
        "train lenet5 --data digits --learning-rate 1e-4..1e-1",
        2,
        "learning_rate is 1e-4..1e-1; allowed: a finite number, above 0.",
    ),
    Row(
        "a search to go on with, but none is named",
        "tune lenet5 --data digits --learning-rate 1e-4..1e-1 --resume",
        2,
        "resume is asked for, but no folder of a search is named.",
    ),
    Row(
        "output where a search is",
        TRAIN + " --out search",
        2,
        "the folder search holds a search of `heptad tune`.",
    ),
    Row(
        "a search where a run is meant",
        "evaluate search",
        2,
        "search is a search of `heptad tune`, not a run.",
    ),
    Row(
        "a search without the extra that draws",
        "tune lenet5 --data digits --learning-rate 1e-4..1e-1",
        6,
        "a search needs the package optuna, which is not installed.",
    ),
    # Weights
    Row(
        "unknown weights",
        "train resnet50 --data digits --weights IMAGENET1K_V3",
        2,
        "resnet50 has no weights 'IMAGENET1K_V3'. Did you mean 'IMAGENET1K_V2'? Allowed:"
        " default, IMAGENET1K_V2, IMAGENET1K_V1, none, a .pth file, a .safetensors file,"
        " a run's folder.",
    ),
    Row(
        "no such weights file",
        "train resnet50 --data digits --weights nowhere.pth",
        2,
        "there is no weights file 'nowhere.pth'.",
    ),
    Row(
        "weights of another network",
        TRAIN + " --weights other.pth",
        2,
        "other.pth holds the weights of another network than lenet5: 10 names or shapes differ.",
    ),
    Row(
        "weights that hold a checkpoint",
        TRAIN + " --weights checkpoint.pth",
        2,
        "checkpoint.pth is no plain state dict: it holds epoch, state_dict.",
    ),
    Row(
        "weights that hold a whole model",
        TRAIN + " --weights model.pth",
        2,
        "model.pth cannot be read as weights: it holds more than tensors, or is damaged.",
    ),
    Row(
        "weights that are too large for float32",
        TRAIN + " --weights huge.pth",
        2,
        "huge.pth: fc3.bias holds values that are not finite.",
    ),
    Row(
        "weights that are sparse",
        TRAIN + " --weights sparse.pth",
        2,
        "sparse.pth is no plain state dict: it holds fc3.bias.",
    ),
    Row(
        "weights that are not finite",
        TRAIN + " --weights nan.pth",
        2,
        "nan.pth: fc3.bias holds values that are not finite.",
    ),
    Row(
        "weights of an unknown kind",
        TRAIN + " --weights note.txt",
        2,
        "note.txt is of no known kind; allowed: .pth, .pt, .safetensors.",
    ),
    Row(
        "known weights that cannot be had",
        "train resnet50 --data digits",
        6,
        "the weights resnet50-11ad3fa6.pth are not here and could not be fetched.",
    ),
    # Runs
    Row("no such run", "evaluate nowhere", 2, "there is no run folder 'nowhere'."),
    Row(
        "a folder that is no run",
        "evaluate empty",
        2,
        "empty is no run: it has no metrics.json.",
    ),
    Row(
        "a run that was not finished",
        "evaluate unfinished",
        2,
        "unfinished is a run that was not finished: it has no metrics.json.",
    ),
    Row(
        "weights of a run that are gone",
        "evaluate gone",
        5,
        "gone/lenet5_digits.pth is missing.",
    ),
    Row(
        "weights of a run that were changed",
        "evaluate flipped",
        5,
        "flipped/lenet5_digits.pth is not what was saved: its SHA-256 is FOUND, not SAVED.",
    ),
    Row(
        "metrics of a run that lack an entry",
        "evaluate lacking",
        5,
        "lacking/metrics.json is damaged: it lacks 'weights'.",
    ),
    Row(
        "metrics of a run that contradict themselves",
        "evaluate contradicting",
        5,
        "contradicting/metrics.json is damaged: its transform does not fit its recipe.",
    ),
    Row(
        "metrics of a run in which a digit was changed",
        "evaluate changed",
        5,
        "changed/metrics.json is damaged: it was changed since it was saved.",
    ),
    Row(
        "a run of a newer version",
        "predict newer picture.png",
        5,
        "newer/metrics.json has schema 2; this version of Heptad reads 1.",
    ),
    Row(
        "metrics of a run that are no JSON",
        "evaluate garbled",
        5,
        "garbled/metrics.json is damaged: Expecting value: line 1 column 1 (char 0).",
    ),
    # Evaluating and comparing
    Row(
        "answers in the place of a run's own",
        "evaluate run --predictions run/predictions.npz",
        2,
        "predictions is run/predictions.npz, which is a file of the run in run.",
    ),
    Row(
        "answers in an unknown kind of file",
        "evaluate run --csv answers.txt",
        2,
        "csv is answers.txt; allowed: a file name ending in .csv.",
    ),
    Row("nothing to compare", "compare", 2, "no run is named; allowed: two runs or more."),
    Row(
        "one run to compare",
        "compare run",
        2,
        "run alone is named; allowed: two runs or more.",
    ),
    Row("one run named twice", "compare run ./run", 2, "run and run are the same run."),
    Row(
        "runs of different classes",
        "compare run picture-run",
        2,
        "run and picture-run do not know the same classes.",
    ),
    Row(
        "runs with different test images",
        "compare run other-sample",
        2,
        "run and other-sample were not tested on the same images.",
    ),
    Row(
        "a comparison with answers that were changed",
        "compare run spoilt-answers",
        5,
        "spoilt-answers/predictions.npz is missing.",
    ),
    Row(
        "a picture of a comparison that is no PNG",
        "compare run longer --png runs.jpg",
        2,
        "png is runs.jpg; allowed: a file name ending in .png.",
    ),
    Row(
        "a table of a comparison that is no LaTeX",
        "compare run longer --latex runs.txt",
        2,
        "latex is runs.txt; allowed: a file name ending in .tex.",
    ),
    # Going on with a run
    Row(
        "a folder that is no run to go on with",
        "resume empty",
        2,
        "empty is no run that could go on: it has no recipe.json.",
    ),
    Row(
        "nothing named to resume",
        "train lenet5 --data digits --resume",
        2,
        "resume is asked for, but no run folder is named.",
    ),
    Row(
        "a checkpoint rhythm that is none",
        TRAIN + " --checkpoint-every 5m",
        2,
        "checkpoint_every is 5m; allowed: a number of steps such as 500, or of seconds such as 60s"
        " (longer where saving takes more than a fiftieth of the time).",
    ),
    Row(
        "another recipe than the run began with",
        TRAIN + " --learning-rate 0.01 --out stopped --resume",
        2,
        "learning_rate is 0.01, but the run in stopped has 0.001.",
    ),
    Row(
        "fewer epochs than the run has",
        "train longer --epochs 1 --out longer --resume",
        2,
        "epochs is 1, but the run in longer has 2.",
    ),
    Row(
        "a recipe that a stopped run lost",
        "resume unfinished",
        2,
        "name is not given; allowed: letters, digits, '.', '_' and '-', a letter or digit first.",
    ),
    Row(
        "no checkpoint that is whole",
        "resume cut",
        5,
        "no checkpoint in cut/checkpoints can be used; nothing was changed.",
    ),
    Row(
        "a checkpoint of a newer version",
        "resume newer-checkpoint",
        2,
        "newer-checkpoint/checkpoints/step-00000001-tested was made by a newer version of"
        " Heptad (schema 2; this one reads 1).",
    ),
    Row(
        "other images than the run began with",
        "resume other-images",
        2,
        "the images or labels are not those that the run was making"
        " other-images/checkpoints/step-00000001-tested with.",
    ),
    # Runs with several seeds
    Row(
        "one seed alone",
        TRAIN + " --seeds 1",
        2,
        "seeds is 1; allowed: a whole number, 2 to 1000 (one run alone has no spread).",
    ),
    Row(
        "seeds that are no number",
        TRAIN + " --seeds all",
        2,
        "seeds is all; allowed: a whole number, 2 to 1000 (one run alone has no spread).",
    ),
    Row(
        "seeds beyond the largest",
        TRAIN + " --seed 9223372036854775807 --seeds 2",
        2,
        "seeds is 2 and seed is 9223372036854775807: the last one would be beyond the largest,"
        " 9223372036854775807.",
    ),
    Row(
        "a group of runs where one is meant",
        "evaluate group",
        2,
        "group is a group of 3 runs, not one; name one of them, such as group/seed-0.",
    ),
    Row(
        "the folder of a group of runs, for one run",
        TRAIN + " --out group",
        2,
        "the folder group holds a group of runs.",
    ),
    Row(
        "a group of runs that is there already",
        TRAIN + " --seeds 3 --out group",
        2,
        "the folder group holds a group of runs already: seed-0 is there.",
    ),
    Row(
        "fewer seeds than the group has",
        TRAIN + " --seeds 2 --out group --resume",
        2,
        "seeds is 2, but the group in group has 3; allowed: as many or more.",
    ),
    Row(
        "another recipe than the group began with",
        TRAIN + " --learning-rate 0.01 --seeds 3 --out group --resume",
        2,
        "learning_rate is 0.01, but the run in group has 0.001.",
    ),
    Row(
        "a report on a group that was not finished",
        "report half-group",
        2,
        "half-group is a group of runs that was not finished: 1 of 3 are.",
    ),
    Row(
        "a group that was changed",
        "report changed-group",
        5,
        "changed-group/seeds.json is damaged: it was changed since it was saved.",
    ),
    # Pictures
    Row("no such picture", "predict run nowhere.png", 2, "there is no image 'nowhere.png'."),
    Row(
        "a picture that is none",
        "predict run note.txt",
        2,
        "note.txt is no picture that can be read: its content is of no known format.",
    ),
    Row(
        "a picture cut short",
        "predict run cut.png",
        2,
        "cut.png is no picture that can be read: image file is truncated.",
    ),
    Row(
        "a picture of floating-point numbers",
        "predict run float.tif",
        2,
        "float.tif holds floating-point numbers; which of them is black and which white is not"
        " known (float_range).",
    ),
    Row(
        "a picture of numbers that are not finite",
        "predict run nan.tif --float-range 0,1",
        2,
        "nan.tif holds numbers that are not finite.",
    ),
    Row(
        "a range of numbers that is upside down",
        "train lenet5 --data photos --float-range 1,0",
        2,
        "float_range is 1,0; allowed: two numbers such as 0,1, the smaller first, or none.",
    ),
    Row(
        "a range of numbers that is none",
        "scan photos --float-range black",
        2,
        "float_range is black; allowed: two numbers such as 0,1, the smaller first, or none.",
    ),
    Row(
        "pictures of no pixels at most",
        "train lenet5 --data photos --max-pixels 0",
        2,
        "max_pixels is 0; allowed: a whole number, at least 1, at most 178956970.",
    ),
    Row(
        "a picture of more pixels than one allows",
        "predict run picture.png --max-pixels 100",
        2,
        "picture.png has 64 x 64 pixels; allowed: 100 in all (max_pixels).",
    ),
    Row(
        "a picture that unpacks to too much",
        "predict run bomb.png",
        2,
        "bomb.png has 9000 x 9000 pixels; allowed: 50,000,000 in all (max_pixels).",
    ),
    Row(
        "a picture whose header claims too much",
        "predict run huge.png",
        2,
        "huge.png has too many pixels; allowed: 50,000,000 in all (max_pixels).",
    ),
    Row(
        "an empty file as a picture",
        "predict run hollow.png",
        2,
        "hollow.png is no picture that can be read: it is empty.",
    ),
    Row(
        "a picture of a kind that is not read",
        "predict run colours.tif",
        2,
        "colours.tif is no picture that can be read: it begins as TIFF does, but is damaged or of a"
        " kind that is not read.",
    ),
    Row(
        "a picture of 16 bits in a layout that is not read",
        "predict run planes.tif",
        2,
        "planes.tif has more than 8 bits a channel in a layout that is not read: one plane a"
        " channel.",
    ),
    Row(
        "a named pipe as a picture",
        "predict run pipe.png",
        2,
        "pipe.png is a named pipe, not a picture.",
    ),
    Row(
        "a link to itself as a picture",
        "predict run loop.png",
        2,
        "loop.png cannot be read: Too many levels of symbolic links.",
    ),
    Row(
        "a link to nothing as a picture",
        "predict run dangling.png",
        2,
        "dangling.png is not there.",
    ),
    Row(
        "a folder without pictures",
        "predict run empty",
        2,
        "empty holds no picture; looked for .png, .jpg, .jpeg, .webp, .bmp, .gif, .tif, .tiff.",
    ),
    Row("no picture named", "predict run", 2, "no image is named."),
    # Reports
    Row("a report of no run", "report", 2, "report takes the folder of a run, or of several."),
    Row(
        "a report of two runs that is put nowhere",
        "report run run",
        2,
        "out is not given, but 2 runs have no folder in common for their page.",
    ),
    Row(
        "a report of more runs than can be told apart",
        "report run run run run run run run --out page.html",
        2,
        "a report shows at most 6 runs side by side, not 7.",
    ),
    Row(
        "a report that is no page",
        "report run --out report.pdf",
        2,
        "out is report.pdf; allowed: a file name ending in .html.",
    ),
    Row(
        "an odd number of answers",
        "predict run picture.png --top 0",
        2,
        "top is 0; allowed: a whole number, at least 1.",
    ),
    Row(
        "a photo without a digit, for a network of digits",
        "predict run blank.png",
        2,
        "blank.png shows no digit: nothing in it stands out clearly from its ground.",
    ),
    Row(
        "no picture that can be used, where bad ones are skipped",
        "predict run note.txt --on-bad-image skip",
        2,
        "none of the pictures can be used.",
    ),
    Row(
        "a probability that is none",
        "predict run picture.png --unsure 2",
        2,
        "unsure is 2; allowed: a number from 0 to 1.",
    ),
    Row(
        "a sheet of answers that is no PNG",
        "predict run picture.png --show sheet.jpg",
        2,
        "show is sheet.jpg; allowed: a file name ending in .png.",
    ),
    Row(
        "a sheet of answers in the place of a picture",
        "predict run picture.png --show picture.png",
        2,
        "show is picture.png, which is one of the pictures.",
    ),
    Row(
        "a table of answers in no folder",
        "predict run picture.png --csv nowhere/answers.csv",
        2,
        "csv is nowhere/answers.csv, which lies in nowhere, which is no folder.",
    ),
    # Using a network elsewhere
    Row(
        "a page without the extra that serves it",
        "serve run",
        6,
        "the page needs the packages starlette and uvicorn, which are not installed.",
    ),
    Row(
        "a port that there is not",
        "serve run --port 70000",
        2,
        "port is 70000; allowed: a whole number from 0 to 65535.",
    ),
    Row(
        "an export to ONNX without its extra",
        "export run",
        6,
        "ONNX files need the package onnxscript, which is not installed.",
    ),
    Row(
        "an unknown format to export to",
        "export run --format onxx",
        2,
        'Invalid value "onxx" for --format. Choose from: "onnx", "safetensors".'
        ' Did you mean "onnx"?',
    ),
    Row(
        "an export to a file of another kind",
        "export run --format safetensors --out model.pth",
        2,
        "out is model.pth; allowed: a file name ending in .safetensors.",
    ),
    Row(
        "an export that is compared on hardly any images",
        "export run --format safetensors --images 5",
        2,
        "images is 5; allowed: at least 10.",
    ),
    Row(
        "no such exported file",
        "predict nowhere.onnx picture.png",
        2,
        "there is no exported file 'nowhere.onnx'.",
    ),
    Row(
        "an ONNX file that is none",
        "predict note.onnx picture.png",
        2,
        "note.onnx cannot be read as ONNX: it is damaged, or none.",
    ),
    Row(
        "an ONNX file of other makers",
        "predict others.onnx picture.png",
        2,
        "others.onnx was not exported by Heptad.",
    ),
    Row(
        "an ONNX file with weights in another file",
        "predict outside.onnx picture.png",
        2,
        "outside.onnx keeps weights in other files, which are not read.",
    ),
    Row(
        "an ONNX file on a device that does not compute it",
        "predict others.onnx picture.png --device mps",
        2,
        "device is 'mps', but ONNX files are computed on the CPU alone.",
    ),
    Row(
        "weights alone in the place of an exported file",
        "predict plain.safetensors picture.png",
        2,
        "plain.safetensors was not exported by Heptad.",
    ),
    Row(
        "an exported file to be evaluated",
        "evaluate plain.safetensors",
        2,
        "there is no run folder 'plain.safetensors'.",
    ),
    # Fetching
    Row(
        "nothing to fetch",
        "fetch",
        2,
        "nothing is named to fetch. Allowed: mnist, fashion-mnist, kmnist, qmnist, cifar10, vgg16,"
        " resnet50, vgg16-397923af.pth, resnet50-11ad3fa6.pth, resnet50-0676ba61.pth.",
    ),
    Row(
        "an unknown thing to fetch",
        "fetch mnits",
        2,
        "there is no data set or weights 'mnits'. Did you mean 'mnist'? Allowed: mnist,"
        " fashion-mnist, kmnist, qmnist, cifar10, vgg16, resnet50, vgg16-397923af.pth,"
        " resnet50-11ad3fa6.pth, resnet50-0676ba61.pth.",
    ),
    Row(
        "a target that is a file",
        "fetch mnist --to note.txt",
        2,
        "note.txt cannot be made a folder: File exists.",
    ),
    Row(
        "a target without a name",
        "fetch mnist --to ''",
        2,
        "to is empty; allowed: a folder.",
    ),
    # What the machine refuses
    Row(
        "a name that no file can have",
        "train lenet5 --data " + 300 * "n",
        2,
        300 * "n" + ": File name too long.",
    ),
    Row(
        "a set that is nowhere, and no network",
        "train lenet5 --data fashion-mnist",
        6,
        "the data set 'fashion-mnist' is not here and could not be fetched.",
    ),
    # Training
    Row(
        "a loss that explodes",
        "train lenet5 --data digits --epochs 1 --learning-rate 1e30 --seed 1",
        4,
        "step 2, epoch 1: the loss is nan.",
    ),
]


def make_bad_things(folder: Path, digits: Path) -> None:
    """Fill a folder with all that the rows name: a good set and run, and every bad thing."""
    for name in ("empty", "unfinished"):
        (folder / name).mkdir()
    shutil.copytree(digits, folder / "digits")
    (folder / "note.txt").write_text("not a picture, not a folder, not weights")
    (folder / "unfinished" / "recipe.json").write_text("{}")
    (folder / "unknown-key.toml").write_text("learning-rate = 1\n")
    (folder / "broken.toml").write_text("this is no TOML")
    (folder / "list.json").write_text("[1, 2]")
    _make_sets(folder)
    _make_archives(folder)
    _make_picture_sets(folder)
    _make_runs(folder)
    _make_weights(folder)
    _make_exported(folder)
    _make_pictures(folder)


def _make_sets(folder: Path) -> None:
    images, labels = NAMES["train"]
    header = struct.pack(">HBBIII", 0, 8, 3, 20, 28, 28)
    good = header + bytes(20 * 784)
    for name, file, content in (
        ("differ", labels, struct.pack(">HBBI", 0, 8, 1, 19) + bytes(19)),
        ("magic", images, struct.pack(">HBBI", 0, 8, 1, 20) + bytes(20)),
        ("hollow", images, b""),
        ("short", images, good[: 16 + 15_000]),
        ("header", images, good[:10]),
        ("long", images, good + b"\0"),
        ("none", images, struct.pack(">HBBIII", 0, 8, 3, 0, 28, 28)),
        ("claims", images, struct.pack(">HBBIII", 0, 8, 3, 2**32 - 1, 28, 28)),
        ("label", labels, struct.pack(">HBBI", 0, 8, 1, 20) + bytes(7) + b"\x0a" + bytes(12)),
        ("packed", images + ".gz", gzip.compress(good)[:-12]),
        ("label-kind", labels, good),
    ):
        (folder / name).mkdir()
        for image_name, label_name in NAMES.values():
            (folder / name / image_name).write_bytes(good)
            (folder / name / label_name).write_bytes(struct.pack(">HBBI", 0, 8, 1, 20) + bytes(20))
        if file.endswith(".gz"):
            (folder / name / file.removesuffix(".gz")).unlink()
        (folder / name / file).write_bytes(content)


def _make_archives(folder: Path) -> None:
    first = f"{archives.FOLDER}/data_batch_1.bin"
    for name, content in (
        ("no-archive", b"no archive"),
        ("linking", archives.packed(archives.member(first, kind=SYMTYPE, link="/etc/passwd"))),
        ("lacking-batch", archives.packed(*archives.whole()[:-1])),
        ("twice", archives.packed(*2 * archives.whole())),
        ("half-row", archives.packed(archives.member(first, bytes(100)))),
        ("huge-file", archives.claiming(1 << 40)),
        ("huge-name", archives.long_name()),
    ):
        (folder / name).mkdir()
        (folder / name / archives.NAME).write_bytes(content)


def _make_picture_sets(folder: Path) -> None:
    draws = np.random.default_rng(0)
    for name, counts in (
        ("one-class", {"a": 4}),
        ("hollow-class", {"a": 4, "b": 0}),
        ("test-alone", {"test/a": 2, "test/b": 2}),
        ("stranger", {"train/a": 2, "train/b": 2, "test/a": 1, "test/c": 1}),
        ("stranger-val", {"train/a": 2, "train/b": 2, "val/c": 1, "test/a": 1}),
        ("all-leaks", {"train/a": 2, "train/b": 1, "test/a": 1, "test/b": 1}),
        ("single", {"a": 1, "b": 1}),
        ("spoilt", {"a": 4, "b": 4}),
        ("spared", {"a": 1, "b": 1}),
        ("photos", {"a": 4, "b": 4}),
        ("no-pictures", {"a": 0, "b": 0}),
        ("hollow-val", {"train/a": 2, "train/b": 2, "val/a": 0, "test/a": 1, "test/b": 1}),
    ):
        for part, count in counts.items():
            (folder / name / part).mkdir(parents=True)
            for number in range(count):
                pixels = draws.integers(0, 256, (28, 28), np.uint8)
                Image.fromarray(pixels).save(folder / name / part / f"{number}.png")
    (folder / "spoilt" / "b" / "2.png").write_text("no picture")
    shutil.copy(folder / "all-leaks/test/b/0.png", folder / "all-leaks/train/b/0.png")
    recipe = heptad.load_recipe("lenet5", data="photos", epochs=1)
    run = heptad.train(recipe, RunOptions(out="picture-run"))
    listed = json.loads((run.folder / "pictures.json").read_text())["pictures"]
    held_out = next(entry for entry in listed if entry["part"] == "test")
    (folder / "photos" / held_out["path"]).unlink()


def _make_groups(folder: Path, recipe: heptad.Recipe) -> None:
    heptad.train_seeds(recipe, RunOptions(out="group"), num_seeds=3)
    shutil.copytree(folder / "group", folder / "changed-group")
    document = json.loads((folder / "group" / "seeds.json").read_text())
    (folder / "changed-group" / "seeds.json").write_text(json.dumps(document | {"seeds": [0, 1]}))
    with closing(heptad.run_seeds(recipe, RunOptions(out="half-group"), num_seeds=3)) as events:
        for event in events:
            if isinstance(event, heptad.SeedReport) and event.seed == 1:
                break


def _make_runs(folder: Path) -> None:
    recipe = heptad.load_recipe("lenet5", data="digits", epochs=1, limit=20)
    heptad.train(recipe, RunOptions(out="run"))
    for name in (
        *("gone", "newer", "garbled", "flipped", "lacking", "contradicting", "changed"),
        *("stopped", "longer", "cut", "newer-checkpoint", "other-images", "spoilt-answers"),
    ):
        shutil.copytree(folder / "run", folder / name)
    heptad.train(recipe.changed(seed=1), RunOptions(out="other-sample"))
    _make_groups(folder, recipe)
    (folder / "spoilt-answers" / "predictions.npz").unlink()
    _stop_runs(folder)
    (folder / "gone" / "lenet5_digits.pth").unlink()
    metrics = json.loads((folder / "newer" / "metrics.json").read_text())
    (folder / "newer" / "metrics.json").write_text(json.dumps(metrics | {"schema": 2}))
    (folder / "garbled" / "metrics.json").write_text("garbled")
    weights = folder / "flipped" / "lenet5_digits.pth"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    metrics = json.loads((folder / "lacking" / "metrics.json").read_text())
    changed = metrics | {"test_correct": metrics["test_correct"] + 1}
    (folder / "changed" / "metrics.json").write_text(json.dumps(changed))
    contradicting = metrics | {"recipe": metrics["recipe"] | {"image_size": 64}}
    _forge(folder / "contradicting" / "metrics.json", contradicting)
    del metrics["weights"]
    _forge(folder / "lacking" / "metrics.json", metrics)


def _forge(path: Path, metrics: dict) -> None:
    """As someone would change the document who knows how its digest is made."""
    path.write_text(json.dumps(sealed(metrics)))


def _stop_runs(folder: Path) -> None:
    """Make the copies that are to be resumed runs that were not finished."""
    for name in ("stopped", "longer", "cut", "newer-checkpoint", "other-images"):
        (folder / name / "metrics.json").unlink()
    for path in (folder / "cut" / "checkpoints").glob("step-*/state.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    for path in (folder / "newer-checkpoint" / "checkpoints").glob("step-*/manifest.json"):
        manifest = json.loads(path.read_text()) | {"schema": 2}
        del manifest["digest"]
        path.write_text(json.dumps(manifest | {"digest": digest_of(manifest)}))
    recipe = heptad.load_recipe("lenet5", data="digits", epochs=2, limit=20)
    shutil.rmtree(folder / "longer")
    heptad.train(recipe, RunOptions(out=str(folder / "longer")))
    list(
        heptad.tune(
            recipe,
            {"optimizer": "adam,sgd"},
            num_trials=1,
            options=RunOptions(out=str(folder / "search")),
        )
    )
    shutil.copytree(folder / "digits", folder / "other")
    images = folder / "other" / NAMES["train"][0]
    content = bytearray(images.read_bytes())
    recipe = heptad.load_recipe("lenet5", data="other", epochs=1, limit=20)
    shutil.rmtree(folder / "other-images")
    heptad.train(recipe, RunOptions(out=str(folder / "other-images")))
    (folder / "other-images" / "metrics.json").unlink()
    # All pixels of all images, so that the sample has some of them.
    images.write_bytes(content[:16] + bytes(255 - value for value in content[16:]))


def _make_weights(folder: Path) -> None:
    state = torch.load(folder / "run" / "lenet5_digits.pth", weights_only=True)
    torch.save(
        {"conv.weight": torch.zeros(3, 3), "conv.bias": torch.zeros(3)}, folder / "other.pth"
    )
    torch.save(torch.nn.Linear(2, 2), folder / "model.pth")
    torch.save(
        state | {"fc3.bias": torch.full((10,), 1e299, dtype=torch.float64)}, folder / "huge.pth"
    )
    torch.save(state | {"fc3.bias": state["fc3.bias"].to_sparse()}, folder / "sparse.pth")
    torch.save({"epoch": 3, "state_dict": state}, folder / "checkpoint.pth")
    torch.save(state | {"fc3.bias": torch.full((10,), float("nan"))}, folder / "nan.pth")


def _make_exported(folder: Path) -> None:
    (folder / "note.onnx").write_text("not a graph")
    weights = onnx.numpy_helper.from_array(np.zeros((2, 2), np.float32), "weights")
    for name in ("others", "outside"):
        graph = onnx.helper.make_graph([], name, [], [], initializer=[weights])
        model = onnx.helper.make_model(graph)
        if name == "outside":
            onnx.helper.set_model_props(model, {"schema": "1"})
            onnx.external_data_helper.set_external_data(
                model.graph.initializer[0], "../digits/train-images-idx3-ubyte"
            )
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
    state = torch.load(folder / "run" / "lenet5_digits.pth", weights_only=True)
    safetensors.torch.save_file(state, folder / "plain.safetensors")


def _make_pictures(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    Image.new("L", (300, 200), 230).save(folder / "blank.png")
    content = (folder / "picture.png").read_bytes()
    (folder / "cut.png").write_bytes(content[: len(content) // 2])
    Image.fromarray(pixels.astype(np.float32)).save(folder / "float.tif")
    Image.fromarray(np.full((64, 64), np.nan, np.float32)).save(folder / "nan.tif")
    Image.new("L", (9000, 9000)).save(folder / "bomb.png")
    (folder / "huge.png").write_bytes(png(pixels[..., None], size=(14000, 14000)))
    (folder / "hollow.png").touch()
    colours = np.dstack(3 * [pixels])
    (folder / "colours.tif").write_bytes(tiff(colours.astype(np.float32), 2, kind=3))
    (folder / "planes.tif").write_bytes(tiff(colours.astype(np.uint16), 2, planes=True))
    os.mkfifo(folder / "pipe.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "dangling.png").symlink_to("nothing.png")
