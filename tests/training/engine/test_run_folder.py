"""A run's folder tells which settings a run may go on with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from training.data.latents import DataConfig
from training.engine.fabric import FabricConfig, make_fabric
from training.engine.run_folder import RunFolder
from training.world.settings import PretrainConfig
from worldsim.errors import WorldError


def test_a_run_from_before_a_setting_goes_on_with_its_default(tmp_path: Path) -> None:
    config = PretrainConfig(out="run", codec="doom-rooms", data=DataConfig(train=["a"], heldout=["b"]))
    begun = RunFolder(tmp_path, config)
    begun.check_inputs(make_fabric(config.fabric, tmp_path), 1, train="one")
    (begun.checkpoints / "step-00000002").touch()
    del begun
    settings = json.loads((tmp_path / "run.json").read_text())
    del settings["model"]["recycled"]
    (tmp_path / "run.json").write_text(json.dumps(settings))
    RunFolder(tmp_path, config)
    otherwise = replace(config, model=replace(config.model, recycled=True))
    with pytest.raises(WorldError, match=r"other settings \(model.recycled was False and is True\)"):
        RunFolder(tmp_path, otherwise)


@pytest.mark.parametrize(
    "changed", [FabricConfig(compile=True), FabricConfig(devices="2", strategy="fsdp", caches="elsewhere")]
)
def test_a_run_goes_on_where_only_rounding_differs(tmp_path: Path, changed: FabricConfig) -> None:
    """A run of one device that begins without compiling may go on with `fabric=ddp`, which compiles."""
    config = PretrainConfig(
        out="run", codec="doom-rooms", data=DataConfig(train=["a"], heldout=["b"]), fabric=FabricConfig()
    )
    begun = RunFolder(tmp_path, config)
    begun.check_inputs(make_fabric(config.fabric, tmp_path), 1, train="one")
    (begun.checkpoints / "step-00000002").touch()
    del begun
    RunFolder(tmp_path, replace(config, fabric=changed))
    with pytest.raises(WorldError, match=r"other settings \(fabric.precision was auto and is 32-true\)"):
        RunFolder(tmp_path, replace(config, fabric=replace(changed, precision="32-true")))
