from __future__ import annotations

from dataclasses import replace

import pytest

from tests.fakes import tiny_denoiser_config
from training.world.half_lives import log_half_lives, tell_half_lives
from worldsim.model.denoiser import Denoiser


def test_half_lives_are_logged_for_all_heads_and_for_each_layer() -> None:
    config = replace(tiny_denoiser_config(), num_heads=4, half_lives=[4.0, 256.0])
    values = log_half_lives(Denoiser(config))
    layers = {name.split("_p")[0] for name in values}
    assert layers == {"half_life", "half_life/layer_00", "half_life/layer_02"}  # layer 1 is a window layer
    assert values["half_life/layer_02_p50"] == pytest.approx(40.0, rel=1e-4)  # of 4, 16, 64 and 256
    assert values["half_life/layer_02_p10"] == pytest.approx(4 + 0.3 * 12, rel=1e-4)
    assert values["half_life_p90"] == pytest.approx(256.0, rel=1e-4)


def test_a_model_without_hybrid_layers_has_no_half_lives() -> None:
    config = tiny_denoiser_config(is_teacher=True)
    assert log_half_lives(Denoiser(config)) == {}
    assert tell_half_lives({"data": "some"}, Denoiser(config)) == {"data": "some"}


def test_a_card_tells_the_half_lives_of_now() -> None:
    config = tiny_denoiser_config()
    config.half_lives = [8.0, 8.0]
    before = tell_half_lives({"data": "some"}, Denoiser(config))
    assert before["memory"]["half-lives of layer 2"] == "median 8 frames, p10 8, p90 8"
    config.half_lives = [16.0, 16.0]
    after = tell_half_lives(before, Denoiser(config))
    assert after["data"] == "some"
    assert set(after["memory"].values()) == {"median 16 frames, p10 16, p90 16"}
