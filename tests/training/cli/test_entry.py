"""Commands end as they were asked to: by signals as by Ctrl-C, with the code that shells expect."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from tests.public_runs import run_command
from training.cli.entry import describe_error
from training.cli.help import command_help
from training.codec import TrainCodecConfig, main
from training.collect import main as collect
from training.convert import main as convert
from training.evaluate import main as evaluate
from training.rl import main as rl
from worldsim.runtime.interrupt import Stopped, raising_interrupt

ROOT = Path(__file__).resolve().parents[3]
WAITING = """\
import sys, time
from dataclasses import dataclass
from training.cli.entry import entry

@dataclass(kw_only=True, slots=True)
class Config:
    out: str = "nowhere"

@entry("waiting", Config)
def main(config: Config) -> None:
    try:
        print("begun", flush=True)
        time.sleep(60)
    finally:
        print("put away", flush=True)

main()
"""


def stopped(tmp_path: Path, *numbers: signal.Signals, ignored: bool = False) -> tuple[int, str]:
    """Send signals to a command that waits, and return its exit status and what it wrote."""
    (tmp_path / "waiting.yaml").write_text("defaults: [waiting_schema, _self_]\n")
    code = f"import training.cli.entry as e, pathlib; e.CONFIG_FOLDER = pathlib.Path({str(tmp_path)!r})\n"
    command = [sys.executable, "-c", code + WAITING]
    if ignored:
        command = ["nohup", *command]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "begun\n"
        for number in numbers:
            process.send_signal(number)
            time.sleep(0.05)
        text = process.communicate(timeout=20)[0]
    return process.returncode, text


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGTERM, "terminated"),
        (signal.SIGHUP, "the terminal is gone"),
    ],
)
def test_a_signal_ends_a_command_as_ctrl_c_does(tmp_path: Path, number: signal.Signals, said: str) -> None:
    status, text = stopped(tmp_path, number)
    assert status == 128 + number
    assert text == f"put away\n\n{said}\n"


def test_a_command_of_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    status, text = stopped(tmp_path, signal.SIGHUP, signal.SIGTERM, ignored=True)
    assert status == 128 + signal.SIGTERM
    assert "terminal" not in text


def test_a_second_signal_does_not_disturb_what_the_first_one_ends() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)]
    with raising_interrupt():
        with pytest.raises(Stopped):
            signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)] == before


@pytest.mark.parametrize("wanted", [None, "1"])
def test_processes_that_a_command_starts_show_tracebacks_only_where_it_does(
    wanted: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    if wanted:
        monkeypatch.setenv("HYDRA_FULL_ERROR", wanted)
    inherited: list[str | None] = []
    monkeypatch.setattr(main, "run", lambda _: inherited.append(os.environ.get("HYDRA_FULL_ERROR")))
    run_command("codec")
    assert inherited == [wanted]
    assert os.environ.get("HYDRA_FULL_ERROR") == wanted


@pytest.mark.parametrize("name", ["wrld", "loop.numsteps", "keys"])
def test_an_unknown_setting_is_named(name: str) -> None:
    """Also where another command has a group of that name."""
    with (
        initialize_config_dir(str(ROOT / "conf"), version_base="1.3"),
        pytest.raises(HydraException) as raised,
    ):
        compose("codec", overrides=[f"{name}=x"])
    assert describe_error(raised.value) == f"there is no setting '{name}' (--cfg job lists every setting)"


def test_an_unknown_key_of_a_mapping_is_named_with_the_mapping() -> None:
    assert callable(collect)  # its schema is known
    with (
        initialize_config_dir(str(ROOT / "conf"), version_base="1.3"),
        pytest.raises(HydraException) as raised,
    ):
        compose("collect", overrides=["shares={random:0.5,nobody:0.5}"])
    assert describe_error(raised.value).startswith("there is no setting 'shares.nobody'")


def test_help_says_what_each_setting_is() -> None:
    shown = command_help(main.run, "codec", TrainCodecConfig, ROOT / "conf")
    assert shown.startswith("Training of the frame autoencoder: `python -m training.codec`.\n")
    told = " ".join(shown.split())
    assert 'init="" Folder of a codec or a world, or the name of one that ships' in told, "of the file"
    assert "loop.warmup_steps=100 Updates over which the learning rate rises from 0." in told, "of the class"
    assert "fabric=gpu One GPU, the model compiled block by block." in told
    assert max(map(len, shown.splitlines())) <= 110


def test_every_setting_of_every_command_is_in_its_help() -> None:
    for name, command in {"evaluate": evaluate, "convert": convert, "rl": rl}.items():
        shown = command_help(command.run, name, command.config_class, ROOT / "conf")
        for setting in ("out=", "device=" if name != "convert" else "stage2.lora.rank="):
            assert f"\n  {setting}" in shown, (name, setting)
        if name == "convert":
            assert "\n  teacher=???" in shown


@pytest.mark.parametrize(
    ("name", "setting", "message"),
    [
        ("codec", "learning_rate=nan", "learning_rate must be a finite number, got nan"),
        ("codec", "learning_rate=-1", "learning_rate must be above 0 and finite, got -1"),
        ("codec", "loss.l1_weight=-1", "codec loss l1_weight must be at least 0 and finite, got -1"),
        ("codec", "loop.checkpoint_seconds=-1", "loop.checkpoint_seconds must be at least 0"),
        ("codec", f"loop.num_steps={10**30}", "loop.num_steps must be an integer of at most 64 bits"),
        ("codec", "data.max_frames=-1", "data.max_frames must be at least 0, got -1"),
        ("codec", "codec.latent_bound=inf", "codec.latent_bound must be a finite number, got inf"),
        ("codec", "fabric.num_nodes=0", "fabric.num_nodes must be at least 1, got 0"),
        ("pretrain", "optimizer.muon=-1", "optimizer.muon must be at least 0 and finite, got -1"),
        ("pretrain", "model.half_lives=[nan,4]", "model.half_lives.0 must be a finite number, got nan"),
        ("pretrain", f"batch_size={10**9}", "batch_size must be at most 65536, got 1000000000"),
        ("pretrain", "validation.num_steps=0", "denoising steps must be 1 to"),
        ("convert", "stage1.batch_size=0", "a stage's batch_size must be at least 1, got 0"),
        ("convert", "stage2.sequence_length=1", "a stage's sequence_length must be at least 2, got 1"),
        ("convert", "stage2.lora.alpha=0", "lora.alpha must be above 0 and finite, got 0"),
        ("rl", "ppo.ent_coef=-1", "ppo.ent_coef must be at least 0 and finite, got -1"),
        ("rl", "max_minutes=nan", "max_minutes must be a finite number, got nan"),
        ("collect", "shares.random=nan", "shares.random must be a finite number, got nan"),
        ("long_play", "seed=-1", "seed must be at least 0, got -1"),
    ],
)
def test_a_number_that_makes_no_sense_is_named_at_the_door(name: str, setting: str, message: str) -> None:
    command = importlib.import_module(f"training.{name}").main
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(name, overrides=[setting, *(["teacher=x"] if name == "convert" else [])])
    with pytest.raises(ValueError, match=re.escape(message)):
        command.convert(config)


def test_what_modules_log_is_still_heard_in_a_command(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import logging, sys\n"
        "log = logging.getLogger('worldsim.made_before')\n"
        "from training.finetune import main\n"
        "main.run = lambda config: log.error('heard')\n"
        f"sys.argv = ['finetune', 'init=doom-rooms', 'out={tmp_path / 'run'}']\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (0, "heard")


@pytest.mark.parametrize("options", [["--help"], ["--cfg", "job"]], ids=" ".join)
def test_what_nobody_reads_to_its_end_is_one_sentence(options: list[str]) -> None:
    command = [sys.executable, "-m", "training.codec", *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        errors = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert errors == "error: [Errno 32] Broken pipe\n"
