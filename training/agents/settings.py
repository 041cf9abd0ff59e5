"""The settings of `training.rl`: how an agent is trained, measured and watched."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from worldsim.errors import WorldError
from worldsim.runtime.cores import check_workers
from worldsim.runtime.cuda_graphs import COMPILE_MODES

MODES, ENVS = ("train", "evaluate", "watch"), ("dream", "real", "both")
MAX_DREAMS = 65_536
LARGEST_SEED = 1_000_000_000
"""Below those of evaluations, however many environments and steps are added to it."""
NUM_EVALUATIONS = 2**32 - 4_000_000_000
"""Seeds that no training and no recording ever draws: of a game's 32 bits, evaluations own the last ones."""
UPDATE_STEPS, LEAST_STEPS = 2_048, 8


@dataclass(kw_only=True, slots=True)
class PPOConfig:
    """How the agent learns; names as in Stable-Baselines3.

    Attributes:
        n_steps: Steps of each environment between two updates; 0 is as many as make 2,048 of all together,
            but at least 8.
        batch_size: Steps that a gradient is computed from.
        n_epochs: How often an update goes through all steps.
        learning_rate: At the beginning; it falls to 0 on the way to the end.
        gamma: Weight of a reward a step later.
        gae_lambda: Of the generalised advantage estimate.
        clip_range: How far the probability of an action may move in an update, as a share.
        ent_coef: Weight of the entropy.
        vf_coef: Weight of the value's loss.
        max_grad_norm: Largest norm of the gradient.
        reward_scale: What the game's rewards are multiplied by before anything is learned from them.
    """

    n_steps: int = 0
    batch_size: int = 256
    n_epochs: int = 4
    learning_rate: float = 3e-4
    gamma: float = 0.98
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    ent_coef: float = 0.01
    vf_coef: float = 0.5
    max_grad_norm: float = 0.5
    reward_scale: float = 0.01

    def __post_init__(self) -> None:
        for name, least in (("n_steps", 0), ("batch_size", 2), ("n_epochs", 1)):
            if getattr(self, name) < least:
                raise WorldError(f"ppo.{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_range", "max_grad_norm", "reward_scale"):
            if not 0 < getattr(self, name) < math.inf:
                raise WorldError(f"ppo.{name} must be above 0, got {getattr(self, name)}")
        for name in ("ent_coef", "vf_coef"):
            if not 0 <= getattr(self, name) < math.inf:
                raise WorldError(f"ppo.{name} must be at least 0, got {getattr(self, name)}")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise WorldError(f"ppo.{name} must lie in [0, 1], got {getattr(self, name)}")

    def steps_of(self, num_envs: int) -> int:
        """Return how many steps each of N environments makes between two updates."""
        return self.n_steps or max(LEAST_STEPS, UPDATE_STEPS // num_envs)


@dataclass(kw_only=True, slots=True)
class RLConfig:
    """What to do with which agent; `conf/rl.yaml` says what each setting means."""

    mode: str = "train"
    env: str = "dream"
    world: str = "doom-take-cover"
    out: str | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str = "auto"
    compile: str = "auto"
    threads: int = 0
    num_envs: int = 0
    max_episode_steps: int = 1050
    action_repeat: int = 8
    denoising_steps: int | None = None
    noise_scale: float | None = None
    starts: str | None = None
    num_starts: int = 256
    context_frames: int = 32
    total_steps: int = 10_000_000
    max_minutes: float = 0.0
    checkpoint_minutes: float = 3.0
    ppo: PPOConfig = field(default_factory=PPOConfig)
    policy: str = "ppo"
    policies: list[str] = field(default_factory=list)
    policy_folder: str | None = None
    deterministic: bool = True
    period_frames: int = 120
    episodes: int = 100
    num_workers: int = 0
    steps: int = 0
    headless: bool | None = None
    record: str | None = None
    scale: int = 0

    def __post_init__(self) -> None:
        for name, known in (("mode", MODES), ("env", ENVS)):
            if getattr(self, name) not in known:
                raise WorldError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")
        if self.env == "both" and self.mode != "evaluate":
            raise WorldError(f"env=both is of mode=evaluate, got mode={self.mode}")
        if self.mode == "evaluate" and self.seed + self.episodes > NUM_EVALUATIONS:
            given = f"{self.seed} + {self.episodes}"
            raise WorldError(f"seed + episodes must be at most {NUM_EVALUATIONS}, got {given}")
        if self.compile not in COMPILE_MODES:
            raise WorldError(f"compile must be one of {', '.join(COMPILE_MODES)}, got {self.compile!r}")
        for name, least in (
            ("seed", 0),
            ("threads", 0),
            ("num_envs", 0),
            ("max_episode_steps", 1),
            ("action_repeat", 1),
            ("num_starts", 1),
            ("context_frames", 1),
            ("total_steps", 1),
            ("max_minutes", 0),
            ("checkpoint_minutes", 0),
            ("period_frames", 2),
            ("episodes", 1),
            ("num_workers", 0),
            ("steps", 0),
            ("scale", 0),
        ):
            if not least <= getattr(self, name) < math.inf:
                raise WorldError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("threads", "num_workers"):
            check_workers(getattr(self, name), name)
        if self.env == "real":
            check_workers(self.num_envs, "num_envs")
        if self.num_envs > MAX_DREAMS:
            raise WorldError(f"num_envs must be at most {MAX_DREAMS}, got {self.num_envs}")
        if self.seed >= LARGEST_SEED:
            raise WorldError(f"seed must be below {LARGEST_SEED}, got {self.seed}")
