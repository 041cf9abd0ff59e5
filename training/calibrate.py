"""Calibration of a finished world's ends on frames that it draws itself: `python -m training.calibrate`.

Writes a new world: the same weights with another `outcome`, of which its card tells.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from training.cli.entry import entry
from training.engine.lock import locked_folder
from training.engine.train_world import add_provenance
from training.outcomes.calibrate_world import (
    CalibrationConfig,
    calibrate_ends,
    load_simulator,
    open_recordings,
)
from worldsim.settings import REQUIRED, setting
from worldsim.world.rewrite import check_described, save_described


@dataclass(kw_only=True, slots=True)
class HeldoutConfig:
    """Dataset folders of episodes that the world has not learned from."""

    heldout: list[str] = setting(
        REQUIRED, "Episodes with rewards and ends that the world has not learned from; some must end."
    )


@dataclass(kw_only=True, slots=True)
class CalibrateConfig(CalibrationConfig):
    """Settings of `python -m training.calibrate`."""

    data: HeldoutConfig = setting(lambda: HeldoutConfig(heldout=[]), "Recorded play.")


@entry("calibrate", CalibrateConfig)
def main(config: CalibrateConfig) -> None:
    """Predict the outcomes of held-out episodes, fit their calibration, write the world."""
    simulator = load_simulator(config)
    world, out = simulator.world, Path(config.out)
    check_described(world, out)
    with locked_folder(out, is_new=True):
        recordings = open_recordings(config, simulator, config.data.heldout)
        after, entry = calibrate_ends(config, simulator, recordings)
        provenance = add_provenance(world.config.provenance, "calibration", entry)
        save_described(world, replace(world.config, outcome=after, provenance=provenance), out)
    print(f"\nworld in {out}")


if __name__ == "__main__":
    main()
