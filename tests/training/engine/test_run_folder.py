"""A run's folder tells which settings a run may go on with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from training.data.latents import DataConfig
from training.engine.fabric import FabricConfig, make_fabric
from training.engine.run_folder import RunFolder
from training.world.train import PretrainConfig
from worldsim.errors import WorldError


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
