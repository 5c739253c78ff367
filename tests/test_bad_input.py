"""The table of bad input: every program, each row for real. A program refuses with a non-zero exit code and one
sentence that holds the row's texts (the value seen; what is allowed or what to do), without a traceback, leaving
nothing.

A row is (program, arguments, text, ...). It runs in the folder that `bad_files.write_all` fills, so names such as
`laughs.yaml` or `truncated.ckpt` are files there. Arguments are a line as in a shell, or a tuple; PORT is a port that
is in use. A new program

- gets its name in `MAINS` and `PROCESSES`, and rows in `IN_PROCESS`: wrong values of each of its flags, wrong files,
  folders and names. They run through its `main(argv)`, with training, compiling and starting of processes forbidden;
- gets a few rows in `AS_PROCESS`, which run as a user starts it, with limits on time and memory: what is refused before
  MindSpore is imported costs a third of a second, the rest some seconds;
- gets rows in `CALLS` if it is a Python function: the call, which must raise ValueError or TypeError.
"""

import fcntl
import importlib
import math
import os
import re
import resource
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from mindspore import nn

import mindspore_hub_conf
from src import cli
from src.binary import (
    AnnealedNoise,
    Binarization,
    BinaryConv2d,
    BinaryDense,
    DoReFaWeight,
    LibraWeight,
    NoiseAdaptation,
    SignActivation,
    create_estimator,
    schedules,
)
from src.models import create_model
from src.summary import summarize
from src.training.trainer import Trainer
from tests.helpers import bad_files, processes

ROOT = processes.ROOT
BYTES = 16 << 30  # of address space; MindSpore alone takes about a quarter of it
LONG = "x" * 5000
# What MindSpore may print when an interpreter that held a network ends.
MINDSPORE_AT_EXIT = (
    r"Exception ignored in: <function Cell\.__del__.*\n(.*\n)*?AttributeError: .*total_instance_count.*\n"
)

MAINS = {
    "train": "train",
    "eval": "eval",
    "export": "export",
    "predict": "predict",
    "paper": "src.paper.__main__",
    "sine_module": "src.paper.sine_module",
    "summary": "src.summary",
    "convert": "src.convert",
    "card": "src.card",
    "distribute": "src.launch.__main__",
}
PROCESSES = {
    "train": [sys.executable, str(ROOT / "train.py")],
    "eval": [sys.executable, str(ROOT / "eval.py")],
    "export": [sys.executable, str(ROOT / "export.py")],
    "predict": [sys.executable, str(ROOT / "predict.py")],
    "paper": [sys.executable, "-m", "src.paper"],
    "sine_module": [sys.executable, "-m", "src.paper.sine_module"],
    "summary": [sys.executable, "-m", "src.summary"],
    "convert": [sys.executable, "-m", "src.convert"],
    "card": [sys.executable, "-m", "src.card"],
    "run_standalone_train.sh": ["bash", str(ROOT / "scripts/run_standalone_train.sh")],
    "run_eval.sh": ["bash", str(ROOT / "scripts/run_eval.sh")],
    "run_export.sh": ["bash", str(ROOT / "scripts/run_export.sh")],
    "run_distribute_train.sh": ["bash", str(ROOT / "scripts/run_distribute_train.sh")],
}

ON_DIGITS = "--dataset digits --network.binary false"
IN_PROCESS = [
    # Flags
    ("train", "stray", "unknown argument 'stray'", "train.py --help"),
    ("train", "--optimizer.lrr 0.1", "unknown argument '--optimizer.lrr'", "did you mean --optimizer.lr?"),
    ("train", "--lr 0.1", "unknown argument '--lr'", "did you mean --optimizer.lr?"),
    ("train", "--epoch 1", "unknown argument '--epoch'", "did you mean --epochs?"),
    ("train", "--epochs", "--epochs", "expected one argument"),
    ("train", "--network.estimator_options.omega", "--network.estimator_options.omega needs a value"),
    ("train", "--resume ''", "--resume is empty, but must have a value"),
    ("train", "--init_checkpoint ''", "--init_checkpoint is empty, but must have a value"),
    ("train", "--train.steps_per_epoch=", "--steps_per_epoch is empty, but must have a value"),
    ("train", ("--a\nb", "1"), r"unknown argument '--a\nb'"),
    # What people call a flag elsewhere
    ("train", "--model resnet18", "unknown argument '--model' (did you mean --network.name?)"),
    ("train", "--network resnet18", "unknown argument '--network' (did you mean --network.name?)"),
    ("train", "--optimizer adam", "unknown argument '--optimizer' (did you mean --optimizer.name?)"),
    ("train", "--noise false", "unknown argument '--noise' (did you mean --noise.enabled?)"),
    ("train", "--gpus 2", "unknown argument '--gpus' (did you mean --device_target?)"),
    ("train", "--pretrained x.ckpt", "unknown argument '--pretrained' (did you mean --init_checkpoint?)"),
    ("train", "--output x", "unknown argument '--output' (did you mean --output_dir?)"),
    ("train", "--out x", "unknown argument '--out' (did you mean --output_dir?)"),
    ("train", "--data x", "unknown argument '--data' (did you mean --data_path?)"),
    ("train", "--num-workers 2", "unknown argument '--num-workers' (did you mean --data.num_parallel_workers?)"),
    ("train", "-j 2", "unknown argument '-j' (did you mean --data.num_parallel_workers?)"),
    ("train", "--weight-decay 0", "unknown argument '--weight-decay' (did you mean --optimizer.weight_decay?)"),
    (
        "train",
        "--name x",
        "did you mean --data.name or --network.name or --schedules.alpha.name or",
    ),
    ("train", "digits.yaml", "unknown argument 'digits.yaml' (did you mean --config digits.yaml?)"),
    ("train", "--data.workers 2", "--data.workers is now called --data.num_parallel_workers"),
    ("train", "--epochs 1_000", "train.epochs is '1_000', but must be a valid integer"),
    ("train", "--from_epoch 1_000 --resume run", "--from_epoch: invalid integer value: '1_000'"),
    ("eval", "--checkpoint sound.ckpt --model resnet18", "give either --checkpoint or --model"),
    ("eval", "--checkpoint sound.ckpt --optimizer.lr 1", "eval.py does not use --optimizer.lr, only train.py does"),
    ("eval", "--pretrained sound.ckpt", "unknown argument '--pretrained' (did you mean --checkpoint?)"),
    ("eval", "sound.ckpt --ckpt sound.ckpt", "unknown argument 'sound.ckpt' (did you mean --checkpoint sound.ckpt?)"),
    ("eval", "--checkpoint run", "the checkpoint run is a folder: give a file in it, a .ckpt"),
    ("export", "--checkpoint sound.ckpt --noise.eta sine", "export.py does not use --noise.eta, only train.py does"),
    ("export", "--checkpoint sound.ckpt --format ONNX", "(did you mean --file_format?)"),
    ("export", "--checkpoint sound.ckpt --output-dir x", "export.py does not use --output_dir, only train.py does"),
    ("distribute", "--worker 2", "unknown argument '--worker' (did you mean --workers?)"),
    ("distribute", "--workers 2 --node-ranks 0", "unknown argument '--node-ranks' (did you mean --node_rank?)"),
    ("distribute", "--lr 0.1", "unknown argument '--lr' (did you mean --optimizer.lr?)"),
    # Config files
    ("train", "--config dotted.yaml", "unknown key 'optimizer.lr' in dotted.yaml", "write optimizer: {lr: VALUE}"),
    ("train", "--config renamed.yaml", "'data.workers' in renamed.yaml is now called 'data.num_parallel_workers'"),
    ("train", "--config nowhere.yaml", "cannot read the config nowhere.yaml: no such file"),
    ("train", "--config empty", "cannot read the config empty: is a directory"),
    ("train", "--config loop", "cannot read the config loop: too many levels of symbolic links"),
    ("train", "--config dangling", "cannot read the config dangling: no such file"),
    ("train", ("--config", "two\nlines"), r"cannot read the config two\nlines: is a directory"),
    ("train", ("--config", "a\0b"), r"cannot read the config a\x00b: embedded null byte"),
    ("train", ("--config", LONG), "cannot read the config xxx", "...", "file name too long"),
    ("train", "--config 'ä b/file'", "the config ä b/file holds a str", "must hold keys and values"),
    ("train", "--config bytes.yaml", "cannot read the config bytes.yaml"),
    ("train", "--config /dev/zero", "/dev/zero is not a config: it has more than 100,000 bytes"),
    ("train", "--config huge.yaml", "huge.yaml is not a config: it has more than 100,000 bytes"),
    ("train", "--config laughs.yaml", "alias *a is not supported, write its value out", "line 4"),
    ("train", "--config itself.yaml", "alias *a is not supported"),
    ("train", "--dataset digits --config deep_keys.yaml", "unknown option 'a' of network 'resnet20'"),
    ("train", "--config twice.yaml", "the key 'seed' is given twice", "line 2"),
    ("train", "--config twice_nested.yaml", "the key 'lr' is given twice", "line 3"),
    ("train", "--config unknown.yaml", "'optimizer.wieght_decay' in unknown.yaml", "mean 'optimizer.weight_decay'"),
    (
        "train",
        "--config unknown_section.yaml",
        "unknown key 'optimiser' in unknown_section.yaml",
        "default_config.yaml",
    ),
    ("train", "--config list.yaml", "list.yaml holds a list, but must hold keys and values"),
    ("train", "--config text.yaml", "text.yaml holds a str, but must hold keys and values"),
    ("train", "--config unclosed.yaml", "unclosed.yaml is not valid YAML", "line 2"),
    ("train", "--config tab.yaml", "tab.yaml is not valid YAML", "line 2"),
    ("train", "--config list_as_key.yaml", "list_as_key.yaml is not valid YAML"),
    ("train", "--config python.yaml", "python.yaml is not valid YAML", "python/object/apply"),
    ("train", "--config date.yaml", "seed is '2020-01-01', but must be a valid integer"),
    ("train", "--config 5000_digits.yaml", "5000_digits.yaml is not valid YAML", "5000 digits"),
    ("train", "--config two_documents.yaml", "two_documents.yaml is not valid YAML", "a single document"),
    ("train", "--config nul.yaml", r"output_dir is 'a\x00b', but must be text that is not empty and holds no NUL"),
    ("train", "--config empty_name.yaml", "output_dir is '', but must be text that is not empty"),
    ("train", "--config section_is_null.yaml", "optimizer is None, but must be"),
    ("train", "--config scalar_is_list.yaml", "data.batch_size is [8], but must be a valid integer"),
    ("train", "--config number_is_text.yaml", "optimizer.lr is 'fast', but must be a valid number"),
    ("train", "--config text_is_number.yaml", "data.name is 5, but must be a valid string"),
    ("train", "--config number_is_true.yaml", "train.epochs is True, but must be a valid integer"),
    ("train", "--config key_is_number.yaml", "network.options is 1, but must be a valid string"),
    # Values of the config
    ("train", "--epochs -1", "train.epochs is -1, but must be greater than or equal to 1"),
    ("train", "--epochs 1000000000000", "train.epochs is 1000000000000, but must be less than or equal to 100000"),
    ("train", "--epochs many", "train.epochs is 'many', but must be a valid integer"),
    ("train", "--epochs 1.5", "train.epochs is 1.5, but must be a valid integer"),
    ("train", ("--epochs", 400 * "9"), "train.epochs is 999", "...", "less than or equal to 100000"),
    ("train", ("--epochs", 5000 * "9"), "--train.epochs is '999", "...", "not a valid YAML value", "4300 digits"),
    ("train", ("--epochs", 500 * "["), "--train.epochs is '[[[", "...", "not a valid YAML value"),
    ("train", "--data.batch_size 0", "data.batch_size is 0, but must be greater than or equal to 1"),
    ("train", "--data.batch_size 1000000000", "data.batch_size is 1000000000, but must be less than or equal to 16384"),
    (
        "train",
        "--data.num_parallel_workers 0",
        "data.num_parallel_workers is 0, but must be greater than or equal to 1",
    ),
    ("train", "--seed -3", "seed is -3, but must be greater than or equal to 0"),
    ("train", "--seed 2147483648", "seed is 2147483648, but must be less than or equal to 2147483647"),
    ("train", "--seed true", "seed is True, but must be a valid integer"),
    ("train", "--seed null", "seed is None, but must be a valid integer"),
    ("train", "--optimizer.lr nan", "optimizer.lr is 'nan', but must be a valid number"),
    ("train", "--optimizer.lr .inf", "optimizer.lr is '.inf', but must be a valid number"),
    ("train", "--optimizer.lr 1e300", "optimizer.lr is 1e+300, but must be of a size up to 3e+38"),
    ("train", "--optimizer.lr 2020-01-01", "optimizer.lr is '2020-01-01', but must be a valid number"),
    ("train", "--optimizer.lr '[0.1]'", "optimizer.lr is [0.1], but must be a valid number"),
    ("train", "--optimizer.lr '[1'", "--optimizer.lr is '[1', which is not a valid YAML value"),
    ("train", "--optimizer.lr '&a [*a]'", "--optimizer.lr is '&a [*a]'", "alias *a is not supported"),
    ("train", "--schedules.alpha.start nan", "schedules.alpha.start is 'nan', but must be a valid number"),
    ("train", "--schedules.n.n_s 1000000000", "schedules.n.n_s is 1000000000, but must be less than or equal to 500"),
    ("train", "--schedules.n.setting 4", "schedule setting of n is 4, but must be one of 1, 2, 3"),
    ("train", "--schedules.alpha.name cos", "unknown schedule of alpha 'cos' (did you mean 'cosine'?)"),
    (
        "train",
        "--scheduler.warmup_epochs 400",
        "scheduler.warmup_epochs is 400",
        "less than train.epochs, which is 400",
    ),
    ("train", "--amp_level O1", "amp.level is 'O1', but must be 'O0', 'O2' or 'O3'"),
    ("train", "--mode fast", "runtime.mode is 'fast', but must be 'graph' or 'pynative'"),
    ("train", "--download maybe", "data.download is 'maybe', but must be true or false"),
    ("train", "--network.options 3", "network.options is 3, but must be a valid dictionary"),
    ("train", "--network.options '{a: 1, a: 2}'", "--network.options is '{a: 1, a: 2}'", "the key 'a' is given twice"),
    # Names and options, which the registries know
    (
        "train",
        f"{ON_DIGITS} --network.name resnet21",
        "unknown network 'resnet21'",
        "did you mean",
        "allowed are alexnet",
    ),
    ("train", f"{ON_DIGITS} --network.name alexnet", "alexnet takes only 224x224", "digits are 32x32"),
    ("train", f"{ON_DIGITS} --network.options.prelu 1", "unknown option 'prelu'", "allowed: none"),
    ("train", f"{ON_DIGITS} --network.estimator fdaa", "unknown estimator 'fdaa' (did you mean 'fda'?); allowed are"),
    (
        "train",
        f"{ON_DIGITS} --network.weight_quantizer doref",
        "unknown weight quantizer 'doref'",
        "allowed are dorefa",
    ),
    ("train", f"{ON_DIGITS} --network.weight_init he", "unknown weight init 'he'", "allowed are he_normal, uniform"),
    ("train", f"{ON_DIGITS} --noise.eta cosine", "unknown eta 'cosine'", "allowed are linear, none, sine"),
    ("train", "--dataset digits --network.estimator_options.omega -1", "omega is -1", "a finite number greater than 0"),
    ("train", "--dataset digits --network.estimator_options.clip '{}'", "clip is {}", "a finite number greater than 0"),
    ("train", "--dataset digits --network.estimator_options.n 1000000000", "n is not an option", "set schedules.n"),
    (
        "train",
        "--dataset cifar11",
        "unknown data set 'cifar11'",
        "allowed are cifar10, cifar100, digits, imagenet, folder",
    ),
    # Devices and workers
    ("train", "--device_target TPU", "runtime.device_target is 'TPU', but must be 'CPU', 'GPU' or 'Ascend'"),
    ("train", f"{ON_DIGITS} --device_target Ascend", "device Ascend is not available here", "choose one with --device"),
    ("train", f"{ON_DIGITS} --device_target GPU", "device GPU is not available here", "this installation offers"),
    ("train", "--keep 0", "train.keep is 0", "greater than or equal to 1"),
    ("train", "--train.on_write_error ignore", "train.on_write_error is 'ignore'", "'stop' or 'go_on'"),
    ("train", "--optimizer.lr_for_batch 0", "optimizer.lr_for_batch is 0", "greater than or equal to 1"),
    (
        "train",
        "--runtime.sync_batch_norm true",
        "only on Ascend, but runtime.device_target is CPU",
    ),
    ("train", "--train.sink_size 0", "train.sink_size is 0", "greater than or equal to 1"),
    ("train", "--train.sink_size 10", "train.sink_size is 10, but runtime.device_target is CPU"),
    (
        "train",
        "--train.sink_size 10 --device_target GPU --mode pynative",
        "train.sink_size is 10, but runtime.mode is pynative",
    ),
    ("train", "--from_epoch 3", "--from_epoch is 3, but needs --resume DIR"),
    ("train", f"{ON_DIGITS} --distribute", "--distribute needs a launcher", "scripts/run_distribute_train.sh"),
    # Data
    ("train", f"{ON_DIGITS} --data.batch_size 5000", "data.batch_size is 5000", "only 1437 training images"),
    (
        "train",
        f"{ON_DIGITS} --data.batch_size 1 --epochs 100000",
        "train.epochs is 100000, which is 143,700,000 steps",
        "at most 10,000,000",
    ),
    ("train", "--data_path nowhere", "CIFAR-10 is not complete at nowhere: data_batch_1.bin", "give --data_path"),
    ("train", "--data_path file", "CIFAR-10 is not complete at file", "give --data_path"),
    ("train", "--data_path loop", "CIFAR-10 is not complete at loop", "give --data_path"),
    ("train", ("--data_path", LONG), "cannot use xxx", "File name too long"),
    ("train", ("--data_path", "two\nlines"), r"CIFAR-10 is not complete at two\nlines", "give --data_path"),
    ("train", "--data_path cifar_missing", "data_batch_3.bin not found in cifar_missing/cifar-10-batches-bin"),
    (
        "train",
        "--data_path cifar_empty_file",
        "data_batch_3.bin is truncated",
        "it has 0 bytes, but must have 30730000",
    ),
    ("train", "--data_path cifar_truncated", "data_batch_3.bin is truncated", "it has 30729999 bytes, but must have"),
    ("train", "--data_path cifar_long", "data_batch_3.bin", "it has 61460000 bytes, but must have 30730000"),
    ("train", "--data_path cifar_labels", "data_batch_3.bin is damaged: record 7 has label 10", "labels are 0 to 9"),
    ("train", "--dataset cifar100 --data_path cifar_labels", "CIFAR-100 is not complete at cifar_labels"),
    (
        "train",
        "--dataset imagenet --network.binary false --data_path imagenet_no_val",
        "imagenet_no_val/val is not a folder",
        "give --data_path",
    ),
    (
        "train",
        "--dataset imagenet --network.binary false --data_path imagenet_empty_class",
        "train/class2 is empty",
        ".jpg, .jpeg, .png, .bmp",
    ),
    (
        "train",
        "--dataset imagenet --network.binary false --data_path imagenet_other_classes",
        "have different classes: class1 is in only one of them",
    ),
    (
        "train",
        "--dataset imagenet --network.binary false --data_path imagenet_flat",
        "holds no class folders",
        "val/CLASS/, one folder per class",
    ),
    (
        "train",
        "--dataset imagenet --network.binary false --data_path imagenet_broken_image --data.batch_size 2",
        "1 of 4 images cannot be decoded, first imagenet_broken_image/val/class1",
        "replace or delete them",
    ),
    (
        "train",
        "--dataset imagenet --network.binary false --data_path imagenet --download",
        "ImageNet cannot be downloaded: get it from image-net.org",
    ),
    # Checkpoints and run folders
    ("train", f"{ON_DIGITS} --init_checkpoint nowhere.ckpt", "the checkpoint nowhere.ckpt does not exist"),
    (
        "train",
        f"{ON_DIGITS} --init_checkpoint truncated.ckpt",
        "truncated.ckpt is a truncated checkpoint",
    ),
    (
        "train",
        f"{ON_DIGITS} --init_checkpoint other_network.ckpt",
        "other_network.ckpt does not fit this network",
        "unk",
    ),
    (
        "train",
        f"{ON_DIGITS} --network.binary false --init_checkpoint not_finite.ckpt",
        "not_finite.ckpt does not fit this network",
        "with values that are not finite (NaN or infinity): linear.weight",
    ),
    (
        "train",
        "--output_dir run",
        "run already holds a run: continue it with --resume run, or choose another --output_dir",
    ),
    ("train", f"{ON_DIGITS} --output_dir file/run", "cannot write in the folder file/run", "Not a directory"),
    ("train", f"{ON_DIGITS} --output_dir loop/run", "cannot write in the folder loop/run", "symbolic links"),
    ("train", f"{ON_DIGITS} --output_dir dangling", "cannot write in the folder dangling", "No such file"),
    ("train", f"{ON_DIGITS} --output_dir /proc/run", "cannot write in the folder /proc/run"),
    ("train", ("--output_dir", LONG), "cannot use xxx", "File name too long"),
    ("train", "--resume nowhere", "nowhere holds no run to resume: last.ckpt and config.yaml are expected in it"),
    ("train", "--resume file", "file holds no run to resume"),
    ("train", "--resume run/last.ckpt", "--resume is run/last.ckpt, a file: give the run's folder, --resume run"),
    ("train", "--resume run_without_config", "run_without_config holds no run to resume"),
    (
        "train",
        "--resume run --optimizer.lr 0.2",
        "optimizer.lr cannot change when a run is resumed; only data.download",
        "start a new run from its weights: --init_checkpoint",
    ),
    ("train", "--resume run --config twice.yaml", "--config cannot change when a run is resumed"),
    ("train", "--resume run_of_laughs", "run_of_laughs/config.yaml is not valid YAML", "alias *a is not supported"),
    ("train", "--resume run_of_text", "run_of_text/last.ckpt is not a MindSpore checkpoint"),
    ("train", "--resume run_of_weights", "run_of_weights/last.ckpt holds only weights", "use --init_checkpoint"),
    # Evaluation
    ("eval", "", "give either --checkpoint or --model"),
    ("eval", "--checkpont x", "--checkpoint"),
    ("eval", "--checkpoint ''", "--checkpoint is empty, but must have a value"),
    ("eval", "--checkpoint nowhere.ckpt", "the checkpoint nowhere.ckpt does not exist"),
    ("eval", ("--checkpoint", "no\nwhere.ckpt"), r"the checkpoint no\nwhere.ckpt does not exist"),
    ("eval", ("--checkpoint", LONG), "cannot read the checkpoint xxx", "File name too long"),
    ("eval", "--checkpoint folder.ckpt", "the checkpoint folder.ckpt is not a file"),
    ("eval", "--checkpoint loop.ckpt", "the checkpoint loop.ckpt does not exist"),
    ("eval", "--checkpoint dangling.ckpt", "the checkpoint dangling.ckpt does not exist"),
    ("eval", "--checkpoint zero_bytes.ckpt", "the checkpoint zero_bytes.ckpt is empty"),
    ("eval", "--checkpoint zeros.ckpt", "zeros.ckpt is not a MindSpore checkpoint"),
    ("eval", "--checkpoint flipped.ckpt", "flipped.ckpt is truncated or damaged: its checksum does not fit"),
    ("eval", "--checkpoint text.ckpt", "text.ckpt is not a MindSpore checkpoint"),
    ("eval", "--checkpoint image.ckpt", "image.ckpt is not a MindSpore checkpoint"),
    ("eval", "--checkpoint 'ä b/truncated.ckpt'", "ä b/truncated.ckpt is a truncated checkpoint"),
    ("eval", "--checkpoint foreign_texts.ckpt", "foreign_texts.ckpt is damaged, or not a checkpoint of this project"),
    ("eval", "--checkpoint foreign_config.ckpt", "its config: it lacks the section 'network'"),
    ("eval", "--checkpoint other_classes.ckpt --dataset digits", "does not fit this network"),
    (
        "eval",
        "--checkpoint other_classes.ckpt --dataset digits --network.binary false",
        "linear.weight (7, 64) (the network has (10, 64))",
    ),
    ("eval", "--checkpoint sound.ckpt --num-classes 12", "linear.weight (10, 64) (the network has (12, 64))"),
    ("eval", "--checkpoint sound.ckpt --num-classes 5", "--num_classes is 5, but digits has 10 classes"),
    ("eval", "--checkpoint sound.ckpt --num-classes 0", "--num_classes is 0, but must be at least 1"),
    ("eval", "--checkpoint sound.ckpt --num-classes 1000000000", "num_classes is 1000000000", "from 1 to 100000"),
    ("eval", "--checkpoint sound.ckpt --num-classes ten", "--num_classes: invalid integer value: 'ten'"),
    ("eval", "--checkpoint sound.ckpt --smoothing 2", "--smoothing is 2.0, but must be at least 0 and less than 1"),
    ("eval", "--checkpoint sound.ckpt --smoothing nan", "--smoothing is nan, but must be at least 0 and less than 1"),
    (
        "eval",
        "--checkpoint sound.ckpt --image_size 1000000",
        "data.image_size is 1000000, but must be less than or equal to 1024",
    ),
    ("eval", "--checkpoint sound.ckpt -b 0", "data.batch_size is 0, but must be greater than or equal to 1"),
    ("eval", "--checkpoint sound.ckpt -b 1000000000", "data.batch_size is 1000000000, but must be less than"),
    ("eval", "--checkpoint sound.ckpt --device_target GPU", "device GPU is not available here"),
    ("eval", "--checkpoint sound.ckpt --dataset cifar10 --data_path nowhere", "CIFAR-10 is not complete at nowhere"),
    (
        "eval",
        "--checkpoint sound.ckpt --dataset imagenet --data_path imagenet",
        "sound.ckpt was trained on 10 classes, and the data set in imagenet has 4; the classes differ: class 0 is 0 in",
    ),
    # Export; what its child process refuses is in AS_PROCESS
    ("export", "", "the following arguments are required: --checkpoint"),
    ("export", "--checkpoint nowhere.ckpt", "the checkpoint nowhere.ckpt does not exist"),
    ("export", "--checkpoint sound.ckpt --file_format TFLITE", "invalid choice: 'TFLITE'", "MINDIR"),
    ("export", "--checkpoint sound.ckpt --batch_size 0", "--batch_size is '0', but must be dynamic or a whole number"),
    ("export", "--checkpoint sound.ckpt --batch_size 1000000000", "--batch_size is '1000000000'", "from 1 to 1024"),
    ("export", ("--checkpoint", "sound.ckpt", "--batch_size", LONG.replace("x", "9")), "--batch_size is '999", "1024"),
    ("export", "--checkpoint sound.ckpt --batch_size many", "--batch_size is 'many'"),
    ("export", "--checkpoint sound.ckpt --num-classes 0", "--num_classes is 0, but must be at least 1"),
    ("export", "--checkpoint sound.ckpt --output file/net", "cannot write in the folder file", "Not a directory"),
    ("export", "--checkpoint sound.ckpt --output loop/net", "cannot write in the folder loop", "symbolic links"),
    ("export", "--checkpoint sound.ckpt --output ''", "--output is empty, but must have a value"),
    ("export", "--checkpoint sound.ckpt --network.binary maybe", "network.binary is 'maybe', but must be true or"),
    (
        "export",
        "--checkpoint sound.ckpt --float_weights float16",
        "--float_weights float16 goes with --file_format OPENVINO",
    ),
    ("export", "--checkpoint sound.ckpt --float_weights int8", "invalid choice: 'int8'", "float16"),
    # Prediction: arguments
    ("predict", "", "the following arguments are required: --model"),
    ("predict", "--model net.xml", "required: IMAGE|DIR|-"),
    ("predict", "--model net.xml image.png --top 0", "--top is 0, but must be at least 1"),
    ("predict", "--model net.xml image.png --top 1_0", "--top: invalid integer value: '1_0'"),
    ("predict", "--model net.xml image.png --batch_size 0", "--batch_size is 0, but must be from 1 to 1024"),
    ("predict", "--model net.xml image.png --batch-size 9999", "--batch_size is 9999, but must be from 1 to 1024"),
    ("predict", "--model net.xml image.png --num_classes -1", "--num_classes is -1, but must be at least 1"),
    ("predict", "--model net.xml image.png --csv nowhere/x.csv", "cannot write", "nowhere"),
    ("predict", "--model net.xml image.png --csv file/x.csv", "cannot write in the folder file", "Not a directory"),
    ("predict", "--model net.xml image.png --csv ''", "--csv is empty, but must have a value"),
    ("predict", "--model net.xml image.png --csv empty", "cannot write empty: it is a folder"),
    ("predict", "--model net.xml image.png --topk 3", "unrecognized arguments: --topk 3"),
    ("predict", "--model net.xml image.png --device_target TPU", "invalid choice: 'TPU'", "Ascend"),
    # Models that are not there, or of no known kind
    ("predict", "--model '' image.png", "--model is empty, but must have a value"),
    ("predict", "--model nowhere.onnx image.png", "the model nowhere.onnx does not exist"),
    ("predict", "--model folder.onnx image.png", "the model folder.onnx is a folder: give a file"),
    ("predict", ("--model", "a\0b.onnx", "image.png"), r"cannot read the model a\x00b.onnx: embedded null byte"),
    ("predict", ("--model", LONG, "image.png"), "cannot read the model xxx", "File name too long"),
    ("predict", "--model loop image.png", "cannot read the model loop: Too many levels of symbolic links"),
    ("predict", "--model dangling image.png", "the model dangling does not exist"),
    (
        "predict",
        "--model net image.png",
        "net is not a model by its name, which ends in nothing: known are .ckpt, .safetensors, .mindir",
    ),
    ("predict", "--model net.ms image.png", "net.ms.json is missing: export.py writes it next to a model"),
    (
        "predict",
        "--model lite.ms image.png",
        "lite.ms cannot be read as LITE: ",
        "has no MindSpore Lite: docs/ascend.md",
    ),
    ("predict", "--model net.h5 image.png", "net.h5 is not a model by its name, which ends in .h5: known are .ckpt"),
    ("predict", "--model net.air image.png", "no runtime here reads AIR files: give an ONNX or OpenVINO file"),
    ("predict", "--model net.bin image.png", "net.bin holds the weights of a model: give net.xml"),
    ("predict", "--model image.png image.png", "image.png is not a model by its name, which ends in .png"),
    ("predict", "--model text.ckpt image.png", "text.ckpt is not a MindSpore checkpoint"),
    ("predict", "--model truncated.ckpt image.png", "truncated.ckpt is a truncated checkpoint"),
    # Descriptions
    ("predict", "--model without_json.onnx image.png", "without_json.onnx.json is missing", "export the model again"),
    ("predict", "--model empty_json.onnx image.png", "empty_json.onnx.json does not describe a model: Invalid JSON"),
    ("predict", "--model text_json.onnx image.png", "text_json.onnx.json does not describe a model: Invalid JSON"),
    ("predict", "--model list_json.onnx image.png", "does not describe a model: Input should be an object"),
    ("predict", "--model deep_json.onnx image.png", "deep_json.onnx.json does not describe a model: Invalid JSON"),
    ("predict", "--model no_keys.onnx image.png", "does not describe a model: format: Field required; export it again"),
    (
        "predict",
        "--model unknown_key.onnx image.png",
        "does not describe a model: kind: Extra inputs are not permitted",
    ),
    ("predict", "--model version_2.onnx image.png", "does not describe a model: version: Input should be 1"),
    ("predict", "--model divisor_1.onnx image.png", "does not describe a model: divisor: Input should be 255"),
    ("predict", "--model nearest.onnx image.png", "resize: filter: Input should be 'Pillow bilinear'"),
    ("predict", "--model layout.onnx image.png", "input: layout: Input should be 'NCHW' or 'NHWC'"),
    ("predict", "--model larger.onnx image.png", "input.shape: (3, 9, 9), but images are 8 pixels wide"),
    ("predict", "--model one_channel.onnx image.png", "input.shape: (1, 8, 8), but images are 8 pixels wide"),
    ("predict", "--model no_images.onnx image.png", "input: batch_size: Input should be greater than or equal to 1"),
    ("predict", "--model many_names.onnx image.png", "output.classes: 3, but 4 are named"),
    ("predict", "--model five_classes.onnx image.png", "five_classes.onnx gives logits (1, 4)", "names 5 classes"),
    ("predict", "--model no_std.onnx image.png", "does not describe a model: std: not an allowed field or value"),
    ("predict", "--model text_mean.onnx image.png", "does not describe a model: mean: Input should be a valid"),
    ("predict", "--model both_sizes.onnx image.png", "both_sizes.onnx cannot be run: ", "8"),
    (
        "predict",
        "--model other_hash.onnx image.png",
        "other_hash.onnx is not the file that other_hash.onnx.json describes",
    ),
    ("predict", "--model no_hash.onnx image.png", "it has a SHA-256 for no file, but ONNX has .onnx"),
    ("predict", "--model other_suffix.onnx image.png", "it has a SHA-256 for .xml, but ONNX has .onnx"),
    ("predict", "--model half_described.xml image.png", "it has a SHA-256 for .xml, but OPENVINO has .bin, .xml"),
    ("predict", "--model billions.onnx image.png", "output: classes: Input should be less than or equal to 100000"),
    ("predict", "--model large_batch.onnx image.png", "input: batch_size: Input should be less than or equal to 1024"),
    ("predict", "--model other_rule.onnx image.png", "resize.shorter_side: 999, but preprocessing has 10"),
    ("predict", "--model unknown_format.onnx image.png", "does not describe a model: format: TFLITE is unknown"),
    ("predict", "--model json_is_a_pipe.onnx image.png", "does not describe a model: it is not a file"),
    ("predict", "--model not_finite.onnx image.png", "not_finite.onnx gives logits that are not finite"),
    ("predict", "--model UP.ONNX image.png", "UP.ONNX is not a model by its name, which ends in .ONNX"),
    ("predict", "--model path_as_suffix.onnx image.png", "does not describe a model: sha256: /../net.xml"),
    ("predict", "--model other_format.onnx image.png", "OPENVINO has .bin, .onnx"),
    # Model files
    ("predict", "--model not_onnx.onnx image.png", "not_onnx.onnx cannot be read as ONNX: "),
    ("predict", "--model onnx_of_0_bytes.onnx image.png", "onnx_of_0_bytes.onnx cannot be read as ONNX: "),
    ("predict", "--model stale.onnx image.png", "stale.onnx is not the file that stale.onnx.json describes (SHA-256)"),
    ("predict", "--model without_bin.xml image.png", "cannot read without_bin.bin: No such file or directory"),
    ("predict", "--model other_bin.xml image.png", "other_bin.bin is not the file that other_bin.xml.json describes"),
    ("predict", "--model onnx.xml image.png", "onnx.xml cannot be read as OPENVINO: "),
    ("eval", "--model net.onnx --checkpoint sound.ckpt", "give either --checkpoint or --model"),
    ("eval", "--model nowhere.onnx", "the model nowhere.onnx does not exist"),
    ("eval", "--model nowhere.ckpt", "the checkpoint nowhere.ckpt does not exist"),
    ("eval", "--model stale.onnx", "stale.onnx is not the file that stale.onnx.json describes (SHA-256)"),
    ("eval", "--model net.onnx --network.binary false", "--network.binary goes with a checkpoint"),
    ("eval", "--model net.onnx --num_classes 9 --data_path imagenet", "the classes differ: class 0 is ant"),
    ("eval", "--model net.onnx --dataset digits", "trained on 4 classes, and the data set in", "has 10"),
    ("eval", "--checkpoint pretrained:x", "there are no pretrained weights 'x': there are resnet20_digits"),
    (
        "export",
        "--checkpoint pretrained:resnet20",
        "no weights are the default of resnet20: give a name, resnet20_digits",
    ),
    ("predict", "--model pretrained: image.png", "there are no pretrained weights '': there are resnet20_digits"),
    # Conversion and cards
    ("convert", "", "required: FROM, TO"),
    ("convert", "nowhere.ckpt x.safetensors", "the checkpoint nowhere.ckpt does not exist"),
    ("convert", "sound.ckpt x.npz", "x.npz must end in .ckpt or .safetensors"),
    ("convert", "sound.ckpt file/x.safetensors", "cannot write in the folder file", "Not a directory"),
    ("convert", "truncated.ckpt x.safetensors", "truncated.ckpt is a truncated checkpoint"),
    ("convert", "text.safetensors x.ckpt", "text.safetensors is not a safetensors file, or it is truncated or damaged"),
    ("convert", "empty.safetensors x.ckpt", "empty.safetensors is empty"),
    ("card", "sound.ckpt --run run", "required: --command"),
    ("card", "nowhere.ckpt --run run --command x", "the checkpoint nowhere.ckpt does not exist"),
    ("card", "sound.ckpt --run run --command x", "run is not the folder of a run: it has no metrics.csv"),
    # The paper's studies
    ("paper", "", "the following arguments are required: NAME"),
    ("paper", "table6", "invalid choice: 'table6'", "table1"),
    ("paper", "table1 --seeds 0", "--seeds is '0', which is 0 seeds, but must be 1 to 1000"),
    ("paper", "table1 --seeds 5-3", "--seeds is '5-3', which is 0 seeds, but must be 1 to 1000"),
    ("paper", "table1 --jobs 0", "--jobs is 0, but must be at least 1"),
    ("paper", "table1 --jobs 999999", "--jobs is 999999, but this process may use "),
    ("paper", "check --epochs 3", "check trains nothing, so it does not take --train.epochs"),
    ("paper", "table1 --seeds 1000000000", "--seeds is '1000000000', which is 1000000000 seeds, but must be 1 to 1000"),
    ("paper", "table1 --seeds few", "--seeds is 'few', but must be a number of seeds"),
    ("paper", "table1 --epoch 3", "unknown argument '--epoch'", "did you mean --epochs?"),
    ("paper", "table1 --epochs 0", "train.epochs is 0, but must be greater than or equal to 1"),
    ("paper", "table1 --network.estimator ste", "--network.estimator cannot be given: the runs of table1 differ in it"),
    ("paper", "table1 --seed 3", "--seed cannot be given"),
    ("paper", "figure4 --schedules.n.n_p 3", "--schedules.n.n_p cannot be given"),
    ("paper", "table1 --data_path nowhere", "CIFAR-10 is not complete at nowhere"),
    ("paper", "table5 --data_path nowhere", "ImageNet is not complete at nowhere", "give --data_path"),
    ("paper", "table1 --dataset digits --data.batch_size 5000", "data.batch_size is 5000", "1437 training images"),
    ("paper", "table1 --dry-run --dataset cifar1000", "unknown data set 'cifar1000'; allowed are"),
    ("paper", "table5 --dry-run --dataset digits", "take images of 224x224, but those of digits are 32x32"),
    ("paper", "table1 --dataset digits --output_dir file/out", "cannot write in the folder file/out"),
    ("paper", "table1 --dataset digits --output_dir loop", "cannot write in the folder loop"),
    ("paper", "figure1 --epochs 3", "figure1 trains nothing, so it does not take --train.epochs"),
    ("paper", "figure1 --seeds 2", "figure1 trains nothing, so it does not take --seeds"),
    ("paper", "figure1 --output_dir file/out", "cannot make the folder file/out"),
    ("sine_module", "", "the following arguments are required: output"),
    ("sine_module", "''", "output is empty, but must have a value"),
    ("sine_module", ".", "cannot write .: it is a folder, give the name of a file"),
    ("sine_module", "empty", "cannot write empty: it is a folder, give the name of a file"),
    ("sine_module", "nowhere/x.png", "cannot write nowhere/x.png: No such file or directory"),
    ("sine_module", "file/x.png", "cannot write file/x.png: Not a directory"),
    ("sine_module", ("a\0b.png",), r"cannot write a\x00b.png: embedded null byte"),
    ("sine_module", (LONG,), "cannot write xxx", "File name too long"),
    # Summary
    ("summary", "", "the following arguments are required: NAME"),
    ("summary", "resnet19", "unknown network 'resnet19'", "allowed are alexnet"),
    ("summary", "resnet20 --fullprecision", "unrecognized arguments: --fullprecision"),
    ("summary", "resnet20 --input 0 32 32", "the input is 0 32 32, but must be three numbers of at least 1"),
    ("summary", "resnet20 --input 3 32 -1", "the input is 3 32 -1, but must be three numbers of at least 1"),
    ("summary", "resnet20 --input 0", "--input: expected 3 arguments"),
    ("summary", "resnet20 --input 3 100000 100000", "the input is 3 100000 100000", "a product of at most 3,145,728"),
    ("summary", "resnet20 --input 3000000 1 1", "in_channels is 3000000, but must be an integer from 1 to 1024"),
    ("summary", "resnet20 --num_classes 0", "--num_classes is 0, but must be at least 1"),
    ("summary", "resnet20 --num_classes 1000000000", "num_classes is 1000000000", "from 1 to 100000"),
    ("summary", "resnet20 --num_classes ten", "--num_classes: invalid integer value: 'ten'"),
    ("summary", "vgg_small --input 3 64 64", "the images are 64x64, but this network takes only 32x32"),
    ("summary", "resnet18_cifar --input 3 33 33", "does not take an input of 3x33x33", "multiples of 8"),
    # Several workers
    ("distribute", "--workers 0", "--workers is 0, but must be at least 1"),
    ("distribute", "--workers 1000000000", "--workers is 1000000000, but a machine has at most 256"),
    ("distribute", "--workers two", "--workers: invalid integer value: 'two'"),
    ("distribute", "--workers", "--workers: expected one argument"),
    ("distribute", "--device_target TPU", "invalid choice: 'TPU'", "'CPU', 'GPU', 'Ascend'"),
    ("distribute", "--master_port 80", "--master_port is 80, but must be 1024 to 65535"),
    ("distribute", "--master_port 70000", "--master_port is 70000, but must be 1024 to 65535"),
    ("distribute", "--master_port -1", "--master_port is -1, but must be 1024 to 65535"),
    ("distribute", "--master_port PORT", "--master_port is PORT, but something else listens there; choose another"),
    ("distribute", "--log_dir file", "--log_dir is file, but nothing can be written there"),
    ("distribute", "--log_dir file/logs", "--log_dir is file/logs, but nothing can be written there"),
    ("distribute", "--log_dir loop", "--log_dir is loop, but nothing can be written there"),
    ("distribute", "--log_dir ''", "--log_dir is empty, but must have a value"),
    ("distribute", "--workers 3 --nodes 2", "--workers is 3, but must be a multiple of 2 machines, such as 2 or 4"),
    ("distribute", "--nodes 0", "--nodes is 0, but must be at least 1"),
    (
        "distribute",
        "--nodes 2 --master_addr n0",
        "--node_rank is missing: there are 2 machines by --nodes, so give it, or set one of NODE_RANK",
    ),
    ("distribute", "--nodes 2 --node_rank 2 --master_addr n0", "--node_rank is 2, but must be 0 to 1"),
    ("distribute", "--nodes 2 --node_rank 0", "--master_addr is missing", "or set one of MASTER_ADDR"),
    ("distribute", "--nodes 2 --node_rank 0 --master_addr 127.0.0.1", "which other machines cannot reach"),
    ("distribute", "--node_rank 1", "--node_rank is 1, but there is one machine"),
    ("distribute", "--timeout 0", "--timeout is 0, but must be at least 1 second"),
    ("distribute", "--rank_table file", "--rank_table is file, which is not JSON"),
    ("distribute", "--rank_table nowhere", "--rank_table is nowhere, which cannot be read"),
    ("distribute", "--rank_table file --device_target CPU", "only Ascend has rank tables"),
    ("distribute", "--log_dir logs_in_use", "--log_dir is logs_in_use, where another run is writing"),
]

AS_PROCESS = [
    ("train", "--epochs -1", "train.epochs is -1, but must be greater than or equal to 1"),
    ("train", "--config laughs.yaml", "alias *a is not supported, write its value out"),
    ("train", "--config deep.yaml", "deep.yaml is not valid YAML: it is nested too deeply"),
    ("train", "--config /dev/zero", "/dev/zero is not a config: it has more than 100,000 bytes"),
    ("train", "--resume 'ä b'", "ä b holds no run to resume"),
    ("train", (b"--config", b"\xff\n.yaml"), r"cannot read the config \udcff\n.yaml: no such file"),
    ("train", f"{ON_DIGITS} --init_checkpoint truncated.ckpt", "truncated.ckpt is a truncated checkpoint"),
    ("train", f"{ON_DIGITS} --device_target GPU", "device GPU is not available here"),
    ("eval", "--checkpoint x.ckpt --smoothing 2", "--smoothing is 2.0, but must be at least 0 and less than 1"),
    ("eval", "--checkpoint image.ckpt", "image.ckpt is not a MindSpore checkpoint, or it is truncated or damaged"),
    ("export", "--checkpoint nowhere.ckpt", "the checkpoint nowhere.ckpt does not exist"),
    (
        "export",
        "--checkpoint sound.ckpt --file_format AIR --batch_size 1 --output out/net",
        "AIR files can be written only on a host with Ascend",
    ),
    ("export", "--checkpoint other_classes.ckpt --dataset digits --file_format ONNX", "does not fit this network"),
    ("predict", "--model stale.onnx image.png", "stale.onnx is not the file that stale.onnx.json describes (SHA-256)"),
    ("predict", "--model onnx.xml image.png", "onnx.xml cannot be read as OPENVINO: "),
    ("predict", "--model text.ckpt image.png", "text.ckpt is not a MindSpore checkpoint"),
    ("paper", "table6", "invalid choice: 'table6'"),
    ("paper", "table1 --data_path nowhere", "CIFAR-10 is not complete at nowhere"),
    ("sine_module", "nowhere/x.png", "cannot write nowhere/x.png: No such file or directory"),
    ("summary", "resnet20 --input 3 100000 100000", "the input is 3 100000 100000", "a product of at most 3,145,728"),
    ("run_standalone_train.sh", "--config unknown.yaml", "unknown key 'optimizer.wieght_decay' in unknown.yaml"),
    ("run_standalone_train.sh", "--output_dir ''", "--output_dir is empty, but must have a value"),
    ("run_standalone_train.sh", "--lr 0.1", "unknown argument '--lr'", "did you mean --optimizer.lr?"),
    ("run_eval.sh", "", "give either --checkpoint or --model"),
    ("run_export.sh", "--checkpoint 'ä b'", "the checkpoint ä b is a folder: give a file in it"),
    ("run_distribute_train.sh", "--workers 0", "--workers is 0, but must be at least 1"),
    ("run_distribute_train.sh", "--master_port PORT", "--master_port is PORT, but something else listens there"),
    ("run_distribute_train.sh", "--log_dir 'ä b/file'", "--log_dir is ä b/file, but nothing can be written there"),
]

CALLS = [
    (lambda: create_estimator("fdaa"), "unknown estimator 'fdaa' (did you mean 'fda'?); allowed are approx_sign"),
    (lambda: create_estimator(5), "unknown estimator 5; allowed are"),
    (lambda: create_estimator(""), "unknown estimator ''; allowed are approx_sign, clipped_ste, dsq, ede, fda, rbnn"),
    (lambda: create_estimator("ste", omega=0.1), "unknown option 'omega' of estimator 'ste'; allowed: none"),
    (lambda: create_estimator(None, omega=0.1), "options ['omega'] go with an estimator's name, not with None"),
    (lambda: create_estimator("fda", omga=0.1), "unknown option 'omga' of estimator 'fda' (did you mean 'omega'?)"),
    (lambda: create_estimator("fda", n=10**9), "n is 1000000000, but must be an integer from 0 to 1000"),
    (lambda: create_estimator("fda", n=-1), "n is -1, but must be an integer from 0 to 1000"),
    (lambda: create_estimator("fda", n=1.5), "n is 1.5, but must be an integer from 0 to 1000"),
    (lambda: create_estimator("fda", n=True), "n is True, but must be an integer"),
    (lambda: create_estimator("fda", omega=math.nan), "omega is nan, but must be a finite number greater than 0"),
    (lambda: create_estimator("fda", omega=10**400), "omega is 1000", "a finite number greater than 0"),
    (lambda: create_estimator("fda", omega=1e-300), "omega is 1e-300, but must be a finite number greater than 0"),
    (lambda: create_estimator("fda", omega="wide"), "omega is 'wide', but must be a finite number greater than 0"),
    (lambda: create_estimator("fda", clip=True), "clip is True, but must be None or a finite number"),
    (lambda: create_estimator("fda", clip=-1.0), "clip is -1.0, but must be None or a finite number greater than 0"),
    (lambda: create_estimator("fda", clip=math.nan), "clip is nan, but must be None or a finite number"),
    (lambda: create_estimator("swish_sign", beta=0), "beta is 0, but must be a finite number greater than 0"),
    (lambda: create_estimator("dsq", alpha=math.nan), "alpha is nan, but must be a number between 0 and 1"),
    (lambda: create_estimator("dsq", alpha=1), "alpha is 1, but must be a number between 0 and 1"),
    (lambda: create_estimator("ede", t_min=0), "t_min is 0, but must be a finite number greater than 0"),
    (
        lambda: create_estimator("ede", t_min=1.0, t_max=0.5),
        "t_max is 0.5, but must be a finite number of at least t_min, 1",
    ),
    (lambda: create_estimator("rbnn", t_max=math.inf), "t_max is inf, but must be a finite number"),
    (lambda: create_estimator("reste", o_end=0.5), "o_end is 0.5, but must be a finite number of at least 1"),
    (
        lambda: NoiseAdaptation(16, eta="sin"),
        "unknown eta 'sin' (did you mean 'sine'?); allowed are linear, none, sine",
    ),
    (lambda: NoiseAdaptation(0), "dimension is 0, but must be an integer of at least 1"),
    (lambda: NoiseAdaptation(2.5), "dimension is 2.5, but must be an integer of at least 1"),
    (lambda: NoiseAdaptation(16, reduction=0), "reduction is 0, but must be an integer of at least 1"),
    (lambda: NoiseAdaptation(16, amplitude=math.nan), "amplitude is nan, but must be a finite number"),
    (lambda: AnnealedNoise(NoiseAdaptation(16), alpha=math.nan), "alpha is nan, but must be a finite number"),
    (
        lambda: SignActivation("fda"),
        "estimator is 'fda', but must be an Estimator, as create_estimator('fda') makes it",
    ),
    (lambda: DoReFaWeight(None), "estimator is None, but must be an Estimator"),
    (
        lambda: LibraWeight(create_estimator("ste"), scale_in_gradient="no"),
        "scale_in_gradient is 'no', but must be True",
    ),
    (lambda: BinaryConv2d(0, 6, 3), "in_channels is 0, but must be an integer of at least 1"),
    (lambda: BinaryConv2d(4, -6, 3), "out_channels is -6, but must be an integer of at least 1"),
    (lambda: BinaryConv2d(4, 6, (3, 3)), "kernel_size is (3, 3), but must be an integer of at least 1"),
    (lambda: BinaryConv2d(4, 6, 3, stride=0), "stride is 0, but must be an integer of at least 1"),
    (lambda: BinaryConv2d(4, 6, 3, padding=-1), "padding is -1, but must be an integer of at least 0"),
    (lambda: BinaryConv2d(4, 6, 3, groups=3), "groups is 3, but must be a divisor of the channels 4 and 6"),
    (lambda: BinaryConv2d(4, 6, 3, groups=0), "groups is 0, but must be a divisor of the channels 4 and 6"),
    (lambda: BinaryConv2d(4, 6, 3, weight_init="he"), "unknown weight init 'he'", "allowed are he_normal, uniform"),
    (lambda: BinaryDense(0, 6), "in_channels is 0, but must be an integer of at least 1"),
    (lambda: BinaryDense(4, 6.0), "out_channels is 6.0, but must be an integer of at least 1"),
    (lambda: Binarization(estimator="fdaa").conv(4, 6, 3), "unknown estimator 'fdaa'"),
    (
        lambda: Binarization(weight_quantizer="dorfa").conv(4, 6, 3),
        "unknown weight quantizer 'dorfa' (did you mean 'dorefa'",
    ),
    (lambda: Binarization(estimator_options=0.1), "estimator_options is 0.1, but must be options by their names"),
    (lambda: Binarization(noise_options=[("eta", "sine")]), "noise_options is [('eta', 'sine')], but must be options"),
    (lambda: Binarization(noise_adaptation="no"), "noise_adaptation is 'no', but must be True or False"),
    (
        lambda: schedules.number_of_terms(4),
        "setting of n is 4, but must be one of 1, 2, 3",
    ),
    (lambda: schedules.number_of_terms(3, n_s=0), "n_s is 0, but must be an integer of at least 1"),
    (lambda: schedules.number_of_terms(2, n_p=1.5), "n_p is 1.5, but must be an integer of at least 1"),
    (lambda: schedules.cosine(math.nan), "start is nan, but must be a finite number"),
    (lambda: schedules.tabulate(schedules.cosine(0.1), 0), "steps is 0, but must be an integer of at least 1"),
    (
        lambda: schedules.attach(create_model("resnet20"), {}, None),
        "no schedule for 'n', which this network's layers follow",
    ),
    (lambda: create_model("resnet21"), "unknown network 'resnet21' (did you mean 'resnet2", "allowed are alexnet"),
    (lambda: create_model("resnet20", num_classes=0), "num_classes is 0, but must be an integer from 1 to 100000"),
    (lambda: create_model("resnet20", num_classes=10.0), "num_classes is 10.0, but must be an integer from 1"),
    (lambda: create_model("resnet20", num_classes=True), "num_classes is True, but must be an integer from 1"),
    (
        lambda: create_model("resnet20", num_classes=10**9),
        "num_classes is 1000000000, but must be an integer from 1 to 1000",
    ),
    (lambda: create_model("resnet20", in_channels=-3), "in_channels is -3, but must be an integer from 1 to 1024"),
    (lambda: create_model("resnet20", pretrained=True), "no weights are the default of resnet20", "resnet20_digits"),
    (lambda: create_model("alexnet", pretrained=True), "no pretrained weights 'alexnet': there are resnet20_digits"),
    (lambda: create_model("resnet20", pretrained="x"), "no pretrained weights 'x': there are resnet20_digits"),
    (lambda: create_model("resnet20", binarization="fda"), "binarization is 'fda', but must be a Binarization"),
    (lambda: create_model("resnet20", options=3), "options is 3, but must be options by their names"),
    (
        lambda: create_model("resnet20", options={"prelu": False}),
        "unknown option 'prelu' of network 'resnet20'; allowed: none",
    ),
    (lambda: create_model("resnet18", options={"prelu": 1}), "prelu is 1, but must be true or false"),
    (
        lambda: Binarization(estimator_options={"omga": 1}),
        "unknown option 'omga'",
        "did you mean 'omega'",
    ),
    (lambda: Binarization(weight_estimator="sted"), "unknown estimator 'sted'"),
    (
        lambda: Binarization(weight_estimator_options={"omega": 1}),
        "go with a weight_estimator, and there is none",
    ),
    (lambda: Binarization(estimator=None, weight_quantizer="xnr"), "unknown weight quantizer 'xnr'"),
    (
        lambda: Binarization(weight_init="normal"),
        "unknown weight init 'normal' (did you mean 'he_normal'?)",
    ),
    (
        lambda: Binarization(noise_options={"eta": "sin"}, noise_adaptation=False),
        "unknown eta 'sin'",
    ),
    (
        lambda: Binarization(noise_options=3),
        "noise_options is 3, but must be options by their names",
    ),
    (lambda: mindspore_hub_conf.create_network("resnet"), "unknown network 'resnet'", "allowed are alexnet"),
    (
        lambda: mindspore_hub_conf.create_network("resnet20", num_classes=-1),
        "num_classes is -1, but must be an integer from 1 to 100000",
    ),
    (
        lambda: summarize(create_model("resnet20", binarization=Binarization.full_precision()), (1, 32, 32)),
        "the network does not take an input of 1x32x32",
    ),
    (
        lambda: summarize(create_model("resnet20", binarization=Binarization.full_precision()), (3, 10**5, 10**5)),
        "the input is 3 100000 100000",
        "product",
    ),
    (
        lambda: summarize(create_model("resnet20", binarization=Binarization.full_precision()), (32, 32)),
        "the input is 32 32, but must be three numbers",
    ),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return bad_files.write_all(tmp_path_factory.mktemp("bad"))


@pytest.fixture(scope="module")
def port(folder):
    """A port in use; and `logs_in_use` is a folder where another run writes."""
    (folder / "logs_in_use").mkdir()
    (folder / "logs_in_use/worker_0.log").write_text("of a run that goes on")
    with socket.create_server(("127.0.0.1", 0)) as server, (folder / "logs_in_use/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield str(server.getsockname()[1])


def content(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file, and the names of folders and links."""
    found = {}
    for path in folder.rglob("*"):
        stat = path.lstat()
        written = path.is_file() and stat.st_size > 0  # a lock file may be opened
        found[str(path)] = (stat.st_size, stat.st_mtime_ns) if written else (0, 0)
    return found


def words(arguments: str | tuple, port: str) -> list:
    if isinstance(arguments, tuple):
        return list(arguments)
    return shlex.split(arguments.replace("PORT", port))


def assert_one_sentence(stderr: str, stdout: str, says: tuple[str, ...], port: str) -> None:
    said = re.sub(r"[^\n]*\r[^\n]*\n?", "", re.sub(MINDSPORE_AT_EXIT, "", stderr))  # without a progress bar
    assert said.startswith("error: ") and said.endswith("\n") and said.count("\n") == 1, stderr
    assert len(said) < 1000
    assert "Traceback" not in stdout
    for text in says:
        assert text.replace("PORT", port) in said


def rows(table: list[tuple]) -> pytest.MarkDecorator:
    ids = [f"{program}: {says[0]}" for program, _, *says in table]
    return pytest.mark.parametrize(("program", "arguments", "says"), [(d, a, tuple(s)) for d, a, *s in table], ids=ids)


@rows(IN_PROCESS)
def test_a_program_refuses_at_once_in_one_sentence(program, arguments, says, folder, port, monkeypatch, capfd):
    def forbidden(*arguments, **options):
        pytest.fail("bad input got as far as something expensive")

    main = importlib.import_module(MAINS[program]).main
    before = content(folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Trainer, "fit", forbidden)
    monkeypatch.setattr(nn.Cell, "compile", forbidden)
    monkeypatch.setattr(subprocess, "Popen", forbidden)
    code = cli.run(main, words(arguments, port))
    captured = capfd.readouterr()
    assert code == 2, captured.err
    assert_one_sentence(captured.err, captured.out, says, port)
    assert content(folder) == before


@rows(AS_PROCESS)
def test_a_program_refuses_as_a_process(program, arguments, says, folder, port):
    before = content(folder)
    done = run(program, words(arguments, port), folder)
    assert done.returncode == 2, done.stderr
    assert_one_sentence(done.stderr, done.stdout, says, port)
    assert content(folder) == before


@pytest.mark.parametrize(("call", "says"), [(call, says) for call, *says in CALLS], ids=[row[1] for row in CALLS])
def test_a_call_refuses_in_one_sentence(call, says):
    with pytest.raises((ValueError, TypeError)) as refusal:
        call()
    message = str(refusal.value)
    assert "\n" not in message
    for text in says:
        assert text in message


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("train", "--epochs -1 --traceback"),
        ("run_eval.sh", "--checkpoint sound.ckpt --smoothing 2 --traceback"),
        ("export", "--checkpoint text.ckpt --file_format MINDIR --traceback"),
    ],
)
def test_a_traceback_comes_before_the_sentence_when_asked_for(program, arguments, folder):
    done = run(program, shlex.split(arguments), folder)
    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")


def run(program: str, arguments: list, folder: Path) -> subprocess.CompletedProcess:
    """The finished process, which had at most `BYTES` of memory."""
    return subprocess.run(
        [*PROCESSES[program], *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=processes.PATIENCE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHON": sys.executable},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES)),
    )
